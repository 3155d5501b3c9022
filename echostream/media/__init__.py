"""Floor 1, sans-IO: clock, jitter buffer and playout. Time is always a parameter."""
