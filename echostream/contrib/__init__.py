"""Ready-made parts on top of the public API. ``audio`` and ``opus`` need the extras of their names.
Nothing below imports it."""
