"""What the nine tests of IMP.parallel check, written anew: runs by itself or under `mpipar exec`.

    python -m unittest tests.support.imp_nine
    mpirun -n 4 python -m mpipar exec -m unittest tests.support.imp_nine.Anywhere

IMP's own files (github.com/salilab/imp, modules/parallel/test) are LGPL and not kept here. They
can be run with `IMP.parallel` replaced by `mpipar.imp`.
"""

from __future__ import annotations

import math
import os
import time
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mpipar import imp
from tests.support.imp_tasks import Give

SOON = 20.0  # seconds


def arguments(*setup):
    return setup


def raise_value_error():
    raise ValueError("told to")


class InFolder(unittest.TestCase):
    """Each test is in a folder of its own, where workers leave their output."""

    def setUp(self):
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, Path.cwd())
        self.folder = Path(folder.name)
        os.chdir(self.folder)

    def managed(self, **options):
        manager = imp.Manager(**options)
        manager.heartbeat_timeout = 5.0
        manager.add_worker(imp.LocalWorker())
        return manager

    def results(self, tasks, startup=None, **options):
        context = self.managed(**options).get_context(startup=startup)
        for task in tasks:
            context.add_task(task)
        return list(context.get_results_unordered())


class Anywhere(InFolder):
    def test_simple(self):
        found = self.results([Give(number) for number in range(10)], output="simple%d.out")
        assert sorted(found) == list(range(10))
        assert (self.folder / "simple0.out").exists()

    def test_startup(self):
        found = self.results([arguments] * 2, startup=Give(("foo", "bar")))
        assert found == [("foo", "bar")] * 2

    def test_startup_no_workers(self):
        context = imp.Manager().get_context()
        context.add_task(arguments)
        with pytest.raises(imp.NoMoreWorkersError):
            list(context.get_results_unordered())

    def test_pass_exceptions(self):
        (found,) = self.results([Give(IndexError("test"))])
        assert isinstance(found, IndexError)

    def test_raise_exceptions(self):
        with pytest.raises(imp.RemoteError) as caught:
            self.results([raise_value_error])
        assert "ValueError: told to" in str(caught.value)

    def test_floats(self):
        found = self.results([Give(math.inf), Give(math.nan)])
        assert sorted(map(repr, found)) == ["inf", "nan"]

    def test_pe_worker(self):
        calls = self.folder / "calls"
        qrsh = self.folder / "qrsh"
        qrsh.write_text(f'#!/bin/sh\necho "$@" > {calls}.new\nmv {calls}.new {calls}\n')
        qrsh.chmod(0o755)
        before = os.environ["PATH"]
        self.addCleanup(os.environ.__setitem__, "PATH", before)
        os.environ["PATH"] = f"{self.folder}:{before}"
        imp._SGEPEWorker("testnode")._start("testpath", "testid", "testoutput")
        until = time.monotonic() + SOON
        while not calls.exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert calls.read_text() == "-inherit -V testnode testpath testid\n"

    def test_pe_worker_array(self):
        hosts = self.folder / "hosts"
        hosts.write_text("node1 1 long.q\nnode2 1 long.q\nnode3 2 short.q\n")
        self.addCleanup(os.environ.pop, "PE_HOSTFILE")
        os.environ["PE_HOSTFILE"] = str(hosts)
        workers: Any = imp.SGEPEWorkerArray()._get_workers()
        first, *others = workers
        assert type(first) is imp.LocalWorker
        assert [worker._host for worker in others] == ["node2", "node3", "node3"]


class Alone(InFolder):
    """Where workers are still to be started; the ranks of an MPI job have been."""

    def test_startup_heartbeat(self):
        manager = self.managed(python="/path/does/not/exist")
        manager.heartbeat_timeout = 0.1
        context = manager.get_context()
        context.add_task(arguments)
        with pytest.raises(imp.NetworkError):
            list(context.get_results_unordered())
