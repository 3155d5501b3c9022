"""The driver's rules, on a scripted engine in virtual time."""

import asyncio

import pytest
from scripted_engine import Recorder, ScriptedEngine

from echostream.codes import Close
from echostream.errors import ConnectionClosed
from echostream.testing.virtual_time import run_virtual
from echostream.transport.connection import Connection
from echostream.transport.engine import (
    Closed,
    ConnectionIdIssued,
    ConnectionIdRetired,
    DatagramReceived,
    HandshakeCompleted,
    PathChanged,
)
from echostream.transport.turns import AT_ONCE, Turns

PEER = ("192.0.2.1", 5000)
COMPLETED = HandshakeCompleted("test", None, False, False)
CLOSED = Closed(7, "enough", by_peer=True, application=True)


class Owner:
    def __init__(self):
        self.calls = []

    def connection_id_issued(self, connection, connection_id):
        self.calls.append(("issued", connection_id))

    def connection_id_retired(self, connection, connection_id):
        self.calls.append(("retired", connection_id))

    def connection_finished(self, connection):
        self.calls.append(("finished",))


class Bench:
    """A connection with everything around it recorded."""

    def __init__(self, *, attach=True, fail=False):
        self.engine = ScriptedEngine()
        self.sent = []
        self.owner = Owner()
        self.connection = Connection(
            self.engine, self.sent.extend, peer_address=PEER, owner=self.owner
        )
        self.handler = Recorder(fail)
        if attach:
            self.connection.attach(self.handler)


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_a_turn_writes_leaves_in_one_flush():
    async def main():
        bench = Bench()

        async def write(data):
            bench.engine.output.append((data, PEER))
            bench.connection.wake()

        await asyncio.gather(*(write(bytes([n])) for n in range(10)))
        await turns()
        assert bench.engine.count("flush") == 1
        assert bench.handler.flushes == 1
        assert [data for data, _ in bench.sent] == [bytes([n]) for n in range(10)]

    run_virtual(main())


def test_answers_of_tasks_that_an_event_wakes_share_the_flush():
    async def main():
        bench = Bench()

        async def answer():
            bench.engine.output.append((b"answer", PEER))
            bench.connection.wake()

        tasks = []
        bench.handler.on_event = lambda event: tasks.append(asyncio.ensure_future(answer()))
        bench.engine.events.extend([DatagramReceived(b"1"), DatagramReceived(b"2")])
        bench.connection.datagram_received(b"x", PEER)
        assert bench.sent == []
        await turns()
        assert bench.engine.count("flush") == 1
        assert len(bench.sent) == 2

    run_virtual(main())


def test_before_flush_writes_into_the_same_flush():
    async def main():
        bench = Bench()

        def before_flush(now):
            bench.handler.flushes += 1
            if bench.handler.flushes == 1:
                bench.engine.output.append((b"late", PEER))
                bench.connection.wake()

        bench.handler.before_flush = before_flush
        bench.connection.wake()
        await turns()
        assert bench.engine.count("flush") == 1
        assert bench.sent == [(b"late", PEER)]

    run_virtual(main())


def test_feed_many_feeds_all_then_hands_on_then_flushes_once():
    async def main():
        bench = Bench()
        bench.connection.feed_many([(bytes([n]), PEER) for n in range(3)])
        await turns()
        assert [call[0] for call in bench.engine.calls] == ["feed", "feed", "feed", "flush"]

    run_virtual(main())


def test_one_timer_handle_serves_many_packets():
    async def main():
        loop = asyncio.get_running_loop()
        armed = []
        call_at = loop.call_at
        bench = Bench()

        def spy(when, callback, *args, **options):
            if getattr(callback, "__self__", None) is bench.connection:
                armed.append(when)
            return call_at(when, callback, *args, **options)

        loop.call_at = spy
        start = loop.time()
        for n in range(100):  # each packet moves the idle deadline further away
            bench.engine.deadline = start + 10 + n
            bench.connection.datagram_received(b"x", PEER)
            await turns(3)
        assert armed == [start + 10]
        bench.engine.deadline = start + 5
        bench.connection.wake()
        await turns(3)
        assert armed == [start + 10, start + 5]

        bench.engine.deadline = start + 20
        bench.engine.deadline_after_timer = None
        await asyncio.sleep(30)
        assert [call for call in bench.engine.calls if call[0] == "on_timer"] == [
            ("on_timer", start + 20)
        ]
        assert armed == [start + 10, start + 5, start + 20]

    run_virtual(main())


