"""`mpipar.open`: what a run has found, read from its folder alone, while it goes on and after."""

from __future__ import annotations

import json
import pickle
import subprocess
from typing import TYPE_CHECKING

import h5py
import mrcfile
import numpy as np
import pytest
import starfile

import mpipar
from mpipar.errors import CorruptStoreError, InputError, MissingInputError
from mpipar.programs.map_files import PRELIMINARY
from mpipar.programs.soft_iteration import NO_SIGNAL
from mpipar.results.command_run import CommandRun
from mpipar.results.opened_run import OpenedRun
from mpipar.results.refinement import Refinement
from mpipar.store import Project
from tests.support import golden_projects
from tests.support.finished_run import BOX, PARTICLES, look
from tests.support.refine_runs import run_here

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run(finished) -> Refinement:
    opened = mpipar.open(str(finished))
    assert isinstance(opened, Refinement)
    return opened


def tree(path: Path) -> dict[str, tuple[int, int, int]]:
    stats = {str(p): p.stat() for p in path.rglob("*")}
    return {name: (s.st_mtime_ns, s.st_size, s.st_ino) for name, s in stats.items()}


def test_volumes_are_those_of_the_files_bit_for_bit(run, finished):
    latest = run.latest
    volumes = {
        "map.mrc": latest.map,
        "half1.mrc": latest.half_maps[0],
        "half2.mrc": latest.half_maps[1],
        "mask.mrc": latest.mask,
    }
    for name, volume in volumes.items():
        with mrcfile.open(finished / name) as file:
            assert volume.tobytes() == file.data.tobytes(), name
            assert volume.voxel_size == pytest.approx(float(file.voxel_size.x))
        assert volume.shape == (run.box,) * 3
        assert volume.dtype == np.float32


def test_poses_are_those_of_particles_star(run, finished):
    written = starfile.read(finished / "particles.star")["particles"]
    poses, quality = run.latest.poses, run.latest.quality
    assert poses["rlnImageName"].tolist() == written["rlnImageName"].tolist()
    assert poses["rlnRandomSubset"].tolist() == written["rlnRandomSubset"].tolist()
    for table in (poses, quality):
        for label in table.columns:
            if label not in {"rlnImageName", "rlnRandomSubset"}:
                np.testing.assert_allclose(table[label], written[label], atol=5.1e-7)
    assert {"rlnAngleRot", "rlnAnglePsi", "rlnOriginYAngst", "rlnLogLikeliContribution"} <= {*poses}
    assert {"rlnParticleFigureOfMerit", "mpiparHeldOutScore"} <= {*quality}


def test_the_fsc_is_that_of_fsc_txt(run, finished):
    rows = np.loadtxt(finished / "fsc.txt")
    fsc = run.latest.fsc
    names = ["shell", "frequency", "resolution", "unmasked", "masked", "corrected"]
    assert list(fsc.columns) == names
    for number, name in enumerate(names):
        np.testing.assert_allclose(fsc[name], rows[:, number], atol=5.1e-4)
    assert fsc.attrs["mark"] == ""


def test_the_list_comes_back_with_all_its_columns(run, made):
    given = starfile.read(made.star)
    assert list(run.particles.columns)[: len(given["particles"].columns)] == [
        *given["particles"].columns
    ]
    for label in ("rlnDefocusU", "rlnMicrographName"):
        np.testing.assert_array_equal(
            run.particles[label].astype(given["particles"][label].dtype), given["particles"][label]
        )
    assert run.particles["rlnImageName"][0] == f"000001@{made.stack}"
    assert float(run.optics["rlnVoltage"][0]) == 300.0


def test_iterations_by_number(run):
    assert [iteration.number for iteration in run] == [1, 2, 3, 4]
    assert len(run) == len(run.history) == 4
    assert (run[2].number, run[-1].number, run[-4].number) == (2, 4, 1)
    for number in (0, 5, -5):
        with pytest.raises(InputError, match="has no iteration"):
            run[number]
    assert run.history["kind"].tolist() == [iteration.kind for iteration in run]
    assert run.history["resolution"].tolist() == [iteration.resolution for iteration in run]


def test_maps_before_signal_was_shown_are_marked(run):
    assert [iteration.kind for iteration in run] == ["soft", "soft", "soft", "all"]
    assert [iteration.mark for iteration in run] == [PRELIMINARY] * 3 + [""]
    assert [iteration.is_final for iteration in run] == [False] * 3 + [True]
    assert run[1].fsc.attrs["mark"] == PRELIMINARY
    assert PRELIMINARY in repr(run[1])


def test_a_run_without_signal_claims_no_resolution(tmp_path):
    archive = golden_projects.archives()[-1]
    run = look(golden_projects.unpacked(archive, tmp_path))
    assert run.verdict["verdict"] == "failed"
    assert run.latest.mark == NO_SIGNAL
    assert run.latest.resolution is None
    assert NO_SIGNAL in repr(run)
    assert "none claimed" in repr(run.latest)


def test_where_it_comes_from(run, made):
    provenance = run.provenance
    assert provenance["environment"]["numpy"] == np.__version__
    assert len(provenance["input"]) == 64
    assert provenance["settings"]["input"] == str(made.star)
    assert [writer["epoch"] for writer in provenance["writers"]] == [1]
    assert provenance["format"] == "1.1"
    json.dumps(provenance)
    assert "has ended: done" in run.state
    assert run.check() == []
    assert run.symmetry == "C1"


