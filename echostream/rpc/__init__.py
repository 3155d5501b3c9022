"""Floor 3: calls, events and streams over one connection."""
