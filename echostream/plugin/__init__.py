"""Floor 3: the plugin protocol."""
