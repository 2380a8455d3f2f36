"""A reviewer's check: what a refinement writes is what docs/methods.md says, to the last digits.

The run is read as files, and everything is computed again from the page by other code.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import refine_input, refine_runs
from tests.support.rederived import Rederived, mrc_values, soft

DIAMETER = 250.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Rederived:
    folder = tmp_path_factory.mktemp("rederived")
    made = refine_input.make_input(folder / "input")
    words = made.words("--path", folder / "run", "--diameter", DIAMETER, iterations=20)
    done = refine_runs.run_here(words, folder)
    assert done.returncode == 0, done.stderr
    return Rederived(folder / "run", made.star, made.stack, DIAMETER)


def test_half_sets_and_first_noise(run: Rederived) -> None:
    first = run.commit(0)[0]
    np.testing.assert_array_equal(run.half, first["half"])
    np.testing.assert_allclose(run.first_noise(), first["noise"], rtol=1e-5)


def test_scores(run: Rederived) -> None:
    said = run.commit(-1)[0]["score"]
    again = [run.score(particle) for particle in range(len(said))]
    np.testing.assert_allclose(again, said, atol=1e-4 * np.abs(said).max())


def test_noise(run: Rederived) -> None:
    np.testing.assert_allclose(run.noise(), run.commit(-1)[0]["noise"], rtol=1e-4)


def test_half_maps(run: Rederived) -> None:
    poses = [len(run.poses(particle)) for particle in range(len(run.half))]
    assert max(poses) > 1, "else nothing is seen of poses near the best"
    for number, sums in zip((1, 2), run.sums, strict=True):
        close_to(run.solved(sums, None), mrc_values(run.run / f"half{number}.mrc"))


def close_to(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 1e-3


def test_curves_of_fsc_txt(run: Rederived) -> None:
    unmasked, masked, corrected = np.loadtxt(run.run / "fsc.txt")[:, 3:].T
    first, second = (mrc_values(run.run / f"half{number}.mrc") for number in (1, 2))
    mask = mrc_values(run.run / "mask.mrc")
    whole, inside = run.correlation(first, second), run.correlation(first * mask, second * mask)
    np.testing.assert_allclose(whole[1:], unmasked, atol=1e-5)
    np.testing.assert_allclose(inside[1:], masked, atol=1e-5)
    np.testing.assert_allclose(run.corrected(whole, inside)[1:], corrected, atol=1e-5)


def test_map_of_all_particles(run: Rederived) -> None:
    corrected = np.clip(run.commit(-1)[0]["fsc"], 0, 1)
    both = run.sums[0][0] + run.sums[1][0], run.sums[0][1] + run.sums[1][1]
    distance = np.linalg.norm(np.indices((run.box,) * 3) - run.box // 2, axis=0)
    sphere = soft(distance, run.radius)
    found = run.solved(both, 2 * corrected / (1 + corrected)) * sphere
    close_to(found, mrc_values(run.run / "map.mrc"))
