"""Arrays beyond 2 GiB, which MPI does not take at once, for real."""

from __future__ import annotations

import sys

import pytest

from tests.support import jobs
from tests.support.installed import mpirun
from tests.support.memory import available_bytes

NEEDED = 10 << 30  # bytes, by three ranks together
LIMIT = 400.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(available_bytes() < NEEDED, reason="needs 10 GiB of memory"),
]


@pytest.mark.parametrize("what", ["shared", "block", "result", "sums", "pickle", "isolated"])
def test_more_than_2_gib_arrive_whole(what: str) -> None:
    program = [sys.executable, "-m", "tests.support.huge", what]
    with jobs.Job([], line=[*mpirun(), "-n", "3", *program]) as started:
        done = started.finish(LIMIT)
    assert (done.returncode, done.stdout) == (0, f"{what}: right\n"), done.stderr
