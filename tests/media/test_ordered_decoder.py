"""The order in which packets are decoded, with a codec whose samples say what was asked of it."""

from __future__ import annotations

import numpy as np

from echostream import AudioFormat, ProtocolError
from echostream.media.ordered_decoder import LEAP, OrderedDecoder, OrderedPacket

FORMAT = AudioFormat(8000, 1, frame=160)
FRAME = 160
MS = 1_000_000


class Numbers:
    """A packet is one byte, and its samples are that number; what is made up is -1."""

    conceals = True
    max_packet = 1

    def __init__(self) -> None:
        self.calls: list[str] = []

    def decode(self, payload: bytes | memoryview) -> np.ndarray:
        if payload == b"\xff":
            raise ProtocolError("no packet")
        self.calls.append(f"decode {payload[0]}")
        return np.full((FRAME, 1), payload[0], np.float32)

    def conceal(self, frames: int, following: bytes | memoryview | None = None) -> np.ndarray:
        self.calls.append(f"conceal {frames} before {following[0] if following else '-'}")
        return np.full((frames, 1), -1.0, np.float32)

    def reset(self) -> None:
        self.calls.append("reset")


def stage() -> tuple[OrderedDecoder, list[str]]:
    codec = Numbers()
    return OrderedDecoder(codec, FORMAT), codec.calls


def packet(number: int, payload: bytes | None = None, silence: bool = False) -> OrderedPacket:
    return OrderedPacket(
        sequence_number=number & 0xFFFF_FFFF,
        timestamp=(number & 0xFF) * FRAME,
        capture_ts=(number & 0xFF) * 20 * MS,
        payload=bytes([number & 0xFF]) if payload is None else payload,
        arrival_ns=7,
        silence=silence,
    )


def stamps(packets) -> list[tuple[int, int, bool]]:
    out = []
    for p in packets:
        assert p.capture_ts == p.timestamp * 125_000
        out.append((p.timestamp // FRAME, len(p.payload) // 4, p.made_up))
    return out


def test_packets_in_order_go_through_at_once() -> None:
    decoder, calls = stage()
    for number in range(3):
        assert stamps(decoder.push(packet(number))) == [(number, FRAME, False)]
        assert decoder.missing_ts is None
    assert calls == ["reset", "decode 0", "decode 1", "decode 2"]


def test_what_overtook_waits_for_what_it_overtook() -> None:
    decoder, calls = stage()
    list(decoder.push(packet(0)))
    assert list(decoder.push(packet(3))) == list(decoder.push(packet(2))) == []
    assert decoder.missing_ts == 20 * MS
    assert [at for at, _, _ in stamps(decoder.push(packet(1)))] == [1, 2, 3]
    assert decoder.missing_ts is None
    assert calls[1:] == ["decode 0", "decode 1", "decode 2", "decode 3"]


def test_a_gap_is_filled_from_the_packet_behind_it() -> None:
    decoder, calls = stage()
    list(decoder.push(packet(0)))
    list(decoder.push(packet(3)))
    made = stamps(decoder.give_up())
    assert made == [(1, FRAME, True), (2, FRAME, True), (3, FRAME, False)]
    assert calls[2:] == ["conceal 160 before -", "conceal 160 before 3", "decode 3"]
    assert decoder.statistics().concealed_frames == 2 * FRAME
    (late,) = decoder.push(packet(2))
    assert late.too_late
    assert not late.payload
    assert decoder.statistics().dropped == 1
    assert stamps(decoder.push(packet(4))) == [(4, FRAME, False)]


def test_a_long_gap_and_announced_silence_are_left_alone() -> None:
    decoder, calls = stage()
    list(decoder.push(packet(0)))
    list(decoder.push(packet(7)))  # 120 ms are missing
    assert stamps(decoder.give_up()) == [(7, FRAME, False)]
    assert stamps(decoder.push(packet(8, b"", silence=True))) == [(8, 0, False)]
    list(decoder.push(packet(10)))
    assert stamps(decoder.drain()) == [(10, FRAME, False)]
    assert not any(call.startswith("conceal") for call in calls)


def test_what_cannot_be_decoded_is_concealed_like_a_lost_one() -> None:
    decoder, calls = stage()
    list(decoder.push(packet(0)))
    assert list(decoder.push(packet(1, b"\xff"))) == []
    assert stamps(decoder.push(packet(2))) == [(1, FRAME, True), (2, FRAME, False)]
    assert "conceal 160 before 2" in calls
    assert decoder.statistics().undecodable == 1


def test_duplicates_wraps_restarts_and_what_waits_for_ever() -> None:
    decoder, calls = stage()
    list(decoder.push(packet(2**32 - 1)))
    assert len(list(decoder.push(packet(2**32)))) == 1  # 0, after the wrap
    list(decoder.push(packet(2)))
    assert list(decoder.push(packet(2))) == []
    assert decoder.statistics().duplicates == 1
    resets = calls.count("reset")
    out = list(decoder.push(packet(100 + LEAP)))  # another numbering: what waited goes first
    assert [p.sequence_number for p in out if not p.made_up] == [2, 100 + LEAP]
    assert calls.count("reset") == resets + 1
    list(decoder.push(packet(102 + LEAP)))
    decoder.flush()
    assert decoder.missing_ts is None
    assert decoder.statistics().dropped == 1
    assert list(decoder.drain()) == list(decoder.give_up()) == []


def test_any_order_of_any_numbers_stays_bounded() -> None:
    decoder, _ = stage()
    rng = np.random.default_rng(4)
    base = 0
    for _ in range(3000):
        base = int(rng.integers(0, 2**32)) if rng.random() < 0.02 else base + 1
        number = base + int(rng.integers(-90, 90))
        stamp = int(rng.integers(0, 2**62))
        silence = bool(rng.random() < 0.1)
        payload = b"\xff" if rng.random() < 0.1 else b"" if silence else b"\x01"
        given = OrderedPacket(
            sequence_number=number & 0xFFFF_FFFF,
            timestamp=stamp,
            capture_ts=stamp,
            payload=payload,
            arrival_ns=0,
            silence=silence,
        )
        assert len(list(decoder.push(given))) <= 6 * (LEAP + 1)
        assert len(decoder._staged) <= LEAP
