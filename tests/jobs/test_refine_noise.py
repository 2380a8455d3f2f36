"""Images without any signal: the run ends with "no signal found", and no output claims anything.

Promise: believable.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest

from mpipar import store
from tests.support import jobs, refine_input, refine_runs
from tests.support.blocks import write_mrc
from tests.support.installed import MPIRUN

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

COUNT, NO_SIGNAL = 120, 79
START = 60.0  # A, that the model is filtered to if nothing else is said
MARK = "NO SIGNAL FOUND"
MARKED = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc")


def noise_input(folder: Path, seed: int) -> refine_input.Input:
    """The list and the model of real particles, whose images are replaced by white noise."""
    made = refine_input.make_input(folder, count=COUNT)
    shape = (COUNT, refine_input.BOX, refine_input.BOX)
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)
    return made


def refined(
    tmp_path: Path, seed: int, *words: object, iterations: int = 2
) -> tuple[subprocess.CompletedProcess[str], Path]:
    made, path = noise_input(tmp_path / "input", seed), tmp_path / "run"
    words = ("--path", path, "--parallel=thread:2", *words)
    return refine_runs.run_here(made.words(*words, iterations=iterations), tmp_path), path


def assert_nothing_is_claimed(
    done: subprocess.CompletedProcess[str], path: Path, start: float = START
) -> None:
    assert done.returncode == NO_SIGNAL, done.stdout + done.stderr
    (said,) = jobs.complaints(done)
    assert said.startswith("mpipar: no signal found: ")
    assert "Traceback" not in done.stdout + done.stderr
    verdict = json.loads((path / "verdict.json").read_text())
    assert verdict["verdict"] == "failed", "no job script queues it again"
    assert verdict["reason"].startswith("NoSignalError: no signal found: ")
    for name in MARKED:
        with mrcfile.open(path / name) as file:
            assert file.get_labels()[0].startswith(MARK), name
    text = (path / "fsc.txt").read_text()
    assert MARK in text.partition("# shell")[0]
    for claim in (text.partition("# shell")[0], said, verdict["reason"]):
        finer = [float(n) for n in re.findall(r"([\d.]+) A\b", claim) if float(n) < start - 1]
        assert not finer, claim
    assert not re.search(r"^resolution ", done.stdout, re.MULTILINE)
    assert store.check(path) == []


@pytest.mark.parametrize(
    ("words", "start"),
    [((), START), (("--lowpass", 80), 80.0), (("--lowpass", 36), 36.0), (("--sym", "c2"), 53.0)],
)
def test_noise_ends_without_a_claim(
    tmp_path: Path, words: tuple[object, ...], start: float
) -> None:
    done, path = refined(tmp_path, 0, *words)
    assert_nothing_is_claimed(done, path, start)


@pytest.mark.parametrize("seed", range(1, 5))
def test_noise_of_other_seeds(tmp_path: Path, seed: int) -> None:
    done, path = refined(tmp_path, seed)
    assert_nothing_is_claimed(done, path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_noise_in_runs_of_any_length(tmp_path: Path, seed: int) -> None:
    done, path = refined(tmp_path, seed, iterations=25)
    assert_nothing_is_claimed(done, path)


@pytest.mark.parametrize("iterations", [1, 4])
def test_a_resumed_run_says_the_same_again(tmp_path: Path, iterations: int) -> None:
    done, path = refined(tmp_path, 5, iterations=iterations)
    assert_nothing_is_claimed(done, path)
    before = refine_runs.digests(path)
    shutil.copytree(path, tmp_path / "kept")
    for name in refine_runs.FILES:
        (path / name).unlink()
    again = refine_runs.run_here(["mpipar", "refine", "--resume", "--path", path], tmp_path)
    assert_nothing_is_claimed(again, path)
    assert jobs.complaints(again) == jobs.complaints(done)
    assert refine_runs.digests(path) == before
    segments = [
        sorted(p.name for p in (f / "segments").iterdir()) for f in (path, tmp_path / "kept")
    ]
    assert segments[0] == segments[1], "nothing is lost, and nothing is computed twice"


@pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")
def test_all_ranks_end_with_one_message(tmp_path: Path) -> None:
    made, path = noise_input(tmp_path / "input", 0), tmp_path / "run"
    done = jobs.run(made.words("--path", path), ranks=3)
    assert_nothing_is_claimed(done, path)
    alone, other = refined(tmp_path / "alone", 0)
    assert jobs.complaints(alone)[0] == jobs.complaints(done)[0].replace(str(path), str(other))
    mine, theirs = refine_runs.digests(path, made), refine_runs.digests(other)
    assert {n: mine[n] for n in MARKED} == {n: theirs[n] for n in MARKED}


def test_a_good_set_passes_and_no_alarm_cries(tmp_path: Path) -> None:
    """The same list with its own images; the fewer iterations, the harder."""
    made, path = refine_input.make_input(tmp_path / "input"), tmp_path / "run"
    words = made.words("--path", path, "--parallel=thread:2", iterations=5)
    done = refine_runs.run_here(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    assert json.loads((path / "verdict.json").read_text())["reason"] == "refinement finished"
    assert MARK not in (path / "fsc.txt").read_text()
    with mrcfile.open(path / "map.mrc") as file:
        assert not any(MARK in label for label in file.get_labels())
