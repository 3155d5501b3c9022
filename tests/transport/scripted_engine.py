"""Engines that do what a test says, and handlers that write down what they got."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

from echostream.transport.engine import (
    Address,
    Closed,
    ConnectionIdIssued,
    DatagramReceived,
    EngineEvent,
    HandshakeCompleted,
)


class ScriptedEngine:
    """``events``, ``output`` and ``deadline`` are set by the test, ``calls`` are read by it."""

    def __init__(self, is_client: bool = True) -> None:
        self.is_client = is_client
        self.events: deque[EngineEvent] = deque()
        self.output: list[tuple[bytes, Address]] = []
        self.deadline: float | None = None
        self.deadline_after_timer: float | None = None
        self.calls: list[tuple] = []
        self.fail_in: set[str] = set()

    def _call(self, name: str, *args: object) -> None:
        self.calls.append((name, *args))
        if name in self.fail_in:
            raise ZeroDivisionError(name)

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    def connect(self, address, now):
        self._call("connect", address)

    def feed(self, data, address, now):
        self._call("feed", data)

    idle = False

    def flush(self, now):
        self._call("flush", now)
        output, self.output = self.output, []
        return output

    def next_event(self):
        return self.events.popleft() if self.events else None

    def timer(self):
        return self.deadline

    def on_timer(self, now):
        self._call("on_timer", now)
        self.deadline = self.deadline_after_timer

    def close(self, code, reason):
        self._call("close", code, reason)


class EchoEngine(ScriptedEngine):
    """A protocol in five lines: a long header packet opens, short header packets carry data.

    What comes in is an event; the server sends it back. ``say`` sends.
    """

    def __init__(self, is_client: bool = True, *, silent: bool = False) -> None:
        super().__init__(is_client)
        self.connection_id = os.urandom(8)
        self.peer_id = os.urandom(8)  # the client's first choice
        self.address: Address | None = None
        self.silent = silent

    def connect(self, address, now):
        self.address = address
        self.events.append(ConnectionIdIssued(self.connection_id))
        self.output.append((self._long() + self.connection_id, address))

    def feed(self, data, address, now):
        super().feed(data, address, now)
        self.address = address
        if data[0] & 0x80:
            if not self.is_client:
                self.peer_id = data[14:22]
                self.events.append(ConnectionIdIssued(self.connection_id))
                if self.silent:
                    return
                self.output.append((self._long() + self.connection_id, address))
            else:
                self.peer_id = data[14:22]
            self.events.append(HandshakeCompleted("test", None, False, False))
        elif data[9:] == b"bye":
            self.events.append(Closed(0, "bye", by_peer=True, application=True))
        else:
            self.events.append(DatagramReceived(data[9:]))
            if not self.is_client:
                self.say(data[9:])

    def say(self, data: bytes) -> None:
        self.output.append((b"\x40" + self.peer_id + data, self.address))

    def close(self, code, reason):
        super().close(code, reason)
        if self.address is not None:
            self.say(b"bye")

    def _long(self) -> bytes:
        return b"\xc0\0\0\0\1\x08" + self.peer_id


class EchoAcceptor:
    """Accepts every long header packet; ``answer`` overrides."""

    def __init__(self, answer: bytes | None = None, *, silent: bool = False) -> None:
        self.engines: list[EchoEngine] = []
        self.released_engines: list[EchoEngine] = []
        self.answer = answer
        self.silent = silent

    def accept(self, data, address, now):
        if self.answer is not None:
            return self.answer
        if not data[0] & 0x80:
            return None
        self.engines.append(EchoEngine(is_client=False, silent=self.silent))
        return self.engines[-1]

    def released(self, engine, address):
        self.released_engines.append(engine)


class Recorder:
    """A handler that keeps events and can be told to fail."""

    def __init__(self, fail: bool = False) -> None:
        self.events: list[EngineEvent] = []
        self.flushes = 0
        self.fail = fail
        self.on_event = None

    def engine_event(self, event):
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)
        if self.fail:
            raise ZeroDivisionError("engine_event")

    idle = True

    def before_flush(self, now):
        self.flushes += 1
        if self.fail:
            raise ZeroDivisionError("before_flush")


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is so; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
