"""Whole refinements and their results: the reference that others are compared with, and digests.

The reference is one run, serial and undisturbed; it is made once per test session.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support import jobs
from tests.support.pool_statistics import recorded
from tests.support.refine_input import ITERATIONS, Input, make_input

if TYPE_CHECKING:
    from collections.abc import Sequence

FILES: Final = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "particles.star", "fsc.txt")
"""What must have the same bits, however it was computed."""


def digests(folder: Path, made: Input | None = None) -> dict[str, str]:
    """Sha256 of every result of a run; what names the folder of its input `made` is made even."""
    whole = {name: (folder / name).read_bytes() for name in FILES}
    if made is not None:
        whole["particles.star"] = whole["particles.star"].replace(bytes(made.folder), b"FOLDER")
    return {name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}


@dataclass(frozen=True)
class Reference:
    """An undisturbed serial run, and the input that it and all compared runs have."""

    input: Input
    path: Path
    digests: dict[str, str]
    said: str
    seconds: float
    statistics: list[dict[str, Any]]


@functools.cache
def reference(base: Path, iterations: int = ITERATIONS) -> Reference:
    """Make the input and refine it in one process without mpirun; once per session."""
    base = base / f"reference-{iterations}"
    made = make_input(base / "input")
    words = made.words("--path", base / "run", iterations=iterations)
    start = time.monotonic()
    done, statistics = recorded(words, base / "record.json")
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - start
    path = base / "run"
    return Reference(made, path, digests(path), done.stdout, seconds, statistics)


def run_here(words: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run mpipar's command line in this process: the same, without seconds of imports."""
    from mpipar.cli.main import main

    before, there = dict(os.environ), Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    try:
        os.chdir(cwd)
        for name in set(os.environ) - set(jobs.environment()):
            del os.environ[name]
        with redirect_stdout(out), redirect_stderr(err), jobs.patience(jobs.PATIENCE):
            code = main([str(word) for word in words[1:]])
    finally:
        os.chdir(there)
        os.environ.clear()
        os.environ.update(before)
    return subprocess.CompletedProcess("mpipar", code, out.getvalue(), err.getvalue())
