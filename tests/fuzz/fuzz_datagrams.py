"""Fuzzes acceptor and engines: ``python tests/fuzz/fuzz_datagrams.py --seconds 5 --seed 1``.

Random, mutated and replayed datagrams, Initials with random frames and 1-RTT packets with random
frames under the right keys go to a server that listens and has a live connection. What is asserted:
nothing is raised into the driver or logged as a failure, no more handshakes stay open than the
limit, and an honest client still gets in. ``--packets N`` runs N inputs instead of a time.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from hostile_client import initial, mutated, one_rtt, random_datagrams

from echostream import handler
from echostream.builder import ServerBuilder
from echostream.testing import QuicNetwork, run_virtual
from echostream.transport.quic import QuicOptions, client_engine

SERVER = ("198.51.100.1", 4433)
LIVE = 2000  # inputs for one victim connection at most


@handler("echo")
async def echo(value: int) -> int:
    return value


class Failures(logging.Handler):
    """A log record of an error is a finding; :meth:`check` raises the first."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        for name in ("echostream", "asyncio", "quic"):
            logging.getLogger(name).addHandler(self)
            logging.getLogger(name).propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))

    def check(self) -> None:
        if self.found:
            raise AssertionError(self.found[0])


def random_frames(rng: random.Random) -> bytes:
    """The payload of a packet: frame types of QUIC with random bodies, or only bytes."""
    parts = []
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(0x32) if rng.random() < 0.9 else rng.randrange(256)
        parts.append(bytes([kind]) + rng.randbytes(rng.randrange(24)))
    return b"".join(parts)


class Target:
    """A server with one live connection, which is made anew when an input ended it."""

    def __init__(self, network: QuicNetwork, rng: random.Random) -> None:
        self.network = network
        self.rng = rng
        self.endpoint = network.memory._endpoints[SERVER]
        self.victim: Any = None
        self.address = ("10.77.0.1", 1000)
        self.used = 0
        self.seen: list[bytes] = []
        carry = network.memory.carry

        def remember(datagrams: list[tuple[bytes, Any]], source: tuple[str, int]) -> None:
            if source[0] == self.address[0]:
                self.seen = (self.seen + [data for data, _ in datagrams])[-50:]
            carry(datagrams, source)

        network.memory.carry = remember  # type: ignore[method-assign]

    async def connect(self) -> None:
        """A victim whose packets are remembered, to be replayed and mutated."""
        self.used = 0
        engine = client_engine(QuicOptions(), server_name="localhost", verify=False)
        client = self.network.memory.endpoint("10.77.0.1")
        connection = client.connect(engine, SERVER)
        await connection.wait_connected()
        await asyncio.sleep(0.05)
        if self.victim is not None:
            self.victim.abandon()
        self.victim, self.address = connection, client.address

    async def one_input(self) -> None:
        rng = self.rng
        if self.victim is None or self.victim.closed is not None or self.used > LIVE:
            await self.connect()
        self.used += 1
        source = self.address if rng.random() < 0.5 else ("10.78.0.1", rng.randrange(1, 65536))
        way = rng.random()
        if way < 0.3:
            data = random_datagrams(rng)
        elif way < 0.6:
            data = mutated(rng, rng.choice(self.seen))
        elif way < 0.75:
            data = rng.choice(self.seen)  # once more, and from elsewhere
        elif way < 0.85:
            data = initial(random_frames(rng), number=rng.randrange(3))
        elif way < 0.98:
            data = mutated(rng, initial(rng.randbytes(20)))
        else:
            data, source = one_rtt(self.victim.engine, random_frames(rng)), self.address
        self.endpoint.receive([(data, source)])
        if not self.used % 50:
            await asyncio.sleep(0.05)


async def fuzz(seed: int, seconds: float, packets: int) -> int:
    """Returns how many inputs there were."""
    rng = random.Random(seed)
    failures = Failures()
    end = time.monotonic() + seconds
    inputs = 0
    async with QuicNetwork(seed=seed) as network:
        server = await network.serve(ServerBuilder().handler(echo))
        honest = await network.connect()
        target = Target(network, rng)
        while inputs < packets if packets else time.monotonic() < end:
            try:
                await target.one_input()
                failures.check()
            except BaseException:
                print(f"seed {seed}, input {inputs}", file=sys.stderr)
                raise
            inputs += 1
            if not inputs % 1000:
                if server.statistics().half_open > 1024:
                    raise AssertionError("half-open handshakes")
                if await honest.request("echo", inputs, timeout=5.0) != inputs:
                    raise AssertionError("the honest client")
    return inputs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--packets", type=int, default=0)
    options = parser.parse_args()
    inputs = run_virtual(fuzz(options.seed, options.seconds, options.packets), limit=1e9)
    print(f"seed {options.seed}: {inputs} inputs, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
