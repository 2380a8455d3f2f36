"""Facts about Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mpipar import system

WAITS = """
import os, sys, time
from mpipar.system import end_with_parent
parent = os.getpid()
if os.fork() == 0:
    print(end_with_parent({parent}), flush=True)
time.sleep(60)
"""


def test_boot_id_is_the_kernel_s_and_empty_where_there_is_none(monkeypatch, tmp_path):
    kernel = Path("/proc/sys/kernel/random/boot_id")
    assert system.boot_id() == (kernel.read_text().strip() if kernel.exists() else "")
    monkeypatch.setattr(system, "BOOT_ID", tmp_path / "none")
    assert system.boot_id() == ""


def start(parent):
    code = WAITS.format(parent=parent)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_process_ends_with_its_parent():
    with start("parent") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("True")
        parent.kill()
        assert parent.stdout.read() == ""  # both hold the pipe, so both have ended


def test_parent_that_died_before_is_told():
    with start("0") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("False")
        parent.kill()
        assert parent.stdout.read() == ""
