"""`mpipar export`: the files of any iteration, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from mpipar.cli.main import main
from mpipar.errors import InputError, OutputError
from mpipar.formats.star import read_particles
from mpipar.programs.map_files import PRELIMINARY
from mpipar.programs.soft_iteration import NO_SIGNAL
from mpipar.results.exporting import export_iteration
from mpipar.store import Project, durable
from tests.support import dying, golden_projects
from tests.support.finished_run import PARTICLES

SAME = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "particles.star")
ALL = {*SAME, "particles.csv", "fsc.csv", "fsc.xml", "iterations.csv", "provenance.json"}


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    folder, notes = export_iteration(finished, None, tmp_path_factory.mktemp("out") / "last")
    assert notes == []
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_checksums(folder: Path) -> None:
    said = json.loads((folder / "provenance.json").read_text())
    assert set(said["sha256"]) == names(folder) - {"provenance.json"}
    for name, digest in said["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_the_last_iteration_is_what_the_run_has_written_byte_for_byte(finished, exported):
    assert names(exported) == ALL
    assert_checksums(exported)
    for name in SAME:
        assert (exported / name).read_bytes() == (finished / name).read_bytes(), name


def test_an_earlier_iteration_is_marked(finished, tmp_path, capsys):
    folder = tmp_path / "second"
    assert main(["export", str(finished), "--iteration", "2", "--to", str(folder)]) == 0
    assert "map.mrc" in capsys.readouterr().out
    with mrcfile.open(folder / "map.mrc") as file:
        assert file.get_labels() == [f"iteration 2 of 4: {PRELIMINARY}"]
    assert (folder / "fsc.csv").read_text().startswith(f"# {PRELIMINARY}")
    assert PRELIMINARY in ET.parse(folder / "fsc.xml").getroot().attrib["title"]
    said = json.loads((folder / "provenance.json").read_text())
    assert (said["iteration"], said["mark"]) == (2, PRELIMINARY)
    assert len(pd.read_csv(folder / "iterations.csv")) == 2


def test_a_run_without_signal_claims_nothing(tmp_path):
    project = golden_projects.unpacked(golden_projects.archives()[-1], tmp_path)
    folder, _ = export_iteration(project, None, tmp_path / "out")
    with mrcfile.open(folder / "map.mrc") as file:
        assert file.get_labels() == [NO_SIGNAL]
    said = json.loads((folder / "provenance.json").read_text())
    assert (said["resolution"], said["mark"]) == (None, NO_SIGNAL)
    assert (folder / "map.mrc").read_bytes() == (project / "map.mrc").read_bytes()


def test_other_programs_read_the_files(exported, finished):
    star = starfile.read(exported / "particles.star")["particles"]
    table = pd.read_csv(exported / "particles.csv")
    for label in table.columns:
        if label != "rlnImageName":
            np.testing.assert_allclose(table[label], star[label], atol=5.1e-7)
    assert table["rlnImageName"].tolist() == star["rlnImageName"].tolist()
    rows = np.loadtxt(finished / "fsc.txt")
    fsc = pd.read_csv(exported / "fsc.csv")
    np.testing.assert_allclose(fsc["corrected"], rows[:, 5], atol=1e-6)
    points = ET.parse(exported / "fsc.xml").getroot().findall("coordinate")
    for name, column in (("x", 1), ("y", 5)):
        values = [float(point.findtext(name, "nan")) for point in points]
        assert values == pytest.approx(list(rows[:, column]), abs=1e-6)
    assert read_particles(exported / "particles.star").count == PARTICLES


def test_an_older_run_has_no_list(tmp_path, capsys):
    project = golden_projects.unpacked(golden_projects.archives()[0], tmp_path)
    assert main(["export", str(project), "--to", str(tmp_path / "out")]) == 0
    assert "particles.star is left out" in capsys.readouterr().err
    assert names(tmp_path / "out") == ALL - {"particles.star"}
    (project / "map.mrc").unlink()
    with pytest.raises(InputError, match="pixel size"):
        export_iteration(project, None, tmp_path / "again")


def test_the_name_of_the_folder_and_what_is_refused(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = export_iteration(finished, 3, None)
    assert folder == tmp_path / "refine_01_iteration_003"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(OutputError, match="is there already"):
        export_iteration(finished, 3, None)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="is there already"):
        export_iteration(finished, 3, Path("link"))
    with pytest.raises(InputError, match=r"no iteration 7; there are: 1, 2, 3, 4"):
        export_iteration(finished, 7, None)
    with pytest.raises(OutputError, match="cannot be written"):
        export_iteration(finished, 3, Path("no/such/folder"))
    Project.create(tmp_path / "run_01", settings={}, kind="run").close()
    with pytest.raises(InputError, match="mpipar run"):
        export_iteration(tmp_path / "run_01", None, None)
    Project.create(tmp_path / "refine_02", settings={}, kind="refine").close()
    with pytest.raises(InputError, match="no iteration yet"):
        export_iteration(tmp_path / "refine_02", None, None)
    assert names(tmp_path) == {"refine_01_iteration_003", "link", "run_01", "refine_02"}


def test_killed_at_any_moment_it_is_whole_or_not_there(finished, tmp_path):
    """A child dies at its n-th call that makes anything durable, for each n."""
    final, whole = tmp_path / "out", 0
    for number in range(1, 40):
        code = dying.run_to_call(
            number,
            [(durable, "sync_file"), (durable, "sync_folder")],
            partial(export_iteration, finished, 2, final),
        )
        if final.exists():
            assert names(final) == ALL
            assert_checksums(final)
            assert names(tmp_path) == {"out"}
            whole += 1
            subprocess.run(["rm", "-r", final], check=True)
        else:
            assert code == 9
            assert len(names(tmp_path)) == 1, "what is left is removed by the next"
        if code == 0:
            break
    assert code == 0
    assert number > len(ALL)
    assert whole == 2, "dead after the rename, and undisturbed"
