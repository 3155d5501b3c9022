"""Frames to bytes and back: the compiled codec and its twin, one against the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostream.protocol import frame_codec as twin
from echostream.protocol import frames
from echostream.protocol.frame_types import END, MARK, MAX_VARINT, FrameType

KNOWN = sorted(kind for kind in FrameType if kind < FrameType.MEDIA)
UNKNOWN = sorted(set(range(1, 0x40)) - set(KNOWN))
ATTRIBUTES = [name for name in dir(twin.FrameParser) if not name.startswith("_")]
ATTRIBUTES = sorted(
    set(ATTRIBUTES) - {"feed", "next", "parse_datagram", "payload", "payload_bytes"}
)


@pytest.fixture(params=["_ext", "protocol"], ids=["compiled", "twin"])
def codec(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(f"echostream.{request.param}.frame_codec")


@pytest.fixture
def compiled() -> ModuleType:
    return pytest.importorskip("echostream._ext.frame_codec")


varints = st.one_of(
    st.integers(0, MAX_VARINT),
    st.sampled_from([0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, MAX_VARINT]),
)
optional = st.one_of(st.just(-1), varints)
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
general = st.fixed_dictionaries(
    {
        "type": st.sampled_from([int(kind) for kind in KNOWN]),
        "id": varints,
        "payload": st.binary(max_size=300),
        "flags": st.sampled_from([0, END, MARK, END | MARK]),
        "name": st.none() | names,
        "metadata": st.none() | st.binary(max_size=80),
        "time_us": optional,
        "number": optional,
        "priority": st.integers(-1, 7),
        "extension": st.none() | st.binary(max_size=80),
    }
)
media = st.fixed_dictionaries(
    {
        "alias": st.integers(0, (1 << 32) - 1),
        "epoch": st.integers(0, (1 << 16) - 1),
        "sequence_number": st.integers(0, (1 << 32) - 1),
        "timestamp": st.integers(0, (1 << 64) - 1),
        "payload": st.binary(max_size=300),
        "flags": st.sampled_from([0, 2, 4, 8, 16, 32, 62]),
        "capture_ts": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
    }
)
any_frame = general | media


def encode(codec: ModuleType, frame: dict[str, Any]) -> bytes:
    encoder = codec.encode_media if "alias" in frame else codec.encode_frame
    data = encoder(**frame)
    assert isinstance(data, bytes)
    return data


def state(parser: Any) -> dict[str, Any]:
    found = {key: getattr(parser, key) for key in ATTRIBUTES}
    assert type(found["oversize"]) is bool
    assert type(found["has_capture_ts"]) is bool
    found["payload"] = parser.payload_bytes()
    assert bytes(parser.payload) == found["payload"]
    return found


def trace(codec: ModuleType, chunks: list[bytes], max_length: int, max_metadata: int) -> list[Any]:
    """All that a parser tells about a stream, its refusal last."""
    parser = codec.FrameParser(max_length, max_metadata)
    found: list[Any] = []
    try:
        for chunk in chunks:
            parser.feed(chunk)
            while parser.next():
                found.append(state(parser))
                assert parser.buffered <= sum(map(len, chunks))
            found.append(parser.buffered)
    except ValueError as exc:
        found.append(str(exc))
        assert parser.buffered == 0
        for attempt in (parser.next, lambda: parser.feed(b"")):
            with pytest.raises(ValueError, match="at byte"):
                attempt()
    return found


def cut(data: bytes, at: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(point % (len(data) + 1) for point in at)})
    return [data[a:b] for a, b in pairwise(points)]


def check_frame(parser: Any, frame: dict[str, Any]) -> None:
    assert parser.payload_bytes() == frame["payload"]
    if "alias" in frame:
        assert (parser.type, parser.id) == (0x40, frame["alias"])
        assert parser.flags & ~1 == frame["flags"]
        assert parser.has_capture_ts is (frame["capture_ts"] is not None)
        assert parser.capture_ts == (frame["capture_ts"] or 0)
        same = ("epoch", "sequence_number", "timestamp")
        assert (parser.name, parser.metadata, parser.time_us) == (None, None, -1)
        assert (parser.number, parser.priority) == (-1, 3)
    else:
        assert parser.flags & 0xC0 == frame["flags"]
        assert parser.priority == (3 if frame["priority"] < 0 else frame["priority"])
        same = ("type", "id", "name", "metadata", "time_us", "number")
        assert (parser.epoch, parser.sequence_number, parser.timestamp) == (0, 0, 0)
        assert (parser.has_capture_ts, parser.capture_ts) == (False, 0)
    assert {key: getattr(parser, key) for key in same} == {key: frame[key] for key in same}


# -- both of them ----------------------------------------------------------------------------


@given(st.lists(any_frame, max_size=6), st.lists(st.integers(0, 1 << 16), max_size=12), st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("which", ["_ext", "protocol"])
def test_frames_survive_any_split(
    which: str, wanted: list[dict[str, Any]], at: list[int], data: st.DataObject
) -> None:
    codec = pytest.importorskip(f"echostream.{which}.frame_codec")
    wire = b""
    skipped = 0
    for frame in wanted:
        if data.draw(st.booleans()):
            unknown = encode(twin, {**data.draw(general), "type": 0x01})
            wire += bytes((data.draw(st.sampled_from(UNKNOWN)),)) + unknown[1:]
            skipped += 1
        wire += encode(codec, frame)
    parser = codec.FrameParser(1 << 20)
    expected = iter(wanted)
    for chunk in cut(wire, at):
        parser.feed(chunk)
        while parser.next():
            check_frame(parser, next(expected))
    assert next(expected, None) is None
    assert (parser.skipped_frames, parser.buffered) == (skipped, 0)


@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 1 << 16), max_size=12),
    st.booleans(),
    st.lists(st.integers(0, 3), min_size=13, max_size=13),
)
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("which", ["_ext", "protocol"])
def test_frames_stay_in_order_when_the_reader_lags(
    which: str, count: int, at: list[int], whole_frames: bool, pace: list[int]
) -> None:
    """A paused stream goes on being fed, also where a chunk ended with a frame."""
    codec = pytest.importorskip(f"echostream.{which}.frame_codec")
    wire = [codec.encode_frame(0x14, 4 * n, b"x" * n) for n in range(count)]
    chunks = wire if whole_frames else cut(b"".join(wire), at)
    parser = codec.FrameParser(1 << 20)
    found = []
    for chunk, frames_taken in zip(chunks, pace, strict=False):
        parser.feed(chunk)
        for _ in range(frames_taken):
            if not parser.next():
                break
            found.append(parser.id)
    while parser.next():
        found.append(parser.id)
    assert found == [4 * n for n in range(count)]
    assert parser.buffered == 0


@given(st.lists(any_frame, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("which", ["_ext", "protocol"])
def test_a_datagram_may_hold_several_frames(which: str, wanted: list[dict[str, Any]]) -> None:
    codec = pytest.importorskip(f"echostream.{which}.frame_codec")
    parser = codec.FrameParser(1 << 20)
    wire = b"".join(encode(codec, frame) for frame in wanted)
    for _ in range(2):
        assert parser.parse_datagram(wire)
        check_frame(parser, wanted[0])
        for frame in wanted[1:]:
            assert parser.next()
            check_frame(parser, frame)
        assert not parser.next()
    with pytest.raises(ValueError, match="ends inside the frame at byte"):
        assert parser.parse_datagram(wire[:-1])
        while parser.next():
            pass
    assert parser.parse_datagram(wire)  # one bad DATAGRAM does not spoil the next


def test_chunks_may_be_fed_ahead(codec: ModuleType) -> None:
    wire = codec.encode_frame(0x14, 4, b"abc", number=9)
    parser = codec.FrameParser(100)
    for _ in range(3):
        for at in range(len(wire)):
            parser.feed(wire[at : at + 1])
    assert parser.buffered == 3 * len(wire)
    for _ in range(3):
        assert parser.next()
        assert (parser.id, parser.number, parser.payload_bytes()) == (4, 9, b"abc")
    assert not parser.next()
    assert parser.buffered == 0


def test_the_payload_is_a_view_of_what_was_fed(codec: ModuleType) -> None:
    wire = codec.encode_media(2, 0, 0, 0, bytes(range(64)))
    chunk = b"".join((wire, wire))
    parser = codec.FrameParser(100)
    parser.feed(chunk)
    assert parser.next()
    view = parser.payload
    assert view.obj is chunk
    assert view.readonly
    assert parser.next()
    assert not parser.next()
    assert parser.payload.nbytes == 0
    for part in (wire[:40], wire[40:]):
        parser.feed(part)
        found = parser.next()
    assert found
    whole = parser.payload
    assert whole.obj == wire
    assert np.frombuffer(whole, np.float64).flags.aligned
    del parser
    assert bytes(view) == bytes(whole) == bytes(range(64))


@pytest.mark.parametrize(
    "payload",
    [
        b"abcdefgh",
        bytearray(b"abcdefgh"),
        memoryview(b"xabcdefgh")[1:],
        np.frombuffer(b"abcdefgh", "<f4"),
        np.frombuffer(b"abcdefgh", "<i2").reshape(2, 2),
        np.zeros((0, 2), np.float32),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_contiguous_buffer_is_a_payload(codec: ModuleType, payload: Any) -> None:
    body = bytes(payload)
    assert codec.encode_frame(0x14, 4, payload) == codec.encode_frame(0x14, 4, body)
    assert codec.encode_media(4, 0, 0, 0, payload) == codec.encode_media(4, 0, 0, 0, body)


@pytest.mark.parametrize("payload", [memoryview(b"abcdef")[::2], np.zeros((4, 4))[:, ::2]])
def test_other_buffers_are_refused(codec: ModuleType, payload: Any) -> None:
    for encoder in (
        lambda: codec.encode_frame(0x14, 4, payload),
        lambda: codec.encode_media(4, 0, 0, 0, payload),
    ):
        with pytest.raises(ValueError, match=r"(?i)not C-contiguous"):
            encoder()


@pytest.mark.parametrize(
    "arguments",
    [
        {"type": 0},
        {"type": 0x40},
        {"type": -1},
        {"type": 1 << 40},
        {"id": -1},
        {"id": MAX_VARINT + 1},
        {"id": 1 << 64},
        {"flags": 0x01},
        {"flags": 0x100},
        {"flags": -1},
        {"name": ""},
        {"name": "n" * 256},
        {"name": "ü" * 128},
        {"name": "\ud800"},
        {"metadata": bytes(16_385)},
        {"time_us": -2},
        {"time_us": MAX_VARINT + 1},
        {"number": -2},
        {"number": 1 << 63},
        {"priority": 8},
        {"priority": -2},
    ],
    ids=str,
)
def test_values_that_do_not_fit_a_general_frame(
    codec: ModuleType, arguments: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, OverflowError)):
        codec.encode_frame(**({"type": 0x10, "id": 4} | arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"alias": -1},
        {"alias": 1 << 32},
        {"epoch": 1 << 16},
        {"epoch": -1},
        {"sequence_number": 1 << 32},
        {"timestamp": 1 << 64},
        {"timestamp": -1},
        {"flags": 1},
        {"flags": 0x40},
        {"flags": -1},
        {"capture_ts": 1 << 63},
    ],
    ids=str,
)
def test_values_that_do_not_fit_a_media_frame(codec: ModuleType, arguments: dict[str, Any]) -> None:
    valid = {"alias": 2, "epoch": 0, "sequence_number": 0, "timestamp": 0, "payload": b""}
    with pytest.raises((ValueError, OverflowError)):
        codec.encode_media(**(valid | arguments))


@pytest.mark.parametrize(
    "arguments", [(3, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 1 << 32, 0), (0, 0, 1 << 63)]
)
def test_values_that_do_not_fit_a_clock_frame(
    codec: ModuleType, arguments: tuple[int, ...]
) -> None:
    with pytest.raises((ValueError, OverflowError)):
        codec.encode_clock(*arguments)


def test_clock_frames(codec: ModuleType) -> None:
    values = (2, 7, -1, 1 << 62, -(1 << 63))
    wire = codec.encode_clock(*values)
    assert codec.decode_clock(wire) == values
    parser = codec.FrameParser(0)
    assert parser.parse_datagram(codec.encode_media(1, 2, 3, 4, b"", 0, 5))
    assert parser.parse_datagram(wire)
    assert (parser.flags, parser.id, parser.t1, parser.t2, parser.t3) == values
    assert (parser.epoch, parser.timestamp, parser.capture_ts) == (0, 0, 0)
    for bad in (b"", wire + b"\0", b"\x40" + wire[1:], wire[:1] + b"\x03" + wire[2:]):
        with pytest.raises(ValueError):
            codec.decode_clock(bad)


def test_limits(codec: ModuleType) -> None:
    exact = codec.encode_frame(0x14, 4, bytes(100))
    parser = codec.FrameParser(100)
    parser.feed(exact)
    assert parser.next()
    assert not parser.oversize
    parser.feed(codec.encode_frame(0x14, 6, bytes(101)) + exact)
    assert parser.next()
    assert (parser.oversize, parser.id, parser.size, len(parser.payload)) == (True, 6, 106, 0)
    assert parser.next()
    assert (parser.oversize, parser.id, len(parser.payload)) == (False, 4, 100)
    parser = codec.FrameParser(100, 10)
    parser.feed(codec.encode_frame(0x14, 4, metadata=bytes(11)))
    with pytest.raises(ValueError, match="metadata of 11 bytes at byte 4"):
        parser.next()


def test_the_name_of_an_oversize_frame_is_told_where_it_came_along(codec: ModuleType) -> None:
    wire = codec.encode_frame(0x10, 4, bytes(100), name="upload")
    parser = codec.FrameParser(50)
    parser.feed(wire)
    assert parser.next()
    assert parser.name == "upload"
    parser = codec.FrameParser(50)
    for at in range(len(wire)):
        parser.feed(wire[at : at + 1])
        if parser.next():
            assert (parser.id, parser.name, parser.oversize) == (4, None, True)
            assert at == 4
    bad = wire[:5] + b"\x06\xff" + wire[7:]
    parser = codec.FrameParser(50)
    parser.feed(bad)
    assert parser.next()
    assert parser.name is None


def test_an_oversize_body_is_not_stored(codec: ModuleType) -> None:
    parser = codec.FrameParser(1000)
    head = b"\x10\x00\x04" + (64 << 20 | 1 << 31).to_bytes(4, "big")
    chunk = bytes(1 << 16)
    parser.feed(head)
    assert parser.next()
    assert parser.oversize
    tracemalloc.start()
    try:
        for _ in range(1024):
            parser.feed(chunk)
            assert not parser.next()
            assert parser.buffered == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000
    parser.feed(codec.encode_frame(0x14, 4, b"x"))
    assert parser.next()
    assert parser.payload_bytes() == b"x"


def test_a_promised_length_reserves_nothing(codec: ModuleType) -> None:
    head = b"\x10\x00\x04" + (4 << 20 | 1 << 31).to_bytes(4, "big") + b"x"
    tracemalloc.start()
    try:
        parsers = [codec.FrameParser(4 << 20) for _ in range(10)]
        for parser in parsers:
            parser.feed(head)
            assert not parser.next()
            assert parser.buffered == len(head)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_a_large_frame_in_small_chunks(codec: ModuleType) -> None:
    """Were each chunk to cost what is held already, this would copy 34 GB."""
    body = np.random.default_rng(1).bytes(2 << 20)
    wire = codec.encode_frame(0x11, 4, body, END)
    parser = codec.FrameParser(2 << 20)
    found = 0
    for at in range(0, len(wire), 64):
        parser.feed(wire[at : at + 64])
        found += parser.next()
        assert parser.buffered <= (2 << 20) + 32
    assert found == 1
    assert parser.payload_bytes() == body


def test_parsing_allocates_nothing(codec: ModuleType) -> None:
    one = codec.encode_frame(0x20, 77_777, b"payload", name="tick", priority=1)
    chunk = (one + codec.encode_media(2, 1, 70_000, 1 << 40, bytes(64))) * 500
    parser = codec.FrameParser(1000)

    def run() -> int:
        grown = 0
        parser.feed(chunk)
        before = sys.getallocatedblocks()
        while parser.next():
            grown = max(grown, sys.getallocatedblocks() - before)
        return grown

    run()
    assert max(run() for _ in range(100)) < 20
    assert parser.skipped_frames == 0


def test_a_view_per_frame_leaves_nothing_behind(codec: ModuleType) -> None:
    wire = codec.encode_frame(0x20, 1, b"payload", name="tick", metadata=b"\x80")
    parser = codec.FrameParser(1000)

    def run() -> None:
        for _ in range(2000):
            parser.feed(wire[:9])
            assert not parser.next()
            parser.feed(wire[9:])
            assert parser.next()
            assert parser.payload == b"payload"
            assert parser.metadata == b"\x80"

    run()
    before = sys.getallocatedblocks()
    run()
    assert sys.getallocatedblocks() - before < 50


def test_a_stream_is_not_a_datagram(codec: ModuleType) -> None:
    wire = codec.encode_frame(0x14, 4)
    parser = codec.FrameParser(10)
    parser.feed(wire)
    with pytest.raises(ValueError, match="takes the bytes of a stream"):
        parser.parse_datagram(wire)
    assert parser.next()
    parser = codec.FrameParser(10)
    assert parser.parse_datagram(wire)
    with pytest.raises(ValueError, match="takes the bytes of a DATAGRAM"):
        parser.feed(wire)


def test_only_bytes_are_fed(codec: ModuleType) -> None:
    parser = codec.FrameParser(10)
    for data in (bytearray(b"x"), memoryview(b"x"), "x", None):
        with pytest.raises(TypeError):
            parser.feed(data)
        with pytest.raises(TypeError):
            parser.parse_datagram(data)
    for limits in ((-1,), (10, -1)):
        with pytest.raises((ValueError, OverflowError)):
            codec.FrameParser(*limits)


def test_every_frame_type_is_known(codec: ModuleType) -> None:
    parser = codec.FrameParser(10)
    parser.feed(b"".join(codec.encode_frame(kind, 1) for kind in range(1, 0x40)))
    found = []
    while parser.next():
        found.append(parser.type)
    assert found == KNOWN
    assert parser.skipped_frames == len(UNKNOWN)


# -- one against the other -------------------------------------------------------------------


@given(any_frame)
@settings(max_examples=150, deadline=None)
def test_both_encode_alike(frame: dict[str, Any]) -> None:
    compiled = pytest.importorskip("echostream._ext.frame_codec")
    assert encode(compiled, frame) == encode(twin, frame)


mutations = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.sampled_from("sdi")), max_size=4
)


@given(
    st.binary(max_size=80) | st.lists(any_frame, max_size=4),
    mutations,
    st.lists(st.integers(0, 1 << 16), max_size=6),
    st.sampled_from([0, 5, 100, 1 << 20]),
    st.sampled_from([0, 20, 16_384]),
)
@settings(max_examples=600, deadline=None)
def test_both_parse_alike(
    source: bytes | list[dict[str, Any]],
    changes: list[tuple[int, int, str]],
    at: list[int],
    max_length: int,
    max_metadata: int,
) -> None:
    compiled = pytest.importorskip("echostream._ext.frame_codec")
    if isinstance(source, bytes):
        data = bytearray(source)
    else:
        data = bytearray(b"".join(encode(twin, frame) for frame in source))
    for place, value, how in changes:
        if data:
            place %= len(data)
            if how == "s":
                data[place] = value
            elif how == "d":
                del data[place]
            else:
                data.insert(place, value)
    chunks = cut(bytes(data), at)
    limits = (max_length, max_metadata)
    assert trace(compiled, chunks, *limits) == trace(twin, chunks, *limits)
    parsers = [codec.FrameParser(*limits) for codec in (compiled, twin)]
    for chunk in chunks:
        found = []
        for parser in parsers:
            try:
                states = [state(parser)] if parser.parse_datagram(chunk) else []
                while parser.next():
                    states.append(state(parser))
                found.append((states, parser.skipped_frames))
            except ValueError as exc:
                found.append((str(exc), parser.skipped_frames))
        assert found[0] == found[1]


def test_the_compiled_codec_is_in_use_where_it_is(compiled: ModuleType) -> None:
    assert frames.COMPILED
    assert frames.FrameParser is compiled.FrameParser


@pytest.mark.parametrize("accel", ["0", "1"])
def test_the_switch(accel: str, compiled: ModuleType) -> None:
    code = "import echostream.protocol.frames as f; print(f.COMPILED, f.scan_payload.__module__)"
    environment = os.environ | {"ECHOSTREAM_ACCEL": accel}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == str(accel != "0")


def test_the_doors_offer_the_same_names(compiled: ModuleType) -> None:
    assert compiled.__all__ == twin.__all__
    for name in twin.__all__:
        assert getattr(compiled, name).__doc__
    public = {name for name in dir(twin.FrameParser) if not name.startswith("_")}
    assert public == {name for name in dir(compiled.FrameParser) if not name.startswith("_")}
