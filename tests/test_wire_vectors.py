"""The golden vectors of docs/wire-format.md, on the compiled codec and on its twin."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from echostream.protocol import payload

PATH = Path(__file__).parent / "vectors" / "wire_v1.json"
VECTORS = json.loads(PATH.read_text())
GENERAL_MAX, MEDIA, CLOCK = 0x3F, 0x40, 0x41


@pytest.fixture(params=["_ext", "protocol"], ids=["compiled", "twin"])
def codec(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(f"echostream.{request.param}.frame_codec")


@pytest.fixture(params=["_ext", "protocol"], ids=["compiled", "twin"])
def scanner(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(f"echostream.{request.param}.payload_scan")


def rows(section: str) -> list[Any]:
    return [pytest.param(row, id=row["title"]) for row in VECTORS[section]]


def describe(parser: Any) -> dict[str, Any]:
    """What the parser found, in the words of the file, but for strings of integers."""
    keys = ["type", "flags", "id"]
    if parser.type == CLOCK:
        return {key: getattr(parser, key) for key in [*keys, "t1", "t2", "t3"]}
    found: dict[str, Any] = {"payload": parser.payload_bytes().hex()}
    assert bytes(parser.payload) == parser.payload_bytes()
    if parser.type == MEDIA:
        keys += ["epoch", "sequence_number", "timestamp"]
        keys += ["capture_ts"] if parser.has_capture_ts else []
    else:
        if parser.flags & 0x01:
            found["name"] = parser.name
        if parser.flags & 0x02:
            found["metadata"] = parser.metadata.hex()
        keys += [
            key
            for flag, key in ((4, "time_us"), (8, "number"), (16, "priority"))
            if parser.flags & flag
        ]
    return found | {key: getattr(parser, key) for key in keys}


def expected(frame: dict[str, Any]) -> dict[str, Any]:
    texts = {"name", "metadata", "payload"}
    return {
        key: int(value) if isinstance(value, str) and key not in texts else value
        for key, value in frame.items()
        if key != "oversize"
    }


@pytest.mark.parametrize("row", rows("frames"))
def test_a_frame_is_parsed(codec: ModuleType, row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["hex"])
    parser = codec.FrameParser(1 << 20)
    if row["in"] == "datagram":
        assert parser.parse_datagram(data)
    else:
        parser.feed(data)
        assert parser.next()
    assert describe(parser) == expected(row["frame"])
    assert parser.size == len(data)
    assert not parser.oversize
    assert not parser.next()


@pytest.mark.parametrize("row", [row for row in VECTORS["frames"] if row.get("shortest", True)])
def test_a_frame_is_encoded(codec: ModuleType, row: dict[str, Any]) -> None:
    frame = expected(row["frame"])
    kind, flags = frame.pop("type"), frame.pop("flags")
    body = bytes.fromhex(frame.pop("payload", ""))
    if kind == CLOCK:
        data = codec.encode_clock(flags, frame["id"], frame["t1"], frame["t2"], frame["t3"])
    elif kind == MEDIA:
        data = codec.encode_media(
            frame["id"],
            frame["epoch"],
            frame["sequence_number"],
            frame["timestamp"],
            body,
            flags & ~1,
            frame.get("capture_ts"),
        )
    else:
        if "metadata" in frame:
            frame["metadata"] = bytes.fromhex(frame["metadata"])
        if flags & 0x20:  # what the extension holds is nobody's business but the vector's
            frame["extension"] = b"later" if body else b""
        data = codec.encode_frame(kind, frame.pop("id"), body, flags & 0xC0, **frame)
    assert data.hex() == row["hex"]


@pytest.mark.parametrize("row", rows("sequences"))
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_sequence_is_parsed(codec: ModuleType, row: dict[str, Any], step: int) -> None:
    data = bytes.fromhex(row["hex"])
    parser = codec.FrameParser(1 << 20)
    found = []
    for at in range(0, len(data), step):
        parser.feed(data[at : at + step])
        while parser.next():
            found.append(describe(parser))
    assert found == [expected(frame) for frame in row["frames"]]
    assert parser.skipped_frames == row["skipped"]
    assert parser.buffered == 0


@pytest.mark.parametrize("row", rows("invalid"))
def test_an_invalid_frame_is_refused(codec: ModuleType, row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["hex"])
    parser = codec.FrameParser(1 << 20)
    with pytest.raises(ValueError) as caught:
        if row["in"] == "datagram":
            parser.parse_datagram(data)
        else:
            parser.feed(data)
            parser.next()
    assert str(caught.value) == row["reason"]


@pytest.mark.parametrize("row", rows("oversize"))
def test_an_oversize_frame_is_reported_and_dropped(codec: ModuleType, row: dict[str, Any]) -> None:
    parser = codec.FrameParser(row["max_length"])
    parser.feed(bytes.fromhex(row["hex"]))
    for frame in row["frames"]:
        assert parser.next()
        assert parser.oversize is frame["oversize"]
        assert (parser.type, parser.id) == (frame["type"], frame["id"])
        assert parser.payload_bytes().hex() == frame["payload"]
    assert not parser.next()


@pytest.mark.parametrize("row", rows("payloads"))
def test_a_payload_is_decoded(scanner: ModuleType, row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["hex"])
    scanner.scan_payload(data)
    found, value = payload.decode(data), row["value"]
    if not isinstance(value, dict) or "age" in value:
        assert found == value
    elif "timestamp_ns" in value:
        assert found.timestamp() * 1e9 == value["timestamp_ns"]
    elif "complex" in value:
        assert found == complex(*value["complex"])
    else:
        array = value["array"]
        assert found.dtype == np.dtype(array["dtype"])
        assert found.shape == tuple(array["shape"])
        assert found.reshape(-1).tolist() == array["elements"]
        assert payload.decode(payload.encode(found)).tolist() == found.tolist()


@pytest.mark.parametrize("row", rows("invalid_payloads"))
def test_an_invalid_payload_is_refused(scanner: ModuleType, row: dict[str, Any]) -> None:
    data = b"".join(bytes.fromhex(byte) * times for byte, times in row["runs"])
    with pytest.raises(ValueError) as caught:
        scanner.scan_payload(data)
    assert str(caught.value) == row["reason"]


def test_the_file_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_wire_v1", PATH.with_name("make_wire_v1.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.vectors() == VECTORS


def test_vectors_written_by_hand() -> None:
    """From the page, not from the code: what keeps the generated ones honest."""
    by_hand = {
        "HELLO": "01 00 01 01 80",
        "CREDIT": "03 08 04 02 4040",
        "REQUEST, smallest": "10 41 00 03 01 66 c0",
        "ITEM": "14 08 07 02 00 c3",
        "EVENT": "20 11 01 07 04 7469636b 07 2a",
        "media": "40 00 0000 00000002 00000000 00000008 0000000000000000 00000100ffffff7f",
        "media with negative capture_ts": "40 01 0000 00000002 00000001 00000008"
        " 0000000000000002 ffffffffffffffff 00000100ffffff7f",
        "clock request": "41 00 0000 00000007 000000003b9aca07 0000000000000000 0000000000000000",
        f"id {(1 << 62) - 1}": "14 00 ffffffffffffffff 01 c0",
    }
    found = {row["title"]: row["hex"] for row in VECTORS["frames"]}
    assert {title: found[title] for title in by_hand} == {
        title: text.replace(" ", "") for title, text in by_hand.items()
    }
