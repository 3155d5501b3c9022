"""A burst of first packets does not hold up those who are connected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hostile_client as hostile
import pytest

from echostream import handler
from echostream.builder import ServerBuilder
from echostream.testing import Impairment, QuicNetwork, run_virtual
from echostream.transport.quic.budget import Budget
from echostream.transport.routing import ACCEPT_BATCH, POSTPONED, STRANGERS


@handler("echo")
async def echo(value: int) -> int:
    return value


def test_few_connections_begin_in_one_turn_and_honest_ones_all_do() -> None:
    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            await network.serve(ServerBuilder().handler(echo))
            endpoint = network.memory._endpoints["198.51.100.1", 4433]
            before = endpoint._router.accepted
            ignored = endpoint._router.ignored
            count = 32 + POSTPONED
            burst = [(hostile.initial(), (f"10.1.0.{n % 250}", 5000 + n)) for n in range(count)]
            endpoint.receive(burst)
            assert endpoint._router.accepted - before == ACCEPT_BATCH
            assert endpoint._router.ignored - ignored == count - POSTPONED
            await asyncio.sleep(0)
            assert endpoint._router.accepted - before == 2 * ACCEPT_BATCH
            path = Impairment(delay=0.01)
            clients = [await network.connect(up=path, down=path) for _ in range(5)]
            for client in clients:
                assert await client.request("echo", 1) == 1

    run_virtual(main())


def test_packets_of_connections_go_before_those_of_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever came first: an answer does not wait for more than a part of the flood."""

    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            await network.serve(ServerBuilder().handler(echo))
            client = await network.connect()
            endpoint = network.memory._endpoints["198.51.100.1", 4433]
            router = endpoint._router
            held: list[tuple[bytes, tuple[str, int]]] = []
            receive = endpoint.receive
            monkeypatch.setattr(endpoint, "receive", held.extend)
            call = asyncio.ensure_future(client.request("echo", 1))
            while not held:  # noqa: ASYNC110 - a few turns
                await asyncio.sleep(0)
            noise = [(hostile.initial(b"\x1f"), ("10.1.0.1", n)) for n in range(1, 101)]
            seen = []
            (connection,) = router.connections

            def watched(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any) -> Any:
                    seen.append(what)
                    return method(*args)

                return call

            acceptor: Any = router._acceptor
            acceptor._trust = Budget(0.0, 0.0)  # every stranger is asked for a Retry
            monkeypatch.setattr(connection, "feed", watched("known", connection.feed))
            monkeypatch.setattr(router, "_unknown", watched("stranger", router._unknown))
            monkeypatch.setattr(endpoint, "receive", receive)
            endpoint.receive(noise + held)
            assert seen == ["known"] * len(held) + ["stranger"] * STRANGERS
            assert await call == 1
            await asyncio.sleep(1)
            assert seen.count("stranger") == len(noise)

    run_virtual(main())
