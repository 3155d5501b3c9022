"""Calls with an idempotency key run once: who makes one again gets the first one's answer.

The side that answers keeps what came of each key, for each client, for a while. A client that makes
a call again because its connection ended says when it made it first, and to which run of which
server: where that one's memory does not reach so far back, the answer is ``Unavailable``, because
the call may have run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from echostream.codes import Status
from echostream.errors import (
    ConfigurationError,
    InvalidPayload,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from echostream.rpc.call import Call, Metadata, encode_metadata

if TYPE_CHECKING:
    from echostream.rpc.peer import Peer
    from echostream.rpc.registry import Route

__all__ = [
    "KEY",
    "Answer",
    "First",
    "KeyedAnswers",
    "add_key",
    "answer_of",
    "check_key",
    "digest",
    "failure_of",
    "take_key",
]

logger = logging.getLogger("echostream.rpc")

KEY, RETRY = "echostream.key", "echostream.retry"
MAX_KEY = 128
KEPT_S = 300.0
KEPT = 100_000
KEPT_BYTES = 64 * 1024 * 1024
"""Answers that are kept, for how long, and their size together: the oldest give way."""
MAX_ANSWER = 1024 * 1024
"""A larger one is not kept: who asks again is told that the call ran."""
ENTRY_OVERHEAD = 512
MAX_ORPHANS = 256
"""Handlers of one client that go on though its connection is over."""
MAX_ALL_ORPHANS = 4096
"""The same for all clients together, because anybody can be many: further ones are cancelled."""
SLACK_S = 10.0
"""How long a call may have been on its way that was made again."""


class Answer(NamedTuple):
    """What came of a call: ``payload`` is its result, or the details of its error."""

    status: int
    payload: bytes = b""
    metadata: bytes | None = None
    text: str = ""


class First(NamedTuple):
    """Of a call that is made again: when it was made first (s ago), to which run of a server."""

    age_s: float
    instance: bytes


def check_key(key: str) -> None:
    """Raise ``ConfigurationError`` for what cannot be a key."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise ConfigurationError(
            f"idempotency_key={key!r:.140} must be a text of 1 to {MAX_KEY} characters, another "
            "one for each call, such as str(uuid.uuid4())"
        )


def add_key(metadata: Metadata | None, key: str, first: First | None = None) -> Metadata:
    """Metadata that carries the key."""
    added: dict[str, str | bytes] = {KEY: key}
    if first is not None:
        added[RETRY] = int(first.age_s * 1000).to_bytes(8, "big") + first.instance
    return {**(metadata or {}), **added}


def take_key(metadata: Metadata) -> tuple[Metadata, str, First | None]:
    """Metadata without the key, the key, and what was said about a first time. Raises
    ``InvalidPayload``."""
    rest = dict(metadata)
    key, retry = rest.pop(KEY), rest.pop(RETRY, None)
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise InvalidPayload(f"metadata {KEY!r} must be a text of 1 to {MAX_KEY} characters")
    if retry is None:
        return rest, key, None
    if not isinstance(retry, bytes) or not 8 <= len(retry) <= 40:
        raise InvalidPayload(f"metadata {RETRY!r} must be 8 to 40 bytes")
    return rest, key, First(int.from_bytes(retry[:8], "big") / 1000, retry[8:])


def digest(method: str, payload: bytes) -> bytes:
    """Tells calls apart that came with one key."""
    return hashlib.sha256(method.encode() + b"\0" + payload).digest()


class _Kept:
    __slots__ = ("answer", "digest", "orphan", "scope", "since", "size", "task", "waiters")

    def __init__(self, scope: object, digest: bytes, since: float) -> None:
        self.scope = scope
        self.digest = digest
        self.since = since
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Answer] | None = None
        self.waiters = 0
        self.orphan = False
        self.size = ENTRY_OVERHEAD


