"""Importing mpipar changes nothing in the process of the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

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
