"""`mpipar run` under a real mpirun."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from pathlib import Path

import pytest

from mpipar.runtime.process.launcher_variables import SESSION_BASE
from tests.support import jobs
from tests.support.installed import MPIRUN, mpirun

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")

RANK = "from mpi4py import MPI; print(MPI.COMM_WORLD.rank, 'of', MPI.COMM_WORLD.size)"


def run(folder: Path, lines: list[str], *words: object, ranks: int | None = 4) -> tuple[int, str]:
    """Exit code and all that was said."""
    (folder / "commands.txt").write_text("\n".join([*lines, ""]))
    done = jobs.run(
        ["mpipar", "run", "commands.txt", "--path", "run", *words],
        ranks=ranks,
        cwd=folder,
        env={"PYTHONPATH": str(jobs.ROOT), "PATH": os.environ["PATH"]},
    )
    return done.returncode, done.stdout + done.stderr


def table(folder: Path) -> dict[int, dict[str, str]]:
    rows = (folder / "run" / "commands.tsv").read_text().splitlines()
    found = csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)
    return {int(row["line"]): row for row in found}


def log(folder: Path, line: int) -> list[str]:
    return (folder / "run" / "logs" / f"{line:06d}.log").read_text().splitlines()[2:]


def test_commands_run_on_all_workers_and_those_that_use_mpi_are_not_confused(
    tmp_path: Path,
) -> None:
    mpi = f'{sys.executable} -c "{RANK}"'
    lines = [
        *["sleep 0.3; echo $MPIPAR_RANK"] * 6,
        mpi,
        f"{' '.join(mpirun())} -n 2 {mpi}",
        "env | grep -E '^(OMPI_COMM|PMIX_|PMI_|PRTE_[^M])'",
        "sleep 0.1; kill -BUS $$",
    ]
    code, said = run(tmp_path, lines, "--retries", 1)
    assert code == 70, said
    assert "mpipar: 2 of 10 commands failed" in said
    rows = table(tmp_path)
    assert {log(tmp_path, line)[0] for line in range(1, 7)} == {"1", "2", "3"}
    assert {rows[line]["rank"] for line in range(1, 7)} == {"1", "2", "3"}
    assert log(tmp_path, 7) == ["0 of 1"]
    assert sorted(log(tmp_path, 8)) == ["0 of 2", "1 of 2"]
    assert (rows[9]["result"], rows[9]["exit_code"], rows[9]["tries"]) == ("failed", "1", "2")
    assert (rows[10]["signal"], rows[10]["tries"]) == ("7", "2")
    assert list(rows)[:2] == [9, 10], "failures come first"


LEAVES = """mkdir -p $TMPDIR/ompi.$$ && touch $TMPDIR/ompi.$$/pmix.$(hostname).tool.$$ &&"""


@pytest.mark.skipif("--oversubscribe" not in mpirun(), reason="only of Open MPI's mpirun")
def test_what_a_killed_mpirun_left_stops_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files stop another mpirun that is given the same process number."""
    monkeypatch.delenv(SESSION_BASE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    line = f"export TMPDIR={temporary}; {LEAVES} exec {' '.join(mpirun())} -n 2 echo fine"
    bare = jobs.run(line=["bash", "-c", line])
    assert bare.returncode != 0, "this mpirun is not stopped by what another one has left"
    code, said = run(tmp_path, [line], "--parallel=thread:1", "--retries", 0, ranks=None)
    assert code == 0, said + "\n".join(log(tmp_path, 1))
    assert log(tmp_path, 1) == ["fine", "fine"]


def test_command_has_a_session_folder_until_its_end(tmp_path: Path) -> None:
    line = f"stat -c %A ${SESSION_BASE}; echo ${SESSION_BASE}; touch ${SESSION_BASE}/left"
    words = ("--parallel=thread:1", "--retries", 0)
    code, said = run(tmp_path, [line, line, f"test -w ${SESSION_BASE}"], *words, ranks=None)
    assert code == 0, said
    (mode, first), (_, second) = (log(tmp_path, number) for number in (1, 2))
    assert mode == "drwx------"
    assert first != second
    assert not Path(first).exists()
    assert not Path(second).exists()


def test_mpipar_starts_mpirun_itself_and_the_time_out_holds(tmp_path: Path) -> None:
    lines = ["sleep 60", "seq 200000", "env | grep -c OMPI_COMM", "echo $OMP_NUM_THREADS"]
    words = ["--parallel=mpi:3", "--timeout", "1s", "--retries", 0, "--output", 0.01]
    code, said = run(tmp_path, lines, *words, ranks=None)
    assert code == 70, said
    assert table(tmp_path)[1]["result"] == "failed: timed out"
    assert log(tmp_path, 2)[-1] == "200000"
    assert sum(map(len, log(tmp_path, 2))) < 11_000
    assert log(tmp_path, 3) == ["0"]
    assert log(tmp_path, 4) == ["1"]
    code, said = run(tmp_path, ["seq 200000", "true"], "--resume", ranks=2)
    assert code == 0, said
    assert "1 are done, 1 are to be run; no longer in the file: 3" in said


@pytest.mark.parametrize("parallel", ["mpi:3", "thread:2"])
def test_signal_ends_the_run_in_good_order_and_its_commands_with_it(
    tmp_path: Path, parallel: str
) -> None:
    (tmp_path / "commands.txt").write_text("echo x >>trace\nsleep 1234.8\n")
    words = ["mpipar", "run", "commands.txt", "--path", "run", f"--parallel={parallel}"]
    trace, log = tmp_path / "trace", tmp_path / "run" / "logs" / "000001.log"
    with jobs.Job(words, cwd=tmp_path) as job:
        jobs.wait_until(log.exists, job)
        job.process.terminate()
        done = job.finish()
        until = time.monotonic() + 10
        while job.pids():
            assert time.monotonic() < until, "something outlives the run"
            time.sleep(0.02)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "what is done is kept: go on with --resume --path run" in done.stdout
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["verdict"] == "requeue"
    code, said = run(tmp_path, ["echo x >>trace", "true"], "--resume", ranks=2)
    assert code == 0, said
    assert trace.read_text() == "x\n"


def test_what_is_wrong_is_one_line_and_no_rank_is_left(tmp_path: Path) -> None:
    code, said = run(tmp_path, ["# nothing"], ranks=3)
    assert code == 65, said
    assert said.count("mpipar: ") == 1
    assert "there is no command in it" in said
    assert not (tmp_path / "run").exists()
