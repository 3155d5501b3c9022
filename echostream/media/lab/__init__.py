"""Laboratory of the jitter buffer: traces, exact bounds, other people's policies, replay."""
