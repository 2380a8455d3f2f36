"""`mpipar submit` with schedulers that only take notes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpipar.cli.main import main
from mpipar.options import toml_values
from mpipar.programs.run_status import run_status
from mpipar.store import Project
from mpipar.store.schema import JOB
from mpipar.submit_settings import SubmitSettings

RUN = ("--", "run", "commands.txt")


class Scheduler:
    """SLURM's and Grid Engine's commands on PATH; what they were told, and what they answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.install("sbatch", "echo 17")
        self.install("scancel", "true")
        self.job_is("PENDING")

    def install(self, name: str, answer: str) -> None:
        program = self.folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{self.folder}/told\n{answer}\n')
        program.chmod(0o755)

    def job_is(self, state: str) -> None:
        answer = f"JobId=17 JobState={state} Restarts=0"
        self.install("scontrol", f'[ "$2" = config ] && echo ClusterName = c || echo {answer}')

    @property
    def told(self) -> list[str]:
        lines = (self.folder / "told").read_text().splitlines()
        return [line for line in lines if not line.startswith("scontrol")]


@pytest.fixture(autouse=True)
def scheduler(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("commands.txt").write_text("true\n")
    monkeypatch.setenv("MPIPAR_SITE", str(tmp_path / "site.toml"))
    (tmp_path / "site.toml").write_text("[submit]\nntasks = 4\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return Scheduler(tmp_path / "bin")


def submit(*words: str) -> int:
    return main(["submit", *words])


def script_of(run: str) -> str:
    return (Path(run) / JOB / "job.sh").read_text()


def test_a_run_is_submitted_and_can_be_watched(scheduler, capsys):
    assert submit("--time", "1h", *RUN) == 0
    said = capsys.readouterr().out
    assert said.startswith("slurm job 17: run_01\n")
    assert "mpipar status run_01 " in said
    assert scheduler.told == [f"sbatch --parsable {Path.cwd()}/run_01/job/job.sh"]
    text = script_of("run_01")
    assert "#SBATCH --ntasks=4\n" in text, "the site's"
    assert "#SBATCH --time=60\n" in text
    assert f"python={sys.executable}\n" in text
    assert f"command=(run commands.txt --path {Path.cwd()}/run_01)\n" in text
    found = run_status(Path("run_01"))
    assert (found["state"], found["kind"], found["exit_code"]) == ("queued", "run", None)
    assert found["writer"]["job"]["id"] == "17"


@pytest.mark.parametrize(
    ("state", "shown", "reason"),
    [
        ("RUNNING", "queued", "slurm job 17 has started; nothing is written yet"),
        ("CANCELLED", "failed", "slurm job 17 ended before the run began; see job/log.txt"),
        ("ODD", "queued", "slurm job 17 has started; nothing is written yet"),
    ],
)
def test_a_run_that_has_not_begun_has_a_status(scheduler, capsys, state, shown, reason):
    submit(*RUN)
    scheduler.job_is(state)
    found = run_status(Path("run_01"))
    assert (found["state"], found["reason"]) == (shown, reason)
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["run_01", shown]


def test_the_run_itself_takes_the_folder(scheduler, capsys):
    submit(*RUN)
    words = ["run", "commands.txt", "--path", "run_01", "--parallel=serial"]
    assert main(words) == 0
    assert main(["status", "run_01"]) == 0
    assert "run_01: done" in capsys.readouterr().out
    assert main(["check", "run_01"]) == 0
    assert script_of("run_01")


def test_a_run_that_fails_at_once_leaves_its_log(capsys):
    submit(*RUN)
    (Path("run_01") / JOB / "log.txt").touch()
    Path("commands.txt").unlink()
    assert main(["run", "commands.txt", "--path", "run_01", "--parallel=serial"]) == 66
    assert (Path("run_01") / JOB / "log.txt").exists()


def test_dry_run_makes_and_submits_nothing(scheduler, capsys, tmp_path):
    before = sorted(Path().iterdir())
    assert submit("--dry-run", *RUN) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n#SBATCH --job-name=run_NN\n")
    assert sorted(Path().iterdir()) == before
    assert not (tmp_path / "bin" / "told").exists()


def test_after_a_job_or_a_run(scheduler):
    submit(*RUN)
    submit("--after", "run_01", *RUN)
    submit("--after", "12", *RUN)
    here = Path.cwd()
    assert scheduler.told[1:] == [
        f"sbatch --parsable --dependency=afterok:17 {here}/run_02/job/job.sh",
        f"sbatch --parsable --dependency=afterok:12 {here}/run_03/job/job.sh",
    ]


def test_array(scheduler):
    Path("runs.txt").write_text("# two runs\n--retries 0\n--path 'a b' --timeout 5m\n\n")
    assert submit("--array", "runs.txt", *RUN) == 0
    assert scheduler.told == [f"sbatch --parsable {Path.cwd()}/run_01/job/array.sh"]
    assert "--retries 0 --path" in script_of("run_01")
    assert "--timeout 5m" in script_of("a b")
    jobs = [run_status(Path(run))["writer"]["job"]["id"] for run in ("run_01", "a b")]
    assert jobs == ["17_1", "17_2"]


def test_grid_engine(scheduler, capsys):
    scheduler.install("qsub", "echo 5")
    scheduler.install("qdel", "echo it is done")
    assert submit("--scheduler", "sge", "--after", "4", *RUN) == 0
    assert "qstat -j 5" in capsys.readouterr().out
    assert submit("--cancel", "run_01") == 0
    here = Path.cwd()
    assert scheduler.told == [f"qsub -terse -hold_jid 4 {here}/run_01/job/job.sh", "qdel 5"]


def test_cancel(scheduler, capsys):
    submit(*RUN)
    assert submit("--cancel", "run_01") == 0
    assert scheduler.told[-1] == "scancel 17"
    with Project.create(Path("other"), settings={}, kind="run"):
        pass
    assert submit("--cancel", "other") == 66
    assert submit("--cancel", "none") == 66


def test_what_the_scheduler_refuses_leaves_nothing(scheduler, capsys):
    scheduler.install("sbatch", "echo 'error: no such account' >&2; exit 1")
    assert submit(*RUN) == 69
    assert "error: no such account" in capsys.readouterr().err
    assert not Path("run_01").exists()
    scheduler.install("sbatch", "echo nothing of use")
    assert submit(*RUN) == 69
    assert not Path("run_01").exists()


def test_without_a_scheduler(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(*RUN) == 69
    assert "neither sbatch (SLURM) nor qsub (Grid Engine) is on PATH" in capsys.readouterr().err
    assert submit("--scheduler", "slurm", "--dry-run", *RUN) == 0
    assert submit("--scheduler", "slurm", *RUN) == 69
    assert not Path("run_01").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 64, "what is to be submitted?"),
        (("--", "check", "x"), 64, "takes refine or run"),
        (("--", "run", "commands.txt", "--retires", "1"), 64, "did you mean --retries?"),
        (("--", "run", "commands.txt", "--retries", "x"), 64, "--retries"),
        (("--", "run", "commands.txt", "--parallel=mpi"), 64, "follows from --ntasks"),
        (("--", "run", "commands.txt", "--check"), 64, "--check"),
        (("--", "run", "none.txt"), 66, "none.txt"),
        (("--", "refine", "--input", "x.star", "--model", "y.mrc"), 66, "x.star"),
        (("--", "run", "--resume"), 66, "there is no run_NN"),
        (("--ntasks", "0", *RUN), 64, "at least 1"),
        (("--time", "5s", *RUN), 64, "at least a minute"),
        (("--memory", "much", *RUN), 64, "--memory much"),
        (("--partition", "a b", *RUN), 64, "--partition"),
        (("--after", "run_77", *RUN), 66, "--after run_77"),
        (("--array", "none.txt", *RUN), 66, "none.txt"),
        (("--array", "commands.txt", *RUN), 64, "unknown option true"),
    ],
)
def test_what_cannot_work_is_told_at_once(capsys, words, code, said):
    assert submit(*words) == code
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert said in complaint
    assert [path.name for path in Path().iterdir()] == ["commands.txt"]


