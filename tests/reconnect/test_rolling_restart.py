"""Servers that leave in an orderly way, and clients that move on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from rpc_support import outcome, virtual
from test_event_sessions import Heard
from test_reconnect import WIRE, client, server

from echostream.builder import ServerBuilder
from echostream.client import RpcClient
from echostream.errors import Unavailable
from echostream.testing import Impairment, QuicNetwork
from echostream.testing.quic_network import SERVER_HOST, SERVER_PORT

SERVERS = [(SERVER_HOST, SERVER_PORT), (SERVER_HOST, SERVER_PORT + 1)]


def test_two_servers_are_restarted_in_turn_and_no_call_fails(seed: int) -> None:
    """Each is restarted twice, under calls that last up to two seconds, on a path that loses."""
    chance = random.Random(seed)
    ran: Counter[int] = Counter()
    answers: dict[int, Any] = {}
    sent: list[int] = []

    async def work(number: int) -> int:
        ran[number] += 1
        await asyncio.sleep(chance.random() * 2.0)
        return number

    async def call(connected: RpcClient, number: int) -> None:
        answers[number] = await outcome(connected.request("work", number))

    @virtual
    async def main() -> None:
        heard = Heard()

        def serving(index: int) -> ServerBuilder:
            builder = server().handler("work", work).bind(SERVERS[index])
            return heard.listen(builder)

        path = Impairment(delay=0.015, jitter=0.005, loss=0.02)
        async with QuicNetwork(seed=seed) as network:
            running = [await network.serve(serving(index)) for index in range(2)]
            clients = [
                await network.connect(
                    client(addresses=[SERVERS[1]]).connect(SERVERS[0]), up=path, down=path
                )
                for _ in range(2)
            ]
            stopped = asyncio.Event()

            async def traffic(connected: RpcClient, first: int) -> None:
                number = first
                async with asyncio.TaskGroup() as group:
                    while not stopped.is_set():
                        group.create_task(call(connected, number))
                        await connected.emit("a", number)
                        sent.append(number)
                        number += 1
                        await asyncio.sleep(chance.random() * 0.1)

            async with asyncio.TaskGroup() as group:
                for index, connected in enumerate(clients):
                    group.create_task(traffic(connected, index * 1_000_000))
                for turn in range(4):
                    await asyncio.sleep(1.0)
                    await running[turn % 2].shutdown(drain=5.0)
                    running[turn % 2] = await network.serve(serving(turn % 2))
                await asyncio.sleep(1.0)
                stopped.set()
            await heard.all(len(sent))
            assert sorted(heard.values["a"]) == sorted(sent)

    main()
    assert len(answers) > 500
    assert {number: answer for number, answer in answers.items() if answer != number} == {}
    assert set(ran.values()) == {1}


@virtual
async def test_a_call_beyond_the_drain_limit_is_told() -> None:
    """It was accepted and did not finish: nobody makes it again."""
    async with QuicNetwork() as network:
        running = await network.serve(server())
        connected = await network.connect(client(), up=WIRE, down=WIRE)
        held = asyncio.create_task(outcome(connected.request("hold")))
        await asyncio.sleep(0.1)
        await running.shutdown(drain=1.0)
        error = await held
        assert isinstance(error, Unavailable)
        assert not error.unserved


@virtual
async def test_who_waits_for_a_call_slot_moves_on_too() -> None:
    async with QuicNetwork() as network:
        running = await network.serve(server().limits(calls=1).bind(SERVERS[0]))
        await network.serve(server().bind(SERVERS[1]))
        builder = client(addresses=[SERVERS[1]]).connect(SERVERS[0])
        connected = await network.connect(builder, up=WIRE, down=WIRE)
        held = asyncio.create_task(outcome(connected.request("hold")))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(connected.request("echo", 5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        stopping = asyncio.create_task(running.shutdown(drain=3.0))
        assert await asyncio.wait_for(waiting, 1.0) == 5
        assert not held.done()
        await stopping
        assert isinstance(await held, Unavailable)
