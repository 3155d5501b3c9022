"""Fuzzes live sessions: ``python tests/fuzz/fuzz_session.py --seconds 5 --seed 1``.

Valid, mutated and random frames of every type, on lanes, streams of their own, the control stream
and in DATAGRAMs, cut anywhere, with resets and stops between; to a server and, the other way, to a
client. What is asserted: nothing is logged as a failure of this side's code, a session that was
refused was closed with a protocol error or as an excessive load, nothing is left behind, and what
is held stays within the limits. ``--frames N`` runs N inputs instead of a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from fuzz_datagrams import Failures
from hostile_client import RawPeer, mutated

from echostream import RpcError, Session, StreamReceiver, handler, listener, stream_handler
from echostream.builder import ServerBuilder
from echostream.codes import Close
from echostream.errors import ConnectionClosed
from echostream.protocol.frames import encode_frame, encode_media
from echostream.protocol.payload import encode
from echostream.testing import QuicNetwork, run_virtual
from echostream.transport.quic import QuicOptions, client_engine

VECTORS = Path(__file__).parents[1] / "vectors" / "wire_v1.json"
SERVER = ("198.51.100.1", 4433)
TYPES = (
    3,
    0x10,
    0x10,
    0x11,
    0x12,
    0x13,
    0x14,
    0x20,
    0x20,
    0x21,
    0x30,
    0x31,
    0x32,
    0x33,
    0x34,
    0x3F,
)
RARE = 0.002
"""Share of inputs for which a session ends: often enough, and it lives for some hundred others."""
NAMES = ("echo", "wait", "tick", "audio", "x", None)
ENDINGS = {Close.PROTOCOL_ERROR, Close.EXCESSIVE_LOAD, Close.TIMEOUT}


@handler("echo")
async def echo(session: Session, value: Any) -> Any:
    return value


@handler("wait")
async def wait(session: Session, seconds: float) -> None:
    await asyncio.sleep(min(abs(seconds), 5.0))


@handler("back")
async def back(session: Session, value: Any) -> Any:
    try:
        return await session.request("echo", value, timeout=1.0)
    except (RpcError, ConnectionClosed):
        return None


@listener("tick")
async def tick(session: Session, value: int) -> None:
    await asyncio.sleep(0.001)


@stream_handler("audio")
async def audio(session: Session, stream: StreamReceiver) -> None:
    try:
        async for _ in stream:
            pass
    except Exception:  # whatever the peer made of it
        return


class Attacker:
    """Frames from one random source to one session."""

    def __init__(self, peer: RawPeer, rng: random.Random, seeds: list[bytes]) -> None:
        self.peer = peer
        self.rng = rng
        self.seeds = seeds
        self.control = peer.hello()
        self.streams = [peer.open() for _ in range(3)]
        self.next_id = 0
        self.next_event = 1

    def frame(self, media: bool) -> bytes:
        rng = self.rng
        if rng.random() < RARE:
            return rng.choice(self.seeds)
        if media:
            return encode_media(
                rng.randrange(10),
                rng.randrange(3),
                rng.randrange(50),
                0,
                rng.randbytes(40),
                0,
                None,
            )
        kind = rng.choice(TYPES)
        self.next_id += 2
        number = -1
        identifier = self.next_id if rng.random() < 0.7 else rng.randrange(1 << 20)
        if kind == 0x20:
            identifier, self.next_event = self.next_event, self.next_event + 1
            number = rng.choice((-1, identifier - 1, rng.randrange(identifier)))
        value = rng.choice((1, "x", None, [1, 2], {"format": None}, bytes(50), 0.5))
        return encode_frame(
            kind,
            identifier,
            encode(value),
            self.flags(kind),
            rng.choice(NAMES) or "back",
            encode({"a": "b"}) if rng.random() < 0.1 else None,
            rng.choice((-1, -1, 1000, 10_000_000)),
            rng.randrange(100) if number < 0 and kind != 0x20 else number,
            rng.choice((-1, 0, 7)),
        )

    def flags(self, kind: int) -> int:
        if self.rng.random() < RARE:
            return self.rng.choice((0, 0x40, 0x80, 0xC0))
        return {0x30: 0x80, 0x34: 0}.get(kind, 0x40)

    async def one_input(self) -> None:
        rng, peer = self.rng, self.peer
        way = rng.random()
        wire = self.frame(media=0.75 <= way < 0.85 or rng.random() < RARE)
        if rng.random() < RARE:
            wire = mutated(rng, wire)
        if rng.random() < RARE:
            wire = wire[: rng.randrange(len(wire) + 1)]
        index = rng.randrange(len(self.streams))
        if way < 0.6:
            peer.write(self.streams[index], wire)
        elif way < 0.75:
            peer.open(wire, fin=rng.random() < 0.9)
        elif way < 0.9:
            peer.engine.send_datagram(wire[:1100] or b"\x00")
        elif way < 0.94:
            peer.write(self.streams[index], wire)
            peer.engine.reset_stream(self.streams[index], rng.randrange(0x20))
            self.streams[index] = peer.open()
        elif way < 0.999:
            peer.write(self.streams[index], wire[:5])
            peer.write(self.streams[index], wire[5:])
        elif way < 0.9995:
            peer.write(self.control, wire)
        elif peer.received:
            peer.engine.stop_stream(rng.choice(list(peer.received)), rng.randrange(0x20))
        peer.connection.wake()


async def session(network: QuicNetwork, number: int, attack: Any) -> None:
    """One connection: ``attack`` sends until it is done or the peer has enough."""
    engine = client_engine(QuicOptions(), server_name="localhost", verify=False)
    endpoint = network.memory.endpoint(f"10.79.{number >> 8 & 255}.{number & 255}")
    peer = RawPeer(endpoint.connect(engine, SERVER))
    await peer.connection.wait_connected()
    await attack(peer)
    if peer.closed is not None and (peer.closed.by_peer, peer.closed.code in ENDINGS) != (
        True,
        True,
    ):
        raise AssertionError(f"ended with {peer.closed}")
    peer.connection.close()
    await endpoint.close()


async def fuzz(seed: int, seconds: float, count: int) -> int:
    """Returns how many inputs there were."""
    rng = random.Random(seed)
    failures = Failures()
    vectors = json.loads(VECTORS.read_text())
    seeds = [bytes.fromhex(row["hex"]) for row in vectors["frames"] + vectors["sequences"]]
    seeds = [wire for wire in seeds if len(wire) < 1000]
    end = time.monotonic() + seconds
    inputs = sessions = 0

    def more() -> bool:
        return inputs < count if count else time.monotonic() < end

    async def attack(peer: RawPeer) -> None:
        nonlocal inputs
        attacker = Attacker(peer, rng, seeds)
        for turn in range(3000):
            if peer.closed is not None or not more():
                break
            await attacker.one_input()
            inputs += 1
            if turn % 10 == 9:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)

    async with QuicNetwork(seed=seed) as network:
        builder = ServerBuilder().handler(echo).handler(wait).handler(back)
        server = await network.serve(builder.listener(tick).stream_handler(audio))
        honest = await network.connect()
        while more():
            sessions += 1
            try:
                await session(network, sessions, attack)
                failures.check()
                found = server.statistics()
                if found.queued + found.assembling > 16 << 20 or found.calls_running > 200:
                    raise AssertionError(str(found))
                if await honest.request("echo", sessions, timeout=5.0) != sessions:
                    raise AssertionError("the honest client")
            except BaseException:
                print(f"seed {seed}, session {sessions}, input {inputs}", file=sys.stderr)
                raise
        await asyncio.sleep(30)
        left = server.statistics()
        if (left.sessions, left.tasks, left.assembling, left.queued) != (1, 0, 0, 0):
            raise AssertionError(f"left behind: {left}")
    return inputs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--frames", type=int, default=0)
    options = parser.parse_args()
    inputs = run_virtual(fuzz(options.seed, options.seconds, options.frames), limit=1e9)
    print(f"seed {options.seed}: {inputs} inputs, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
