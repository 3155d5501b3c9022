"""Floor 2: UDP endpoint, QUIC engine, in-memory transport, identity."""
