"""Writes ``wire_v1.json``, the golden vectors of wire format version 1, from the Python twin.

    python tests/vectors/make_wire_v1.py          # writes the file
    python tests/vectors/make_wire_v1.py --check  # tells whether it is current

For implementers in any language. Bytes are hexadecimal; an integer above 2**53 - 1 is a decimal
string, because JSON readers lose it otherwise. The keys of the file:

``frames``
    Bytes that are one frame. ``frame`` says what a parser finds; a field that is not listed is
    absent. ``in`` is ``stream`` or ``datagram``. ``shortest`` is false where an encoder writes the
    same frame in fewer bytes.
``sequences``
    Bytes of one stream with the ``frames`` in it, and how many were ``skipped``.
``invalid``
    Bytes that end the connection with PROTOCOL_ERROR, and the ``reason``.
``oversize``
    Bytes of one stream read by a receiver whose limit of ``length`` is ``max_length``.
``payloads``
    msgpack, and the value: ``{"array": ...}`` and ``{"complex": ...}`` stand for extension types.
``invalid_payloads``
    msgpack that a receiver with the default limits refuses before it builds objects. ``runs`` are
    pairs of a byte and how often it stands there, one after the other.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

from echostream.protocol import frame_codec as codec
from echostream.protocol.frame_types import (
    CLOCK_REPLY,
    CLOCK_REPLY_REQUEST,
    END,
    MARK,
    MAX_VARINT,
    MEDIA_DTX,
    MEDIA_END,
    MEDIA_FRAGMENT,
    MEDIA_KEY,
    MEDIA_MARKER,
    FrameType,
)
from echostream.protocol.payload_scan import scan_payload

PATH = Path(__file__).with_name("wire_v1.json")


def main() -> int:
    text = json.dumps(vectors(), indent=1) + "\n"
    if "--check" in sys.argv:
        current = PATH.read_text() == text
        print("current" if current else "out of date")
        return 0 if current else 1
    PATH.write_text(text)
    print(f"{PATH.name}: {len(text)} bytes")
    return 0


def vectors() -> dict[str, Any]:
    return {
        "version": 1,
        "frames": frames(),
        "sequences": sequences(),
        "invalid": invalid(),
        "oversize": oversize(),
        "payloads": payloads(),
        "invalid_payloads": invalid_payloads(),
    }


def frames() -> list[dict[str, Any]]:
    empty_map = b"\x80"
    metadata = bytes.fromhex("81a57472616365c403616263")  # {"trace": b"abc"}
    rows: list[dict[str, Any]] = []

    def general(title: str, *args: Any, **kwargs: Any) -> None:
        data = codec.encode_frame(*args, **kwargs)
        rows.append({"title": title, "in": "stream", "hex": data.hex(), "frame": parse(data)})

    def media(title: str, *args: Any, place: str = "datagram", **kwargs: Any) -> None:
        data = codec.encode_media(*args, **kwargs)
        rows.append({"title": title, "in": place, "hex": data.hex(), "frame": parse(data)})

    def by_hand(title: str, data: bytes) -> None:
        rows.append(
            {
                "title": title,
                "in": "stream",
                "hex": data.hex(),
                "frame": parse(data),
                "shortest": False,
            }
        )

    general("HELLO", FrameType.HELLO, 1, empty_map)
    general("GOAWAY", FrameType.GOAWAY, 8, b"bye", number=3, time_us=5_000_000)
    general("CREDIT", FrameType.CREDIT, 4, number=64)
    general("RESUME", FrameType.RESUME, 1_000_000)
    general("RESUME, begins anew", FrameType.RESUME, 0, flags=MARK, number=1)
    general("RESUME with runs beyond", FrameType.RESUME, 4, b"\x94\x06\x06\x08\x09", number=5)
    general(
        "RESUME with outcomes: from 3 on, 7 came to INTERNAL",
        FrameType.RESUME,
        9,
        metadata=bytes.fromhex("81b36563686f73747265616d2e6f7574636f6d6573c4049303070d"),
        number=1,
    )
    general("STREAM_ACK", FrameType.STREAM_ACK, 4, number=64)
    general("STREAM_ACK of the end", FrameType.STREAM_ACK, 4, flags=END, number=65)
    general("WELCOME", FrameType.WELCOME, 1)
    general("REQUEST, smallest", FrameType.REQUEST, 0, b"\xc0", END, "f")
    general(
        "REQUEST, every field",
        FrameType.REQUEST,
        4,
        b"\xa5alice",
        END | MARK,
        name="user.login",
        metadata=metadata,
        time_us=2_000_000,
        number=16,
        priority=0,
        extension=b"later",
    )
    general("REQUEST, items follow", FrameType.REQUEST, 6, name="sum")
    general("REQUEST, name of 255 bytes", FrameType.REQUEST, 8, b"\x01", END, "n" * 255)
    general("REQUEST, name beyond ASCII", FrameType.REQUEST, 10, b"\x01", END, "größe.音")
    general("RESPONSE", FrameType.RESPONSE, 4, b"\x2a", END, metadata=empty_map)
    general("ERROR", FrameType.ERROR, 4, b"", END, name="no such user", number=5)
    general("ERROR, not run", FrameType.ERROR, 4, b"", END, name="bye", number=14, time_us=0)
    general("ERROR without text", FrameType.ERROR, 4, empty_map, END, number=13)
    general("CANCEL", FrameType.CANCEL, 4, number=0x10)
    general("ITEM", FrameType.ITEM, 7, b"\xc3", number=0)
    general("ITEM, the last, empty", FrameType.ITEM, 7, flags=END, number=1)
    general("EVENT", FrameType.EVENT, 1, b"\x2a", name="tick", priority=7)
    general(
        "EVENT with predecessor and age, to be acknowledged",
        FrameType.EVENT,
        9,
        b"\x2a",
        MARK,
        name="tick",
        time_us=150_000,
        number=8,
    )
    general("EVENT_ACK", FrameType.EVENT_ACK, 9, number=0)
    general("STREAM_OPEN", FrameType.STREAM_OPEN, 2, empty_map, MARK, name="audio", priority=1)
    general("STREAM_ACCEPT", FrameType.STREAM_ACCEPT, 2, empty_map)
    general("STREAM_END", FrameType.STREAM_END, 2, flags=END, number=70_000)
    general("STREAM_ABORT", FrameType.STREAM_ABORT, 2, number=0x11, name="too old")
    general("STREAM_FLUSH", FrameType.STREAM_FLUSH, 2, number=65_535)
    for value in (63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, MAX_VARINT):
        general(f"id {value}", FrameType.ITEM, value, b"\xc0")
    general("length 64", FrameType.ITEM, 0, b"\xc4\x3e" + bytes(62))
    general("zero in every number", FrameType.EVENT, 0, name="e", time_us=0, number=0, priority=0)
    general("empty metadata and extension", FrameType.EVENT, 0, metadata=b"", extension=b"")
    general("priority 3 said aloud", FrameType.EVENT, 1, name="e", priority=3)
    by_hand("every varint in 8 bytes", b"\x14\x48" + b8(4) + b8(9) + b8(5) + b"\xc0")
    by_hand("varints in 2 and 4 bytes", b"\x14\x00\x40\x04\x80\x00\x00\x01\xc0")

    samples = struct.pack("<4h", 0, 1, -1, 32_767)
    media("media", 2, 0, 0, 0, samples)
    media("media with capture_ts", 2, 0, 1, 2, samples, capture_ts=1_700_000_000_123_456_789)
    media("media with negative capture_ts", 2, 0, 1, 2, samples, capture_ts=-1)
    media("media, last packet of an epoch, empty", 2, 1, 7, 960, b"", flags=MEDIA_END)
    flags = MEDIA_MARKER | MEDIA_DTX | MEDIA_KEY | MEDIA_FRAGMENT
    media("media, other flags", 2, 1, 7, 960, b"\x00", flags=flags)
    top = (1 << 32) - 1
    media("media, greatest numbers", top, 65_535, top, (1 << 64) - 1, b"x", capture_ts=-(1 << 63))
    media("media in a stream", 2, 0, 0, 0, samples, place="stream")
    for title, args in {
        "clock request": (0, 7, 1_000_000_007),
        "clock reply": (CLOCK_REPLY, 7, 1_000_000_007, -5, (1 << 63) - 1),
        "clock reply that is a request": (CLOCK_REPLY_REQUEST, top, 1, 2, 3),
    }.items():
        data = codec.encode_clock(*args)
        rows.append({"title": title, "in": "datagram", "hex": data.hex(), "frame": parse(data)})
    data = bytearray(codec.encode_clock(0, 7, 1))
    data[2:4] = b"\x12\x34"
    rows.append(
        {
            "title": "clock request, reserved bits are ignored",
            "in": "datagram",
            "hex": data.hex(),
            "frame": parse(bytes(data)),
            "shortest": False,
        }
    )
    return rows


def sequences() -> list[dict[str, Any]]:
    request = codec.encode_frame(FrameType.REQUEST, 0, b"\xc0", END, "f")
    unknown = bytes.fromhex("3fff0003ffffff")
    media = codec.encode_media(2, 0, 0, 0, b"\x01\x02")
    return [
        sequence("two frames", request + request),
        sequence("frame of an unknown type, skipped unread", request + unknown + request),
        sequence("unknown type alone", unknown),
        sequence("general and media frames", request + media + request),
    ]


def sequence(title: str, data: bytes) -> dict[str, Any]:
    parser = codec.FrameParser(1 << 20)
    parser.feed(data)
    found = []
    while parser.next():
        found.append(describe(parser))
    skipped = parser.skipped_frames
    return {"title": title, "hex": data.hex(), "frames": found, "skipped": skipped}


def invalid() -> list[dict[str, Any]]:
    clock = codec.encode_clock(0, 7, 1)
    media = codec.encode_media(2, 0, 0, 0, b"\x01\x02")
    big = codec.encode_frame(FrameType.EVENT, 1, name="e", metadata=bytes(16_384))
    rows = [
        ("type 0", "stream", "00000000"),
        ("type 0x42", "stream", "42000000"),
        ("type 0xff", "stream", "ff000000"),
        ("clock frame in a stream", "stream", clock.hex()),
        ("empty name", "stream", "2001010100"),
        ("name of 256 bytes", "stream", "200101" + "4102" + "4100" + "61" * 256),
        ("name that is not UTF-8", "stream", "200101" + "03" + "02" + "c328"),
        ("name with a surrogate", "stream", "200101" + "04" + "03" + "eda080"),
        ("name longer than the frame", "stream", "200101" + "02" + "02" + "61"),
        ("flag NAME, empty frame", "stream", "20010100"),
        ("varint that does not fit the frame", "stream", "14080001" + "40"),
        ("time missing", "stream", "1004000" + "0"),
        ("priority missing", "stream", "20100100"),
        ("priority 8", "stream", "2010010108"),
        ("extension longer than the frame", "stream", "20200102" + "0200"),
        ("metadata longer than the frame", "stream", "20020103" + "038081"),
        ("metadata of 16,385 bytes", "stream", grow_metadata(big).hex()),
        ("media flag that is not defined", "stream", "4040" + media[2:].hex()),
        ("clock flags 3", "datagram", "4103" + clock[2:].hex()),
        ("empty DATAGRAM", "datagram", ""),
        ("DATAGRAM that ends inside a header", "datagram", "2001"),
        ("DATAGRAM that ends inside a frame", "datagram", "200001" + "02" + "c0"),
        ("DATAGRAM that ends inside a media header", "datagram", media[:20].hex()),
        ("DATAGRAM that ends inside a media frame", "datagram", media[:-1].hex()),
        ("DATAGRAM that ends inside a clock frame", "datagram", clock[:-1].hex()),
    ]
    found = []
    for title, place, text in rows:
        data = bytes.fromhex(text)
        parser = codec.FrameParser(1 << 20)
        try:
            if place == "stream":
                parser.feed(data)
                parser.next()
            else:
                parser.parse_datagram(data)
        except ValueError as exc:
            found.append({"title": title, "in": place, "hex": text, "reason": str(exc)})
        else:
            raise AssertionError(f"{title} was accepted")
    return found


def grow_metadata(frame: bytes) -> bytes:
    """A frame whose metadata is one byte longer than the encoder lets it be."""
    fields = b"\x01e" + ((1 << 31) | 16_385).to_bytes(4, "big") + bytes(16_385)
    return frame[:3] + ((1 << 31) | len(fields)).to_bytes(4, "big") + fields


def oversize() -> list[dict[str, Any]]:
    small = codec.encode_frame(FrameType.ITEM, 4, b"\xc0")
    rows = []
    for title, data in {
        "a call": codec.encode_frame(FrameType.REQUEST, 4, bytes(64), END, "upload"),
        "a media frame": codec.encode_media(2, 0, 0, 0, bytes(64)),
    }.items():
        parser = codec.FrameParser(32)
        parser.feed(data + small)
        found = []
        while parser.next():
            frame = describe(parser)
            frame["oversize"] = parser.oversize
            found.append(frame)
        row = {"title": title, "hex": (data + small).hex(), "max_length": 32, "frames": found}
        rows.append(row)
    return rows


def payloads() -> list[dict[str, Any]]:
    rows = {
        "nil": ("c0", None),
        "an int": ("cd012c", 300),
        "a map": ("81a3616765 2a", {"age": 42}),
        "timestamp, 32 bits": ("d6ff 00000000", {"timestamp_ns": 0}),
        "timestamp, 96 bits, before 1970": (
            "c70cff 1dcd6500 ffffffffffffffff",
            {"timestamp_ns": -500_000_000},
        ),
        "array of two int16": (
            "c714 01 03" + b"<i2".hex() + "01" + "0000000000000002" + "000000" + "0100ffff",
            {"array": {"dtype": "<i2", "shape": [2], "elements": [1, -1]}},
        ),
        "array without dimensions": (
            "d801 03" + b"<f8".hex() + "00" + "000000" + "000000000000f03f",
            {"array": {"dtype": "<f8", "shape": [], "elements": [1.0]}},
        ),
        "array without elements": (
            "c718 01 03" + b"|u1".hex() + "02" + "0000000000000000 0000000000000003" + "000000",
            {"array": {"dtype": "|u1", "shape": [0, 3], "elements": []}},
        ),
        "complex number": (
            "d802 3ff0000000000000 c000000000000000",
            {"complex": [1.0, -2.0]},
        ),
    }
    return [
        {"title": title, "hex": text.replace(" ", ""), "value": value}
        for title, (text, value) in rows.items()
    ]


def invalid_payloads() -> list[dict[str, Any]]:
    rows = [
        ("nothing", ""),
        ("two values", "c0c0"),
        ("byte 0xc1", "c1"),
        ("int as key", "810102"),
        ("nil as key", "81c002"),
        ("map as key", "818002"),
        ("33 arrays in each other", "91" * 32 + "90"),
        ("array that promises more than there is", "dd0000fffec0"),
        ("65,537 items", "dd00010001" + "c0" * 65_537),
        ("65,538 items in three containers", "92dc8000" + "c0" * 0x8000 + "dc8000" + "c0" * 0x8000),
        ("str cut short", "a261"),
        ("str without length", "d9"),
        ("bin cut short", "c50002ff"),
        ("float cut short", "cb000000"),
        ("extension type 3", "d40300"),
        ("extension type -2", "d4fe00"),
        ("extension cut short", "c70801"),
        ("map without its last value", "82a161c0a162"),
    ]
    found = []
    for title, text in rows:
        try:
            scan_payload(bytes.fromhex(text))
        except ValueError as exc:
            found.append({"title": title, "runs": runs(bytes.fromhex(text)), "reason": str(exc)})
        else:
            raise AssertionError(f"{title} was accepted")
    return found


def runs(data: bytes) -> list[list[Any]]:
    """``[hex, times]`` pairs: the bytes are each repeated so often, one after the other."""
    found: list[list[Any]] = []
    for at in range(len(data)):
        byte = data[at : at + 1].hex()
        if found and found[-1][0] == byte:
            found[-1][1] += 1
        else:
            found.append([byte, 1])
    return found


def b8(value: int) -> bytes:
    return (value | 3 << 62).to_bytes(8, "big")


def parse(data: bytes) -> dict[str, Any]:
    parser = codec.FrameParser(1 << 20)
    if not parser.parse_datagram(data) or parser.size != len(data):
        raise AssertionError(data.hex())
    return describe(parser)


def describe(parser: Any) -> dict[str, Any]:
    """What a parser found, in the words of the file."""
    found: dict[str, Any] = {"type": parser.type, "flags": parser.flags, "id": safe(parser.id)}
    if parser.type == FrameType.CLOCK:
        return found | {key: safe(getattr(parser, key)) for key in ("t1", "t2", "t3")}
    if parser.type == FrameType.MEDIA:
        for key in ("epoch", "sequence_number", "timestamp"):
            found[key] = safe(getattr(parser, key))
        if parser.has_capture_ts:
            found["capture_ts"] = safe(parser.capture_ts)
    else:
        if parser.name is not None:
            found["name"] = parser.name
        if parser.metadata is not None:
            found["metadata"] = parser.metadata.hex()
        if parser.time_us >= 0:
            found["time_us"] = safe(parser.time_us)
        if parser.number >= 0:
            found["number"] = safe(parser.number)
        if parser.flags & 0x10:
            found["priority"] = parser.priority
    found["payload"] = parser.payload_bytes().hex()
    return found


def safe(value: int) -> int | str:
    return value if -(1 << 53) < value < 1 << 53 else str(value)


if __name__ == "__main__":
    sys.exit(main())
