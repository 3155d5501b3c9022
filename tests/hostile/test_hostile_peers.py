"""What hostile peers get, over real QUIC in virtual time: a named end, and others do not notice."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import hostile_client as hostile
import pytest
from full_size import sized
from hostile_client import RawPeer

from echostream import RpcServer, Session, StreamReceiver, handler, listener, stream_handler
from echostream.builder import ServerBuilder
from echostream.client import RpcClient
from echostream.codes import Close, Reset, Status
from echostream.errors import InvalidPayload, ResourceExhausted, RpcError
from echostream.protocol import frames
from echostream.protocol.frames import encode_frame
from echostream.protocol.hello import Limits
from echostream.testing import Impairment, QuicNetwork, run_virtual
from echostream.transport.quic import QuicOptions, client_engine

DELAY = Impairment(delay=0.01)
ADDRESS = ("198.51.100.1", 4433)


class Scene(NamedTuple):
    """A server, an honest client, and a hostile one. ``ran``: the handlers that ran, by name."""

    network: QuicNetwork
    server: RpcServer
    honest: RpcClient
    mallory: RawPeer
    ran: list[str]


def declared(ran: list[str]) -> ServerBuilder:
    @handler("echo")
    async def echo(value: Any) -> Any:
        ran.append("echo")
        return value

    @handler("echo.bytes")
    async def echo_bytes(value: bytes) -> bytes:
        ran.append("echo.bytes")
        return value

    @handler("slow")
    async def slow(session: Session) -> None:
        ran.append("slow")
        await asyncio.sleep(3600)

    @listener("heard")
    async def heard(session: Session, value: int) -> None:
        ran.append("heard")

    @stream_handler("audio")
    async def audio(session: Session, stream: StreamReceiver) -> None:
        ran.append("audio")
        async for _ in stream:
            pass

    builder = ServerBuilder()
    builder.handler(echo).handler(echo_bytes).handler(slow).listener(heard).stream_handler(audio)
    return builder


@asynccontextmanager
async def scene(builder: ServerBuilder | None = None, **limits: int) -> AsyncIterator[Scene]:
    ran: list[str] = []
    async with QuicNetwork(seed=1) as network:
        server = await network.serve(builder or declared(ran).limits(**limits))
        honest = await network.connect(up=DELAY, down=DELAY)
        yield Scene(network, server, honest, await mallory_on(network), ran)


async def mallory_on(network: QuicNetwork, number: int = 0) -> RawPeer:
    host = f"10.66.{number // 256}.{number % 256}"
    network.memory.impair(DELAY, source=host, destination=ADDRESS[0])
    network.memory.impair(DELAY, source=ADDRESS[0], destination=host)
    engine = client_engine(QuicOptions(), server_name="localhost", verify=False)
    peer = RawPeer(network.memory.endpoint(host).connect(engine, ADDRESS))
    await peer.connection.wait_connected()
    return peer


async def served(honest: RpcClient) -> float:
    """The slowest of ten calls, s."""
    clock = asyncio.get_running_loop().time
    slowest = 0.0
    for number in range(10):
        start = clock()
        assert await honest.request("echo", number, timeout=5.0) == number
        slowest = max(slowest, clock() - start)
    return slowest


# What each attack ends with (``None``: it may go on, it is bounded), and a small amount of it.
OUTCOMES: dict[str, tuple[int | None, int]] = {
    "rapid_reset": (Close.EXCESSIVE_LOAD, 5000),
    "ping_flood": (Close.EXCESSIVE_LOAD, 5000),
    "slow_messages": (None, 100),
    "half_messages": (None, 12),
    "no_hello": (Close.TIMEOUT, 100),
    "tiny_frames": (None, 50_000),
    "cancel_storm": (Close.EXCESSIVE_LOAD, 200_000),
    "stream_storm": (None, 2000),
    "unread_answers": (Close.EXCESSIVE_LOAD, 200_000),
    "unknown_methods": (Close.EXCESSIVE_LOAD, 100_000),
    "event_gaps": (None, 60_000),
    "lying_length": (None, 4),
    "sparse_stream": (Close.EXCESSIVE_LOAD, 300),
    "unsent_ack": (0xA, 1),  # PROTOCOL_VIOLATION
    "noise_frames": (Close.PROTOCOL_ERROR, 20_000),
}


def test_every_attack_has_its_outcome() -> None:
    assert set(OUTCOMES) == set(hostile.ATTACKS)


@pytest.mark.parametrize("attack", OUTCOMES)
def test_an_attack_is_bounded_and_others_do_not_notice(
    attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, amount = OUTCOMES[attack]

    async def main() -> None:
        async with scene() as s:
            quiet = await served(s.honest)
            running = asyncio.ensure_future(hostile.ATTACKS[attack](s.mallory, amount=amount))
            held = peak_calls = 0
            while not running.done():
                assert await served(s.honest) <= 2 * quiet
                found = s.server.statistics()
                held = max(held, found.queued + found.buffered + found.assembling)
                peak_calls = max(peak_calls, found.calls_running)
            await running
            assert await served(s.honest) <= 2 * quiet
            assert held <= 48 << 20
            assert peak_calls <= 128 + 1
            if code is None:
                assert s.mallory.closed is None
            else:
                async with asyncio.timeout(15):
                    closed = await s.mallory.connection.wait_closed()
                assert closed.by_peer
                assert closed.code == code
            s.mallory.connection.close()
            await asyncio.sleep(5)
            after = s.server.statistics()
            assert (after.sessions, after.calls_running, after.tasks) == (1, 0, 0)
            assert after.queued + after.assembling == 0
            print(f"{attack}: held at most {held} bytes, {peak_calls} calls at once")

    run_virtual(main(), limit=600)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text


def test_stalled_messages_are_stopped_in_time_and_others_connect() -> None:
    """Row 27, and the limit ``stall``."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with scene(stall=10) as s:
            s.mallory.hello()
            begin = encode_frame(frames.REQUEST, 0, bytes(3000), frames.END, "echo")
            streams = [s.mallory.open(begin[:40]) for _ in range(100)]
            message = encode_frame(
                frames.REQUEST, 2, b"\xc5\x9c\x40" + bytes(40_000), frames.END, "echo.bytes"
            )
            healthy = s.mallory.open()
            for at in range(0, 18_000, 6000):  # slow, and above the limit
                s.mallory.write(healthy, message[at : at + 6000])
                await asyncio.sleep(4)
            start = clock()
            late = await s.network.connect(up=DELAY, down=DELAY)
            assert clock() - start <= 1.0
            assert await late.request("echo", 1) == 1
            assert s.mallory.stopped == dict.fromkeys(streams, Reset.TOO_SLOW)
            assert s.mallory.closed is None
            statistics = s.server.statistics()
            assert statistics.streams_stopped == len(streams)
            s.mallory.write(healthy, message[18_000:])
            await asyncio.sleep(1)
            assert s.ran == ["echo", "echo.bytes"]

    run_virtual(main())


