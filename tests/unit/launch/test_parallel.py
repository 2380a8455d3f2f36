from __future__ import annotations

import pytest

from mpipar.errors import UsageError
from mpipar.launch.parallel import Parallel


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("serial", Parallel("serial")),
        ("thread:4", Parallel("thread", 4)),
        ("Threads:2", Parallel("thread", 2)),
        ("mpi", Parallel("mpi")),
        ("mpi:64", Parallel("mpi", 64)),
    ],
)
def test_valid_types(text, parsed):
    assert Parallel.parse(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", "thread", "thread:", "thread:0", "thread:-1", "thread:x", "thread:4:9"),
        *("mpi:0", "mpi:4:", "mpi:²", "mpi:1e3", "serial:2", "none", "4"),
    ],
)
def test_anything_else_lists_the_valid_types(text):
    with pytest.raises(UsageError, match=r"serial .*(\n.*)*mpi:N"):
        Parallel.parse(text)


@pytest.mark.parametrize("text", ["dc", "dc:localhost:9990"])
def test_dc_is_told_what_replaces_it(text):
    with pytest.raises(UsageError, match="one MPI job replaces the server"):
        Parallel.parse(text)
