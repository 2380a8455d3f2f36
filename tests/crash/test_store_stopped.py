"""A writer that is stopped in the middle of a write, passed over, and continued: a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpipar.store import Project, check, read_status, read_verdict, unlock

pytestmark = pytest.mark.crash

OLD = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from mpipar.errors import MpiparError
    from mpipar.programs.commands.listing import Command
    from mpipar.programs.commands.dispatch import PendingCommand
    from mpipar.programs.commands.try_log import TryLog, outcome_of
    from mpipar.runtime.stage import GivenUpTask
    from mpipar.store import Project

    path, what, call, name = Path(sys.argv[1]), *sys.argv[2:]

    def stop_before(function):
        def stopped(*arguments, **words):
            if name in str(arguments[0]):
                setattr(os, call, function)  # once
                print("stopping", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
            return function(*arguments, **words)
        return stopped

    def export(project):
        with project.export("map.mrc") as temporary:
            temporary.write_bytes(b"old")

    def log(project):
        pending = PendingCommand(Command(1, "true", ("true", 0)), tries=1)
        answer = GivenUpTask(0, "Died", "old", "", ())
        TryLog(project).record([(pending, answer)], [outcome_of(pending, answer)])

    writes = {
        "commit": lambda project: project.commit(2, {"x": np.full(3, 2.0)}, {"by": "old"}),
        "status": lambda project: project.status(by="old"),
        "verdict": lambda project: project.verdict("failed", "old"),
        "export": export,
        "log": log,
        "prune": lambda project: project.prune({2}),
        "close": lambda project: project.close(),
    }
    project = Project.create(path, settings={}, kind="run", lease=1000)
    project.commit(1, {"x": np.full(3, 1.0)}, {"by": "old"})
    if what == "prune":
        for number in (2, 3):
            project.commit(number, {"x": np.full(3, float(number))}, {"by": "old"})
    setattr(os, call, stop_before(getattr(os, call)))
    try:
        writes[what](project)
        print("returned", flush=True)
    except MpiparError as error:
        print(type(error).__name__, error, flush=True)
    for write in writes.values():
        try:
            write(project)
        except MpiparError as error:
            assert "passed over by process" in str(error) or what == "close", error
    project.close()
"""
"""What the old writer does, and at which call it is stopped: on a file with this in its name."""
MOMENTS = [
    ("commit", "open", "project.h5"),
    ("commit", "link", "commit-0002"),
    ("commit", "replace", "project.h5"),
    ("status", "open", "status.json"),
    ("status", "replace", "status.json"),
    ("verdict", "open", "verdict.json"),
    ("verdict", "replace", "verdict.json"),
    ("export", "replace", "map.mrc"),
    ("log", "open", "000001.log"),
    ("log", "replace", "000001.log"),
    ("prune", "open", "project.h5"),
    ("prune", "replace", "project.h5"),
    ("prune", "unlink", "commit-0002"),
    ("close", "open", "status.json"),
    ("close", "replace", "status.json"),
    ("close", "link", "released"),
]


def pass_over(path: Path) -> None:
    """What a person and the next run do."""
    unlock(path, force=True)
    with Project.open(path, writer=True) as project:
        number = project.commits()[-1].number + 1
        project.commit(number, {"x": np.full(3, float(number))}, {"by": "new"})
        with project.export("map.mrc") as temporary:
            temporary.write_bytes(b"new")
        project.write_files("logs", {"000001.log": b"new\n"})
        project.status(by="new")
        project.verdict("done", "new")


def seen(path: Path) -> dict[str, object]:
    """All that readers look at, by the store and by themselves."""
    with h5py.File(path / "project.h5") as index:
        newest = (int(index.attrs["latest"]), index["latest/x"][...].tolist())
    return {
        "project.h5": newest,
        "status": json.loads((path / "status.json").read_bytes()),
        "verdict": json.loads((path / "verdict.json").read_bytes()),
        "map": (path / "map.mrc").read_bytes(),
        "logs": {file.name: file.read_bytes() for file in (path / "logs").iterdir()},
        "commits": Project.open(path, writer=False).commits(),
        "read": (read_status(path), read_verdict(path)),
    }


@pytest.mark.parametrize(("what", "call", "name"), MOMENTS)
def test_a_stopped_writer_that_was_passed_over_changes_nothing(
    tmp_path: Path, what: str, call: str, name: str
) -> None:
    path = tmp_path / "p"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OLD), str(path), what, call, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "stopping\n"
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            pass_over(path)
            before = seen(path)
            process.send_signal(signal.SIGCONT)
            said = process.stdout.read()
        finally:
            process.kill()
    assert seen(path) == before
    assert process.returncode == 0, said
    # a record that is durable counts for the new writer, too, and frees the same segments
    assert what == "close" or call == "unlink" or "passed over by process" in said, said
    assert check(path) == []
