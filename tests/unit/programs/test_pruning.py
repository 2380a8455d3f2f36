"""Which iterations a rule keeps, and pruning a run that has ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.cli.main import main
from mpipar.errors import InputError, ProjectLockedError
from mpipar.programs.pruning import prune_run, superfluous
from mpipar.store import Project, check, read_verdict


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [
        (3, None, [0, 23, 24, 25]),
        (3, 10, [0, 10, 20, 23, 24, 25]),
        (1, None, [0, 25]),
        (100, None, [*range(26)]),
        (2, 1, [*range(26)]),
    ],
)
def test_the_last_ones_and_multiples_are_kept(keep, every, kept):
    numbers = [*range(26)]
    assert [n for n in numbers if n not in superfluous(numbers, keep, every)] == kept


@given(
    st.sets(st.integers(0, 60)).map(sorted),
    st.integers(1, 9),
    st.none() | st.integers(1, 12),
)
def test_pruning_in_steps_is_pruning_at_once(numbers, keep, every):
    """As a running refinement does it: after each iteration, of what is left then."""
    left = []
    for number in numbers:
        left.append(number)
        gone = superfluous(left, keep, every)
        assert not gone & {left[0], left[-1]}
        left = [n for n in left if n not in gone]
    gone = superfluous(numbers, keep, every)
    assert left == [n for n in numbers if n not in gone]


@pytest.fixture
def path(tmp_path):
    with Project.create(tmp_path / "refine_01", settings={}, kind="refine") as project:
        for number in range(13):
            project.commit(number, {}, {})
        project.verdict("done", "refinement finished")
    return tmp_path / "refine_01"


def test_the_command_says_what_is_gone_and_the_verdict_stays(path, capsys):
    assert main(["prune", str(path), "--keep", "2", "--keep-every", "10"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: 9 iterations given up (1, 2, 3, 4, 5, 6, 7, 8, 9), ")
    verdict = read_verdict(path)
    assert (verdict["verdict"], verdict["reason"]) == ("done", "refinement finished")
    assert [i.number for i in Project.open(path, writer=False).commits()] == [0, 10, 11, 12]
    assert check(path) == []
    assert main(["prune", str(path), "--keep", "2", "--keep-every", "10"]) == 0
    assert capsys.readouterr().out == f"{path}: nothing to prune\n"
    assert len(list((path / "journal").iterdir())) == 2, "no epoch for nothing"


def test_what_is_refused(path, tmp_path):
    with Project.open(path, writer=True), pytest.raises(ProjectLockedError):
        prune_run(path, 2, None, print)
    Project.create(tmp_path / "run_01", settings={}, kind="run").close()
    with pytest.raises(InputError, match="mpipar run"):
        prune_run(tmp_path / "run_01", 2, None, print)
    assert main(["prune", str(path)]) == 64
    assert main(["prune", str(path), "--keep", "0"]) == 64
    assert main(["prune", str(tmp_path / "nowhere"), "--keep", "1"]) == 66
