"""A burst of first packets does not hold up those who are connected."""

from __future__ import annotations

import asyncio

import hostile_client as hostile

from echostream import handler
from echostream.builder import ServerBuilder
from echostream.testing import Impairment, QuicNetwork, run_virtual
from echostream.transport.routing import ACCEPT_BATCH, POSTPONED


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
            assert endpoint._router.ignored - ignored == count - ACCEPT_BATCH - POSTPONED
            await asyncio.sleep(0)
            assert endpoint._router.accepted - before == 2 * ACCEPT_BATCH
            path = Impairment(delay=0.01)
            clients = [await network.connect(up=path, down=path) for _ in range(5)]
            for client in clients:
                assert await client.request("echo", 1) == 1

    run_virtual(main())
