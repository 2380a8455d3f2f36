"""Any damage to any file of a run: one message that names it, no other error, and nothing lost."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpipar.errors import MpiparError
from mpipar.store import (
    Project,
    check,
    evidence,
    latest_run,
    read_status,
    read_verdict,
    repair,
    salvage,
    unlock,
)
from tests.unit.store.projects import X, create, flip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def run_twice(path: Path, by: bytes) -> None:
    for epoch in (1, 2):
        with create(path) if epoch == 1 else Project.open(path, writer=True) as project:
            for number in (2 * epoch, 2 * epoch + 1):
                project.append("result", by)
                project.commit(number, {"x": X + number, "y": X * number}, {"number": number})
            project.append("result", b"%d" % epoch)
            with project.export("map.mrc") as temporary:
                temporary.write_bytes(by * 1000 + b"%d" % epoch)
            project.write_files("logs", {"000001.log": by})
            project.status(phase=f"epoch {epoch}")
            project.verdict("done", "by the test")
        if epoch == 1:
            shutil.copytree(path, path.with_name(f"{path.name}.backup"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `own` and `other`, and backups of both from after their epoch 1."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("own", "other"):
        run_twice(folder / name, name.encode())
    return folder


FILES = [
    "epoch/000001.claim",
    "epoch/000001.released",
    "epoch/000002.claim",
    "epoch/000002.released",
    "journal/000001.log",
    "journal/000002.log",
    "segments/commit-0002.e000001-0001.h5",
    "segments/commit-0005.e000002-0002.h5",
    "project.h5",
    "status.json",
    "verdict.json",
    "map.mrc",
]


def replaced_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def linked_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def linked_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nothing")


def with_zeros(start: int, end: int) -> Callable[[Path], object]:
    """A part of the file, in thousandths of it, reads as zeros."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        first, last = len(data) * start // 1000, len(data) * end // 1000
        data[first:last] = bytes(last - first)
        file.write_bytes(data)

    return damage


def appended(data: bytes) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        with file.open("ab") as opened:
            opened.write(data)

    return damage


def of_another_run(file: Path) -> None:
    run = file.parents[1] if file.parent.name != "own" else file.parent
    file.write_bytes((run.with_name("other") / file.relative_to(run)).read_bytes())


def from_a_backup(file: Path) -> None:
    run = file.parents[1] if file.parent.name != "own" else file.parent
    backup = run.with_name("own.backup") / file.relative_to(run)
    if backup.exists():
        file.write_bytes(backup.read_bytes())
    else:
        file.unlink()


def swapped_with_a_neighbour(file: Path) -> None:
    """With the file of the same kind that is next in the folder."""
    others = [f for f in sorted(file.parent.glob(f"*{file.suffix}")) if f != file and f.is_file()]
    if others:
        data = file.read_bytes()
        file.write_bytes(others[0].read_bytes())
        others[0].write_bytes(data)


def doubled(file: Path) -> None:
    file.write_bytes(file.read_bytes() * 2)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit near the beginning": lambda file: flip(file, 3),
    "one bit in the middle": lambda file: flip(file, file.stat().st_size // 2),
    "one bit at the end": lambda file: flip(file, -1),
    "missing": Path.unlink,
    "empty": lambda file: os.truncate(file, 0),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "one byte less": lambda file: os.truncate(file, file.stat().st_size - 1),
    "zeros at the beginning": with_zeros(0, 100),
    "zeros in the middle": with_zeros(400, 600),
    "zeros at the end": with_zeros(700, 1000),
    "all zeros": with_zeros(0, 1000),
    "zeros after it": appended(bytes(4096)),
    "text after it": appended(b"\n"),
    "twice": doubled,
    "a folder": replaced_by_folder,
    "a link to itself": linked_to_itself,
    "a link to nothing": linked_to_nothing,
    "that of another run": of_another_run,
    "that of a backup": from_a_backup,
    "swapped": swapped_with_a_neighbour,
}
LOOKS: dict[str, Callable[[Path], object]] = {
    "check": check,
    "latest_run": latest_run,
    "status": read_status,
    "verdict": read_verdict,
    "salvage": lambda path: str(salvage(path)),
}


