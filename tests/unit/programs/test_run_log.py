"""run.log has command, hosts, versions and lines of each start, and is replaced as a whole."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest

from mpipar.errors import InputError
from mpipar.programs.run_log import LOG, RunLog
from mpipar.runtime.clusters.thread_cluster import open_pool
from mpipar.store import check
from mpipar.store.project import Project
from mpipar.version import __version__


@pytest.fixture
def project(tmp_path):
    with Project.create(tmp_path / "run", settings={}, kind="refine") as project:
        yield project


def test_each_start_is_kept(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py", "refine", "--input", "a b.star"])
    with open_pool(2, threads=1, cache_bytes=1000) as pool:
        for line in ("first start", "second start"):
            log = RunLog(project)
            log.begin(pool)
            with log.kept():
                log.add(line)
    text = (project.path / LOG).read_text()
    assert text.count("command: mpipar refine --input 'a b.star'\n") == 2
    host = socket.gethostname()
    assert text.count(f"hosts: rank 0 on {host}; workers on {host} (2)\n") == 2
    assert f"mpipar {__version__}" in text
    assert text.index("first start") < text.index("second start")
    assert check(project.path) == []


def test_an_error_is_its_last_line_once_there_is_something_to_keep(project):
    log = RunLog(project)
    with pytest.raises(InputError), log.kept():
        raise InputError("the stack is gone")
    assert not (project.path / LOG).exists(), "the folder is to be removed"
    project.commit(0, {"a": np.zeros(1)}, {})
    with pytest.raises(InputError), log.kept():
        raise InputError("the stack is gone")
    assert (project.path / LOG).read_text().endswith("ended: the stack is gone\n")
