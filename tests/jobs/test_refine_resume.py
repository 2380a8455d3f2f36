"""What `--resume` does with a run that is finished, or not what the user believes it to be."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mpipar.errors import StoppedError
from mpipar.programs import checkpoints, convergence, session
from mpipar.store.project import Project
from tests.support import jobs, refine_input, refine_runs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def finished(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> tuple[refine_runs.Reference, Path]:
    """The reference, and a copy of its finished run; its input is copied too."""
    reference = refine_runs.reference(tmp_path_factory.getbasetemp())
    shutil.copytree(reference.path, tmp_path / "run")
    return reference, tmp_path / "run"


def resume(path: Path, *words: object) -> tuple[int, list[str]]:
    """Exit code and complaints of `refine --resume`."""
    done = refine_runs.run_here(
        ["mpipar", "refine", "--resume", "--path", path, *words], path.parent
    )
    return done.returncode, jobs.complaints(done)


def test_a_finished_run_writes_the_same_results_again(
    finished: tuple[refine_runs.Reference, Path],
) -> None:
    reference, path = finished
    for name in refine_runs.FILES:
        (path / name).unlink()
    assert resume(path) == (0, [])
    assert refine_runs.digests(path) == reference.digests
    assert json.loads((path / "verdict.json").read_text())["verdict"] == "done"


def test_more_iterations_may_be_asked_for(finished: tuple[refine_runs.Reference, Path]) -> None:
    reference, path = finished
    more = refine_input.ITERATIONS + 1
    words = ["mpipar", "refine", "--resume", "--path", path, "--iter", more]
    done = refine_runs.run_here(words, path.parent)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if " all  " in line]
    assert rows == [str(more)], "the others are not made again"
    assert refine_runs.digests(path)["particles.star"] != reference.digests["particles.star"]
    assert f"\niter = {more}\n" in (path / "settings.toml").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sym", "c2"], "--sym c2"),
        (["--seed", "5"], "--seed 5"),
        (["--model", "other.mrc"], "--model other.mrc"),
    ],
)
def test_settings_that_make_another_run_are_refused(
    finished: tuple[refine_runs.Reference, Path], words: list[str], said: str
) -> None:
    _, path = finished
    code, complaints = resume(path, *words)
    assert code == 64
    assert complaints[0].startswith(f"mpipar: {said}: {path} was started with")


def test_input_that_has_changed_is_refused(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path / "input", count=60)
    path = tmp_path / "run"
    words = made.words("--path", path, "--parallel=thread:2")
    done = refine_runs.run_here(words, tmp_path)
    assert done.returncode == 0, done.stderr
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    star = made.star.read_text()
    made.star.write_text(star.replace("21583.560", "21583.561"))
    code, complaints = resume(path)
    assert (code, len(complaints)) == (65, 1)
    assert "was started with other input" in complaints[0]
    made.star.write_text(star)
    shutil.copyfile(refine_input.DEMO / "init.mrc", made.model)
    code, complaints = resume(path)
    assert (code, len(complaints)) == (65, 1)
    made.model.unlink()
    assert resume(path)[0] == 66
    for name in refine_runs.FILES:
        assert (path / name).read_bytes() == before[name]


COUNT = 80
STOPS = ("iteration 2: soft", "looking for signal", "iteration 4: search", "iteration 5: local")


@pytest.fixture
def each_kind_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two soft iterations, two searches, then local ones."""
    for name in ("FEWEST_SOFT", "MOST_SOFT", "FEWEST_EXHAUSTIVE", "MOST_EXHAUSTIVE"):
        monkeypatch.setattr(convergence, name, 2)


@pytest.mark.usefixtures("each_kind_soon")
def test_a_run_stopped_in_each_kind_of_iteration_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    words = made.words("--parallel=thread:2", iterations=6)
    whole = refine_runs.run_here([*words, "--path", str(tmp_path / "whole")], tmp_path)
    assert whole.returncode == 0, whole.stderr
    left = list(STOPS)
    really = session.RefineSession.run

    def run(self: session.RefineSession, label: str, *arguments: Any, **facts: Any) -> Any:
        outcome = really(self, label, *arguments, **facts)
        if left and label == left[0]:  # all its work is lost
            left.pop(0)
            raise StoppedError(f"stopped in {label}")
        return outcome

    monkeypatch.setattr(session.RefineSession, "run", run)
    path = tmp_path / "run"
    done = refine_runs.run_here([*words, "--path", str(path)], tmp_path)
    for label in STOPS:
        assert done.returncode == StoppedError.exit_code, done.stderr
        assert jobs.complaints(done) == [f"mpipar: stopped in {label}"]
        done = refine_runs.run_here(["mpipar", "refine", "--resume", "--path", path], tmp_path)
    assert (done.returncode, left) == (0, []), done.stderr
    assert refine_runs.digests(path) == refine_runs.digests(tmp_path / "whole")
    kinds = [step.kind for step in checkpoints.load_history(Project.open(path, writer=False))]
    assert kinds == ["soft", "soft", "all", "all", "local", "local"]


def test_resume_without_a_run(tmp_path: Path) -> None:
    done = refine_runs.run_here(["mpipar", "refine", "--resume"], tmp_path)
    assert done.returncode == 66
    assert "there is no refine_NN" in done.stderr
    code, complaints = resume(tmp_path / "none")
    assert (code, len(complaints)) == (66, 1)
    assert list(tmp_path.iterdir()) == []
