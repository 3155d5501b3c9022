"""``Session``: one connected client, as its server sees it."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echostream.codes import Close
from echostream.rpc.caller import Caller
from echostream.rpc.context import ServerContext, Store
from echostream.rpc.peer import Peer

if TYPE_CHECKING:
    from echostream.rpc.authentication import Credentials

__all__ = ["Session", "SessionStatistics", "peer_statistics"]


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """A snapshot of one connection. Times in seconds, sizes in bytes.

    ``calls_pending``: ours without an answer; ``calls_running``: handlers that run for the peer.
    ``streams_out``, ``streams_in``: open media streams. ``queued``: waits here for room;
    ``buffered``: handed to the transport and not acknowledged. ``assembling``: received of messages
    that are not complete; ``streams_stopped``: because such a message grew too slowly, or they
    were too much together. ``tasks``: that serve the peer.
    ``events_unclaimed``, ``packets_unclaimed``: nothing here wanted them. ``events_dropped``:
    datagrams for a listener that was too slow. ``frames_oversize``, ``datagrams_bad``: refused.
    ``datagrams_overrun``: came faster than this side could take them.
    ``clock_refused``: clock frames that were malformed, unasked or too many. ``loop_lag``: by
    how much this side's timers come late while its clock is in use. ``scheduled_late``,
    ``scheduled_refused``: calls and events with ``at`` whose time had passed, or was too far ahead.
    ``expired``: not sent because ``max_age`` passed. ``datagrams_dropped``: by the transport.
    ``ecn``: ``"off"``, ``"testing"``, ``"capable"`` (packets are marked, and the path carries it)
    or ``"failed"``; ``ecn_ce``, ``ecn_ce_received``: packets that met congestion, ours and the
    peer's.
    """

    smoothed_rtt: float
    calls_pending: int
    calls_running: int
    calls_served: int
    events_handled: int
    streams_out: int
    streams_in: int
    tasks: int
    queued: int
    buffered: int
    assembling: int
    streams_stopped: int
    late_answers: int
    events_unclaimed: int
    events_dropped: int
    packets_unclaimed: int
    frames_oversize: int
    datagrams_bad: int
    datagrams_overrun: int
    datagrams_dropped: int
    expired: int
    clock_refused: int
    loop_lag: float
    scheduled_late: int
    scheduled_refused: int
    packets_sent: int
    packets_received: int
    packets_lost: int
    ecn: str
    ecn_ce: int
    ecn_ce_received: int


def peer_statistics(peer: Peer) -> SessionStatistics:
    """What a peer counts."""
    info = peer.connection.engine.info()
    dispatcher, inbox, outbox = peer.dispatcher, peer.protocol.inbox, peer.protocol.outbox
    listeners = dispatcher.listeners
    return SessionStatistics(
        smoothed_rtt=info.smoothed_rtt,
        calls_pending=len(peer.calls),
        calls_running=len(dispatcher.handlers),
        calls_served=dispatcher.handlers.served,
        events_handled=listeners.handled,
        streams_out=len(peer.senders),
        streams_in=len(peer.receivers),
        tasks=dispatcher.tasks,
        queued=outbox.call_bytes + outbox.event_bytes,
        buffered=info.buffered,
        assembling=inbox.assembling,
        streams_stopped=inbox.stopped_slow + inbox.stopped_large,
        late_answers=peer.answers.late,
        events_unclaimed=listeners.unclaimed,
        events_dropped=listeners.dropped,
        packets_unclaimed=dispatcher.stream_handlers.unclaimed,
        frames_oversize=inbox.oversize,
        datagrams_bad=inbox.bad_datagrams,
        datagrams_overrun=inbox.overrun_datagrams,
        datagrams_dropped=info.datagrams_dropped,
        expired=outbox.expired,
        clock_refused=peer.clock.bad_frames + peer.clock.unanswered_requests,
        loop_lag=peer.clock.loop_lag,
        scheduled_late=dispatcher.schedule.late,
        scheduled_refused=dispatcher.schedule.refused,
        packets_sent=info.packets_sent,
        packets_received=info.packets_received,
        packets_lost=info.packets_lost,
        ecn=info.ecn,
        ecn_ce=info.ecn_ce,
        ecn_ce_received=info.ecn_ce_received,
    )


class Session(Store, Caller):
    """One client of a server: its values, and the way to call it. Lives as long as its connection.

    ``id`` is unique and cannot be guessed.
    """

    def __init__(self, server_ctx: ServerContext) -> None:
        super().__init__()
        self.id = secrets.token_hex(16)
        self._server_ctx = server_ctx
        self._credentials: Credentials | None = None

    def __repr__(self) -> str:
        return f"<Session {self.id[:8]} {self.peer_addr}>"

    @property
    def peer_addr(self) -> tuple[str, int]:
        """Host and port that the client's packets come from now."""
        return self._peer.peer_addr

    @property
    def fingerprint(self) -> str | None:
        """Of the key that the client has proved to have to ``.authenticate(...)``, if any."""
        return None if self._credentials is None else self._credentials.fingerprint

    @property
    def grants(self) -> frozenset[str]:
        """What ``.authenticate(...)`` has granted to the client."""
        return self._peer.grants

    @property
    def server_ctx(self) -> ServerContext:
        """The server's context."""
        return self._server_ctx

    def statistics(self) -> SessionStatistics:
        """A snapshot of the connection's counters."""
        return peer_statistics(self._peer)

    @property
    def resume_id(self) -> str | None:
        """Names the client's event session: the same over all connections of one client that
        reconnects, also to another server; ``None`` for one that does not. Nobody can take the
        session over who knows it."""
        token = self._peer.events.token
        return None if token is None else hashlib.sha256(token).hexdigest()[:32]

    async def close(self, reason: str = "") -> None:
        """Close the connection. Everything that waits on it ends with ``ConnectionClosed``."""
        self._peer.close(Close.OK, reason)
        await self._peer.wait_closed()