def test_a_timer_that_never_moves_on_does_not_spin():
    async def main():
        bench = Bench()
        loop = asyncio.get_running_loop()
        bench.engine.deadline = bench.engine.deadline_after_timer = loop.time()
        bench.connection.wake()
        await asyncio.sleep(0.1)
        assert 50 <= bench.engine.count("on_timer") <= 101
        bench.connection.abandon()

    run_virtual(main())


def test_a_failing_handler_stops_neither_events_nor_timers(caplog):
    async def main():
        bench = Bench(fail=True)
        loop = asyncio.get_running_loop()
        bench.engine.deadline = loop.time() + 1
        bench.engine.events.extend([DatagramReceived(b"1"), DatagramReceived(b"2"), COMPLETED])
        bench.connection.datagram_received(b"x", PEER)
        await asyncio.sleep(2)
        assert len(bench.handler.events) == 3
        assert bench.engine.count("on_timer") == 1
        assert bench.engine.count("flush") >= 2
        assert bench.connection.closed is None

    run_virtual(main())
    assert "ZeroDivisionError" in caplog.text


def test_closed_is_the_last_event_and_comes_once():
    async def main():
        bench = Bench()
        bench.engine.events.extend([DatagramReceived(b"1"), CLOSED])
        bench.connection.datagram_received(b"x", PEER)
        assert bench.connection.closed == CLOSED
        bench.engine.events.extend([CLOSED, DatagramReceived(b"2")])
        bench.connection.datagram_received(b"x", PEER)
        bench.connection.close()
        await turns()
        assert bench.handler.events == [DatagramReceived(b"1"), CLOSED]
        assert await bench.connection.wait_closed() == CLOSED
        assert bench.engine.count("close") == 0

    run_virtual(main())


def test_close_leaves_at_once_and_holds_nobody_for_the_closing_period():
    async def main():
        bench = Bench()
        loop = asyncio.get_running_loop()
        bench.engine.deadline = loop.time() + 3  # the engine's closing period
        waiter = asyncio.ensure_future(bench.connection.wait_closed())
        await turns()
        bench.engine.events.append(DatagramReceived(b"too late"))
        bench.engine.output.append((b"CONNECTION_CLOSE", PEER))
        bench.connection.close(Close.GOING_AWAY, "done")
        bench.connection.close(Close.INTERNAL_ERROR)
        assert bench.sent == [(b"CONNECTION_CLOSE", PEER)]
        assert bench.handler.events == []  # never from within close()

        expected = Closed(Close.GOING_AWAY, "done", by_peer=False, application=True)
        assert await waiter == expected
        assert bench.handler.events == [expected]
        assert not bench.connection.finished

        # The engine still answers what comes, and reports Closed once more.
        bench.connection.datagram_received(b"x", PEER)
        assert bench.engine.calls[-1] == ("feed", b"x")
        bench.engine.events.append(expected)
        flushes = bench.handler.flushes
        await asyncio.sleep(5)
        assert bench.connection.finished
        assert bench.owner.calls == [("finished",)]
        assert bench.handler.events == [expected]
        assert bench.handler.flushes == flushes

    run_virtual(main())


def test_close_from_within_an_event():
    async def main():
        bench = Bench()
        bench.handler.on_event = lambda event: bench.connection.close(Close.PROTOCOL_ERROR)
        bench.engine.events.extend([DatagramReceived(b"bad"), DatagramReceived(b"after")])
        bench.connection.datagram_received(b"x", PEER)
        await turns()
        assert [type(event) for event in bench.handler.events] == [DatagramReceived, Closed]
        assert bench.connection.finished

    run_virtual(main())


def test_finished_leaves_no_timer():
    async def main():
        bench = Bench()
        loop = asyncio.get_running_loop()
        bench.engine.deadline = loop.time() + 100
        bench.connection.wake()
        await turns()
        bench.connection.abandon()
        assert bench.connection.finished
        assert bench.connection.closed is not None
        bench.connection.wake()
        bench.connection.poll()
        bench.connection.datagram_received(b"x", PEER)
        await turns()
        assert bench.engine.count("feed") == 0
        assert all(handle.cancelled() for handle in loop._scheduled)

    run_virtual(main())


@pytest.mark.parametrize("where", ["feed", "flush", "on_timer", "close"])
def test_a_broken_engine_closes_its_connection(where, caplog):
    async def main():
        bench = Bench()
        bench.engine.fail_in = {where}
        bench.engine.deadline = asyncio.get_running_loop().time() + 1
        if where == "close":
            bench.connection.close()
        else:
            bench.connection.datagram_received(b"x", PEER)
        await asyncio.sleep(2)
        assert bench.connection.finished
        assert [event.code for event in bench.handler.events] == [Close.INTERNAL_ERROR]
        assert bench.owner.calls == [("finished",)]

    run_virtual(main())
    assert "ZeroDivisionError" in caplog.text


