"""Payloads: what this project adds to msgspec, and the msgpack package, interleaved.

python bench/bench_payload.py [rounds]
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import numpy as np

from echostream.protocol.payload import decode, decoder, encode


@dataclasses.dataclass
class User:
    name: str
    age: int


VALUES: dict[str, Any] = {
    "int": 300,
    "str of 5": "alice",
    "bytes of 200": bytes(200),
    "map of 2": {"name": "alice", "age": 30},
    "100 maps": [{"id": n, "name": f"user {n}", "tags": ["a", "b"]} for n in range(100)],
    "1000 ints": list(range(1000)),
}


def best_of(rounds: int, runs: list[Callable[[], object]], times: int) -> list[float]:
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for place, run in enumerate(runs):
            begin = time.perf_counter_ns()
            for _ in range(times):
                run()
            best[place] = min(best[place], (time.perf_counter_ns() - begin) / times)
    return best


def main(rounds: int) -> None:
    print(
        f"{'ns, best of ' + str(rounds):26}", *(f"{c:>10}" for c in ("here", "msgspec", "msgpack"))
    )
    bare_encode, bare_decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    for title, value in VALUES.items():
        wire = encode(value)
        times = 20_000 // (1 + len(wire) // 10)
        table = {
            "encode": [
                lambda value=value: encode(value),
                lambda value=value: bare_encode(value),
                lambda value=value: msgpack.packb(value),
            ],
            "decode": [
                lambda wire=wire: decode(wire),
                lambda wire=wire: bare_decode(wire),
                lambda wire=wire: msgpack.unpackb(wire),
            ],
        }
        for what, runs in table.items():
            found = best_of(rounds, runs, times)
            print(f"{what + ' ' + title:26}", *(f"{ns:10.0f}" for ns in found))
    wire = encode(User("alice", 30))
    read, bare = decoder(User), msgspec.msgpack.Decoder(User).decode
    found = best_of(rounds, [lambda: read(wire), lambda: bare(wire)], 2000)
    print(f"{'decode a dataclass':26}", *(f"{ns:10.0f}" for ns in found))
    array = np.zeros((480, 2), np.float32)
    wire = encode(array)
    found = best_of(rounds, [lambda: encode(array), lambda: decode(wire)], 2000)
    print(f"{'encode, decode 3.8 KB PCM':26}", *(f"{ns:10.0f}" for ns in found))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
