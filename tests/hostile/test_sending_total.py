"""Slow readers together cost no more than ``sending_total``, and who reads goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hostile_client import RawPeer

from echostream import Session, StreamReceiver, handler, listener, stream_handler
from echostream.builder import ClientBuilder, ServerBuilder
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.rpc.send_budget import GUARANTEED
from echostream.testing import Impairment, QuicNetwork, run_virtual
from echostream.transport.quic import QuicOptions, client_engine

READERS = 50
LIMIT = 4 << 20
PIECE = 32 * 1024
ADDRESS = ("198.51.100.1", 4433)
DELAY = Impairment(delay=0.01)


@handler("blob")
async def blob() -> bytes:
    return bytes(PIECE)


@handler("blobs")
async def blobs() -> AsyncIterator[bytes]:
    while True:
        yield bytes(PIECE)


@handler("echo")
async def echo(value: int) -> int:
    return value


@handler("told")
async def told(session: Session) -> None:
    while True:
        await session.emit("news", bytes(PIECE))


@handler("fed")
async def fed(session: Session) -> None:
    async with await session.create_stream("feed") as stream:
        while True:
            await stream.send(bytes(PIECE))


async def slow_reader(network: QuicNetwork, number: int) -> RawPeer:
    host = f"10.66.0.{number}"
    network.memory.impair(DELAY, source=host, destination=ADDRESS[0])
    network.memory.impair(DELAY, source=ADDRESS[0], destination=host)
    engine = client_engine(
        QuicOptions(stream_window=4096, connection_window=16384),
        server_name="localhost",
        verify=False,
    )
    peer = RawPeer(network.memory.endpoint(host).connect(engine, ADDRESS), reads=False)
    await peer.connection.wait_connected()
    peer.hello()
    return peer


def ask(reader: RawPeer, call_id: int, method: str) -> None:
    streams = method == "blobs"
    request = encode_frame(
        frames.REQUEST, call_id, b"\xc0", frames.END, method, None, -1, 256 if streams else -1
    )
    reader.write(reader.engine.open_stream(streams), request, True)


@pytest.mark.parametrize("what", ["blob", "blobs", "told"])
def test_fifty_slow_readers_hold_no_more_than_the_limit_and_one_who_reads_goes_on(
    what: str,
) -> None:
    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            builder = ServerBuilder().handler(blob).handler(blobs).handler(echo).handler(told)
            server = await network.serve(builder.limits(sending_total=LIMIT))
            honest = await network.connect(up=DELAY, down=DELAY)
            readers = [await slow_reader(network, number) for number in range(READERS)]
            for reader in readers:
                for number in range(100 if what == "blob" else 1):
                    ask(reader, 2 * number, what)
            most = 0
            waited = False
            clock = asyncio.get_running_loop().time
            for number in range(50):
                await asyncio.sleep(0.02)
                start = clock()
                assert await honest.request("echo", number) == number
                assert len(await honest.request("blob")) == PIECE
                assert clock() - start < 1.0
                found = server.statistics()
                most = max(most, found.sending)
                waited = waited or found.sending_waits
                assert found.sending == found.queued + found.buffered
            assert found.sending_limit == LIMIT
            assert waited
            assert LIMIT < most <= LIMIT + (READERS + 1) * (GUARANTEED + 2 * PIECE)
            print(f"{what}: {most} bytes held at most")
            for reader in readers:
                reader.connection.close()
            await honest.close()
            await asyncio.sleep(1)
            left = server.statistics()
            assert (left.sending, left.sending_waits, left.tasks) == (0, False, 0)
            assert server._sending.members == 0

    run_virtual(main(), limit=600)


@pytest.mark.parametrize("what", ["told", "fed"])
def test_readers_that_all_want_more_than_there_is_get_alike(what: str) -> None:
    """Eight thin paths, whose senders together would hold four times the limit."""
    path = Impairment(delay=0.01, rate=200_000)

    async def main() -> None:
        got = [0] * 8

        def reader(number: int) -> ClientBuilder:
            @listener("news")
            async def news(data: bytes) -> None:
                got[number] += len(data)

            @stream_handler("feed")
            async def feed(stream: StreamReceiver) -> None:
                async for data in stream:
                    got[number] += len(data)

            return ClientBuilder().listener(news).stream_handler(feed)

        async with QuicNetwork(seed=1) as network:
            builder = ServerBuilder().handler(told).handler(fed)
            server = await network.serve(builder.limits(sending_total=1 << 20))
            asked = []
            for number in range(len(got)):
                client = await network.connect(reader(number), up=path, down=path)
                asked.append(asyncio.ensure_future(client.request(what)))
            waited = False
            for _ in range(30):
                await asyncio.sleep(0.1)
                waited = waited or server.statistics().sending_waits
            assert waited
            assert min(got) > 0.8 * max(got) > 300_000
            print(f"{what}: {got}")
            for request in asked:
                request.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    run_virtual(main(), limit=600)
