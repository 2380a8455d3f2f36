"""Die at each line of the store: what is left is the state before or after, and is usable.

The default run dies at lines spread evenly; `slow` dies at each one.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import mpipar.store
from mpipar.errors import MissingInputError
from mpipar.store import Project, check
from tests.support import dying

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.crash

Action = Callable[[Path], object]
STORE = dying.package_folder(mpipar.store)
SETTINGS = {"sym": "c1", "iterations": 3}


def create(path: Path) -> None:
    Project.create(path, settings=SETTINGS, kind="refine")


def go_on(path: Path) -> None:
    """One run: resume, acknowledge a result, commit, export, leave."""
    with Project.open(path, writer=True) as project:
        number = len(project.commits())
        project.append("result", b"%d" % number)
        project.commit(number, {"x": np.full(3, number)}, {"number": number})
        with project.export("map.mrc") as temporary:
            temporary.write_bytes(b"map %d" % number)
        project.verdict("done", "")


def prune(path: Path) -> None:
    """Give up all commits but the first and the latest."""
    with Project.open(path, writer=True) as project:
        project.prune({info.number for info in project.commits()})


def deaths(act: Action, path: Path, prepare: Action, choose: dying.Choice) -> Iterator[int]:
    """Let `act` die at line after line of a freshly prepared `path`; yield after each death."""
    prepare(path)
    code, lines = dying.run(functools.partial(act, path), STORE)
    assert code == 0
    assert lines > 300, "too few lines: the test tests nothing"
    for line in choose(lines):
        shutil.rmtree(path)
        prepare(path)
        code, _ = dying.run(functools.partial(act, path), STORE, die_at=line)
        assert code in {dying.DIED, 0}, line  # the heart-beat's thread makes the count uncertain
        yield line


def create_and_close(path: Path) -> None:
    Project.create(path, settings=SETTINGS, kind="refine").close()


def is_readable_and_whole(path: Path, numbers: list[int]) -> None:
    """What any reader must find after any death."""
    project = Project.open(path, writer=False)
    assert project.settings == SETTINGS
    assert [info.number for info in project.commits()] == numbers
    latest = project.latest()
    if latest is not None:
        assert latest.attributes == {"number": numbers[-1]}
        assert dict(latest.arrays)["x"].tolist() == [numbers[-1]] * 3
    assert check(path) == []


def die_creating(folder: Path, choose: dying.Choice) -> None:
    before = after = 0
    path = folder / "project"
    for _ in deaths(create, path, Path.mkdir, choose):
        try:
            Project.open(path, writer=False)
        except MissingInputError:  # nothing was stored: the same folder may be used for a new run
            before += 1
            create_and_close(path)
        else:
            after += 1
            with Project.open(path, writer=True) as project:
                assert project.latest() is None
        is_readable_and_whole(path, [])
    assert before > 1
    assert after > 1


def die_going_on(folder: Path, choose: dying.Choice) -> None:
    path = folder / "project"
    create_and_close(folder / "template")
    go_on(folder / "template")
    copy = functools.partial(shutil.copytree, folder / "template")
    before = after = 0
    for _ in deaths(go_on, path, copy, choose):
        numbers = [info.number for info in Project.open(path, writer=False).commits()]
        assert numbers in ([0], [0, 1])
        before += numbers == [0]
        after += numbers == [0, 1]
        is_readable_and_whole(path, numbers)
        assert (path / "map.mrc").read_bytes() in {b"map %d" % n for n in numbers}
        go_on(path)
        is_readable_and_whole(path, [*numbers, len(numbers)])
        left = [file for file in path.rglob(".tmp-*") if file.parent.name != "epoch"]
        assert left == []  # a claim that was never published is cleared by the next epoch
    assert before > 5
    assert after > 1


def die_pruning(folder: Path, choose: dying.Choice) -> None:
    path = folder / "project"
    create_and_close(folder / "template")
    for _ in range(4):
        go_on(folder / "template")
    copy = functools.partial(shutil.copytree, folder / "template")
    before = after = 0
    for _ in deaths(prune, path, copy, choose):
        numbers = [info.number for info in Project.open(path, writer=False).commits()]
        assert numbers in ([0, 1, 2, 3], [0, 3])
        before += len(numbers) == 4
        after += len(numbers) == 2
        is_readable_and_whole(path, numbers)
        prune(path)
        is_readable_and_whole(path, [0, 3])
        assert len(list((path / "segments").iterdir())) == 2
        assert not (path / "orphans").exists()
    assert before > 1
    assert after > 1


def test_death_while_creating_leaves_a_project_or_a_free_name(tmp_path: Path) -> None:
    die_creating(tmp_path, dying.spread(24))


def test_death_while_going_on_leaves_old_or_new(tmp_path: Path) -> None:
    die_going_on(tmp_path, dying.spread(36))


def test_death_while_pruning_leaves_old_or_new(tmp_path: Path) -> None:
    die_pruning(tmp_path, dying.spread(24))


# in shards, for no test may run for a minute, on a busy machine either
@pytest.mark.slow
@pytest.mark.parametrize("shard", range(16))
def test_death_at_any_line_while_creating(tmp_path: Path, shard: int) -> None:
    die_creating(tmp_path, dying.every(16, shard))


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(64))
def test_death_at_any_line_while_going_on(tmp_path: Path, shard: int) -> None:
    die_going_on(tmp_path, dying.every(64, shard))


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(32))
def test_death_at_any_line_while_pruning(tmp_path: Path, shard: int) -> None:
    die_pruning(tmp_path, dying.every(32, shard))
