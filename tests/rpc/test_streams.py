"""Media streams: what arrives, in which order, how they end, and what is counted."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import numpy as np
import pytest
from rpc_support import WIRE, idle, outcome, raw_client, session_of, turns, virtual

from echostream import (
    AudioFormat,
    AudioFrame,
    ConfigurationError,
    ConnectionClosed,
    DeadlineExceeded,
    InvalidPayload,
    MethodNotFound,
    ResourceExhausted,
    RpcClient,
    RpcError,
    RpcServer,
    Session,
    StreamReceiver,
    StreamReset,
    stream_handler,
)
from echostream.codes import Reset
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame, encode_media
from echostream.protocol.payload import encode
from echostream.rpc.receiver import RECEIVE_PACKETS, ReceiverStatistics
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

STEREO = AudioFormat(48_000, 2)
OPTIONS = encode({"format": None, "codec": "pcm", "time_sync": False, "offset": 0, "epoch": 0})
ROUGH = Impairment(delay=0.02, jitter=0.02, loss=0.05)


class Sink:
    """A stream handler that keeps what comes, when its gate is open."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.opened = asyncio.Event()
        self.done = asyncio.Event()
        self.error: BaseException | None = None
        self.stream: Any = None

    async def __call__(self, stream: StreamReceiver) -> None:
        self.stream = stream
        self.opened.set()
        try:
            await self.gate.wait()
            async for item in stream:
                self.items.append(item)
                await self.gate.wait()
        except Exception as exc:
            self.error = exc
        finally:
            self.done.set()

    @property
    def counted(self) -> ReceiverStatistics:
        return self.stream.statistics()  # type: ignore[no-any-return]


def sink_server(sink: Any) -> Any:
    return RpcServer.builder().stream_handler("sink", sink)


@pytest.mark.parametrize("up", [Impairment(), ROUGH], ids=["perfect", "rough"])
@virtual
async def test_reliable_bytes_arrive_identical(up: Impairment, seed: int) -> None:
    chance = random.Random(seed)
    sink = Sink()
    async with connected_pair(sink_server(sink), up=up, down=up, seed=seed) as (server, client):
        sent = hashlib.sha256()
        count = 0
        async with await client.create_stream("sink") as stream:
            for _ in range(300):
                data = chance.randbytes(chance.choice((0, 1, 100, 5000, 70_000)))
                sent.update(data)
                count += len(data)
                await stream.send(data)
        await sink.done.wait()
        assert sink.error is None
        assert hashlib.sha256(b"".join(sink.items)).digest() == sent.digest()
        assert len(sink.items) == 300
        assert sink.counted == ReceiverStatistics(300, count, 0, 0, 0, 0, 0, 0)
        assert (stream.statistics().packets, stream.statistics().bytes) == (300, count)
        await turns()
        assert idle(client)
        assert idle(await session_of(server))


@pytest.mark.parametrize("kind", ["float32", "int16"])
@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_audio_travels(kind: Any, delivery: Any) -> None:
    sink = Sink()
    form = AudioFormat(48_000, 2, kind)
    samples = (np.arange(4000).reshape(-1, 2) % 100).astype(form.dtype)
    async with connected_pair(sink_server(sink), up=WIRE, down=WIRE) as (_, client):
        async with await client.create_stream("sink", format=form, delivery=delivery) as stream:
            await stream.send(samples)
            await stream.send_with_timestamp(samples[::2], 1_000_000)
            await stream.send(AudioFrame(samples[:10], form, timestamp=96_000, capture_ts=5))
        await sink.done.wait()
        sizes = [len(frame.samples) for frame in sink.items]
        assert sum(sizes) == 3010
        np.testing.assert_array_equal(
            np.concatenate([frame.samples for frame in sink.items]),
            np.concatenate([samples, samples[::2], samples[:10]]),
        )
        stamps = [frame.timestamp for frame in sink.items]
        assert stamps[-1] == 96_000
        assert all(a + n == b for a, n, b in zip(stamps[:-2], sizes, stamps[1:-1], strict=False))
        times = [frame.capture_ts for frame in sink.items if frame.capture_ts is not None]
        assert times[0] == 1_000_000
        assert times[-1] == 5