def test_one_run_in_one_folder(scheduler, capsys):
    submit("--", "run", "commands.txt", "--path", "mine")
    assert submit("--", "run", "commands.txt", "--path", "mine") == 64
    assert "mine: is queued already" in capsys.readouterr().err
    scheduler.job_is("CANCELLED")
    assert submit("--", "run", "commands.txt", "--path", "mine") == 0
    Project.create(Path("done"), settings={}, kind="run").close()
    assert submit("--", "run", "commands.txt", "--path", "done") == 64
    assert "add --resume" in capsys.readouterr().err
    assert submit("--", "run", "--resume", "--path", "done") == 0
    assert run_status(Path("done"))["state"] == "cut off"
    for state in ("PENDING", "RUNNING"):  # of a job that is newer than the run's last start
        scheduler.job_is(state)
        found = run_status(Path("done"))
        assert (found["state"], found["writer"]["job"]["id"]) == ("queued", "17")
    Path("full").mkdir()
    Path("full", "notes").touch()
    assert submit("--", "run", "commands.txt", "--path", "full") == 73


def test_the_sites_file(tmp_path, capsys, monkeypatch, scheduler):
    path = tmp_path / "config" / "mpipar" / "site.toml"
    monkeypatch.delenv("MPIPAR_SITE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    scheduler.install("sinfo", "printf 'short\\nlong*\\n'")
    assert submit("--write-site", "--time", "2h") == 0
    text = path.read_text()
    values = toml_values(text, "submit", "it")
    assert values == {
        "time": "2h",
        "scheduler": "slurm",
        "partition": "long",
    }
    named = [line.lstrip("# ").split(" =")[0] for line in text.splitlines() if " =" in line]
    known = set(SubmitSettings.options())
    assert set(named) <= known
    assert {"account", "setup", "ntasks"} <= set(named)
    assert submit("--write-site") == 73
    assert submit("--ntasks", "2", *RUN) == 0
    assert "#SBATCH --partition=long\n" in script_of("run_01")
    path.write_text("[submit]\npartion = 'x'\n")
    assert submit("--ntasks", "2", *RUN) == 64
    assert "did you mean partition?" in capsys.readouterr().err
    path.write_text("[submit\n")
    assert submit("--ntasks", "2", *RUN) == 65
    monkeypatch.setenv("MPIPAR_SITE", str(tmp_path / "none.toml"))
    assert submit("--ntasks", "2", *RUN) == 66


def test_waiting_for_the_end(scheduler, capsys):
    begin = f'mkdir -p run_01; cd {Path.cwd()}; "{sys.executable}" -m mpipar run commands.txt'
    root = Path(__file__).parents[4]
    start = f"export PYTHONPATH={root}; {begin} --path run_01 --parallel=serial >/dev/null"
    scheduler.install("sbatch", f"({start}); echo 17")
    scheduler.job_is("COMPLETED")
    Path("commands.txt").write_text("false\n")
    assert submit("--wait", "--", "run", "commands.txt", "--retries", "0") == 70
    assert "run_01: failed: " in capsys.readouterr().out