class KeyedAnswers:
    """What came of calls with a key. ``instance`` names this memory: a server that is started again
    has another one."""

    def __init__(self) -> None:
        self.instance = secrets.token_bytes(16)
        self._kept: OrderedDict[tuple[object, str], _Kept] = OrderedDict()
        self._bytes = 0
        self._forgotten = float("-inf")  # when the newest entry came that had to give way
        self._orphans: dict[object, int] = {}
        self._all_orphans = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def answer(
        self,
        scope: object,
        key: str,
        digest: bytes,
        first: First | None,
        run: Callable[[], Coroutine[Any, Any, Answer]],
        *,
        limit: float | None,
        lost: Callable[[], bool],
    ) -> Answer:
        """What comes, or came, of the call with this key of this client. ``run`` runs it, for at
        most ``limit`` s. It is cancelled with the last one who waits for it, unless that one's
        connection is ``lost``: then it goes on, for who asks again.

        Raises ``Unavailable`` where the call may have run and that is not known, ``InvalidPayload``
        for a key that was another call's, ``ResourceExhausted``.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._expire(now)
        kept = self._kept.get((scope, key))
        if kept is None:
            if first is not None and self._may_have_run(first, now):
                raise Unavailable(
                    "the connection ended before the answer, and this server does not know whether "
                    "the call ran"
                )
            if self._orphans.get(scope, 0) >= MAX_ORPHANS:
                raise ResourceExhausted(
                    f"{MAX_ORPHANS} calls of this client run still, whose connections are over"
                )
            kept = self._begin(scope, key, digest, run, KEPT_S if limit is None else limit)
        elif kept.digest != digest:
            raise InvalidPayload("the idempotency key was used for another call")
        kept.waiters += 1
        try:
            return await asyncio.shield(kept.answer)
        except asyncio.CancelledError:
            task = kept.task if kept.waiters == 1 else None
            if task is not None and not (lost() and self._leave(kept, task)):
                task.cancel()
            raise
        finally:
            kept.waiters -= 1

    async def close(self) -> None:
        """Cancel what runs still, and wait for it."""
        running = [kept.task for kept in self._kept.values() if kept.task is not None]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)

    def _begin(
        self,
        scope: object,
        key: str,
        digest: bytes,
        run: Callable[[], Coroutine[Any, Any, Answer]],
        limit: float,
    ) -> _Kept:
        loop = asyncio.get_running_loop()
        kept = self._kept[scope, key] = _Kept(scope, digest, loop.time())
        self._bytes += kept.size
        kept.task = loop.create_task(run())
        timer = loop.call_later(limit, kept.task.cancel)
        kept.task.add_done_callback(partial(self._ended, kept, timer))
        return kept

    def _ended(self, kept: _Kept, timer: asyncio.TimerHandle, task: asyncio.Task[Answer]) -> None:
        timer.cancel()
        kept.task = None
        if task.cancelled():
            answer = Answer(
                Status.CANCELLED, text="the call with this key was cancelled before it had ended"
            )
        else:
            answer = task.result()
        kept.answer.set_result(answer)
        size = len(answer.payload) + len(answer.metadata or b"") + len(answer.text)
        if size > MAX_ANSWER:
            text = "the call with this key ran; its answer was too large to be kept"
            kept.answer = asyncio.get_running_loop().create_future()
            kept.answer.set_result(Answer(Status.UNAVAILABLE, text=text))
            size = len(text)
        kept.size += size
        self._bytes += size

    def _leave(self, kept: _Kept, task: asyncio.Task[Answer]) -> bool:
        """Let it go on though its connection is over; ``False`` where too many do."""
        if kept.orphan:
            return True
        if self._all_orphans >= MAX_ALL_ORPHANS:
            return False
        kept.orphan = True
        self._all_orphans += 1
        self._orphans[kept.scope] = self._orphans.get(kept.scope, 0) + 1
        task.add_done_callback(lambda _: self._less_orphans(kept.scope))
        return True

    def _less_orphans(self, scope: object) -> None:
        self._all_orphans -= 1
        self._orphans[scope] -= 1
        if not self._orphans[scope]:
            del self._orphans[scope]

    def _may_have_run(self, first: First, now: float) -> bool:
        if first.instance != self.instance:
            return True
        return now - first.age_s - SLACK_S <= max(self._forgotten, now - KEPT_S)

    def _expire(self, now: float) -> None:
        """Forget what is too old, and what is too much."""
        for _ in range(len(self._kept)):  # each is looked at once: all may run still
            name, kept = next(iter(self._kept.items()))
            expired = kept.since <= now - KEPT_S
            if not expired and len(self._kept) <= KEPT and self._bytes <= KEPT_BYTES:
                return
            if kept.task is not None:  # it runs still: it is the newest again
                kept.since = now
                self._kept.move_to_end(name)
                continue
            del self._kept[name]
            self._bytes -= kept.size
            if not expired:
                self._forgotten = max(self._forgotten, kept.since)


async def answer_of(peer: Peer, route: Route, context: Any, argument: Any, call: Call) -> Answer:
    """Run a handler; never raises but for cancellation."""
    try:
        result = await route.call(context, argument)
        data = peer.encode(result)
        return Answer(
            Status.OK, data, None if call._response is None else encode_metadata(call._response)
        )
    except RpcError as exc:
        try:
            return failure_of(peer, exc, call)
        except Exception as broken:
            failed: Exception = broken
    except Exception as exc:
        failed = exc
    logger.error("handler %r failed", route.name, exc_info=failed)
    return Answer(Status.INTERNAL, text=FAILED)


FAILED = "the handler failed; its side has logged why"


def failure_of(peer: Peer, exc: RpcError, call: Call | None) -> Answer:
    """What the handler raised to answer with. It may hold anything: what cannot be sent raises."""
    status = int(exc.status)
    details = b"" if exc.details is None else peer.encode(exc.details)
    metadata = None
    own = call._response if call is not None and call._response else {}
    if exc.metadata or own:
        metadata = encode_metadata({**own, **exc.metadata})
    if not 0 < status < 1 << 30:
        status = Status.UNKNOWN
    return Answer(status, details, metadata, str(exc.message))
