"""Laboratory: traces, exact bounds, simulated clocks and paths, other projects' policies, replay."""
