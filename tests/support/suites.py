"""Other projects' tests of executors, run on `mpipar.Executor` as they are.

    python -m tests.support.suites find FOLDER            put the suites that can be had there
    python -m mpipar exec -m tests.support.suites cpython FOLDER [NAME...]    run one (or mpi4py)

Nothing of a suite is changed but how an executor is made, and nothing of it is kept here: CPython's
is what a Python on this machine brings (Lib/test/test_concurrent_futures, PSF licence), mpi4py's is
from the source package of the installed version (demo/futures/test_futures.py, BSD licence). What
is left out stands in LEFT_OUT, with the reason; of CPython's also what is not about an executor
(FutureTests), about ThreadPoolExecutor (threads as workers), or about what breaks a
ProcessPoolExecutor (test_deadlock: a crash breaks no mpipar.Executor).
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
from importlib.metadata import version
from pathlib import Path

CPYTHON = "test_concurrent_futures"
MPI4PY = "test_futures"

# Parts of the name of a test, and why it says nothing about this executor.
LEFT_OUT = {
    "cpython": {
        "test_killed_child": "a killed worker breaks that executor; here its calls are made again",
        "test_max_workers_too_large": "a limit of Windows",
        "test_ressources_gced_in_workers": "proxies of a multiprocessing manager as arguments",
        "test_saturation": "semaphores of multiprocessing, and ProcessPoolExecutor._processes",
        "test_idle_process_reuse": "ProcessPoolExecutor._processes",
        "test_max_tasks": "an option of ProcessPoolExecutor",
        "test_python_finalization_error": "ProcessPoolExecutor's own threads",
    },
    "mpi4py": {
        "test_init_kwargs": "options for mpi4py's own spawning of Python processes",
        "test_init_pyargs": "options for mpi4py's own spawning of Python processes",
        "test_run_name": "the name under which mpi4py runs the main module",
        "test_get_comm_workers": "a communicator of mpi4py's workers",
        "test_bootup_shutdown_nowait": "MPIPoolExecutor._pool",
        "ShutdownTest.test_shutdown": "MPIPoolExecutor._pool",
        "test_init_bootup_shutdown": "MPIPoolExecutor._pool",
        "test_context_manager_shutdown": "MPIPoolExecutor._pool",
        "test_del_shutdown": "MPIPoolExecutor._pool",
        "test_mpi_serialized_support": "mpi4py.futures._core",
        "MPICommExecutor": "another executor",
        "ThreadPoolTest": "another executor",
        "ThenTest": "a promise class of mpi4py, without an executor",
        "CollectTest": "functions on futures, without an executor",
        "ComposeTest": "functions on futures, without an executor",
    },
}


# Finding them


def find(folder: Path) -> None:
    """Put links to, or copies of, the suites that can be found into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = cpython_suite()
    link = folder / (found.name if found else CPYTHON)
    if found and not link.exists():
        link.symlink_to(found)
    if not (folder / f"{MPI4PY}.py").exists():
        _unpack_mpi4py(folder)


def cpython_suite() -> Path | None:
    """Return the suite of this Python, or else that of the next older one that has it."""
    libraries = [Path(os.__file__).parent]
    others = Path(sys.base_prefix).parent.glob("3.*/lib/python3.*")  # pyenv's folders
    minor = sys.version_info.minor
    older = [path for path in others if int(path.name.rpartition(".")[2]) < minor]
    libraries += sorted(older, key=lambda path: int(path.name.rpartition(".")[2]), reverse=True)
    for library in libraries:
        for name in (CPYTHON, f"{CPYTHON}.py"):
            if (library / "test" / name).exists():
                return library / "test" / name
    return None


def _unpack_mpi4py(folder: Path) -> None:
    wanted = {f"demo/futures/{MPI4PY}.py", "test/mpitestutil.py", "LICENSE.rst"}
    with tempfile.TemporaryDirectory() as scratch:
        source = f"mpi4py=={version('mpi4py')}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--retries=1",
            "--timeout=10",
        ]
        command += ["--no-deps", "--no-binary=mpi4py", f"--dest={scratch}", source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for archive in Path(scratch).glob("mpi4py-*.tar.gz"):
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    if member.name.partition("/")[2] in wanted:
                        content = tar.extractfile(member)
                        assert content is not None
                        (folder / Path(member.name).name).write_bytes(content.read())
        if not (folder / f"{MPI4PY}.py").exists():
            sys.stderr.write(f"no source of {source}: {done.stderr}\n")


# Running them


def classes_of(suite: str) -> list[type]:
    """Return the test classes. Workers import them, too: some tests have their methods called."""
    if suite == "mpi4py":
        from concurrent.futures.process import _RemoteTraceback

        import mpi4py.futures
        import mpi4py.futures._core as core

        import mpipar

        # As under `python -m mpi4py.futures`, the workers are there.
        vars(core).update(SharedPool=object, RemoteTraceback=_RemoteTraceback)
        vars(mpi4py.futures).update(MPIPoolExecutor=mpipar.Executor)
        module = importlib.import_module(MPI4PY)
    else:
        module = importlib.import_module("tests.support.suite_of_cpython")
    classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
    return [kind for kind in classes if kind.__module__ == module.__name__]


def main() -> int:
    """Run the command line that is described above; return the exit code."""
    act, folder = sys.argv[1], Path(sys.argv[2]).absolute()
    if act == "find":
        find(folder)
        return 0
    sys.path += [str(folder), str(Path.cwd())]
    only = sys.argv[3:]
    from mpipar import Executor

    with Executor() as executor:  # its threads are there before a test counts threads
        executor.submit(int).result()
    suite = unittest.TestSuite()
    for kind in classes_of(act):
        if not issubclass(kind, unittest.TestCase):
            continue
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(kind):
            assert isinstance(test, unittest.TestCase)
            name = test.id()
            if (not only or any(part in name for part in only)) and not any(
                part in name for part in LEFT_OUT[act]
            ):
                suite.addTest(test)
    result = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
