"""Streams with a codec: negotiation, both deliveries, playout, capture times, hostile packets."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from rpc_support import WIRE, outcome, quic_pair, raw_client, real, server_builder, virtual
from test_stream_playout import heard, receiving

from echostream import AudioFormat, AudioFrame, ConfigurationError, RpcError, RpcServer, StreamReset
from echostream.codes import Status
from echostream.contrib import opus
from echostream.media.codec import PCM
from echostream.protocol import frames
from echostream.protocol import payload as payloads
from echostream.protocol.frames import MARK, encode_frame, encode_media
from echostream.testing import connected_pair
from echostream.transport.impairment import Impairment

needs_opus = pytest.mark.skipif(
    not any(opus.open_library(path) for path in opus.libraries()),
    reason="libopus is not here: pip install 'echostream[opus]'",
)

FORMAT = AudioFormat(48_000, 1)
BLOCK = 480


def tone(seconds: float) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * 440 / 48_000 * np.arange(int(seconds * 48_000)))
    return wave.astype(np.float32)[:, None]


def collecting(builder=None):
    """A server whose handler reads the stream; the frames, once it has ended."""
    done: asyncio.Future = asyncio.get_running_loop().create_future()

    async def on_audio(session, stream):
        done.set_result((stream, [frame async for frame in stream]))

    builder = builder or RpcServer.builder()
    return builder.stream_handler("audio", on_audio), done


async def send_live(stream, signal):
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number, at in enumerate(range(0, len(signal), BLOCK)):
        await asyncio.sleep(max(0.0, start + number * 0.01 - loop.time()))
        await stream.send(signal[at : at + BLOCK])


@needs_opus
@pytest.mark.parametrize("delivery", ["reliable", "realtime"])
@virtual
async def test_decoded_frames_come_out(delivery):
    builder, done = collecting()
    signal = tone(1.01)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", format=FORMAT, codec="opus", delivery=delivery)
        assert stream.codec.name == "opus"
        await send_live(stream, signal)  # pieces that fit no frame
        await stream.end()
        receiver, got = await done
        sent = stream.statistics()
        assert receiver.codec.name == "opus"
        assert all(isinstance(frame, AudioFrame) and len(frame.samples) == 960 for frame in got)
        assert [frame.timestamp for frame in got] == [960 * n for n in range(51)]
        assert sent.packets == receiver.statistics().packets == 51
        assert sent.bytes < signal.nbytes / 10
        audio = np.concatenate([frame.samples for frame in got])
        delay = 312
        assert len(audio) >= len(signal) + delay  # the end is not cut off
        kept = audio[delay + 4800 : delay + len(signal)]
        assert np.mean((kept - signal[4800:]) ** 2) < 0.01 * np.mean(signal**2)


@needs_opus
@virtual
async def test_capture_times_are_those_of_what_is_heard():
    builder, done = collecting()
    codec = opus.Opus(application="lowdelay", bitrate=96_000)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", format=FORMAT, codec=codec)
        block = tone(0.01)
        for number in range(5):
            await stream.send_with_timestamp(block, 1_000_000_000 + number * 10_000_000)
        await stream.send(AudioFrame(block, FORMAT, timestamp=9600, capture_ts=5_000_000_000))
        await stream.end()
        _, got = await done
        lag = 2_500_000  # 120 samples at 48 kHz
        assert [(frame.timestamp, frame.capture_ts) for frame in got] == [
            (0, 1_000_000_000 - lag),
            (960, 1_020_000_000 - lag),
            (1920, 1_040_000_000 - lag),  # filled up, because the next one is at 9600
            (9600, 5_000_000_000 - lag),
        ]


@needs_opus
@pytest.mark.parametrize("profile", ["voice", "music"])
@virtual
async def test_playout_uses_the_codecs_concealment(profile):
    builder, opened = receiving(profile=profile)
    bad = Impairment(delay=0.02, jitter=0.005, loss=0.08)
    async with connected_pair(builder, up=bad, seed=3) as (_, client):
        stream = await client.create_stream(
            "audio", delivery="realtime", format=FORMAT, codec="opus"
        )
        receiver, playout = await opened
        blocks: list[np.ndarray] = []
        listening = asyncio.create_task(heard(playout, blocks))
        await send_live(stream, tone(4))
        await stream.flush()
        await send_live(stream, tone(1))
        await stream.end()
        await listening
        stats = receiver.statistics()
        assert stats.lost > 5
        assert stats.playout.codec.decoded == stats.packets - stats.stale
        assert stats.playout.codec.concealed_frames >= 5 * 960
        assert stats.playout.buffer.restarts == 1
        assert np.abs(np.concatenate(blocks)).max() > 0.3


@needs_opus
@virtual
async def test_what_waited_goes_to_the_playout_too():
    opened: asyncio.Future = asyncio.get_running_loop().create_future()

    async def on_audio(session, stream):
        await asyncio.sleep(0.2)  # packets queue up
        opened.set_result((stream, stream.playout()))
        await asyncio.sleep(3600)

    builder = RpcServer.builder().stream_handler("audio", on_audio)
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        stream = await client.create_stream("audio", format=FORMAT, codec="opus")
        await send_live(stream, tone(1))
        await stream.end()
        receiver, playout = await opened
        async for _ in playout.blocks(480):
            pass
        assert receiver.statistics().playout.codec.decoded == stream.statistics().packets == 51


@needs_opus
@real
async def test_over_quic():
    builder, done = collecting(server_builder())
    async with quic_pair(builder) as (_, client):
        stereo = AudioFormat(48_000, 2, "int16")
        stream = await client.create_stream(
            "audio", format=stereo, codec="opus", delivery="realtime"
        )
        signal = np.repeat(tone(0.4) * 32767, 2, axis=1).astype(np.int16)
        await stream.send(signal)
        await stream.end()
        receiver, got = await done
        assert len(got) == 21
        assert got[-2].samples.dtype == np.int16
        assert np.abs(got[10].samples).max() > 10_000
        assert receiver.statistics().undecodable == 0


@virtual
async def test_what_cannot_be_opened_is_said_at_the_call():
    builder, _ = collecting()
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        with pytest.raises(ConfigurationError, match="'mp7' is not known; codecs known here: pcm"):
            client.create_stream("audio", format=FORMAT, codec="mp7")
        stream = await client.create_stream("audio", format=FORMAT, codec=PCM)
        assert stream.codec is PCM
        stream.abort()


@needs_opus
@virtual
async def test_formats_that_the_codec_does_not_have():
    builder, _ = collecting()
    async with connected_pair(builder, up=WIRE, down=WIRE) as (_, client):
        with pytest.raises(ConfigurationError, match="give format="):
            client.create_stream("audio", codec="opus")
        with pytest.raises(ConfigurationError, match="resample to 48000"):
            client.create_stream("audio", format=AudioFormat(44_100, 1), codec="opus")
        big = opus.Opus(bitrate=510_000)
        long = AudioFormat(48_000, 2, frame=2880)
        stream = await client.create_stream("audio", format=long, codec=big, delivery="realtime")
        noise = np.random.default_rng(1).uniform(-1, 1, (2880, 2)).astype(np.float32)
        error = await outcome(stream.send(noise))
        assert isinstance(error, RpcError)
        assert "lower bitrate" in str(error)


def opening(alias=2, *, realtime=False, **options):
    audio = {"sample_rate": 48_000, "channels": 1, "sample_type": "float32", "frame": 960}
    body = payloads.encode({"format": audio, "codec": "pcm", **options})
    flags = MARK if realtime else 0
    return encode_frame(frames.STREAM_OPEN, alias, body, flags, "audio")


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"codec": "mp7"}, Status.FAILED_PRECONDITION, "'mp7' is not known; codecs known here"),
        ({"codec": 7}, Status.FAILED_PRECONDITION, "'int' is not known"),
        ({"codec": "m" * 10_000}, Status.FAILED_PRECONDITION, "is not known"),
        ({"codec": "opus", "format": None}, Status.INVALID_ARGUMENT, "codec"),
        (
            {
                "codec": "opus",
                "format": {
                    "sample_rate": 44_100,
                    "channels": 1,
                    "sample_type": "float32",
                    "frame": 882,
                },
            },
            Status.FAILED_PRECONDITION,
            "44100",
        ),
    ],
)
@needs_opus
@virtual
async def test_a_codec_that_cannot_be_is_refused(options, status, words):
    builder, _ = collecting()
    async with raw_client(builder) as (_, raw):
        raw.send(opening(**options))
        (error,) = await raw.expect(frames.ERROR)
        assert error.number == status
        assert words in error.name
        assert len(error.name) < 256


@virtual
async def test_a_receiver_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(opus, "_load", lambda: None)
    builder, _ = collecting()
    async with raw_client(builder) as (_, raw):
        raw.send(opening(codec="opus"))
        (error,) = await raw.expect(frames.ERROR)
        assert error.number == Status.FAILED_PRECONDITION
        assert "echostream[opus]" in error.name
        assert "known here: pcm" in error.name


@needs_opus
@pytest.mark.parametrize("play", [False, True])
@virtual
async def test_hostile_packets_are_counted_and_end_nothing(play):
    builder, done = receiving() if play else collecting()
    rng = np.random.default_rng(7)
    encoder = opus.Opus().encoder(FORMAT)
    good = encoder.encode(tone(0.02))
    async with raw_client(builder) as (_, raw):
        raw.send(opening(codec="opus", realtime=True))
        await raw.expect(frames.STREAM_ACCEPT)
        bad = [b"", b"\xff", b"\x03\x00", *(rng.bytes(100) for _ in range(20))]
        for number, payload in enumerate([good, *bad, good]):
            raw.datagram(encode_media(2, 0, number, number * 960, payload))
        raw.send(encode_frame(frames.STREAM_END, 2, number=len(bad) + 2))
        receiver, result = await done
        if play:
            async for _ in result.blocks(480):
                pass
            assert receiver.statistics().playout.codec.decoded >= 2
        else:
            assert len(result) >= 2
        assert receiver.statistics().undecodable >= 18
        raw.send(encode_frame(frames.STREAM_OPEN, 4, payloads.encode({}), name="nobody"))
        await raw.expect(frames.ERROR)  # the connection lives


@pytest.mark.parametrize("timestamp", [1 << 62, (1 << 63) + 5, (1 << 64) - 1])
@pytest.mark.parametrize("codec", ["pcm", pytest.param("opus", marks=needs_opus)])
@virtual
async def test_a_timestamp_beyond_all_times_ends_its_stream_only(timestamp, codec):
    builder, opened = receiving()
    async with raw_client(builder) as (_, raw):
        sent = raw.send(opening(codec=codec))
        await raw.expect(frames.STREAM_ACCEPT)
        receiver, _ = await opened
        raw.send(encode_media(2, 0, 0, timestamp, bytes(960 * 4)), sent)
        (abort,) = await raw.expect(frames.STREAM_ABORT)
        assert "timestamp" in abort.name
        error = await outcome(receiver.recv())
        assert isinstance(error, ConfigurationError | StreamReset)
        raw.send(encode_frame(frames.STREAM_OPEN, 4, payloads.encode({}), name="nobody"))
        await raw.expect(frames.ERROR)  # the connection lives


@virtual
async def test_packets_that_come_before_the_stream_is_accepted_are_not_lost():
    """A reliable stream: the opener need not wait for STREAM_ACCEPT."""
    gate = asyncio.Event()
    builder, done = collecting()

    async def wait(session):
        await gate.wait()

    builder.on_connect(wait)
    async with raw_client(builder, greet=False) as (_, raw):
        raw.greet()
        block = tone(0.02)
        stream = raw.send(opening())
        for number in range(20):
            raw.send(encode_media(2, 0, number, number * 960, block.tobytes()), stream)
        raw.send(encode_frame(frames.STREAM_END, 2, number=20), stream, fin=True)
        await asyncio.sleep(0.1)
        assert raw.of(frames.STREAM_ACCEPT) == []
        gate.set()
        await raw.expect(frames.STREAM_ACCEPT)
        receiver, got = await done
        assert [frame.sequence_number for frame in got] == list(range(20))
        assert receiver.statistics().packets == 20
