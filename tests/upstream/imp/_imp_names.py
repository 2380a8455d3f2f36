"""What these tests know as IMP: mpipar's interface, and plain unittest."""

import unittest
from types import SimpleNamespace

from mpipar import imp as parallel

__all__ = ["parallel", "test"]

test = SimpleNamespace(TestCase=unittest.TestCase, main=unittest.main)
