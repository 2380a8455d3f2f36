"""CPython's tests of executors, for `mpipar.Executor`; see `suites.py`, which runs them.

The suite itself is found on sys.path, in the folder that `suites.find` made. A worker imports this
module as well, because some tests have their own methods called.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any
from unittest import mock

import mpipar

SUITE = "test_concurrent_futures"
PARTS = ("util", "executor", "test_shutdown", "test_init", "test_wait", "test_as_completed")
LAUNCHER = ("OMPI_", "PMI", "PRTE", "MPIPAR_")


def names_of_suite() -> dict[str, Any]:
    """Return what the modules of the suite define; until Python 3.11 it is one module."""
    modules = [importlib.import_module(SUITE)]
    folder = Path(modules[0].__file__ or "").parent
    if hasattr(modules[0], "__path__"):
        modules = [importlib.import_module(f"{SUITE}.{p}") for p in (*PARTS, "test_process_pool")]
        folder = folder.parent
    names: dict[str, Any] = {}
    module: Any
    for module in modules:
        names.update(vars(module))
        if hasattr(module, "assert_python_ok"):
            module.assert_python_ok = alone(module.assert_python_ok, folder)
    return names


def alone(original: Any, folder: Path) -> Any:
    """Return `assert_python_ok` for scripts that use mpipar.Executor, outside of the MPI job."""

    def assert_python_ok(*arguments: str, **environment: str) -> Any:
        script = arguments[-1].replace("from concurrent.futures import", "from mpipar import")
        script = script.replace(f"from test.{SUITE}", f"from {SUITE}")
        environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), str(folder)])
        kept = {name: v for name, v in os.environ.items() if not name.startswith(LAUNCHER)}
        with mock.patch.dict(os.environ, kept, clear=True):
            return original(*arguments[:-1], script, **environment)

    return assert_python_ok


NAMES = names_of_suite()


class OurExecutor(NAMES["ExecutorMixin"]):
    executor_type = mpipar.Executor


class Executors(NAMES["ProcessPoolExecutorTest"], OurExecutor, NAMES["BaseTestCase"]):
    """Among them are those of ExecutorTest."""


class Shutdowns(NAMES["ExecutorShutdownTest"], OurExecutor, NAMES["BaseTestCase"]):
    pass


class Waits(NAMES["WaitTests"], OurExecutor, NAMES["BaseTestCase"]):
    pass


class Completions(NAMES["AsCompletedTests"], OurExecutor, NAMES["BaseTestCase"]):
    pass


class Initializers(NAMES["InitializerMixin"], OurExecutor, NAMES["BaseTestCase"]):
    pass


class FailingInitializers(NAMES["FailingInitializerMixin"], OurExecutor, NAMES["BaseTestCase"]):
    pass
