"""Calls with an idempotency key: run once, answered as often as they are made."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest
from rpc_support import outcome, virtual
from test_reconnect import WIRE, client, down, server

from echostream import ConfigurationError, Identity, RpcError, Session
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Status
from echostream.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidPayload,
    ResourceExhausted,
    Unavailable,
)
from echostream.rpc import keyed
from echostream.rpc.call import current_call
from echostream.rpc.keyed import Answer, First, KeyedAnswers
from echostream.testing import Impairment, QuicNetwork

HOLE = Impairment(blackhole=True)


class Shop:
    """Counts what it ran."""

    def __init__(self, duration: float = 0.0) -> None:
        self.ran: Counter[Any] = Counter()
        self.ended: Counter[Any] = Counter()
        self.duration = duration

    def serve(self) -> ServerBuilder:
        return server().handler("buy", self.buy).handler("fail", self.fail)

    async def buy(self, what: Any) -> list[Any]:
        self.ran[what] += 1
        current_call().response_metadata["order"] = str(sum(self.ran.values()))
        await asyncio.sleep(self.duration)
        self.ended[what] += 1
        return [what, sum(self.ran.values())]

    async def fail(self, status: int) -> None:
        self.ran["fail"] += 1
        if not status:
            raise ValueError("a text that stays here")
        raise RpcError("sold out", status=status, details={"left": 0}, metadata={"why": "sold"})


@virtual
async def test_the_same_key_gets_the_same_answer() -> None:
    shop = Shop()
    async with QuicNetwork() as network:
        await network.serve(shop.serve())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        told: list[dict[str, Any]] = [{}, {}, {}]
        first = await connected.request(
            "buy", "tea", idempotency_key="1", response_metadata=told[0]
        )
        again = await connected.request(
            "buy", "tea", idempotency_key="1", response_metadata=told[1]
        )
        other = await connected.request(
            "buy", "tea", idempotency_key="2", response_metadata=told[2]
        )
        assert (first, again, other) == (["tea", 1], ["tea", 1], ["tea", 2])
        assert told == [{"order": "1"}, {"order": "1"}, {"order": "2"}]
        misused = await outcome(connected.request("buy", "jam", idempotency_key="1"))
        assert isinstance(misused, InvalidPayload)
        for status in (Status.NOT_FOUND, Status.UNAVAILABLE, 0):
            key = f"fail {status}"
            errors = [
                await outcome(connected.request("fail", int(status), idempotency_key=key))
                for _ in range(2)
            ]
            for error in errors:
                assert isinstance(error, RpcError)
                assert error.status == (status or Status.INTERNAL)
                assert error.details == ({"left": 0} if status else None)
                assert error.metadata == ({"why": "sold"} if status else {})
        assert shop.ran["fail"] == 3


@virtual
async def test_two_at_once_run_once() -> None:
    shop = Shop(1.0)
    async with QuicNetwork() as network:
        await network.serve(shop.serve())
        connected = await network.connect(ClientBuilder(), up=WIRE, down=WIRE)
        calls = [
            asyncio.create_task(connected.request("buy", "tea", idempotency_key="1"))
            for _ in range(3)
        ]
        await asyncio.sleep(0.5)
        calls[0].cancel()  # the others wait still
        assert await calls[1] == await calls[2] == ["tea", 1]
        alone = asyncio.create_task(connected.request("buy", "jam", idempotency_key="2"))
        await asyncio.sleep(0.5)
        alone.cancel()
        await asyncio.sleep(2.0)
        assert (shop.ran["jam"], shop.ended["jam"]) == (1, 0), "cancelled with the last one"
        late = await outcome(connected.request("buy", "jam", idempotency_key="2"))
        assert isinstance(late, Cancelled)
        hasty = await outcome(connected.request("buy", "salt", idempotency_key="3", timeout=0.2))
        assert isinstance(hasty, DeadlineExceeded)
        assert isinstance(
            await outcome(connected.request("buy", "salt", idempotency_key="3")), Cancelled
        )
        assert shop.ran["salt"] == 1


@virtual
async def test_keys_of_one_client_are_not_those_of_another() -> None:
    shop = Shop()
    names = [Identity.ephemeral(name) for name in ("one", "two")]

    async def authenticate(session: Session, credentials: Any) -> None:
        return None

    async with QuicNetwork() as network:
        await network.serve(shop.serve().authenticate(authenticate))

        async def buy(identity: Identity | None) -> Any:
            builder = ClientBuilder().credentials(identity=identity)
            connected = await network.connect(builder, up=WIRE, down=WIRE)
            return await connected.request("buy", "tea", idempotency_key="1")

        found = [await buy(who) for who in (names[0], names[1], names[0], None, None)]
        assert [number for _, number in found] == [1, 2, 1, 3, 4]


def test_calls_with_a_key_over_many_losses(seed: int) -> None:
    """The path breaks again and again; every call is answered, and ran once."""
    chance = random.Random(seed)
    shop = Shop()
    answers: dict[int, Any] = {}

    async def buy(number: int) -> int:
        shop.ran[number] += 1
        await asyncio.sleep(chance.random() * 0.6)
        shop.ended[number] += 1
        return number

    async def one(connected: RpcClient, number: int) -> None:
        answers[number] = await outcome(
            connected.request("buy", number, idempotency_key=f"call {number}")
        )

    @virtual
    async def main() -> None:
        path = Impairment(delay=0.015, jitter=0.01, loss=0.03)
        async with QuicNetwork(seed=seed) as network:
            serving = server().handler("buy", buy).quic(keep_alive=0.5, idle_timeout=1.5)
            await network.serve(serving)
            connected = await network.connect(client(), up=path, down=path)
            async with asyncio.TaskGroup() as group:

                async def talk() -> None:
                    for number in range(400):
                        group.create_task(one(connected, number))
                        await asyncio.sleep(chance.random() * 0.05)

                group.create_task(talk())
                for _ in range(5):
                    await asyncio.sleep(chance.random())
                    network.impair(connected, up=HOLE, down=HOLE)
                    await down(connected)
                    network.impair(connected, up=path, down=path)
                    await connected.wait_connected()
            assert connected.link_statistics().unknown == 0
            assert connected.link_statistics().retried > 0

    main()
    assert answers == {number: number for number in range(400)}
    assert set(shop.ran.values()) == {1}
    assert set(shop.ended.values()) == {1}


@pytest.mark.parametrize("kills", [1, 4])
def test_after_a_kill_nothing_runs_twice(kills: int, seed: int) -> None:
    """The next server does not know what the one before it ran, and says so."""
    chance = random.Random(seed)
    ran: Counter[int] = Counter()
    ended: Counter[str] = Counter()

    async def work(number: int) -> int:
        ran[number] += 1
        await asyncio.sleep(chance.random() * 0.2)
        return number

    async def one(connected: RpcClient, number: int) -> None:
        answer = await outcome(connected.request("work", number, idempotency_key=str(number)))
        ended["ok" if answer == number else type(answer).__name__] += 1

    @virtual
    async def main() -> None:
        async with QuicNetwork(seed=seed) as network:
            running = await network.serve(server().handler("work", work).limits(calls=500))
            connected = await network.connect(client(), up=WIRE, down=WIRE)
            for kill in range(kills):
                async with asyncio.TaskGroup() as group:
                    for number in range(200):
                        group.create_task(one(connected, kill * 1000 + number))
                    await asyncio.sleep(chance.random() * 0.2)
                    await network.kill(running)
                    running = await network.serve(server().handler("work", work).limits(calls=500))

    main()
    assert sum(ended.values()) == kills * 200
    assert set(ended) <= {"ok", "Unavailable"}
    assert ended["Unavailable"]
    assert max(ran.values()) == 1


@virtual
async def test_a_key_is_never_early_data() -> None:
    """A recorded first packet would find a server that does not know the key."""
    confirmed: list[bool] = []

    async def buy(session: Session) -> None:
        confirmed.append(session._peer.dispatcher.gate.confirmed)

    async with QuicNetwork() as network:
        await network.serve(server().handler("buy", buy))
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        await asyncio.sleep(1.0)
        network.impair(connected, up=HOLE, down=HOLE)
        connected._peer.close()
        network.impair(connected, up=WIRE, down=WIRE)
        await down(connected)
        await connected.request("buy", idempotency_key="1")
        assert confirmed == [True]


@pytest.mark.parametrize("key", ["", "x" * 129, 5, b"key"])
def test_what_cannot_be_a_key(key: Any) -> None:
    @virtual
    async def main() -> None:
        async with QuicNetwork() as network:
            await network.serve(server())
            for builder in (client(), ClientBuilder()):
                connected = await network.connect(builder)
                with pytest.raises(ConfigurationError, match="idempotency_key"):
                    await connected.request("echo", 1, idempotency_key=key)

    main()


@pytest.mark.parametrize(
    "metadata",
    [
        {keyed.KEY: b"bytes"},
        {keyed.KEY: "x" * 200},
        {keyed.KEY: "a", keyed.RETRY: "text"},
        {keyed.KEY: "a", keyed.RETRY: b"short"},
        {keyed.KEY: "a", keyed.RETRY: bytes(100)},
    ],
)
def test_what_a_peer_cannot_mean(metadata: Any) -> None:
    @virtual
    async def main() -> None:
        async with QuicNetwork() as network:
            await network.serve(server())
            connected = await network.connect(ClientBuilder())
            refused = await outcome(connected.request("echo", 1, metadata=metadata))
            assert isinstance(refused, InvalidPayload)

    main()


# The memory alone.


def answering(answers: KeyedAnswers, ran: list[str]) -> Any:
    async def ask(key: str, *, first: First | None = None, size: int = 1) -> Answer:
        async def run() -> Answer:
            ran.append(key)
            return Answer(0, bytes(size))

        return await answers.answer(
            "client", key, b"digest", first, run, limit=None, lost=lambda: False
        )

    return ask


@virtual
async def test_what_is_kept_is_bounded_and_what_is_forgotten_is_not_run_again() -> None:
    ran: list[str] = []
    answers = KeyedAnswers()
    ask = answering(answers, ran)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyed, "KEPT", 10)
        for number in range(30):
            await ask(str(number))
            await asyncio.sleep(1.0)
        assert len(answers) <= 11
    # 29 is known; 3 had to give way, so nobody knows; 100 was first made after all that.
    assert ran.count("29") == 1
    await ask("29", first=First(5.0, answers.instance))
    assert ran.count("29") == 1
    with pytest.raises(Unavailable):
        await ask("3", first=First(27.0, answers.instance))
    await asyncio.sleep(30.0)
    await ask("100", first=First(15.0, answers.instance))
    assert ran.count("100") == 1
    with pytest.raises(Unavailable):
        await ask("101", first=First(15.0, b"another run"))
    with pytest.raises(Unavailable):
        await ask("102", first=First(keyed.KEPT_S, answers.instance))
    await asyncio.sleep(keyed.KEPT_S)
    await ask("100")
    assert ran.count("100") == 2, "after five minutes it is a new call"
    assert len(answers) == 1


@virtual
async def test_large_answers_are_told_once() -> None:
    ran: list[str] = []
    answers = KeyedAnswers()
    ask = answering(answers, ran)
    large = keyed.MAX_ANSWER + 1
    assert len((await ask("a", size=large)).payload) == large
    assert (await ask("a")).status == Status.UNAVAILABLE
    for number in range(100):
        await ask(str(number), size=keyed.MAX_ANSWER - 100)
    assert answers._bytes <= keyed.KEPT_BYTES + keyed.MAX_ANSWER + keyed.ENTRY_OVERHEAD
    assert 0 < len(answers) < 100
    assert ran.count("a") == 1


@virtual
async def test_handlers_without_a_connection_are_few_and_end_with_the_server() -> None:
    answers = KeyedAnswers()
    ended: list[str] = []

    async def ask(key: str) -> Answer:
        async def run() -> Answer:
            try:
                await asyncio.sleep(3600.0)
            finally:
                ended.append(key)
            return Answer(0)

        return await answers.answer("client", key, b"", None, run, limit=None, lost=lambda: True)

    for number in range(keyed.MAX_ORPHANS):
        call = asyncio.create_task(ask(str(number)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0)
    assert ended == []
    with pytest.raises(ResourceExhausted):
        await ask("one more")
    await asyncio.sleep(keyed.KEPT_S + 1)
    assert len(ended) == keyed.MAX_ORPHANS
    again = asyncio.create_task(ask("again"))
    await asyncio.sleep(0.1)
    again.cancel()
    await asyncio.sleep(0.1)
    await answers.close()
    assert ended[-1] == "again"


@virtual
async def test_handlers_without_a_connection_are_few_for_all_clients_together() -> None:
    """Without a key of its own, each connection is another client."""
    answers = KeyedAnswers()
    ended: list[int] = []

    async def ask(scope: int) -> Answer:
        async def run() -> Answer:
            try:
                await asyncio.sleep(3600.0)
            finally:
                ended.append(scope)
            return Answer(0)

        return await answers.answer(scope, "1", b"", None, run, limit=None, lost=lambda: True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyed, "MAX_ALL_ORPHANS", 5)
        for scope in [0, 0, 0, 1, 2, 3, 4, 5, 6]:  # one that comes back counts once
            call = asyncio.create_task(ask(scope))
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.sleep(0.1)
        assert ended == [5, 6]
    await answers.close()
    assert answers._all_orphans == 0
    assert answers._orphans == {}


@virtual
async def test_what_runs_still_costs_little_to_pass_over() -> None:
    answers = KeyedAnswers()
    ran: list[str] = []
    quick = answering(answers, ran)

    async def forever() -> Answer:
        await asyncio.sleep(3600.0)
        return Answer(0)

    waiting = [
        asyncio.create_task(
            answers.answer("other", str(each), b"", None, forever, limit=3600.0, lost=lambda: False)
        )
        for each in range(3000)
    ]
    await asyncio.sleep(0.1)
    await quick("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyed, "KEPT", 3000)
        began = time.process_time()
        await quick("second")
        assert time.process_time() - began < 0.05, "quadratic"
    assert len(answers) == 3001
    await answers.close()
    await asyncio.gather(*waiting)
