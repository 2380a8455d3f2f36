from __future__ import annotations

from pathlib import Path

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
        ("MPI:3:/Scratch/Me", Parallel("mpi", 3, Path("/Scratch/Me"))),
        ("thread:3:here", Parallel("thread", 3, Path.cwd() / "here")),
        ("threads:3:~/x", Parallel("thread", 3, Path.home() / "x")),
    ],
)
def test_valid_types(text, parsed):
    assert Parallel.parse(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", "thread", "thread:", "thread:0", "thread:-1", "thread:x", "thread:4:", "thread_sm:2"),
        *("mpi:0", "mpi:4:", "mpi:²", "mpi:1e3", "mpi:/tmp", "serial:2", "none", "4", "mpi:n=4"),
        *("mpi:4:/a:nocache", "mpi:4:nocache", "thread:4:/a:b"),
    ],
)
def test_anything_else_lists_the_valid_types(text):
    with pytest.raises(UsageError, match=r"serial .*(\n.*)*mpi:N"):
        Parallel.parse(text)


@pytest.mark.parametrize("text", ["dc", "dc:localhost:9990"])
def test_dc_is_told_what_replaces_it(text):
    with pytest.raises(UsageError, match="one MPI job replaces the server"):
        Parallel.parse(text)


@pytest.mark.parametrize(
    ("third", "instead"),
    [("nocache", "--cache says how much"), ("8", "mpirun's own options"), ("x", "one field too")],
)
def test_third_field_of_eman2_is_told_what_replaces_it(third, instead):
    with pytest.raises(UsageError, match=instead):
        Parallel.parse(f"mpi:4:/scratch:{third}")


def test_what_is_written_is_what_was_read():
    for text in ("serial", "thread:4", "mpi", "mpi:64", "mpi:3:/Scratch/Me"):
        assert str(Parallel.parse(text)) == text