def test_a_stalled_control_stream_ends_the_connection() -> None:
    async def main() -> None:
        async with scene() as s:
            control = s.mallory.hello()
            await asyncio.sleep(1)
            s.mallory.write(control, encode_frame(frames.GOAWAY, 0, b"bye")[:-1])
            closed = await s.mallory.connection.wait_closed()
            assert (closed.code, closed.by_peer) == (Close.PROTOCOL_ERROR, True)
            assert "stalled" in closed.reason

    run_virtual(main())


def test_unfinished_messages_have_a_limit_per_connection_and_for_all() -> None:
    """What passes it is stopped by name; a modest client is served when the total is used up."""

    async def main() -> None:
        async with scene(assembly=1 << 20, assembly_total=2 << 20, message_size=1 << 20) as s:
            peers = [s.mallory, *[await mallory_on(s.network, n) for n in range(1, 6)]]
            begin = encode_frame(frames.REQUEST, 0, bytes(1 << 20), frames.END, "echo")
            for peer in peers:
                peer.hello()
                for _ in range(4):
                    peer.open(begin[: 300 * 1024])
            await asyncio.sleep(5)
            for peer in peers:
                assert set(peer.stopped.values()) <= {Reset.TOO_LARGE}
            assert s.mallory.stopped
            assert s.server.statistics().assembling <= 2 * (2 << 20)
            assert len(await s.honest.request("echo.bytes", bytes(200 * 1024))) == 200 * 1024
            for peer in peers:
                peer.connection.close()
            await asyncio.sleep(1)
            assert s.server.statistics().assembling == 0

    run_virtual(main())


