"""Floor 5: what users of EchoStream test with."""
