"""What is set for MPI, when, and that the user's choice wins."""

from __future__ import annotations

import os

import pytest

from mpipar.runtime.process.mpi_settings import prepare_mpi

CUTOFF = "OMPI_MCA_mpi_add_procs_cutoff"
MPI4PY = {"MPI4PY_RC_FINALIZE": "0", "MPI4PY_RC_THREAD_LEVEL": "serialized"}
TOLERANT = "OMPI_MCA_mpi_ft_enable"


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    return os.environ


def settings(environ):
    """All but what pytest sets."""
    return {name: value for name, value in environ.items() if name.startswith(("OMPI_", "MPI4PY"))}


def test_addresses_are_known_from_the_start(environ):
    prepare_mpi()
    assert settings(environ) == {CUTOFF: "1024"}


def test_where_ranks_may_die_mpi_is_not_finalised(environ):
    environ[TOLERANT] = "1"
    prepare_mpi()
    assert settings(environ) == {TOLERANT: "1", CUTOFF: "1024", **MPI4PY}


def test_the_choice_of_the_user_wins(environ):
    chosen = {TOLERANT: "1", CUTOFF: "0", **dict.fromkeys(MPI4PY, "user")}
    environ.update(chosen)
    prepare_mpi()
    assert settings(environ) == chosen
