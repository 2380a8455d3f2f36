"""Bad input through the real command line: one clear message, nothing written, no hang.

And odd input that is adapted: said aloud, and refined.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.errors import NoSignalError
from tests.support import jobs, refine_input, refine_runs
from tests.support.blocks import write_mrc
from tests.support.installed import MPIRUN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNT = 60
LATE = refine_input.not_read_first(COUNT)


@dataclass(frozen=True)
class Fault:
    """How to spoil a sound input, and what must be said."""

    spoil: Callable[[refine_input.Input], object]
    code: int
    says: str  # regular expression
    words: tuple[str, ...] = ()


def edit(pattern: str, replacement: str, count: int = 0) -> Callable[[refine_input.Input], object]:
    """Change the STAR file."""

    def spoil(made: refine_input.Input) -> None:
        old = made.star.read_text()
        new = re.sub(pattern, replacement, old, count=count, flags=re.MULTILINE)
        assert new != old
        made.star.write_text(new)

    return spoil


def truncate(made: refine_input.Input) -> None:
    os.truncate(made.stack, made.stack.stat().st_size - 1000)


def other_box(made: refine_input.Input) -> None:
    """The last particle lies in a stack of larger images."""
    images = refine_input.demo_images(1, refine_input.BOX + 4)
    write_mrc(made.folder / "larger.mrcs", images, pixel_size=refine_input.PIXEL_SIZE)
    edit(rf"^0000{COUNT}@particles.mrcs", "000001@larger.mrcs")(made)


def pixel(value: float, particle: int) -> Callable[[refine_input.Input], object]:
    """Change a pixel of a particle."""

    def spoil(made: refine_input.Input) -> None:
        images = refine_input.demo_images(COUNT)
        images[particle, 5, 7] = value
        write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)

    return spoil


def flat_model(made: refine_input.Input) -> None:
    write_mrc(made.model, np.zeros((refine_input.BOX,) * 3, np.float32), volume=True)


def nothing(made: refine_input.Input) -> None:
    """The words alone are wrong."""
    del made


FAULTS = {
    "missing stack": Fault(lambda made: made.stack.unlink(), 66, r"particles\.mrcs not found"),
    "missing particle list": Fault(lambda made: made.star.unlink(), 66, r"particles\.star"),
    "missing model": Fault(lambda made: made.model.unlink(), 66, r"init\.mrc"),
    "missing mask": Fault(nothing, 66, r"none\.mrc", ("--mask", "none.mrc")),
    "missing column": Fault(edit("_rlnDefocusU", "_rlnDefocusX"), 65, "rlnDefocusU"),
    "missing image names": Fault(edit("_rlnImageName", "_rlnName"), 65, "rlnImageName"),
    "truncated stack": Fault(truncate, 65, r"particles\.mrcs is truncated"),
    "empty stack": Fault(lambda made: os.truncate(made.stack, 0), 65, r"particles\.mrcs"),
    "image beyond the stack": Fault(edit("^000009@", "000909@"), 65, "particle 9 .* image 909"),
    "box sizes that differ": Fault(other_box, 65, "differ in box size.*32.*36"),
    "box that is not the stack's": Fault(edit(" 32 2 ", " 64 2 "), 65, "rlnImageSize = 64"),
    "NaN that the first look finds": Fault(pixel(np.nan, 0), 65, "particle 1 of .* NaN"),
    "NaN that it does not": Fault(pixel(np.nan, LATE), 65, f"particle {LATE + 1} of .* NaN"),
    "infinite pixel": Fault(pixel(np.inf, LATE), 65, "NaN or infinite"),
    "empty particle list": Fault(edit(r"^0\d+@.*\n", ""), 65, "no particles"),
    "one particle": Fault(edit(r"^0000([1-9]\d|0[2-9])@.*\n", ""), 65, "half sets of"),
    "words for numbers": Fault(edit("21583.560", "deep"), 65, "deep"),
    "model all zeros": Fault(flat_model, 65, "0 everywhere"),
    "model that is no MRC file": Fault(
        lambda made: made.model.write_text("a model"), 65, r"init\.mrc"
    ),
    "unknown symmetry": Fault(nothing, 64, "unknown symmetry 'q7'", ("--sym", "q7")),
    "unknown flag": Fault(nothing, 64, "--simmetry.*did you mean", ("--simmetry", "c1")),
    "unknown --parallel": Fault(nothing, 64, "dragons:3", ("--parallel=dragons:3",)),
    "diameter larger than the box": Fault(nothing, 65, "--diameter", ("--diameter", "9000")),
}
LATE_FAULTS = (FAULTS["NaN that it does not"].spoil, FAULTS["infinite pixel"].spoil)
UNDER_MPIRUN = (
    "missing stack",
    "NaN that it does not",
    "unknown symmetry",
    "unknown flag",
)


def refuses(tmp_path: Path, fault: Fault, ranks: int | None) -> None:
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    fault.spoil(made)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    words = made.words(*fault.words)
    done = jobs.run(words, ranks=ranks, cwd=cwd) if ranks else refine_runs.run_here(words, cwd)
    assert done.returncode == fault.code, done.stderr
    (said,) = jobs.complaints(done)
    assert re.search(fault.says, done.stderr), done.stderr
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert list(cwd.iterdir()) == [], "nothing is left behind"
    if fault.spoil in LATE_FAULTS:
        assert "results go to " in done.stdout, "found only by the first look at all images"
    else:
        assert "results go to " not in done.stdout, "found before anything is computed"


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    refuses(tmp_path, FAULTS[name], None)


@pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")
@pytest.mark.parametrize("name", UNDER_MPIRUN)
def test_bad_input_ends_all_ranks(tmp_path: Path, name: str) -> None:
    refuses(tmp_path, FAULTS[name], 3)


@pytest.mark.parametrize("folder", ["{0}/file/run", "/proc/mpipar/run", "{0}/file"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, folder: str) -> None:
    """Also for root, to whom permissions mean nothing."""
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    (tmp_path / "file").write_text("a file")
    done = refine_runs.run_here(made.words("--path", folder.format(tmp_path)), tmp_path)
    assert done.returncode == 73, done.stderr
    (said,) = jobs.complaints(done)
    assert folder.format(tmp_path) in said
    assert "Traceback" not in done.stderr
    assert "first look" not in done.stdout, "before anything is computed"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "input"]


def test_the_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    path = tmp_path / "refine_01"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    done = refine_runs.run_here(made.words("--path", path), tmp_path)
    assert done.returncode == 73, done.stderr
    assert [file.name for file in path.iterdir()] == ["notes.txt"]


def test_check_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    done = refine_runs.run_here(made.words("--check"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} particles of 32 x 32 pixels of 11.2 A" in done.stdout
    assert "nothing was written" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["input"]


def test_check_refuses_a_folder_that_is_taken(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    done = refine_runs.run_here(made.words("--check", "--path", "taken"), tmp_path)
    assert done.returncode == 73, done.stderr
    assert "taken: exists and is not empty; choose another --path" in done.stderr
    assert [entry.name for entry in (tmp_path / "taken").iterdir()] == ["notes.txt"]


def test_the_settings_of_a_run_make_another_run(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    words = made.words("--path", "out")
    done = refine_runs.run_here(words, tmp_path)
    assert done.returncode == 0, done.stderr
    done = refine_runs.run_here(
        ["mpipar", "refine", "--settings", "out/settings.toml", "--check"], tmp_path
    )
    assert done.returncode == 0, done.stderr


def empty_image(made: refine_input.Input) -> None:
    """An image that is not among those which are read first."""
    images = refine_input.demo_images(COUNT)
    images[LATE] = 0
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)


def masked_images(made: refine_input.Input) -> None:
    images = refine_input.demo_images(COUNT)
    images[:, np.hypot(*(np.indices((32, 32)) - 16)) > 12] = 0
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)


@pytest.mark.parametrize("ranks", [None, 3])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [(empty_image, f"particle {LATE + 1} .* same value"), (masked_images, "without a mask")],
)
def test_check_refuses_what_the_run_would_refuse(
    tmp_path: Path, spoil: Callable[[refine_input.Input], object], says: str, ranks: int | None
) -> None:
    if ranks and not MPIRUN.exists():
        pytest.skip("this environment has no MPI")
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    spoil(made)
    words = made.words("--check")
    done = (
        jobs.run(words, ranks=ranks, cwd=tmp_path)
        if ranks
        else refine_runs.run_here(words, tmp_path)
    )
    assert done.returncode == 65, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["input"]


def odd_box(made: refine_input.Input) -> None:
    images = np.pad(refine_input.demo_images(COUNT), [(0, 0), (0, 1), (0, 1)], mode="edge")
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)
    edit(" 32 2 ", " 33 2 ")(made)


def other_model(made: refine_input.Input) -> None:
    """The shipped model: twice the box, half the pixel size."""
    made.model.write_bytes((refine_input.DEMO / "init.mrc").read_bytes())


def five_particles(made: refine_input.Input) -> None:
    edit(r"^0000([1-9]\d|0[6-9])@.*\n", "")(made)


def not_normalised(made: refine_input.Input) -> None:
    images = refine_input.demo_images(COUNT) * np.float32(40) + np.float32(1000)
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)


def dark_particles(made: refine_input.Input) -> None:
    write_mrc(made.stack, -refine_input.demo_images(COUNT), pixel_size=refine_input.PIXEL_SIZE)


def the_other_half_too(made: refine_input.Input) -> None:
    """A copy of the stack, whose images are in the other half set."""
    (made.folder / "copy.mrcs").write_bytes(made.stack.read_bytes())
    rows = [line for line in made.star.read_text().splitlines() if "@" in line]
    other = {"1": "2", "2": "1"}
    more = [row[:-1] + other[row[-1]] for row in map(str.rstrip, rows)]
    text = "\n".join([made.star.read_text().rstrip(), *more, ""])
    made.star.write_text(text)
    edit(r"^(\d+@)particles(.mrcs.*)", r"\1copy\2", count=COUNT)(made)


FEW = "fewer particles than ranks"
ODD = {
    "dark particles": (dark_particles, "the contrast of the images is inverted", None),
    "pixels that are in the other half set too": (
        the_other_half_too,
        r"60 of them stood in the other half set",
        3,
    ),
    "odd box": (odd_box, "the box of 33 pixels is odd.* makes 32", None),
    "model of another box and pixel size": (
        other_model,
        r"64 pixels of 5.6 A.* is brought to the particles' 32 pixels of 11.2 A",
        None,
    ),
    FEW: (five_particles, "^5 particles of", 4),
    "images that are not normalised": (not_normalised, "the images are not normalised", None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_input_is_adapted_and_said_aloud(tmp_path: Path, name: str) -> None:
    spoil, says, ranks = ODD[name]
    if ranks and not MPIRUN.exists():
        pytest.skip("this environment has no MPI")
    made = refine_input.make_input(tmp_path / "input", count=COUNT)
    spoil(made)
    words = made.words()
    done = (
        jobs.run(words, ranks=ranks, cwd=tmp_path)
        if ranks
        else refine_runs.run_here(words, tmp_path)
    )
    # five particles hold too little signal; that is no fault of their number of ranks
    assert done.returncode == (NoSignalError.exit_code if name == FEW else 0), done.stderr
    assert re.search(says, done.stdout, re.MULTILINE), done.stdout
    assert set(refine_runs.FILES) <= {file.name for file in (tmp_path / "refine_01").iterdir()}
    assert (tmp_path / "refine_01" / "half1.mrc").stat().st_size == 1024 + 32**3 * 4