def test_an_honest_sender_stays_far_below_that_limit() -> None:
    """Many requests and answers of 1 MiB at once: large messages leave one after the other."""

    async def main() -> None:
        async with scene(assembly=4 << 20) as s:
            calls = [
                asyncio.ensure_future(s.honest.request("echo.bytes", bytes(1 << 20)))
                for _ in range(12)
            ]
            peak = 0
            while not all(call.done() for call in calls):
                await asyncio.sleep(0.05)
                found = s.server.statistics()
                peak = max(peak, found.assembling)
                assert found.buffered <= (1 << 20) + (1 << 20) + 65_536
            assert all(len(call.result()) == 1 << 20 for call in calls)
            assert 0 < peak <= 3 << 20
            assert s.server.statistics().streams_stopped == 0

    run_virtual(main())


def test_who_stops_a_lane_ends_the_connection_and_no_call_hangs() -> None:
    async def main() -> None:
        async with scene() as s:
            s.mallory.hello()
            s.mallory.open(encode_frame(frames.REQUEST, 0, b"\x01", frames.END, "echo"))
            await asyncio.sleep(0.5)
            lane = max(s.mallory.received)
            s.mallory.engine.stop_stream(lane, Reset.TOO_SLOW)
            s.mallory.connection.wake()
            closed = await s.mallory.connection.wait_closed()
            assert closed.code == Close.PROTOCOL_ERROR
            assert "stall" in closed.reason

    run_virtual(main())


def test_before_hello_nothing_runs_and_little_is_held() -> None:
    """Row 28: closed after the time for HELLO, and until then what came waits in its streams."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with scene() as s:
            start = clock()
            await hostile.no_hello(s.mallory, amount=300)
            assert clock() - start <= 10.5
            assert s.ran == []
            assert s.server.statistics().sessions == 1

    run_virtual(main())


def test_handlers_that_run_are_limited_and_the_rest_is_refused_by_name() -> None:
    """Row 25, the legal half: a limit on running handlers, not on streams."""

    async def main() -> None:
        async with scene(calls=16) as s:
            s.mallory.hello()
            for number in range(100):
                s.mallory.open(
                    encode_frame(frames.REQUEST, 2 * number, b"\xc0", frames.END, "slow"), fin=True
                )
            await asyncio.sleep(1)
            assert s.server.statistics().calls_running == 16
            refused = [f for f in s.mallory.frames() if f[0] == frames.ERROR]
            assert len(refused) == 84
            assert {status for _, _, status in refused} == {Status.RESOURCE_EXHAUSTED}

    run_virtual(main())


def test_too_large_messages_are_refused_before_they_are_held() -> None:
    """Row 8: on each path; a length prefix that lies; the connection lives."""

    async def main() -> None:
        async with scene(message_size=100_000) as s:
            with pytest.raises(ResourceExhausted, match="message_size"):
                await s.honest.request("echo", bytes(100_001))
            s.mallory.hello()
            payload = bytes(200_000)
            request = encode_frame(frames.REQUEST, 0, payload, frames.END, "echo")
            for frame in (
                request,
                encode_frame(frames.EVENT, 1, payload, 0, "heard"),
                encode_frame(frames.RESPONSE, 1, payload, frames.END),
            ):
                s.mallory.open(frame, fin=True)
                for _ in range(10):
                    await asyncio.sleep(0.02)
                    assert s.server.statistics().assembling <= 65_536
            await asyncio.sleep(1)
            assert s.mallory.closed is None
            assert (frames.ERROR, 0, Status.RESOURCE_EXHAUSTED) in s.mallory.frames()
            assert s.ran == []

    run_virtual(main())


def test_hostile_payloads_are_refused_with_a_status() -> None:
    """Row 9: nested, many items, keys that are no text, foreign extensions."""

    async def main() -> None:
        async with scene() as s:
            s.mallory.hello()
            payloads = [
                b"\x91" * 40 + b"\xc0",
                b"\xdd\x00\x01\x00\x01" + b"\xc0" * 65_537,
                (b"\xdc\xea\x60") * 300,
                b"\x81\x01\x02",
                b"\xd4\x42\x00",
                b"\xc1",
                b"\xdb\xff\xff\xff\xff",
                b"",
            ]
            for number, payload in enumerate(payloads):
                s.mallory.open(
                    encode_frame(frames.REQUEST, 2 * number, payload, frames.END, "echo"), fin=True
                )
            await asyncio.sleep(1)
            answers = [f for f in s.mallory.frames() if f[0] == frames.ERROR]
            assert len(answers) == len(payloads)
            assert {status for _, _, status in answers} == {Status.INVALID_ARGUMENT}
            assert s.ran == []
            with pytest.raises(InvalidPayload):
                nested: Any = 1
                for _ in range(40):
                    nested = [nested]
                await s.honest.request("echo", nested)

    run_virtual(main())


def test_what_waits_for_on_connect_is_bounded_in_bytes() -> None:
    ran: list[str] = []

    async def slow_welcome(session: Session) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            await network.serve(declared(ran).on_connect(slow_welcome))
            mallory = await mallory_on(network)
            mallory.hello()
            for number in range(20):
                request = encode_frame(
                    frames.REQUEST, 2 * number, bytes(1 << 20), frames.END, "echo.bytes"
                )
                stream_id = mallory.open(request, fin=True)
                await mallory.room(stream_id)
            await asyncio.sleep(2)
            answers = [status for kind, _, status in mallory.frames() if kind == frames.ERROR]
            assert answers == [Status.RESOURCE_EXHAUSTED] * (20 - 8)
            assert ran == []

    run_virtual(main())


def test_peers_text_makes_one_short_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Row 38: names, reasons and texts of a peer, with line ends, escapes and much of it."""
    evil = "a\r\nCRITICAL forged \x1b[31mline\x00\u2028" + "x" * 5000

    async def main() -> None:
        async with scene() as s:
            for index, name in enumerate((evil[:200], "heard", "echo")):
                peer = await mallory_on(s.network, index + 1)
                peer.hello()
                peer.open(encode_frame(frames.REQUEST, 0, b"\xc0", frames.END, name))
                peer.open(encode_frame(frames.EVENT, 1, b"\xa5" + evil[:5].encode(), 0, name))
                peer.open(encode_frame(frames.GOAWAY, 0, evil.encode(), 0))
                await asyncio.sleep(0.2)
                peer.connection.close(0x4242, evil[:300])
                with pytest.raises(RpcError):
                    await s.honest.request(evil[:60].replace("\x00", ""))
            await asyncio.sleep(1)

    with caplog.at_level(logging.DEBUG):
        run_virtual(main())
    assert caplog.records
    for record in caplog.records:
        line = record.getMessage()
        assert line.isprintable(), line
        assert len(line) <= 600, line


