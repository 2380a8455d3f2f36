"""Calls of functions on the workers; each interface is built on this."""
