"""Scripts of jobs: what they ask for, and what they do when a run ends one way or another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpipar.programs.submission.job_script import JobRun, array_script, run_script
from mpipar.submit_settings import SubmitSettings

ODD = "it's $HOME; `date` @LIMIT@ %j"
EVERYTHING: dict[str, Any] = {
    "nodes": 2,
    "ntasks": 8,
    "time": "4h",
    "memory": "4G",
    "partition": "long",
    "account": "lab",
    "directives": "-x one; -y=two",
    "setup": "module load openmpi\nexport A='1; 2'",
}


def run_of(folder: Path, *command: str, threads: int = 1) -> JobRun:
    return JobRun(folder, ("refine", *command), folder.parent, threads)


def directives(text: str, mark: str) -> list[str]:
    return [line.removeprefix(mark + " ") for line in text.splitlines() if line.startswith(mark)]


def test_slurm_is_asked_for_what_is_given(tmp_path):
    settings = SubmitSettings(**EVERYTHING)
    text = run_script("slurm", settings, run_of(tmp_path / "refine_01", threads=3), "python")
    assert directives(text, "#SBATCH") == [
        "--job-name=refine_01",
        "--nodes=2",
        "--ntasks=8",
        "--cpus-per-task=3",
        "--mem-per-cpu=1366M",
        "--time=240",
        "--partition=long",
        "--account=lab",
        "--signal=B:USR1@120",
        "--requeue",
        "--open-mode=append",
        f'--output="{tmp_path}/refine_01/job/scheduler.txt"',
        "-x one",
        "-y=two",
    ]
    assert "\nmodule load openmpi\nexport A='1; 2'\n" in text


def test_grid_engine_is_asked_for_what_is_given(tmp_path):
    settings = SubmitSettings(**EVERYTHING)
    text = run_script("sge", settings, run_of(tmp_path / "1 run"), "python")
    assert directives(text, "#$") == [
        "-N run_1_run",
        "-pe mpi 8",
        "-l h_rt=14400",
        "-l h_vmem=4G",
        "-q long",
        "-P lab",
        "-S /bin/bash",
        "-V",
        "-notify",
        "-j y",
        f'-o "{tmp_path}/1 run/job/scheduler.txt"',
        "-x one",
        "-y=two",
    ]
    assert "limit=(timeout --signal=USR1 --kill-after=120 14280)" in text


@pytest.mark.parametrize(
    ("time", "minutes", "before"),
    [("10m", 10, 60), ("90s", 2, 9), ("2-00:00:00", 2880, 120), ("1:30:00", 90, 120)],
)
def test_a_run_is_told_before_its_time_is_over(tmp_path, time, minutes, before):
    settings = SubmitSettings(ntasks=2, time=time)
    asked = directives(run_script("slurm", settings, run_of(tmp_path / "r"), "python"), "#SBATCH")
    assert f"--time={minutes}" in asked
    assert f"--signal=B:USR1@{before}" in asked


@pytest.mark.parametrize("system", ["slurm", "sge"])
def test_shellcheck_finds_nothing(tmp_path, system):
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    settings = SubmitSettings(**EVERYTHING)
    run = run_of(tmp_path / ODD, "--input", ODD)
    for text in (
        run_script(system, settings, run, "python"),
        array_script(system, settings, [run, run]),
    ):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        if program:
            check = [program, "--shell=bash", "--exclude=SC2016,SC2034,SC2154,SC2194", "-"]
            done = subprocess.run(check, input=text, text=True, capture_output=True, check=False)
            assert done.stdout == ""


PYTHON = """#!/bin/bash
# Takes the place of `python -m mpipar ...`: says what it was told, and ends as a file says.
if [ "$1" = -c ]; then exec {python} "$@"; fi
if [ "$3" = status ]; then cat status; exit; fi
printf '%s|' "$PWD" "$@" >>{folder}/told
echo >>{folder}/told
[ ! -e {folder}/verdict ] || cp {folder}/verdict "{run}/verdict.json"
mkdir -p "{run}/epoch"
[ -e {folder}/refuses ] || touch "{run}/epoch/000001.claim"
exit "$(cat {folder}/code)"
"""


class Site:
    """A folder with a job's script whose mpipar only pretends, and schedulers that note calls."""

    def __init__(self, folder: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.run = folder, folder / "a run"
        (self.run / "job").mkdir(parents=True)
        (folder / "bin").mkdir()
        self.program("scontrol", f'echo "$@" >>{folder}/again')
        self.program("qsub", f'echo "$@" >>{folder}/again; echo 18')
        monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")
        python = self.program("python", "")
        python.write_text(PYTHON.format(python=sys.executable, folder=folder, run=self.run))
        settings = SubmitSettings(ntasks=2, max_restarts=2)
        run = JobRun(self.run, ("refine", "--input", ODD), folder, 1)
        (self.run / "job" / "job.sh").write_text(run_script(system, settings, run, str(python)))
        (self.run / "job" / "ids").write_text("17\n")
        self.environment = {
            "PATH": os.environ["PATH"],
            **(
                {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2"}
                if system == "slurm"
                else {"JOB_ID": "17", "NSLOTS": "2"}
            ),
        }

    def program(self, name: str, text: str) -> Path:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self, code: int, verdict: str | None, job: str = "17", **variables: str) -> int:
        (self.folder / "code").write_text(str(code))
        if verdict is None:
            (self.folder / "refuses").touch()
        else:
            said = {"verdict": verdict, "job": job, "restarts": 0}
            (self.folder / "verdict").write_text(json.dumps(said))
        script = ["bash", str(self.run / "job" / "job.sh")]
        environment = self.environment | variables
        return subprocess.run(script, env=environment, check=False, timeout=20).returncode

    @property
    def again(self) -> str:
        path = self.folder / "again"
        return path.read_text().strip() if path.exists() else ""

    @property
    def log(self) -> str:
        return (self.run / "job" / "log.txt").read_text()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return Site(tmp_path, "slurm", monkeypatch)


@pytest.fixture
def sge(tmp_path, monkeypatch):
    return Site(tmp_path, "sge", monkeypatch)


def test_the_command_is_told_as_it_was_given(slurm):
    assert slurm.start(0, "done") == 0
    told = (slurm.folder / "told").read_text().strip().split("|")
    assert told == [
        *(str(slurm.folder), "-m", "mpipar", "refine", "--input", ODD),
        *("--parallel=mpi:2", ""),
    ]
    slurm.start(0, "done")
    assert "|--resume|" in (slurm.folder / "told").read_text()


@pytest.mark.parametrize(
    ("code", "verdict", "ends", "again"),
    [
        (0, "done", 0, False),
        (1, "done", 0, False),  # mpirun's exit code after a lost node
        (70, "failed", 70, False),
        (75, "requeue", 0, True),
        (0, "requeue", 0, True),
        (137, "requeue", 0, True),
        (74, "requeue", 74, False),
        (66, None, 66, False),
        (127, None, 127, False),
        (0, None, 1, False),
    ],
)
def test_a_run_that_was_cut_off_is_queued_again(slurm, code, verdict, ends, again):
    assert slurm.start(code, verdict) == ends, slurm.log
    assert slurm.again == ("requeue 17" if again else "")


def test_of_an_array_one_task_is_queued_again(slurm):
    slurm.start(75, "requeue", SLURM_ARRAY_JOB_ID="16", SLURM_ARRAY_TASK_ID="3")
    assert slurm.again == "requeue 16_3"


def test_a_verdict_of_another_job_is_none_of_this_one(slurm):
    assert slurm.start(70, "failed", job="16") == 70
    assert "verdict none, exit code 70" in slurm.log
    assert slurm.again == ""


def test_not_for_ever(slurm):
    assert slurm.start(75, "requeue", SLURM_RESTART_COUNT="2") == 75
    assert slurm.again == ""
    assert "not queued again after 2 restarts" in slurm.log


def test_refused_because_another_job_writes(slurm):
    (slurm.run / "epoch").mkdir()
    (slurm.run / "epoch" / "000001.claim").touch()
    (slurm.run / "status").write_text("a run: running\n")
    assert slurm.start(75, "requeue", job="16") == 75
    assert slurm.again == ""
    (slurm.run / "status").write_text("a run: dead\n")
    assert slurm.start(75, "requeue", job="16") == 0
    assert slurm.again == "requeue 17"


def test_grid_engines_job_submits_itself_again(sge):
    assert sge.start(75, "requeue") == 0
    assert sge.again == "-terse job/job.sh"
    assert (sge.run / "job" / "ids").read_text() == "17\n18\n"
    assert "restart 0, 2 ranks" in sge.log
    assert sge.start(75, "requeue", job="18", JOB_ID="18") == 0
    assert "restart 1, 2 ranks" in sge.log
    assert sge.start(75, "requeue", job="19", JOB_ID="19") == 75
    assert "not queued again after 2 restarts" in sge.log


def test_array_starts_the_script_of_its_task(tmp_path):
    runs = []
    for number in (1, 2):
        run = run_of(tmp_path / f"run {number}")
        (run.folder / "job").mkdir(parents=True)
        (run.folder / "job" / "job.sh").write_text(f"echo {number}")
        runs.append(run)
    text = array_script("slurm", SubmitSettings(ntasks=2), runs)
    assert "--array=1-2" in directives(text, "#SBATCH")
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}
    said = subprocess.run(
        ["bash", "-c", text], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout == "2\n"
    assert "-t 1-2" in directives(array_script("sge", SubmitSettings(ntasks=2), runs), "#$")
