"""Floor 1, sans-IO: bytes in, events out, time is a parameter."""