def test_spoofed_handshakes_are_bounded_and_an_honest_client_gets_in() -> None:
    """Row 4 at the system's level: many sources, many ports, nobody behind them."""
    count = sized(1500, 10_000)

    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            server = await network.serve(declared([]))
            (endpoint,) = network.memory._endpoints.values()
            rng = random.Random(1)
            for number in range(count):
                source = (f"10.0.{number % 8}.{number % 250}", 1024 + number)
                endpoint.receive([(hostile.pinned_initial(), source)])
                assert server.statistics().half_open <= 1024
            assert server.statistics().half_open >= 64
            client = await network.connect(up=DELAY, down=DELAY)
            assert await client.request("echo", 1) == 1
            await asyncio.sleep(11)
            assert server.statistics().half_open == 0
            assert len(endpoint.connections) == 1
            for _ in range(count):
                noise = hostile.mutated_initials(rng) if rng.random() < 0.5 else rng.randbytes(50)
                endpoint.receive([(noise, ("10.9.9.9", 9))])
            assert await client.request("echo", 2) == 2
            await asyncio.sleep(11)
            assert len(endpoint.connections) == 1

    run_virtual(main())


def test_churn_leaves_nothing() -> None:
    """Row 36."""
    count = sized(60, 10_000)

    async def main() -> None:
        async with QuicNetwork(seed=1) as network:
            server = await network.serve(declared([]))
            (endpoint,) = network.memory._endpoints.values()
            tasks = len(asyncio.all_tasks())
            for number in range(count):
                peer = await mallory_on(network, number)
                peer.hello()
                if number % 3:
                    peer.connection.close()
                else:
                    peer.connection.abandon()
            await asyncio.sleep(20)
            assert len(endpoint.connections) == 0
            assert endpoint._router.connection_ids == 0
            assert server._acceptor is not None
            assert not server._acceptor._origin
            assert not server._acceptor._connections_from
            assert server.statistics().sessions == 0
            assert server._assembling._members == 0
            assert len(asyncio.all_tasks()) == tasks

    run_virtual(main(), limit=1e9)


def test_limits_stay_local_except_those_of_the_wire() -> None:
    from echostream.protocol import payload
    from echostream.protocol.hello import Hello

    sent = payload.decode(Hello(limits=Limits(stall=7, calls=9)).encode())["limits"]
    assert sent == {
        "message_size": 4 << 20,
        "nesting": 32,
        "items": 65_536,
        "calls": 9,
        "streams": 64,
    }