def contents(path: Path) -> object:
    """All that a reader of the project gets."""
    project = Project.open(path, writer=False)
    states = [(info.number, dict(project.load(info).arrays)) for info in project.commits()]
    return (
        project.settings,
        [(number, {k: v.tobytes() for k, v in state.items()}) for number, state in states],
        project.records("result", every=True),
    )


def whole_files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for name in ("segments", "journal", "epoch")
        for file in sorted((path / name).iterdir())
        if file.is_file()
    }


def is_kept(path: Path, before: dict[str, bytes]) -> None:
    """Nothing of the store of record was removed or changed; segments may be set aside."""
    after = whole_files(path)
    for name, data in before.items():
        aside = path / "orphans" / Path(name).name
        kept = after.get(name, aside.read_bytes() if aside.is_file() else None)
        assert kept == data, name


@contextlib.contextmanager
def named(path: Path, *, allowed: bool) -> Iterator[None]:
    """An error inside is one of mpipar's, names the project, and comes only if it is allowed."""
    try:
        yield
    except MpiparError as error:
        text = str(error)
    else:
        return
    assert allowed, text
    assert str(path) in text


def cases() -> Iterator[object]:
    """Every damage to every file; the default run tries each damage, and each file, a few times."""
    for i, name in enumerate(FILES):
        for j, (words, damage) in enumerate(DAMAGES.items()):
            marks = [] if (i + j) % 5 == 0 else [pytest.mark.slow]
            yield pytest.param(name, damage, id=f"{name}-{words}", marks=marks)


@pytest.mark.parametrize(("name", "damage"), [*cases()])
def test_any_damage_to_any_file(runs: Path, tmp_path: Path, monkeypatch, name: str, damage) -> None:
    monkeypatch.setattr(evidence, "LEASE", 0.01)  # of a claim that cannot be read
    for run in ("own", "other", "own.backup"):
        shutil.copytree(runs / run, tmp_path / run)
    path = tmp_path / "own"
    truth = contents(path)
    damage(path / name)
    before = whole_files(path)
    problems = check(path)
    assert all(str(path) in problem for problem in problems)
    for look in LOOKS.values():
        with named(path, allowed=True):
            look(path)
    with named(path, allowed=bool(problems)):
        assert contents(path) == truth
    with (
        named(path, allowed=bool(problems)),
        Project.open(path, writer=True, say=lambda _: None) as project,
    ):
        project.commit(9, {"x": X}, {})
    is_kept(path, before)
    with named(path, allowed=True):
        unlock(path)
        repair(path, lambda _: None)
    is_kept(path, before)


@pytest.mark.parametrize("name", [*FILES, "epoch", "journal", "segments"])
def test_a_file_that_may_not_be_read_is_named(
    runs: Path, tmp_path: Path, monkeypatch, name: str
) -> None:
    """As another user, or on a file server that is gone: it cannot be read, and is not damaged."""
    path = tmp_path / "own"
    shutil.copytree(runs / "own", path)
    before = whole_files(path)

    def refusing(function):
        def refused(file, *arguments, **words):
            if isinstance(file, str | Path) and str(file).startswith(str(path / name)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return function(file, *arguments, **words)

        return refused

    calls = (os, "open"), (io, "open"), (Path, "open"), (os, "listdir"), (os, "link")
    for module, function in calls:  # Python 3.10's Path has taken io.open for itself
        monkeypatch.setattr(module, function, refusing(getattr(module, function)))
    problems = check(path)
    assert problems
    assert all(str(path) in problem for problem in problems)
    for look in (*LOOKS.values(), contents, lambda path: repair(path, lambda _: None)):
        with named(path, allowed=True):
            look(path)
    monkeypatch.undo()
    is_kept(path, before)
