"""Whole runs in this process: workers are threads, commands are real."""

from __future__ import annotations

import csv
import json
import os
import time
from io import StringIO

import pytest

from mpipar.errors import (
    CommandsFailedError,
    CorruptStoreError,
    InputError,
    OutputError,
    RequeueError,
    StoreError,
    UsageError,
)
from mpipar.programs.commands import run
from mpipar.programs.commands.supervisor_main import descendants
from mpipar.runtime.clusters import thread_cluster
from mpipar.settings import RunSettings
from mpipar.store import check
from mpipar.store.project import Project
from mpipar.views.progress import PlainView


class Here:
    """A folder with a command file, and runs of it."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "run"
        self.file = folder / "commands.txt"

    def write(self, *lines):
        self.file.write_text("".join(f"{line}\n" for line in lines))

    def run(self, workers=2, **values):
        """Run; what was said, and the error if there was one."""
        said = StringIO()
        pools = []

        def open_pool(threads, cache_bytes):
            pools.append(
                thread_cluster.open_pool(workers, threads=threads, cache_bytes=cache_bytes)
            )
            return pools[-1]

        values = {"commands": self.file, "path": self.path, "cwd": self.folder, **values}
        values = {name: value for name, value in values.items() if value is not None}
        try:
            run.run(RunSettings(**values, given=frozenset(values)), open_pool, PlainView(said))
        except CommandsFailedError as error:
            return said.getvalue(), error
        finally:
            for pool in pools:
                pool.close()
        return said.getvalue(), None

    def table(self):
        rows = (self.path / "commands.tsv").read_text().splitlines()
        return list(csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE))

    def log(self, line):
        return (self.path / "logs" / f"{line:06d}.log").read_text()

    def count(self, name):
        """How often a command has added a line to a file."""
        path = self.folder / name
        return len(path.read_text().splitlines()) if path.exists() else 0

    def verdict(self):
        return json.loads((self.path / "verdict.json").read_text())["verdict"]


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


def test_all_done_with_logs_table_and_verdict(here):
    here.write("# two", "echo one $MPIPAR_LINE $MPIPAR_TRY", "", "pwd; echo two >&2")
    said, error = here.run()
    assert error is None
    assert "2 of 2 commands are done" in said
    assert [row["line"] + row["result"] + row["exit_code"] for row in here.table()] == [
        "2done0",
        "4done0",
    ]
    head, command, *output = here.log(4).splitlines()
    assert head.startswith("=== line 4, try 1, ")
    assert ": exit code 0 after " in head
    assert (command, output) == ("=== pwd; echo two >&2", [str(here.folder), "two"])
    assert here.log(2).splitlines()[2] == "one 2 1"
    assert here.verdict() == "done"
    assert check(here.path) == []


def test_what_fails_is_tried_again_elsewhere_and_every_try_has_its_log(here):
    here.write("echo rank $MPIPAR_RANK; [ $MPIPAR_TRY = 3 ]", "exit 7", "kill -9 $$")
    said, error = here.run(workers=3)
    assert "2 of 3 commands failed" in str(error)
    assert error.exit_code == 70
    rows = [
        (row["line"], row["result"], row["exit_code"], row["signal"], row["tries"])
        for row in here.table()
    ]
    assert rows == [
        ("2", "failed", "7", "", "3"),
        ("3", "failed", "", "9", "3"),
        ("1", "done", "0", "", "3"),
    ]
    ranks = [line for line in here.log(1).splitlines() if line.startswith("rank ")]
    assert len(set(ranks)) == 3, "each try on another worker"
    assert "line 2 failed: exit code 7 (try 3); logs/000002.log" in said
    assert "failed: killed by SIGKILL" in said
    assert here.verdict() == "failed"


def test_resume_runs_what_is_not_done_known_by_its_text(here):
    here.write("echo x >>a", "echo x >>b; [ -e ok ]", "echo x >>a")
    _, error = here.run(retries=0)
    assert error is not None
    (here.folder / "ok").touch()
    here.write("# edited", "echo x >>new", "echo x >>a", "echo x >>b; [ -e ok ]", "echo x >>a")
    said, error = here.run(resume=True)
    assert error is None
    assert "2 are done, 2 are to be run" in said
    assert [here.count(name) for name in ("a", "b", "new")] == [2, 2, 1]
    tries = {row["command"]: row["tries"] for row in here.table()}
    assert tries == {"echo x >>new": "1", "echo x >>a": "1", "echo x >>b; [ -e ok ]": "2"}
    logs = [row["log"] for row in here.table()]
    assert len(set(logs)) == 4, "no two commands share a log"
    for row in here.table():
        assert f"=== {row['command']}\n" in (here.path / row["log"]).read_text()
    said, error = here.run(resume=True)
    assert error is None
    assert "4 are done, 0 are to be run" in said
    assert (here.path / "commands.txt").read_text() == here.file.read_text()


def test_resume_tells_of_lines_that_are_gone(here):
    here.write("true", "true # 2")
    here.run()
    here.write("true")
    said, _ = here.run(resume=True)
    assert "1 are done, 0 are to be run; no longer in the file: 1" in said


def test_each_command_has_a_log_of_its_own_also_on_a_line_that_was_edited(here):
    here.write("echo first; false", "echo other; false")
    here.run(retries=0)
    here.write("echo edited", "echo other; false")
    for _ in range(2):
        here.run(resume=True, retries=0)
    logs = {log.name: log.read_text() for log in (here.path / "logs").iterdir()}
    assert sorted(logs) == ["000001-2.log", "000001.log", "000002.log"]
    assert [logs["000001.log"].count(word) for word in ("first", "edited")] == [2, 0]
    assert [logs["000001-2.log"].count(word) for word in ("first", "edited")] == [0, 2]
    assert logs["000002.log"].count("try") == 3
    named = {row["command"]: row["log"] for row in here.table()}
    assert named["echo edited"] == "logs/000001-2.log"
    assert named["echo other; false"] == "logs/000002.log"


def test_one_command_is_no_commands(here):
    here.write("true")
    said, _ = here.run()
    assert "1 command in" in said
    assert "1 of 1 command is done" in said


def test_resume_without_a_file_takes_that_of_the_run(here):
    here.write("echo x >>a; false")
    here.run(retries=0)
    _, error = here.run(commands=None, cwd=None, resume=True, retries=0)
    assert error is not None
    assert here.count("a") == 2


def test_stop_begins_no_other_command(here):
    here.write("echo x >>a; false", *(f"sleep 0.05; echo {i} >>a" for i in range(20)))
    _, error = here.run(workers=1, retries=0, on_error="stop")
    assert here.count("a") == 1
    assert "20 were not begun" in str(error)
    assert [row["result"] for row in here.table()] == ["failed"] + ["not done"] * 20
    here.write(*(f"sleep 0.05; echo {i} >>a" for i in range(20)))
    assert here.run(resume=True, on_error="stop")[1] is None
    assert here.count("a") == 21


def test_time_out(here):
    here.write("echo begun; sleep 30", "true")
    _, error = here.run(retries=1, timeout="0.2s")
    assert "1 of 2 commands failed" in str(error)
    assert here.table()[0]["result"] == "failed: timed out"
    assert here.log(1).count("timed out after 0.") == 2
    assert here.log(1).count("begun\n") == 2


def test_chatty_command(here):
    here.write("seq 100000")
    here.run(output=0.002)
    log = here.log(1)
    assert len(log) < 2300
    assert "\n3\n" in log
    assert "bytes left out here (--output)\n" in log
    assert log.endswith("99999\n100000\n")


def test_check_says_what_would_be_run_and_writes_nothing(here):
    here.write("echo x >>a", "echo y >>a")
    said, error = here.run(check=True, timeout="1h30m")
    assert error is None
    assert "3 tries each, at most 1 h 30 min" in said
    assert "  line 2: echo y >>a" in said
    assert sorted(path.name for path in here.folder.iterdir()) == ["commands.txt"]
    here.write("echo x >>a", "false")
    here.run(retries=0)
    before = {path: path.stat().st_mtime_ns for path in here.path.rglob("*")}
    said, _ = here.run(check=True, resume=True)
    assert "1 are done, 1 are to be run" in said
    assert {path: path.stat().st_mtime_ns for path in here.path.rglob("*")} == before


def test_check_refuses_a_folder_that_is_taken(here):
    here.write("true")
    here.path.mkdir()
    (here.path / "notes.txt").write_text("mine")
    for checked in (True, False):
        with pytest.raises(OutputError, match="run: exists and is not empty; choose another"):
            here.run(check=checked)
    assert [entry.name for entry in here.path.iterdir()] == ["notes.txt"]


def test_wrong_input_leaves_no_folder(here):
    here.write("# nothing")
    with pytest.raises(InputError, match="no command in it"):
        here.run()
    here.write("true")
    with pytest.raises(UsageError, match="is not a folder"):
        here.run(cwd=here.folder / "none")
    assert not here.path.exists()


def test_folder_of_another_program_is_refused(here):
    here.write("true")
    Project.create(here.path, settings={}, kind="refine").close()
    with pytest.raises(InputError, match="made by `mpipar refine`, not by `mpipar run`"):
        here.run(resume=True)


def test_interrupted_run_keeps_what_is_done(here, monkeypatch):
    here.write("echo x >>a", "echo x >>b")
    written = run.CommandsSession._handle

    def handle(session, dispatch, arrived):
        written(session, dispatch, arrived)
        raise RequeueError("the time is over")

    monkeypatch.setattr(run.CommandsSession, "_handle", handle)
    with pytest.raises(RequeueError):
        here.run(workers=1)
    assert here.verdict() == "requeue"
    assert [row["result"] for row in here.table()] in (["not done", "done"], ["done", "done"])
    monkeypatch.undo()
    here.run(resume=True)
    assert here.count("a") == 1
    assert here.verdict() == "done"


def test_no_process_is_left_after_a_run(here):
    here.write("true", "sleep 50 & true", "false")
    before = set(descendants(os.getpid()))
    here.run(retries=0)
    until = time.monotonic() + 5
    while left := set(descendants(os.getpid())) - before:
        assert time.monotonic() < until, left
        time.sleep(0.01)


def test_many_short_commands_on_several_workers(here, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")  # as a batch script without srun has it
    here.write(*(f"echo {i}" for i in range(60)))
    said, error = here.run(workers=2, per_worker=2)
    assert error is None
    assert [here.log(i + 1).splitlines()[-1] for i in range(60)] == [str(i) for i in range(60)]
    assert said.count("\n") < 10, "a long table is not shown"
    ranks = {int(row["rank"]) for row in here.table()}
    assert len(ranks) == 2
    assert min(ranks) > 0, "rank 0 runs no commands"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"{", "not as this mpipar writes it"),
        (b'{"key": ["a", 1]}', "not as this mpipar writes it"),
        (None, r"weight.*update mpipar"),
    ],
)
def test_a_record_of_another_version_is_said_so(here, record, said):
    here.write("true")
    here.run()
    with Project.open(here.path, writer=True) as project:
        if record is None:
            fields = json.loads(project.records("try", every=True)[0])
            record = json.dumps(fields | {"weight": 2}).encode()
        project.append("try", record)
    with pytest.raises(StoreError, match=said):
        here.run(resume=True, commands=None, cwd=None)


def test_a_damaged_journal_runs_no_command_again(here):
    here.write("echo x >> a", "echo x >> b")
    here.run()
    journal = here.path / "journal" / "000001.log"
    data = bytearray(journal.read_bytes())
    data[13] ^= 1
    journal.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"000001\.log: its header"):
        here.run(resume=True, commands=None, cwd=None)
    assert (here.count("a"), here.count("b")) == (1, 1)
