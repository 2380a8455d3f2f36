"""The command line: one module per command; flags follow from the settings dataclasses."""
