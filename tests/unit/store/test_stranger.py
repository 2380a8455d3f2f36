"""A stranger's reader, written from FORMAT.md alone, finds in any project what mpipar finds."""

from __future__ import annotations

import ast
import inspect
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.store import Project, repair, schema
from tests.stranger import reader
from tests.support import golden_projects
from tests.unit.store.projects import X, create, die

if TYPE_CHECKING:
    from pathlib import Path

ARRAYS = {
    "x": X,
    "flags": X > 3,
    "texts": np.array([b"a", b"", b"\xff\xfe", b"longer"]),
    "wave": np.array([1 + 2j, np.nan]),
    "none": np.zeros((0, 3), np.int8),
    "one": np.array(7, np.uint16),
}


def same(path: Path) -> reader.StrangersProject:
    """The project as the stranger reads it, after a comparison with what mpipar reads."""
    found, own = reader.read_project(path), Project.open(path, writer=False)
    assert found.identity["kind"] == own.kind
    assert found.identity["settings"] == own.settings
    assert [c.number for c in found.commits] == [info.number for info in own.commits()]
    for commit, info in zip(found.commits, own.commits(), strict=True):
        loaded = own.load(info)
        assert json.dumps(commit.attributes) == json.dumps(loaded.attributes)
        arrays = commit.arrays()
        assert sorted(arrays) == sorted(loaded.arrays)
        for name, array in arrays.items():
            assert golden_projects.digest(np.asarray(array)) == golden_projects.digest(
                loaded.arrays[name]
            )
    mine = [payload for kind, payload in found.records if kind == "result"]
    assert mine == own.records("result", every=True)
    return found


def test_the_reader_is_short_and_knows_nothing_of_mpipar():
    source = inspect.getsource(reader)
    assert len(source.splitlines()) <= 200
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert not any(name.startswith(("mpipar", "tests")) for name in imported)


@pytest.mark.parametrize("archive", golden_projects.archives(), ids=lambda path: path.name)
def test_golden_projects_of_every_version_have_what_was_written(archive, tmp_path):
    """What stands beside the archive was read when it was made, by the mpipar that made it."""
    path = golden_projects.unpacked(archive, tmp_path)
    found = same(path)
    expected = golden_projects.expected(archive)
    assert {str(commit.number) for commit in found.commits} == set(expected)
    for commit in found.commits:
        arrays = commit.arrays()
        got = {name: golden_projects.digest(np.asarray(a)) for name, a in arrays.items()}
        assert got == expected[str(commit.number)]
    version = archive.name.removeprefix("refine-").removesuffix(".tar.xz")
    assert schema.version_of(found.identity["format"]) == schema.version_of(version)
    for name in ("status.json", "verdict.json"):
        assert reader.read_signed(path / name)["epoch"] == len(list((path / "journal").iterdir()))
    assert reader.index_is_whole(path)
    names = reader.particle_list(found.commits[0]).get("rlnImageName", [])
    assert len(names) == (0 if version == "1.0" else 16)


def test_there_is_a_golden_project_of_this_version():
    assert f"refine-{schema.version_text(schema.FORMAT)}.tar.xz" in {
        path.name for path in golden_projects.archives()
    }


def filled(path: Path, epochs: int = 3) -> None:
    for epoch in range(epochs):
        with create(path) if not epoch else Project.open(path, writer=True) as project:
            for step in range(2):
                number = 2 * epoch + step
                project.append("result", b"%d" % number, bytes(number))
                project.commit(number, ARRAYS, {"n": number, "nan": float("nan"), "l": [1, "é"]})


def test_epochs_and_every_kind_of_array(path):
    filled(path)
    found = same(path)
    assert len(found.commits) == 6
    assert reader.index_is_whole(path)


def test_a_writer_at_work_and_one_that_was_killed(path):
    filled(path)
    project = Project.open(path, writer=True)
    project.append("result", b"more")
    assert same(path).records[-1] == ("result", b"more")
    die(project)
    journal = path / "journal" / "000004.log"
    for torn in (1, 35, 60):  # a write that was cut off
        with journal.open("ab") as file:
            file.write((b"mRec" + bytes(200))[:torn])
        assert same(path).records[-1] == ("result", b"more")
        os.truncate(journal, journal.stat().st_size - torn)
    with Project.open(path, writer=True):
        same(path)


def test_what_a_writer_adds_after_it_was_passed_over_does_not_count(path):
    filled(path, 1)
    older = Project.open(path, writer=True)
    die(older)
    with Project.open(path, writer=True) as project:
        project.append("result", b"newer")
        journal = path / "journal" / "000002.log"
        data = journal.read_bytes()
        with journal.open("ab") as file:  # what it would have written, whole
            file.write(_record_after(data, "result", b"too late"))
        assert ("result", b"too late") not in same(path).records


def _record_after(data: bytes, kind: str, payload: bytes) -> bytes:
    from mpipar.store import journal

    found = journal.parse(data)
    seed = journal.seed_of(data[:32])
    return journal.frame(seed, len(found.records), len(found.records), kind, payload)


def test_a_project_without_a_journal_and_a_repaired_one(path):
    filled(path, 2)
    journal = path / "journal" / "000002.log"
    data = bytearray(journal.read_bytes())
    data[200] ^= 1
    journal.write_bytes(data)
    repair(path, lambda text: None)
    assert len(same(path).commits) == 4
    for log in (path / "journal").iterdir():
        log.unlink()
    assert reader.read_project(path).identity["kind"] == "refine"


@pytest.mark.parametrize(
    ("version", "read"), [("1.1", True), ("1.99", True), ("2.0", False), (2, False), (1, True)]
)
def test_versions(path, version, read, monkeypatch):
    def changed(identity: Any, pins: Any) -> bytes:
        value = schema.decode(manifest(identity, pins))
        value["identity"] |= {"format": version, "colour": "red"}
        return schema.encode(value | {"later": [1]})

    manifest = schema.manifest_to_json
    monkeypatch.setattr(schema, "manifest_to_json", changed)
    monkeypatch.setattr(schema, "FORMAT", (9, 9))
    filled(path, 1)
    monkeypatch.undo()
    claim = path / "epoch" / "000001.claim"
    value = schema.decode_signed(claim.read_bytes())
    value["identity"]["format"] = version
    claim.write_bytes(schema.sign(schema.encode(value)))
    if read:
        assert len(same(path).commits) == 2
    else:
        with pytest.raises(reader.UpdateError, match="update mpipar"):
            reader.read_project(path)
        with pytest.raises(Exception, match="update mpipar"):
            Project.open(path, writer=False)


def test_damage_is_not_read(path):
    filled(path, 1)
    found = reader.read_project(path)
    segment = found.commits[0].segment
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(reader.DamagedError):
        found.commits[0].arrays()
    status = path / "status.json"
    status.write_bytes(status.read_bytes().replace(b'"beat"', b'"beet"'))
    with pytest.raises(reader.DamagedError):
        reader.read_signed(status)
