"""A client that comes back: real QUIC engines on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from rpc_support import outcome, session_of, turns, virtual

from echostream import Identity, Unavailable
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Close
from echostream.errors import ConfigurationError, ConnectionClosed, DeadlineExceeded
from echostream.rpc.backoff import Backoff, Reconnect
from echostream.rpc.context import ClientContext
from echostream.testing import Impairment, QuicNetwork

WIRE = Impairment(delay=0.015)
IDENTITY = Identity.ephemeral()


async def echo(value: Any) -> Any:
    return value


async def hold() -> None:
    await asyncio.sleep(3600)


def server() -> ServerBuilder:
    return ServerBuilder().identity(IDENTITY).handler("echo", echo).handler("hold", hold)


def client(**options: Any) -> ClientBuilder:
    return ClientBuilder().reconnect(**{"keepalive": 0.5} | options)


async def down(connected: RpcClient) -> None:
    """Wait until the client knows that the connection is lost."""
    while connected.connected:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(0.01)


@virtual
async def test_the_same_client_goes_on_with_a_restarted_server() -> None:
    happened: list[str] = []

    async def on_connect(ctx: ClientContext) -> None:
        happened.append(f"connect {await ctx.request('echo', len(happened))}")

    async def on_disconnect(ctx: ClientContext) -> None:
        happened.append("disconnect")

    async with QuicNetwork() as network:
        first = await network.serve(server())
        builder = client().on_connect(on_connect).on_disconnect(on_disconnect)
        connected = await network.connect(builder, up=WIRE, down=WIRE)
        assert await connected.request("echo", 1) == 1
        await network.kill(first)
        running = asyncio.create_task(outcome(connected.request("hold")))
        repeated = asyncio.create_task(connected.request("echo", 2, idempotent=True))
        await down(connected)
        waiting = asyncio.create_task(connected.request("echo", 3))
        impatient = await outcome(connected.request("echo", 4, timeout=0.1))
        assert isinstance(impatient, DeadlineExceeded)
        assert isinstance(await running, Unavailable)
        await network.serve(server())
        assert await waiting == 3
        assert await repeated == 2
        assert happened == ["connect 0", "disconnect", "connect 2"]
        assert connected.link_statistics().connections == 2
        assert connected.link_statistics().unknown == 1
    assert happened[3:] == ["disconnect"]


@virtual
async def test_nothing_hangs_when_the_client_is_closed_or_gives_up() -> None:
    async with QuicNetwork() as network:
        first = await network.serve(server())
        patient = await network.connect(client(), up=WIRE, down=WIRE)
        hasty = await network.connect(
            client(attempts=2, max_backoff=0.2).quic(handshake_timeout=1.0), up=WIRE, down=WIRE
        )
        await network.kill(first)
        await down(patient)
        waits = [asyncio.create_task(outcome(each.request("echo"))) for each in (patient, hasty)]
        await hasty.wait_closed()
        gave_up = await waits[1]
        assert isinstance(gave_up, ConnectionClosed)
        assert "gave up after 2 attempts" in str(gave_up)
        assert isinstance(await outcome(hasty.emit("x")), ConnectionClosed)
        assert not waits[0].done()
        await patient.close()
        assert "the client was closed" in str(await waits[0])
        assert isinstance(await outcome(patient.request("echo")), ConnectionClosed)


@virtual
async def test_a_server_that_is_back_tells_its_clients_by_a_stateless_reset() -> None:
    """Row 16: no need to wait for the idle timeout of a minute."""
    loop = asyncio.get_running_loop()
    async with QuicNetwork() as network:
        first = await network.serve(server())
        connected = await network.connect(client(keepalive=20.0), up=WIRE, down=WIRE)
        await connected.request("echo")
        await network.kill(first)
        await network.serve(server())
        start = loop.time()
        assert await connected.request("echo", 5, idempotent=True) == 5
        assert loop.time() - start < 1.0


@virtual
async def test_a_refusal_of_the_network_is_a_hint_and_not_believed() -> None:
    async with QuicNetwork() as network:
        await network.serve(server())
        connected = await network.connect(client(keepalive=10.0), up=WIRE, down=WIRE)
        connection = connected._peer.connection
        for _ in range(5):
            assert connection.on_unreachable is not None
            connection.on_unreachable()  # forged: the server is there
            await asyncio.sleep(1.0)
        assert connected.link_statistics().connections == 1
        hole = Impairment(blackhole=True)
        network.impair(connected, up=hole, down=hole)
        connection.on_unreachable()
        start = asyncio.get_running_loop().time()
        await down(connected)
        assert asyncio.get_running_loop().time() - start < 0.5
        network.impair(connected, up=WIRE, down=WIRE)
        assert await connected.request("echo", 6) == 6


@virtual
async def test_a_server_that_refuses_the_client_for_good_is_not_asked_again() -> None:
    async with QuicNetwork() as network:
        running = await network.serve(server())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        session = await session_of(running)
        session._peer.close(Close.AUTHENTICATION_FAILED, "the account is closed")
        await connected.wait_closed()
        error = await outcome(connected.request("echo"))
        assert isinstance(error, ConnectionClosed)
        assert error.code == Close.AUTHENTICATION_FAILED
        assert connected.link_statistics().failures == 0


@virtual
async def test_a_hook_that_fails_is_tried_again() -> None:
    failures = [True, False, True]

    async def on_connect(ctx: ClientContext) -> None:
        failures.append(not failures[0])
        if len(failures) in (5, 6):
            raise ValueError("not yet")

    async with QuicNetwork() as network:
        running = await network.serve(server())
        connected = await network.connect(client().on_connect(on_connect), up=WIRE, down=WIRE)
        session = await session_of(running)
        await session.close()
        await down(connected)
        assert await connected.request("echo", 1) == 1
        assert connected.link_statistics().failures == 2


@pytest.mark.parametrize("kills", [1, 4])
def test_calls_at_a_kill_end_and_none_runs_twice(kills: int, seed: int) -> None:
    """Row 17: each has a result or an error within the detection time."""
    chance = random.Random(seed)
    ran: Counter[int] = Counter()
    ended: Counter[str] = Counter()

    async def work(number: int) -> int:
        ran[number] += 1
        await asyncio.sleep(chance.random() * 0.2)
        return number

    async def one(connected: RpcClient, number: int) -> None:
        answer = await outcome(connected.request("work", number))
        ended["ok" if answer == number else type(answer).__name__] += 1

    @virtual
    async def main() -> None:
        async with QuicNetwork(seed=seed) as network:
            running = await network.serve(server().handler("work", work).limits(calls=2000))
            connected = await network.connect(client(), up=WIRE, down=WIRE)
            for kill in range(kills):
                async with asyncio.TaskGroup() as group:
                    for number in range(1000):
                        group.create_task(one(connected, kill * 1000 + number))
                    await asyncio.sleep(chance.random() * 0.2)
                    await network.kill(running)
                    running = await network.serve(server().handler("work", work).limits(calls=2000))

    main()
    assert sum(ended.values()) == kills * 1000
    assert set(ended) <= {"ok", "Unavailable"}
    assert ended["Unavailable"]
    assert max(ran.values()) == 1


@virtual
async def test_a_loop_over_connections() -> None:
    answers = []
    async with QuicNetwork() as network:
        running = await network.serve(server())
        connecting = _Iterated(network)
        async for connected in connecting:
            answers.append(await connected.request("echo", len(answers)))
            if len(answers) == 3:
                break
            await network.kill(running)
            running = await network.serve(server())
            try:
                await connected.request("echo", None)
            except ConnectionClosed:
                continue
        assert answers == [0, 1, 2]
        await turns()


def _Iterated(network: QuicNetwork) -> Any:
    return network.connecting(ClientBuilder().quic(keep_alive=0.5, idle_timeout=1.5))


def test_full_jitter_doubles_up_to_its_limit(seed: int) -> None:
    random.seed(seed)
    backoff = Backoff(Reconnect(first_backoff=0.1, max_backoff=1.0, attempts=9))
    ceilings, waits = [], []
    for _ in range(8):
        wait = backoff.next()
        assert wait is not None
        waits.append(wait)
        ceilings.append(round(backoff.ceiling, 6))
    assert ceilings == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert all(0 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True))
    assert len(set(waits)) == 8
    assert backoff.next() is None
    backoff.reset()
    assert backoff.ceiling == 0.1


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"attempts": True}, {"max_backoff": "1"}, {"keepalive": 0.0}],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ClientBuilder().reconnect(**options)