def test_looking_writes_nothing(finished):
    before = tree(finished)
    run = look(finished)
    for iteration in run:
        assert len(iteration.poses) == PARTICLES
        assert np.isfinite(iteration.map).all()
    assert repr(run)
    assert run._repr_html_()
    assert tree(finished) == before


def test_what_a_notebook_shows(run):
    text, page = repr(run), run._repr_html_()
    for part in (
        "refine_01",
        f"4 iterations of {PARTICLES} particles",
        f"box {BOX} of 11.2 A",
        "C1",
        "soft",
    ):
        assert part in text
        assert part in page or part == "refine_01"
    assert "<table" in page
    assert run.latest.map._repr_png_().startswith(b"\x89PNG")
    assert f"{BOX} x {BOX} x {BOX} (z y x) float32, voxels of 11.2 A" in repr(run.latest.map)
    assert "<table" in run.latest._repr_html_()


def test_a_volume_is_an_array_in_all_it_does(run):
    volume = run.latest.map
    for same in (volume * 2, volume[3:9], -volume, np.roll(volume, 1), volume.copy()):
        assert same.voxel_size == volume.voxel_size
    assert type(volume.sum()) is np.float32
    assert type(np.mean(volume)) is np.float32
    assert repr(volume[0]) == repr(np.asarray(volume[0]))
    assert volume[0]._repr_png_() is None
    assert volume[:0]._repr_png_() is None
    again = pickle.loads(pickle.dumps(volume))
    assert (again.tobytes(), again.voxel_size) == (volume.tobytes(), volume.voxel_size)
    unknown = type(volume).of(np.zeros((4, 4, 4)), np.nan)
    assert unknown._repr_png_().startswith(b"\x89PNG")


def test_hdf5_alone_says_what_it_holds(finished, run):
    with h5py.File(finished / "project.h5") as file:
        newest = file["latest"]
        for name in ("map", "half_maps", "mask", "references"):
            size = newest[name].attrs["voxel_size"]
            assert size * newest[name].shape[-1] == pytest.approx(run.box * run.voxel_size)
            assert newest[name].attrs["voxel_size_units"] == "A"
            assert newest[name].attrs["axes"].endswith("z y x")
        assert newest["shifts"].attrs["units"] == "pixel"
        assert newest["fsc_corrected"].attrs["shell_width_units"] == "1/A"
        assert newest.attrs["pixel_size"] == pytest.approx(run.voxel_size)
        first = file["commits/0000"]
        names = [text.decode() for text in first["particles.rlnImageName"][:]]
        assert names == run.particles["rlnImageName"].tolist()
        for group in (first, newest):
            assert all("meaning" in d.attrs for d in group.values() if hasattr(d, "shape"))


def test_a_run_before_its_first_commit(tmp_path):
    with Project.create(tmp_path / "refine_01", settings={"sym": "d7"}, kind="refine"):
        run = look(tmp_path / "refine_01")
        assert (len(run), run.latest, run.box, run.symmetry) == (0, None, 0, "D7")
        assert "not looked at its images" in repr(run)
        assert list(run.history.columns)[:3] == ["iteration", "kind", "resolution"]
        assert run.particles.empty


def test_other_folders(tmp_path):
    with pytest.raises(MissingInputError, match="no such project"):
        mpipar.open(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="holds no project"):
        mpipar.open(tmp_path)
    with Project.create(tmp_path / "other", settings={}, kind="other"):
        assert type(mpipar.open(tmp_path / "other")) is OpenedRun
        assert "mpipar other" in repr(mpipar.open(tmp_path / "other"))


def test_a_damaged_iteration_is_said_so_and_the_others_are_read(finished, tmp_path):
    copy = tmp_path / "refine_01"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    run = look(copy)
    segment = sorted((copy / "segments").iterdir())[2]
    segment.chmod(0o644)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="is damaged"):
        _ = run[2].map
    assert len(run[3].poses) == PARTICLES
    assert len(repr(run)) > 0


def test_commands_of_a_run(tmp_path):
    (tmp_path / "list.txt").write_text("true\nfalse\n")
    run_here(["mpipar", "run", "list.txt", "--path", "run_01", "--retries", "0"], tmp_path)
    run = mpipar.open(tmp_path / "run_01")
    assert isinstance(run, CommandRun)
    tries = run.tries
    assert dict(zip(tries["line"], tries["code"], strict=True)) == {1: 0, 2: 1}
    assert tries["log"][0].startswith("logs/")
    assert "mpipar run" in repr(run)


@pytest.mark.parametrize("archive", golden_projects.archives(), ids=lambda path: path.name)
def test_golden_projects_of_every_version_are_looked_at(archive, tmp_path):
    run = look(golden_projects.unpacked(archive, tmp_path))
    numbers = [1, 2] if archive.name == "refine-1.0.tar.xz" else [2, 3]
    assert [iteration.number for iteration in run] == numbers
    assert len(run.history) == numbers[-1]
    assert run.voxel_size == pytest.approx(11.2)
    for iteration in run:
        assert iteration.map.shape == (8, 8, 8)
        assert len(iteration.poses) == 16
        assert len(iteration.fsc) == 4
    assert set(run.writers["host"]) == {"node1"}
    assert [line for line in run.check() if ".png" not in line] == []
