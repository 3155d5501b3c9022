"""Laboratory: traces, bounds, simulated clocks and paths, other projects' policies, replay."""
