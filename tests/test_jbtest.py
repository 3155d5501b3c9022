"""PJSIP's 15 scripted jitter buffer sessions, with their own limits.

A script is a row of operations without times: a GET is the clock (20 ms, pulled as a callback of
2.5 ms would), a PUT happens between two of them. Timestamps count frames of the sender; between
the marks for silence they go on with the clock, as those of RTP do. The limits are maxima in
frames, as PJSIP's own test reads them: ``delay`` is the mean level at the first GET after a PUT,
``burst`` the mean run of equal operations (both whole numbers there, rounded down), ``empty`` the
GETs that found nothing, ``lost`` those that found a later frame, ``discard`` the frames that were
put and never heard.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from echostream.media.jitter import JitterBuffer

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "jbtest" / "Jbtest.dat"
FRAME = 160
FRAME_NS = 20_000_000


@dataclass
class Session:
    title: str = ""
    mode: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    script: str = ""


def sessions() -> list[Session]:
    if not DATA.exists():
        return []
    found, session = [], Session()
    for line in DATA.read_text(encoding="utf-8").splitlines():
        if line.startswith("="):
            session.title = session.title or line[1:].strip()
        elif line.startswith("%"):
            session.mode = line[1:].split()
        elif line.startswith("!"):
            name, limit = line[1:].split()[:2]
            session.limits[name] = int(limit)
        elif line.startswith("."):
            found.append(session)
            session = Session()
        elif line.startswith("# Start silence"):
            session.script += "("
        elif line.startswith("# End silence"):
            session.script += ")"
        elif line and not line.startswith("#"):
            session.script += line.split("#")[0]
    return found


class Player:
    """Carries out a script on a buffer whose playout waits on an empty buffer, as PJSIP's does."""

    def __init__(self, mode: list[str]) -> None:
        frames = [20.0 * int(value) for value in mode[1:]]
        if mode[0] == "fixed":
            frames = frames * 3
        self.buffer = JitterBuffer(
            8000,
            sample_type="int16",
            start_delay_ms=frames[0],
            min_delay_ms=frames[1],
            max_delay_ms=frames[2],
            hold_ms=float("inf"),
        )
        self.payload = np.ones(FRAME, dtype=np.int16)
        self.out = np.zeros((FRAME // 8, 1), dtype=np.float32)
        self.sequence, self.epoch, self.gets = 1, 0, 0
        self.pause, self.silent = 0, False
        self.levels: list[float] = []
        self.runs: list[int] = []
        self.last = ""
        self.empty = self.lost = 0
        self.random = random.Random(1)

    def put(self, sequence: int) -> None:
        self._count("P")
        self.buffer.push(
            sequence,
            (sequence + self.pause) * FRAME,
            self.payload,
            self.gets * FRAME_NS,
            epoch=self.epoch,
        )

    def get(self) -> None:
        fresh = self.last == "P"
        self._count("G")
        now = self.gets * FRAME_NS
        self.buffer.schedule(now)
        level = self.buffer.ring.buffered_frames / FRAME
        heard = self.buffer.statistics().played_frames
        real = sum(self.buffer.pull_into(self.out, now + k * FRAME_NS // 8) for k in range(8))
        if real and fresh:
            self.levels.append(level)
        if not real:
            if level == 0.0 or not heard:
                self.empty += 1
            else:
                self.lost += 1
        self.gets += 1

    def _count(self, operation: str) -> None:
        if operation == self.last:
            self.runs[-1] += 1
        else:
            self.runs.append(1)
        self.last = operation

    def play(self, script: str) -> None:
        for operation in script:
            if operation == "P":
                self.put(self.sequence)
                self.sequence += 1
            elif operation == "G":
                self.get()
                self.pause += self.silent
            elif operation in "()":
                self.silent = operation == "("
            elif operation == "L":
                self.sequence += 1
            elif operation == "R":
                self.sequence = 1
                self.epoch += 1
            elif operation == "J":
                self.sequence += 20
            elif operation == "D":
                self.put(self.sequence - 1)
            elif operation == "O":
                self.put(self.sequence - 10 - self.random.randrange(40))

    def measured(self) -> dict[str, float]:
        s = self.buffer.statistics()
        dropped = (s.skipped_frames + s.flushed_frames) / FRAME
        return {
            "burst": int(fmean(self.runs)),
            "discard": s.late + s.stale + s.rejected + s.overflows + s.duplicates + dropped,
            "lost": self.lost,
            "empty": self.empty,
            "delay": int(fmean(self.levels)),
            "delay_min": int(min(self.levels)),
        }


@pytest.mark.skipif(not DATA.exists(), reason="the PJSIP data are not beside the project")
def test_all_sessions_are_read() -> None:
    assert len(sessions()) == 15


@pytest.mark.parametrize(
    "session", [pytest.param(s, id=f"{n}-{s.title}") for n, s in enumerate(sessions(), start=1)]
)
def test_session_stays_within_its_limits(session: Session) -> None:
    player = Player(session.mode)
    player.play(session.script)
    measured = player.measured()
    over = {
        name: (measured[name], limit)
        for name, limit in session.limits.items()
        if measured[name] > limit
    }
    assert not over, f"measured and limit: {over}; all: {measured}"
