"""Frames and payload scan: compiled, plain Python, and what ``struct`` and ``msgpack`` do alone.

    python -m pytest bench/bench_frame_codec.py            # pytest-benchmark's tables
    python bench/bench_frame_codec.py                      # interleaved, best of many, with ratios

The third contender writes the same facts the way programs without a codec of their own do: a
``struct`` header in front of a msgpack array, and reads them with a streaming ``Unpacker``.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from echostream.protocol import frame_codec as twin
from echostream.protocol import payload_scan as twin_scan

compiled = pytest.importorskip("echostream._ext.frame_codec")
compiled_scan = pytest.importorskip("echostream._ext.payload_scan")

BATCH = 1000
CODECS = {"compiled": compiled, "twin": twin}
SCANS = {"compiled": compiled_scan.scan_payload, "twin": twin_scan.scan_payload}
ARGUMENT = msgpack.packb("alice")
PCM = bytes(960)
DOCUMENT = msgpack.packb([{"id": n, "name": f"user {n}", "tags": ["a", "b"]} for n in range(100)])
SMALL = msgpack.packb({"id": 7, "name": "alice", "tags": ["a", "b"]})
HEADER = struct.Struct(">BBHIIIQ")

Case = Callable[[], object]


def encode_response(codec: Any) -> Case:
    encode = codec.encode_frame

    def run() -> None:
        for _ in range(BATCH):
            encode(0x11, 1004, ARGUMENT, 0x40)

    return run


def encode_request(codec: Any) -> Case:
    encode = codec.encode_frame

    def run() -> None:
        for _ in range(BATCH):
            encode(0x10, 1004, ARGUMENT, 0x40, "user.login", None, 2_000_000)

    return run


def encode_media(codec: Any) -> Case:
    encode = codec.encode_media

    def run() -> None:
        for _ in range(BATCH):
            encode(2, 0, 7000, 3_360_000, PCM, 0, 1_700_000_000_000_000_000)

    return run


def parse(codec: Any, wire: bytes, how: str) -> Case:
    parser = codec.FrameParser(1 << 20)
    chunk = wire * BATCH

    def headers() -> None:
        parser.feed(chunk)
        while parser.next():
            pass

    def fields() -> None:
        parser.feed(chunk)
        while parser.next():
            parser.type, parser.id, parser.flags  # noqa: B018
            parser.payload_bytes()

    def view() -> None:
        parser.feed(chunk)
        while parser.next():
            parser.type, parser.id, parser.flags  # noqa: B018
            parser.payload  # noqa: B018

    return {"headers": headers, "fields": fields, "view": view}[how]


def parse_datagrams(codec: Any, wire: bytes) -> Case:
    parser = codec.FrameParser(1 << 20)

    def run() -> None:
        for _ in range(BATCH):
            parser.parse_datagram(wire)
            parser.sequence_number, parser.payload  # noqa: B018

    return run


def scan(function: Callable[[bytes], int], data: bytes, times: int) -> Case:
    def run() -> None:
        for _ in range(times):
            function(data)

    return run


def pack_request() -> None:
    pack = msgpack.Packer().pack
    for _ in range(BATCH):
        pack((0x10, 1004, 0x40, "user.login", None, 2_000_000, ARGUMENT))


def unpack_requests() -> Case:
    chunk = msgpack.packb((0x10, 1004, 0x40, "user.login", None, 2_000_000, ARGUMENT)) * BATCH

    def run() -> None:
        unpacker = msgpack.Unpacker(max_buffer_size=1 << 20)
        unpacker.feed(chunk)
        for _ in unpacker:
            pass

    return run


def pack_media() -> None:
    pack = HEADER.pack
    for _ in range(BATCH):
        b"".join((pack(0x40, 1, 0, 2, 7000, len(PCM), 3_360_000), struct.pack(">q", 5), PCM))


def unpack_media() -> None:
    wire = HEADER.pack(0x40, 0, 0, 2, 7000, len(PCM), 3_360_000) + PCM
    for _ in range(BATCH):
        HEADER.unpack_from(wire)
        memoryview(wire)[24:]


REQUEST = twin.encode_frame(0x10, 1004, ARGUMENT, 0x40, "user.login", None, 2_000_000)
RESPONSE = twin.encode_frame(0x11, 1004, ARGUMENT, 0x40)
MEDIA = twin.encode_media(2, 0, 7000, 3_360_000, PCM, 0, 1_700_000_000_000_000_000)


def cases() -> dict[str, dict[str, tuple[Case, int]]]:
    """For each case its contenders, and how many operations one run of them has."""
    both = {
        "encode a response": lambda c: encode_response(CODECS[c]),
        "encode a request": lambda c: encode_request(CODECS[c]),
        "encode media": lambda c: encode_media(CODECS[c]),
        "parse responses, headers only": lambda c: parse(CODECS[c], RESPONSE, "headers"),
        "parse responses": lambda c: parse(CODECS[c], RESPONSE, "fields"),
        "parse requests": lambda c: parse(CODECS[c], REQUEST, "fields"),
        "parse media, with view": lambda c: parse(CODECS[c], MEDIA, "view"),
        "parse media DATAGRAMs": lambda c: parse_datagrams(CODECS[c], MEDIA),
        "scan a small map": lambda c: scan(SCANS[c], SMALL, BATCH),
        "scan 100 maps": lambda c: scan(SCANS[c], DOCUMENT, 20),
    }
    table = {
        title: {which: (make(which), 20 if title == "scan 100 maps" else BATCH) for which in CODECS}
        for title, make in both.items()
    }
    table["encode a request"]["msgpack"] = (pack_request, BATCH)
    table["parse requests"]["msgpack"] = (unpack_requests(), BATCH)
    table["encode media"]["struct"] = (pack_media, BATCH)
    table["parse media DATAGRAMs"]["struct"] = (unpack_media, BATCH)
    return table


CASES = cases()


@pytest.mark.parametrize(
    ("title", "which"), [(title, which) for title, found in CASES.items() for which in found]
)
def test_bench(benchmark: Any, title: str, which: str) -> None:
    benchmark.group = title
    run, operations = CASES[title][which]
    benchmark.extra_info["operations"] = operations
    benchmark.pedantic(run, rounds=30, warmup_rounds=2)


def main(rounds: int) -> None:
    print(f"{'best of ' + str(rounds) + ', ns per operation':34}", *(f"{c:>10}" for c in CODECS))
    for title, contenders in CASES.items():
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(rounds):
            for which, (run, operations) in contenders.items():
                begin = time.perf_counter_ns()
                run()
                taken = (time.perf_counter_ns() - begin) / operations
                best[which] = min(best[which], taken)
        cells = "".join(f"{best[which]:>11.0f}" for which in CODECS)
        others = "".join(f"  {w} {best[w]:.0f}" for w in best if w not in CODECS)
        print(f"{title:34}{cells}  {best['twin'] / best['compiled']:5.1f}x{others}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
