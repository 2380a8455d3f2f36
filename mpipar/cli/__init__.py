"""The command line: one module per command; the flags are made from the settings dataclasses."""