def test_events_wait_for_the_handler():
    async def main():
        bench = Bench(attach=False)
        bench.engine.events.extend([COMPLETED, DatagramReceived(b"1")])
        bench.connection.datagram_received(b"x", PEER)
        assert await bench.connection.wait_connected() == COMPLETED
        bench.connection.attach(bench.handler)
        bench.engine.events.append(DatagramReceived(b"2"))
        bench.connection.datagram_received(b"x", PEER)
        assert bench.handler.events == []
        await turns()
        assert bench.handler.events == [COMPLETED, DatagramReceived(b"1"), DatagramReceived(b"2")]
        with pytest.raises(RuntimeError):
            bench.connection.attach(bench.handler)

    run_virtual(main())


def test_wait_connected_ends_with_the_connection():
    async def main():
        bench = Bench()
        waiter = asyncio.ensure_future(bench.connection.wait_connected())
        abandoned = asyncio.ensure_future(bench.connection.wait_connected())
        await turns()
        abandoned.cancel()
        bench.engine.events.append(CLOSED)
        bench.connection.datagram_received(b"x", PEER)
        for wait in (waiter, bench.connection.wait_connected()):
            with pytest.raises(ConnectionClosed, match="enough") as caught:
                await wait
            assert (caught.value.code, caught.value.by_peer) == (7, True)

    run_virtual(main())


def test_connection_ids_go_to_the_owner_and_the_path_is_followed():
    async def main():
        bench = Bench()
        moved = PathChanged(("192.0.2.9", 9))
        bench.engine.events.extend([ConnectionIdIssued(b"a"), ConnectionIdRetired(b"a"), moved])
        bench.connection.datagram_received(b"x", PEER)
        assert bench.owner.calls == [("issued", b"a"), ("retired", b"a")]
        assert bench.handler.events == [moved]
        assert bench.connection.peer_address == ("192.0.2.9", 9)

    run_virtual(main())


def test_the_clock_of_a_real_loop_is_the_monotonic_one():
    import time

    async def main():
        return Bench().connection.clock

    assert asyncio.run(main()) is time.monotonic


@pytest.mark.parametrize(
    ("engine_idle", "handler_idle", "event", "flushes"),
    [
        (True, True, False, 0),  # acknowledgements of what was sent, and no more is to be said
        (False, True, False, 1),
        (True, False, False, 1),
        (True, True, True, 1),
    ],
)
def test_a_receipt_that_leaves_nothing_to_say_is_not_followed_by_a_flush(
    engine_idle, handler_idle, event, flushes
):
    async def main():
        bench = Bench()
        bench.engine.idle, bench.handler.idle = engine_idle, handler_idle
        if event:
            bench.engine.events.append(DatagramReceived(b"x"))
        bench.engine.deadline = 3600.0
        bench.connection.feed(b"packet", PEER, 0.0)
        bench.connection.report()
        bench.connection.settle()
        await turns()
        assert bench.engine.count("flush") == bench.handler.flushes == flushes
        assert bench.connection._timer is not None
        bench.connection.abandon()

    run_virtual(main())


def test_connections_of_one_endpoint_send_together():
    async def main():
        sent = []
        loop = asyncio.get_running_loop()
        shared = Turns(sent.append, loop)
        benches = [ScriptedEngine() for _ in range(AT_ONCE + 2)]
        connections = [
            Connection(engine, sent.append, peer_address=PEER, turns=shared) for engine in benches
        ]
        for n, (engine, connection) in enumerate(zip(benches, connections, strict=True)):
            engine.output.append((bytes([n]), PEER))
            connection.wake()
            connection.wake()
        await turns()
        assert [len(datagrams) for datagrams in sent] == [AT_ONCE, 2]
        assert [data[0] for group in sent for data, _ in group] == list(range(AT_ONCE + 2))
        sending = []
        connections[1].on_sending = lambda: sending.append(len(sent))
        for engine, connection in zip(benches[:3], connections[:3], strict=True):
            engine.output.append((b"again", PEER))
            connection.wake()
        await turns()
        assert sending == [2]  # told right before its own datagrams left, which went alone
        assert [len(datagrams) for datagrams in sent[2:]] == [1, 2]
        for connection in connections:
            connection.abandon()

    run_virtual(main())
