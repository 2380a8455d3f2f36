"""What a worker's main module has, as a script's text says."""

from __future__ import annotations

import functools

import pytest

from mpipar.interfaces.calls.main_names import MainNames, global_names

SCRIPT = b"""
import os
from sys import path as where
LEVEL = 1
counter: int = 0
def top(x): return x
class Kind:
    inside = 3
    def method(self): pass
def counting():
    global counter
    counter += 1
if os.sep == "/":
    under_a_test = 1
else:
    under_another = 2
try:
    import tomllib
except ImportError:
    tomllib = None
if __name__ == "__main__" and LEVEL:
    LEVEL = 2
    lower = 3
    def top(x): return -x
    def only_there(): later = 1
elif LEVEL:
    in_workers = 1
if "__main__" != __name__:
    as_module = 1
else:
    as_main = 1
"""


def test_names_that_workers_bind_and_names_that_they_do_not():
    names = MainNames.of(SCRIPT)
    assert names.bound == {
        *("os", "where", "LEVEL", "counter", "top", "Kind", "counting", "tomllib"),
        *("under_a_test", "under_another", "in_workers", "as_module"),
    }
    assert names.rebound == {"LEVEL", "lower", "top", "only_there", "as_main", "counter"}


def test_function_that_is_bound_twice_is_told_by_its_line():
    for text, is_there in [(SCRIPT, False), (SCRIPT.partition(b"if __name__")[0], True)]:
        there: dict[str, object] = {"__name__": "__main__"}
        exec(compile(text, "script.py", "exec"), there)
        assert MainNames.of(SCRIPT).has("top", there["top"]) is is_there
    assert not MainNames.of(SCRIPT).has("LEVEL", 2)
    assert MainNames.of(SCRIPT).has("where", [])


def test_without_a_text_workers_have_nothing():
    for text in (None, b"%matplotlib inline\nx = 1"):
        assert not MainNames.of(text).has("x", 1)


def test_global_names_of_functions_within_functions_and_wrappers():
    def inner():
        return [pytest for _ in range(3)]

    @functools.cache
    def outer():
        return inner(), MainNames.bound

    outer.__wrapped__.__module__ = outer.__module__ = "__main__"
    assert global_names(outer) == {"pytest", "range", "MainNames"}
    assert global_names(functools.partial(inner)) == {"pytest", "range"}
