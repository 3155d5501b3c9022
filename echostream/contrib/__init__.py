"""Floor 5: ready-made parts on top of the public API; some need an extra, and say so."""