@virtual
async def test_realtime_counts_are_exact(seed: int) -> None:
    sink = Sink()
    up = Impairment(delay=0.02, jitter=0.03, loss=0.1)
    async with connected_pair(sink_server(sink), up=up, down=WIRE, seed=seed) as (_, client):
        async with await client.create_stream("sink", delivery="realtime") as stream:
            for index in range(2000):
                await stream.send(index.to_bytes(4, "big"))
                await asyncio.sleep(0.005)
        await sink.done.wait()
        counted = sink.counted
        numbers = [int.from_bytes(item, "big") for item in sink.items]
        assert numbers == sorted(set(numbers))
        assert counted.packets == len(numbers) + counted.late + counted.dropped
        assert counted.packets + counted.lost == stream.statistics().packets == 2000
        assert counted.lost > 100
        assert counted.late > 10
        assert counted.duplicates == 0


@virtual
async def test_a_slow_realtime_reader_loses_the_oldest() -> None:
    sent = RECEIVE_PACKETS + 700
    sink = Sink()
    sink.gate.clear()
    async with connected_pair(sink_server(sink), up=WIRE, down=WIRE) as (_, client):
        async with await client.create_stream("sink", delivery="realtime") as stream:
            for index in range(sent):
                await stream.send(index.to_bytes(4, "big"))
                await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        assert sink.counted.queued == RECEIVE_PACKETS
        sink.gate.set()
        await sink.done.wait()
        numbers = [int.from_bytes(item, "big") for item in sink.items]
        assert numbers == list(range(sent - RECEIVE_PACKETS, sent))
        assert sink.counted == ReceiverStatistics(sent, 4 * sent, 0, 0, 0, 700, 0, 0)


@virtual
async def test_duplicates_late_packets_and_the_wrap_of_sequence_numbers() -> None:
    sink = Sink()
    async with raw_client(sink_server(sink)) as (_, raw):
        lane = raw.send(encode_frame(frames.STREAM_OPEN, 0, OPTIONS, frames.MARK, "sink"))
        await raw.expect(frames.STREAM_ACCEPT)
        sink.stream._highest = 2**32 - 4  # as after four thousand million packets
        for number in (2**32 - 3, 2**32 - 1, 2**32 - 1, 0, 2, 1, 2**32 - 3):
            raw.datagram(encode_media(0, 0, number, number, number.to_bytes(4, "big")))
        await turns(20)
        raw.datagram(encode_media(0, 0, 2**32 - 2, 0, b"late"))
        await turns(20)
        numbers = [int.from_bytes(item, "big") for item in sink.items]
        assert numbers == [2**32 - 3, 2**32 - 1, 0, 1, 2]
        assert (sink.counted.duplicates, sink.counted.late) == (2, 1)
        raw.send(encode_frame(frames.STREAM_END, 0, b"", frames.END, None, None, -1, 7), lane)
        await sink.done.wait()
        assert (sink.counted.packets, sink.counted.lost) == (6, 1)


@virtual
async def test_the_sender_wraps_its_sequence_numbers() -> None:
    for delivery in ("reliable", "realtime"):
        sink = Sink()
        async with connected_pair(sink_server(sink)) as (_, client):
            stream = await client.create_stream("sink", delivery=delivery)  # type: ignore[arg-type]
            stream._sequence = 2**32 - 2
            for index in range(5):
                await stream.send(bytes([index]))
            await stream.end()
            await sink.done.wait()
            assert sink.items == [bytes([index]) for index in range(5)]
            assert sink.counted.lost == 0


@pytest.mark.parametrize("up", [WIRE, ROUGH], ids=["good", "rough"])
@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@pytest.mark.parametrize("paused", [False, True])
@virtual
async def test_nothing_of_an_old_epoch_is_read_after_a_flush(
    delivery: Any, paused: bool, up: Impairment, seed: int
) -> None:
    sink = Sink()
    async with connected_pair(sink_server(sink), up=up, down=up, seed=seed) as (server, client):
        stream = await client.create_stream("sink", delivery=delivery)
        await sink.opened.wait()
        for epoch in range(6):
            if paused:
                sink.gate.clear()
            for index in range(60):
                await stream.send(bytes([epoch, index]) + bytes(1000))
                if index % 10 == 0:
                    await asyncio.sleep(0.002)
            if paused:
                await asyncio.sleep(0.5)
                before = len(sink.items)
            await stream.flush()
            if paused:
                await asyncio.sleep(0.5)
                sink.gate.set()
                await turns()
                assert all(item[0] > epoch for item in sink.items[before + 1 :])
        await stream.send(b"\xffend")
        await stream.end()
        await sink.done.wait()
        assert sink.error is None
        epochs = [item[0] for item in sink.items]
        assert epochs == sorted(epochs)
        if delivery == "reliable" or up is WIRE:
            assert sink.items[-1] == b"\xffend"
        counted = sink.counted
        if delivery == "realtime":
            assert counted.packets + counted.lost == 361
            taken = len(sink.items) + counted.late + counted.dropped + counted.stale
            assert taken == counted.packets
        assert stream.statistics().flushes == 6
        await turns(20)
        await asyncio.sleep(1)
        session = await session_of(server)
        assert idle(session)
        inbox = session._live_peer.protocol.inbox  # type: ignore[union-attr]
        assert len(inbox._incoming) < 12


