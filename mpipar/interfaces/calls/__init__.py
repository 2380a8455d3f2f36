"""Calls of functions on the workers of this process's job; every interface stands on it."""
