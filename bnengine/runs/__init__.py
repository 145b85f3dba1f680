"""One run as a program: from a configuration to a run directory, from there to predictions."""
