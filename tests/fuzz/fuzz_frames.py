"""Fuzzes frame parser and payload codec: ``python tests/fuzz/fuzz_frames.py --seconds 5 --seed 1``.

What is asserted: the compiled parser and its twin tell the same, a parser holds no more than its
limit, the walk and the decoders raise nothing but their own errors. With atheris installed,
``--atheris`` hands over to its coverage-guided engine; else inputs are random and mutated frames,
from a seed that is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from echostream._ext import frame_codec as compiled
from echostream._ext import payload_scan as compiled_scan
from echostream.errors import InvalidPayload
from echostream.protocol import frame_codec as twin
from echostream.protocol import payload_scan as twin_scan
from echostream.protocol.payload import decode, decode_metadata, decoder

VECTORS = Path(__file__).parents[1] / "vectors" / "wire_v1.json"
ATTRIBUTES = sorted(
    {name for name in dir(twin.FrameParser) if not name.startswith("_")}
    - {"feed", "next", "parse_datagram", "payload", "payload_bytes"}
)
TYPED = [decode_metadata, decoder(dict[str, int]), decoder(list[int]), decoder(str)]


def one_input(data: bytes) -> None:
    """The first bytes choose limits and splits, the rest is the wire."""
    if len(data) < 4:
        return
    limits = ((0, 20, 200, 1 << 20)[data[0] & 3], (0, 16_384)[data[0] >> 2 & 1])
    step = 1 + data[1]
    wire = data[4:]
    chunks = [wire[at : at + step] for at in range(0, len(wire), step)]
    same(stream(compiled, chunks, *limits), stream(twin, chunks, *limits), "stream")
    same(datagrams(compiled, chunks, *limits), datagrams(twin, chunks, *limits), "datagrams")
    same(scan(compiled_scan, wire), scan(twin_scan, wire), "scan")
    for read in (decode, *TYPED):
        try:
            read(wire)
        except InvalidPayload:
            pass


def stream(codec: Any, chunks: list[bytes], max_length: int, max_metadata: int) -> list[Any]:
    parser = codec.FrameParser(max_length, max_metadata)
    found: list[Any] = []
    try:
        for chunk in chunks:
            parser.feed(chunk)
            while parser.next():
                found.append(state(parser))
            if parser.buffered > max_length + 32:
                raise AssertionError(f"{parser.buffered} bytes held, limit {max_length}")
    except ValueError as exc:
        found.append(str(exc))
    return found


def datagrams(codec: Any, chunks: list[bytes], max_length: int, max_metadata: int) -> list[Any]:
    parser = codec.FrameParser(max_length, max_metadata)
    found: list[Any] = []
    for chunk in chunks[:20]:
        try:
            more = parser.parse_datagram(chunk)
            while more:
                found.append(state(parser))
                more = parser.next()
        except ValueError as exc:
            found.append(str(exc))
    return found


def state(parser: Any) -> list[Any]:
    return [getattr(parser, name) for name in ATTRIBUTES] + [bytes(parser.payload)]


def scan(module: Any, wire: bytes) -> int | str:
    try:
        items: int = module.scan_payload(wire)
    except ValueError as exc:
        return str(exc)
    return items


def same(first: object, second: object, what: str) -> None:
    if first != second:
        raise AssertionError(f"{what}: compiled {first!r}, twin {second!r}")


def corpus() -> list[bytes]:
    vectors = json.loads(VECTORS.read_text())
    sections = ("frames", "sequences", "invalid", "oversize", "payloads")
    found = [bytes.fromhex(row["hex"]) for name in sections for row in vectors[name]]
    return [wire for wire in found if len(wire) < 2000]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(4, 64))
    wire = bytearray(b"".join(rng.choices(seeds, k=rng.randrange(1, 4))))
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        if not wire:
            break
        at = rng.randrange(len(wire))
        match rng.randrange(4):
            case 0:
                wire[at] = rng.randrange(256)
            case 1:
                wire[at] ^= 1 << rng.randrange(8)
            case 2:
                del wire[at : at + rng.randrange(1, 9)]
            case _:
                wire[at:at] = rng.randbytes(rng.randrange(1, 9))
    return rng.randbytes(4) + bytes(wire)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    options, rest = parser.parse_known_args()
    if options.atheris:
        import atheris

        atheris.Setup([sys.argv[0], *rest], one_input)
        atheris.Fuzz()
        return 0
    rng = random.Random(options.seed)
    seeds = corpus()
    end = time.monotonic() + options.seconds
    inputs = 0
    while time.monotonic() < end:
        data = mutated(rng, seeds)
        try:
            one_input(data)
        except BaseException:
            print(f"seed {options.seed}, input {inputs}: {data.hex()}", file=sys.stderr)
            raise
        inputs += 1
    print(f"seed {options.seed}: {inputs} inputs, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