@virtual
async def test_flush_lets_a_waiting_sender_go_on() -> None:
    sink = Sink()
    sink.gate.clear()
    async with connected_pair(sink_server(sink)) as (_, client):
        stream = await client.create_stream("sink")

        async def push() -> None:
            for _ in range(100):
                await stream.send(bytes(100_000))

        pushing = asyncio.create_task(push())
        await asyncio.sleep(1)
        assert not pushing.done()
        held = stream.statistics().packets
        assert held < 30
        await asyncio.sleep(100)
        assert stream.statistics().packets == held  # as long as it takes
        await stream.flush()
        await asyncio.sleep(1)
        assert stream.statistics().packets > held
        pushing.cancel()
        stream.abort()
        sink.gate.set()
        await sink.done.wait()
        assert isinstance(sink.error, StreamReset)


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_abort_reaches_the_other_end(delivery: Any) -> None:
    sink = Sink()
    async with connected_pair(sink_server(sink), up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("sink", delivery=delivery)
        await stream.send(b"x")
        await asyncio.sleep(0.1)
        stream.abort(0x99)
        stream.abort(0x98)
        await sink.done.wait()
        assert isinstance(sink.error, StreamReset)
        assert sink.error.code == 0x99
        with pytest.raises(StreamReset, match="was ended here"):
            await stream.send(b"y")
        await stream.end()  # it was over: nothing more to do
        with pytest.raises(StreamReset):
            async with await client.create_stream("sink", delivery=delivery) as other:
                other.abort()
                await other.send(b"")


@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@pytest.mark.parametrize("how", ["returns", "fails", "closes"])
@virtual
async def test_a_receiver_that_stops_ends_the_sender(delivery: Any, how: str, caplog: Any) -> None:
    async def one(session: Session, stream: StreamReceiver) -> None:
        await stream.recv()
        if how == "fails":
            raise ValueError("secret")
        if how == "closes":
            stream.close(0x77)
            assert await stream.recv() is None
            stream.close()

    builder = RpcServer.builder().stream_handler("one", one)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (server, client):
        stream = await client.create_stream("one", delivery=delivery)
        with pytest.raises(StreamReset) as caught:
            for _ in range(1000):
                await stream.send(bytes(1000))
                await asyncio.sleep(0.001)
        code = {"returns": Reset.CANCELLED, "fails": Reset.HANDLER_FAILED, "closes": 0x77}[how]
        assert caught.value.code == code
        assert "secret" not in str(caught.value)
        for _ in range(2):
            with pytest.raises(StreamReset):
                await stream.end()
        with pytest.raises(StreamReset):
            await stream.flush()
        await asyncio.sleep(1)
        assert idle(client)
        session = await session_of(server)
        assert idle(session)
        inbox = session._live_peer.protocol.inbox  # type: ignore[union-attr]
        assert len(inbox._incoming) < 12


@virtual
async def test_streams_at_random_moments(seed: int) -> None:
    """Ends, aborts, flushes and refusals from both ends, over a rough path: nothing is left."""
    chance = random.Random(seed)

    async def moody(session: Session, stream: StreamReceiver) -> None:
        fate = int(stream.metadata["fate"])
        for _ in range(fate % 7):
            if await stream.recv() is None:
                return
        if fate % 3 == 0:
            return
        if fate % 3 == 1:
            await asyncio.sleep(0.01)
        async for _ in stream:
            pass

    builder = RpcServer.builder().stream_handler("moody", moody).limits(streams=8)
    async with connected_pair(builder, up=ROUGH, down=ROUGH, seed=seed) as (server, client):

        async def one() -> None:
            delivery = chance.choice(("reliable", "realtime"))
            try:
                async with asyncio.timeout(chance.choice((0.05, 5.0))):
                    stream = await client.create_stream(
                        "moody",
                        delivery=delivery,  # type: ignore[arg-type]
                        metadata={"fate": str(chance.randrange(100))},
                    )
                for _ in range(chance.randrange(20)):
                    await stream.send(bytes(chance.randrange(1000)))
                    if chance.random() < 0.1:
                        await stream.flush()
                    if chance.random() < 0.3:
                        await asyncio.sleep(chance.random() * 0.05)
                if chance.random() < 0.3:
                    stream.abort()
                else:
                    await stream.end()
            except (StreamReset, ResourceExhausted, TimeoutError):
                pass

        for _ in range(40):
            await asyncio.gather(*(one() for _ in range(10)))
        await asyncio.sleep(5)
        session = await session_of(server)
        assert idle(client)
        assert idle(session)
        assert len(session._live_peer.protocol.inbox._incoming) < 12  # type: ignore[union-attr]


@stream_handler("typed", formats=[STEREO])
async def typed(session: Session, stream: StreamReceiver) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize(
    ("name", "options", "kind", "match"),
    [
        ("typd", {}, MethodNotFound, "did you mean 'typed'"),
        ("typed", {}, RpcError, "takes AudioFormat"),
        ("typed", {"format": AudioFormat(44_100, 2)}, RpcError, "44100"),
    ],
)
@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_refused_streams(
    name: str, options: Any, kind: Any, match: str, delivery: Any
) -> None:
    builder = RpcServer.builder().stream_handler(typed)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (server, client):
        with pytest.raises(kind, match=match) as caught:
            await client.create_stream(name, delivery=delivery, **options)
        assert caught.value.method == name
        await asyncio.sleep(1)
        assert idle(client)
        assert idle(await session_of(server))
        async with await client.create_stream("typed", format=STEREO) as stream:
            await stream.send(np.zeros((10, 2), np.float32))


@virtual
async def test_too_many_streams() -> None:
    sink_builder = RpcServer.builder().stream_handler("sink", Sink()).limits(streams=2)
    async with connected_pair(sink_builder) as (_, client):
        streams = [await client.create_stream("sink") for _ in range(2)]
        with pytest.raises(ResourceExhausted, match="streams=2"):
            await client.create_stream("sink")
        await streams[0].end()
        await turns(20)
        await client.create_stream("sink")


@virtual
async def test_a_stream_that_nobody_accepts() -> None:
    async def slow(session: Session) -> None:
        await asyncio.sleep(100)

    builder = sink_server(Sink()).on_connect(slow)
    async with connected_pair(builder) as (server, client):
        with pytest.raises(DeadlineExceeded, match=r"not accepted within 0\.5 s"):
            await client.create_stream("sink", timeout=0.5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.create_stream("sink", delivery="realtime")
        await asyncio.sleep(200)
        assert idle(client)
        assert idle(await session_of(server))


@virtual
async def test_two_readers_of_one_stream() -> None:
    errors: list[Any] = []

    async def both(stream: StreamReceiver) -> None:
        errors.extend(await asyncio.gather(outcome(stream.recv()), outcome(stream.recv())))

    async with connected_pair(RpcServer.builder().stream_handler("both", both)) as (_, client):
        stream = await client.create_stream("both")
        await turns()
        await stream.send(b"x")
        await turns(20)
        assert errors[0] == b"x"
        assert isinstance(errors[1], ConfigurationError)


@virtual
async def test_a_whole_stream_survives_the_senders_close() -> None:
    sink = Sink()
    sink.gate.clear()
    async with connected_pair(sink_server(sink)) as (server, client):
        stream = await client.create_stream("sink")
        for index in range(8):
            await stream.send(bytes([index]) * 60_000)
        await stream.end()
        await client.close()
        await asyncio.sleep(3)
        assert server.context.sessions == ()
        sink.gate.set()
        await sink.done.wait()
        assert sink.error is None
        assert [item[0] for item in sink.items] == list(range(8))


@virtual
async def test_streams_from_server_to_client() -> None:
    sink = Sink()
    async with connected_pair(None, RpcClient.builder().stream_handler("down", sink)) as (
        server,
        _,
    ):
        session = await session_of(server)
        async with await session.create_stream("down", delivery="reliable") as stream:
            await stream.send(b"hello")
        await sink.done.wait()
        assert sink.items == [b"hello"]


@virtual
async def test_wrong_items() -> None:
    async with connected_pair(sink_server(Sink())) as (_, client):
        plain = await client.create_stream("sink")
        audio = await client.create_stream("sink", format=STEREO)
        live = await client.create_stream("sink", delivery="realtime")
        wide = await client.create_stream(
            "sink", format=AudioFormat(48_000, 64), delivery="realtime"
        )
        for stream, item, kind, match in (
            (plain, "text", InvalidPayload, "carries bytes, got str"),
            (plain, np.zeros(3), InvalidPayload, "carries bytes"),
            (plain, bytes(5 << 20), ResourceExhausted, "message_size"),
            (live, bytes(2000), ResourceExhausted, "do not fit one datagram"),
            (audio, b"xx", InvalidPayload, "carries audio"),
            (audio, np.zeros((4, 2)), InvalidPayload, "float64"),
            (audio, np.zeros((4, 1), np.float32), InvalidPayload, "shape"),
            (audio, np.zeros(4, np.float32), InvalidPayload, "shape"),
            (
                audio,
                AudioFrame(np.zeros((4, 2), np.float32), AudioFormat(44_100, 2)),
                InvalidPayload,
                "resample",
            ),
        ):
            before = stream.statistics()
            with pytest.raises(kind, match=match):
                await stream.send(item)  # type: ignore[arg-type]
            assert stream.statistics().packets == before.packets
        with pytest.raises(ConfigurationError, match="timestamp"):
            await plain.send_with_timestamp(b"", "now")  # type: ignore[arg-type]
        await wide.send(np.zeros((9, 64), np.float32))
        assert wide.statistics().packets == 3


@virtual
async def test_samples_that_are_no_whole_number_stop_the_stream() -> None:
    sink = Sink()
    options = encode(
        {
            "format": {"sample_rate": 48_000, "channels": 2, "sample_type": "int16", "frame": 960},
            "codec": "pcm",
        }
    )
    async with raw_client(sink_server(sink)) as (_, raw):
        lane = raw.send(encode_frame(frames.STREAM_OPEN, 0, options, 0, "sink"))
        await raw.expect(frames.STREAM_ACCEPT)
        raw.send(encode_media(0, 0, 0, 0, b"abc"), lane)
        await sink.done.wait()
        assert isinstance(sink.error, StreamReset)
        assert sink.error.code == Reset.PROTOCOL_ERROR
        (abort,) = await raw.expect(frames.STREAM_ABORT)
        assert abort.number == Reset.PROTOCOL_ERROR
        assert raw.stops == [(lane, Reset.PROTOCOL_ERROR)]


@virtual
async def test_everything_ends_when_the_connection_does() -> None:
    sink = Sink()
    sink.gate.clear()
    async with connected_pair(sink_server(sink)) as (server, client):
        stream = await client.create_stream("sink")

        async def push() -> None:
            while True:
                await stream.send(bytes(100_000))

        pushing = asyncio.create_task(outcome(push()))
        await asyncio.sleep(1)
        (await session_of(server))._peer.close(0x55, "over")
        error = await pushing
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.by_peer, error.reason) == (0x55, True, "over")
        for act in (stream.send(b""), stream.flush(), stream.end()):
            with pytest.raises(ConnectionClosed):
                await act
        with pytest.raises(ConnectionClosed):
            await client.create_stream("sink")
        sink.gate.set()
        await sink.done.wait()
        assert isinstance(sink.error, ConnectionClosed)


@virtual
async def test_streams_that_nobody_reads_do_not_hold_up_calls() -> None:
    async def echo(value: int) -> int:
        return value

    sink = Sink()
    sink.gate.clear()
    async with connected_pair(sink_server(sink).handler("echo", echo)) as (_, client):
        streams = [await client.create_stream("sink") for _ in range(16)]

        async def push(stream: Any) -> None:
            while True:
                await stream.send(bytes(100_000))

        pushing = [asyncio.create_task(push(stream)) for stream in streams]
        for value in range(10):
            await asyncio.sleep(1)
            assert await client.request("echo", value, timeout=1) == value
        assert await client.request("echo", 5, timeout=1) == 5
        for task in pushing:
            task.cancel()
