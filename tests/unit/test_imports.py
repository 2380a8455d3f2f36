"""Importing mpipar changes nothing in the process of the user, and loads no more than is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

IMPORT_ALL = """
import importlib, json, os, pkgutil, sys
for library in sys.argv[1:]:  # what another library sets is not mpipar's doing
    importlib.import_module(library)
before = dict(os.environ)
import mpipar
names = [module.name for module in pkgutil.walk_packages(mpipar.__path__, "mpipar.")]
names = [name for name in names if not name.rpartition(".")[2].startswith("mpi_")
         or name.startswith("mpipar.runtime.process.")]
for name in names:
    importlib.import_module(name)
changed = {name for name in os.environ.keys() | before if os.environ.get(name) != before.get(name)}
print(json.dumps([len(names), sorted(changed), "mpi4py" in sys.modules]))
"""


def test_no_import_sets_a_variable_or_loads_mpi():
    libraries = [name for name in ("joblib", "numba", "matplotlib") if find_spec(name)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *libraries],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    modules, changed, mpi = json.loads(done.stdout)
    assert modules > 150
    assert changed == []
    assert not mpi


LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""
COMMAND = ("mpipar.cli.main", "mpipar.runtime.pool")
WORKER = (*COMMAND, "mpipar.runtime.loops.worker_loop")
STAGES = ("mpipar.programs.stages", "mpipar.programs.soft_stage")
TABLES_AND_PLOTS = {"pandas", "matplotlib", "healpy", "astropy", "h5py", "mrcfile", "rich"}
SLOW_PARTS_OF_SCIPY = {"scipy.spatial", "scipy.ndimage", "scipy.sparse", "scipy.optimize"}


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (COMMAND, TABLES_AND_PLOTS | {"scipy", "numba"}),
        ((*WORKER, *STAGES), TABLES_AND_PLOTS | SLOW_PARTS_OF_SCIPY | {"numba"}),
        ((*COMMAND, "mpipar.programs.refine"), {"matplotlib", "healpy", "rich", "numba"}),
    ],
    ids=["any command", "a worker until its first search", "rank 0 of a refinement"],
)
def test_libraries_are_loaded_only_where_they_are_needed(modules, without):
    by_transforms = loaded_by("scipy.fft") & SLOW_PARTS_OF_SCIPY  # by an old scipy itself
    assert without & loaded_by(*modules) - by_transforms == set()


def loaded_by(*modules: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *modules], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))
