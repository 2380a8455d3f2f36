"""`mpipar import`: particles in a folder that needs nothing else, whole or not there."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest
import starfile

from mpipar.cli.main import main
from mpipar.errors import InputError, MissingInputError, OutputError, ProjectLockedError
from mpipar.formats.mrc import Stack
from mpipar.formats.star import read_particles
from mpipar.programs import particle_import
from mpipar.programs.particle_import import import_particles
from mpipar.store import durable
from tests.support import dying
from tests.support.blocks import optics_columns, particle_columns, write_mrc, write_star

if TYPE_CHECKING:
    from pathlib import Path

COUNT, BOX = 23, 12


@pytest.fixture
def star(tmp_path: Path) -> Path:
    """Particles of two stacks, in another order than theirs, with origins and an unknown column."""
    random = np.random.default_rng(0)
    folder = tmp_path / "given"
    folder.mkdir()
    for name in ("a", "b"):
        images = random.normal(size=(COUNT, BOX, BOX)).astype(np.float32)
        write_mrc(folder / f"{name}.mrcs", images, pixel_size=2.5)
    numbers = random.permutation(COUNT) + 1
    names = [f"{n:06d}@{'ab'[n % 2]}.mrcs" for n in numbers]
    columns = particle_columns(
        COUNT,
        rlnImageName=names,
        rlnOriginXAngst=[f"{n / 3:.3f}" for n in range(COUNT)],
        rlnOriginYAngst=[f"{-n / 7:.3f}" for n in range(COUNT)],
        myOwnColumn=[f"word{n}" for n in range(COUNT)],
    )
    write_star(folder / "p.star", {"optics": optics_columns(), "particles": columns})
    return folder / "p.star"


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(particle_import, "FILE_BYTES", 5 * BOX * BOX * 4)


def quiet(text: str) -> None:
    del text


def images_of(star: Path) -> np.ndarray:
    particles = read_particles(star)
    stacks = [Stack(path) for path in particles.stacks]
    pairs = zip(particles.stack, particles.slice, strict=True)
    images = np.concatenate([stacks[stack].read(np.array([image])) for stack, image in pairs])
    for stack in stacks:
        stack.close()
    return images


def assert_whole(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--strict", "checksums.txt"], cwd=folder, check=False)
    assert done.returncode == 0
    listed = {line.split()[1] for line in (folder / "checksums.txt").read_text().splitlines()}
    assert listed | {"checksums.txt"} == {path.name for path in folder.iterdir()}


def test_images_and_list_are_the_same_and_need_nothing_else(star, tmp_path, capsys):
    images, before = images_of(star), starfile.read(star)["particles"]
    assert main(["import", str(star), "--to", str(tmp_path / "set")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'set' / 'particles.star'}\n"
    assert "23 of 23 images (100 %)" in said.err
    assert_whole(tmp_path / "set")
    assert len(list((tmp_path / "set").glob("*.mrcs"))) == 5
    subprocess.run(["rm", "-r", star.parent], check=True)
    moved = (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert images_of(moved / "particles.star").tobytes() == images.tobytes()
    after = starfile.read(moved / "particles.star")["particles"]
    for label in before.columns:
        if label != "rlnImageName":
            assert after[label].tolist() == before[label].tolist(), label
    particles = read_particles(moved / "particles.star")
    assert particles.pixel_size == pytest.approx(2.0)
    for path in moved.glob("*.mrcs"):
        assert mrcfile.validate(path)


def test_half_floats(star, tmp_path):
    images = images_of(star)
    import_particles(star, tmp_path / "set", "float16", quiet)
    after = images_of(tmp_path / "set" / "particles.star")
    assert after.tobytes() == images.astype(np.float16).astype(np.float32).tobytes()
    (first, *_) = sorted((tmp_path / "set").glob("*.mrcs"))
    with mrcfile.open(first) as file:
        assert file.data.dtype == np.float16
        assert float(file.header.rms) == pytest.approx(images.std(), rel=0.2)
    assert len(list((tmp_path / "set").glob("*.mrcs"))) == 3


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [(1e5, "float16", "--type float32"), (np.nan, "float32", "no numbers"), (1e5, "float32", "")],
)
def test_pixels_that_cannot_be_kept_are_refused(star, tmp_path, value, kind, said):
    with mrcfile.mmap(star.parent / "a.mrcs", "r+") as file:
        file.data[9, 3, 3] = value
    if not said:
        import_particles(star, tmp_path / "set", kind, quiet)
        assert images_of(tmp_path / "set" / "particles.star").max() == value
        return
    with pytest.raises(InputError, match=rf"particle \d+ of .*{said}"):
        import_particles(star, tmp_path / "set", kind, quiet)
    assert not (tmp_path / "set").exists()


def test_a_list_of_relion_3_0_keeps_its_origins_and_microscope(tmp_path):
    write_mrc(tmp_path / "s.mrcs", np.ones((3, BOX, BOX), np.float32))
    old = {
        "": {
            "rlnImageName": [f"{n}@s.mrcs" for n in (1, 2, 3)],
            "rlnVoltage": ["200"] * 3,
            "rlnSphericalAberration": ["1.4"] * 3,
            "rlnAmplitudeContrast": ["0.07"] * 3,
            "rlnDefocusU": ["10000"] * 3,
            "rlnDefocusV": ["11000"] * 3,
            "rlnDefocusAngle": ["30"] * 3,
            "rlnMagnification": ["50000"] * 3,
            "rlnDetectorPixelSize": ["10"] * 3,
            "rlnOriginX": ["1.5", "0", "-2"],
            "rlnOriginY": ["0", "3", "0"],
        }
    }
    write_star(tmp_path / "old.star", old)
    before = read_particles(tmp_path / "old.star")
    import_particles(tmp_path / "old.star", tmp_path / "set", "float32", quiet)
    after = read_particles(tmp_path / "set" / "particles.star")
    assert np.asarray(after.origins).tolist() == np.asarray(before.origins).tolist()
    for name in ("voltage", "spherical_aberration", "amplitude_contrast", "defocus_v"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert after.pixel_size == before.pixel_size


def test_what_is_refused(star, tmp_path):
    with pytest.raises(MissingInputError):
        import_particles(tmp_path / "none.star", tmp_path / "set", "float32", quiet)
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        import_particles(star, tmp_path / "taken", "float32", quiet)
    assert main(["import", str(star)]) == 64
    assert main(["import", str(star), "--to", str(tmp_path / "x"), "--type", "int8"]) == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "taken"]


def test_killed_at_any_moment_the_same_command_goes_on(star, tmp_path):
    """A child dies at its n-th durable call, for each n; what it had finished is not done again."""
    folder, written = tmp_path / "set", []
    images = images_of(star)
    for number in range(1, 60):
        assert _import_until(number, star, folder) in (0, 9)
        if not folder.exists():
            times = {p: p.stat().st_mtime_ns for p in (tmp_path / ".importing-set").glob("*.mrcs")}
            import_particles(star, folder, "float32", quiet)
            kept = [p for p, t in times.items() if (folder / p.name).stat().st_mtime_ns == t]
            assert kept == list(times)
            written.append(len(times))
            dead = True
        else:
            dead = False
        assert_whole(folder)
        assert images_of(folder / "particles.star").tobytes() == images.tobytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "set"]
        subprocess.run(["rm", "-r", folder], check=True)
        if not dead:
            break
    assert not dead
    assert set(written) == set(range(6))


def _import_until(number: int, star: Path, folder: Path) -> int:
    calls = [(durable, name) for name in ("sync_file", "sync_folder", "write_temporary")]
    act = partial(import_particles, star, folder, "float32", quiet)
    return dying.run_to_call(number, calls, act)


def test_what_another_import_has_left_is_not_taken(star, tmp_path):
    hidden = tmp_path / ".importing-set"
    _import_until(6, star, tmp_path / "set")
    assert list(hidden.glob("*.mrcs"))
    text = star.read_text()
    star.write_text(text.replace("word3", "word4"))  # another list
    said: list[str] = []
    import_particles(star, tmp_path / "set", "float32", said.append)
    assert not any("going on" in line for line in said)
    assert_whole(tmp_path / "set")
    origin = json.loads((tmp_path / "set" / "origin.json").read_text())
    assert origin["type"] == "float32"


def test_two_imports_into_one_folder(star, tmp_path):
    hidden = tmp_path / ".importing-set"
    hidden.mkdir()
    child = os.fork()
    if not child:
        fd = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        (hidden / "ready").touch()
        signal.pause()
    while not (hidden / "ready").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(ProjectLockedError, match="another process imports"):
            import_particles(star, tmp_path / "set", "float32", quiet)
        assert (hidden / "ready").exists()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    import_particles(star, tmp_path / "set", "float32", quiet)
    assert_whole(tmp_path / "set")
