"""The order in which things reach the disk, by a recording fake: what power loss may not reverse.

A crash keeps all synced operations and any part of the others, as in SQLite's test6.c. The rules:
a file is synced before it gets its final name; the name is made durable before a journal record
counts on it; the record is durable before commit() returns.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mpipar.errors import DiskFullError, StoreError
from mpipar.store import Project, durable, schema


class Recorder:
    """Notes every operation on the disk by name of file, and does it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.log: list[tuple[str, ...]] = []
        for module, name in (
            (os, "write"),
            (os, "pwrite"),
            (os, "fsync"),
            (os, "fdatasync"),
            (os, "link"),
            (os, "unlink"),
            (Path, "replace"),
        ):
            monkeypatch.setattr(module, name, self.noting(name, getattr(module, name)))

    def noting(self, name, act):
        def noted(first, *rest, **words):
            result = act(first, *rest, **words)
            self.log.append((name, *self.names(first, rest if name in {"link", "replace"} else ())))
            return result

        return noted

    def names(self, first, rest):
        for what in (first, *rest):
            path = (
                str(Path(f"/proc/self/fd/{what}").readlink())
                if isinstance(what, int)
                else os.fspath(what)
            )
            name = path.removeprefix(f"{self.root}{os.sep}")
            yield "." if path == str(self.root) else name

    def of(self, *names: str) -> list[tuple[str, ...]]:
        """Operations that touch these files, without repeats in a row."""
        found = [entry for entry in self.log if any(n in word for n in names for word in entry[1:])]
        return [e for i, e in enumerate(found) if i == 0 or e != found[i - 1]]

    def position(self, *entry: str) -> int:
        assert entry in self.log, self.log
        return len(self.log) - 1 - self.log[::-1].index(entry)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "p"


def is_in_order(recorder: Recorder, entries: list[tuple[str, ...]]) -> bool:
    positions = [recorder.position(*entry) for entry in entries]
    return positions == sorted(positions)


def test_a_commit_syncs_data_before_names_and_names_before_the_record(root, monkeypatch):
    project = Project.create(root, settings={}, kind="test")
    recorder = Recorder(root, monkeypatch)
    project.commit(1, {"x": np.arange(5)}, {})
    monkeypatch.undo()
    project.close()
    segment = schema.segment_name(1, 1, 1)
    hidden = f"segments/.tmp-000001-{segment}"
    assert is_in_order(
        recorder,
        [
            ("pwrite", hidden),
            ("fsync", hidden),
            ("link", hidden, f"segments/{segment}"),
            ("fsync", "segments"),
            ("pwrite", ".tmp-000001-project.h5"),
            ("fsync", ".tmp-000001-project.h5"),
            ("write", "journal/000001.log"),
            ("fdatasync", "journal/000001.log"),
            ("replace", ".tmp-000001-project.h5", "project.h5"),
            ("fsync", "."),
        ],
    )


def test_a_claim_is_whole_and_durable_before_it_has_a_name(root, monkeypatch):
    recorder = Recorder(root, monkeypatch)
    Project.create(root, settings={}, kind="test").close()
    monkeypatch.undo()
    hidden = next(e[1] for e in recorder.log if e[0] == "link")
    assert hidden.startswith("epoch/.tmp-000001-")
    assert is_in_order(
        recorder,
        [
            ("write", hidden),
            ("fsync", hidden),
            ("link", hidden, "epoch/000001.claim"),
            ("write", "journal/000001.log"),
            ("fdatasync", "journal/000001.log"),
            ("replace", ".tmp-000001-project.h5", "project.h5"),
        ],
    )
    first_sync_of_names = recorder.log.index(("fsync", "."))
    assert first_sync_of_names < recorder.position("link", hidden, "epoch/000001.claim")
    assert recorder.log.index(("fsync", "epoch")) < recorder.position("write", "journal/000001.log")
    assert ("fsync", "journal") in recorder.log


def test_a_batch_of_results_takes_one_sync(root, monkeypatch):
    project = Project.create(root, settings={}, kind="test")
    recorder = Recorder(root, monkeypatch)
    project.append("result", *(b"%d" % i for i in range(100)))
    monkeypatch.undo()
    project.close()
    assert recorder.of("journal") == [
        ("write", "journal/000001.log"),
        ("fdatasync", "journal/000001.log"),
    ]


def test_an_export_is_synced_before_it_replaces_the_older_one(root, monkeypatch):
    project = Project.create(root, settings={}, kind="test")
    recorder = Recorder(root, monkeypatch)
    with project.export("map.mrc") as path:
        path.write_bytes(b"map")
    monkeypatch.undo()
    project.close()
    hidden = ".tmp-000001-map.mrc"
    assert is_in_order(
        recorder, [("fsync", hidden), ("replace", hidden, "map.mrc"), ("fsync", ".")]
    )


def test_no_final_name_is_ever_written_to(root, monkeypatch):
    recorder = Recorder(root, monkeypatch)
    with Project.create(root, settings={}, kind="test") as project:
        project.commit(1, {"x": np.arange(5)}, {})
        project.status(iteration=1)
        project.verdict("done", "")
    with Project.open(root, writer=True) as project:
        project.commit(2, {"x": np.arange(5)}, {})
    monkeypatch.undo()
    written = {e[1] for e in recorder.log if e[0] in {"write", "pwrite"}}
    named = {name for name in written if ".tmp-" not in name}
    assert named == {"journal/000001.log", "journal/000002.log"}


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    durable.write_temporary(tmp_path / "f", b"0123456789" * 10)
    assert (tmp_path / "f").read_bytes() == b"0123456789" * 10


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(DiskFullError, match="9 bytes"), durable.named_errors(tmp_path / "f", 9):
        durable.write_temporary(tmp_path / "f", b"123456789")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_tolerated_and_one_that_fails_is_not(
    tmp_path, monkeypatch
):
    code = [22]

    def failing(*_):
        raise OSError(code[0], "failed")

    monkeypatch.setattr(os, "fsync", failing)
    durable.sync_folder(tmp_path)
    code[0] = 5
    with pytest.raises(StoreError, match="failed"), durable.named_errors(tmp_path, 0):
        durable.sync_folder(tmp_path)
