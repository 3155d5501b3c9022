"""One QUIC stream that the peer opened, or answers on."""

from __future__ import annotations

from echostream.protocol.assembly import Progress
from echostream.protocol.frames import FrameParser

__all__ = ["Incoming"]


class Incoming:
    """One QUIC stream of the peer, and how far it was read.

    ``alias`` or ``call``: the media stream or streaming call that it carries, -1 where none.
    ``owed``: bytes whose credit was not given back, ``lent`` of them to other streams; ``held`` of
    an unfinished message. ``paused``: its consumer is full; ``ended``: it is not read any more.
    """

    __slots__ = (
        "alias",
        "call",
        "ended",
        "fin",
        "held",
        "items",
        "lent",
        "owed",
        "parser",
        "paused",
        "progress",
        "queued",
        "stream_id",
    )

    def __init__(self, stream_id: int, max_length: int, stall: float) -> None:
        self.stream_id = stream_id
        self.parser = FrameParser(max_length)
        self.alias = -1
        self.call = -1
        self.items = 0
        self.progress = Progress(stall)
        self.held = 0
        self.owed = 0
        self.lent = 0
        self.fin = False
        self.ended = False
        self.paused = False
        self.queued = False
