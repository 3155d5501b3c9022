"""Slow start ends by a growing queue, and not by acknowledgements that the peer delays."""

from __future__ import annotations

from typing import Any

from quic_pair import our_pair


def test_delayed_acknowledgements_do_not_end_slow_start(credentials: Any) -> None:
    pair = our_pair(credentials)
    pair.handshake()
    engine = pair.client.engine
    for uid in range(8):  # these are acknowledged at once
        engine.ping(uid)
        pair.run(None, 0.1)
    stream_id = engine.open_stream(False)
    for _ in range(20):  # and these when the peer's 20 ms are over
        engine.send_stream(stream_id, b"event", False)
        pair.run(None, 0.1)
    assert engine._connection._loss._cc.ssthresh is None
