"""Junk among particles is found and counted; a good set has none, however wide its spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.cryoem.matches import Matches
from mpipar.cryoem.particle_quality import ParticleQuality, particle_quality

if TYPE_CHECKING:
    from numpy.typing import NDArray

COVERED = 0.7


def quality(own: NDArray[np.float64], held: NDArray[np.float64] | None = None) -> ParticleQuality:
    """Of particles with these significances, at quadratic terms that differ."""
    random = np.random.default_rng(1)
    quadratic = random.uniform(20, 60, len(own))
    unit = np.sqrt(quadratic / 2 / COVERED)
    matches = Matches(own * unit, quadratic, (own / 2 if held is None else held) * unit, quadratic)
    found = particle_quality(matches, COVERED)
    assert found is not None
    np.testing.assert_allclose(found.significance, own)
    return found


def normal(seed: int, *peaks: tuple[int, float, float]) -> NDArray[np.float64]:
    """Draw so many numbers of each mean and deviation, in this order."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(mean, width, count) for count, mean, width in peaks])


@pytest.mark.parametrize(
    ("count", "mean"), [(60, 3.8), (60, 5.2), (60, 6.4), (1000, 5.2), (1000, 6.4), (1000, 7.0)]
)
def test_noise_is_all_junk(count: int, mean: float) -> None:
    found = quality(normal(0, (count, mean, 0.7)))
    assert found.junk_share == 1.0
    assert found.junk_error < 0.08
    assert found.like_noise
    assert found.probability.max() < 0.05
    assert "no better than noise" in found.sentence()


def test_a_few_wrong_poses_just_above_noise_are_no_junk() -> None:
    """Nor do they take some of the junk away: with folds, wrong poses lie a little above it."""
    found = quality(normal(0, (222, 5.3, 0.6), (66, 7.3, 0.6), (912, 11.2, 1.1)))
    assert abs(found.junk_share - 0.185) < 0.03


@pytest.mark.parametrize(
    "peaks",
    [
        [(200, 35, 2)],  # few images, much signal
        [(200, 32, 9)],  # contrast that varies by 30 %
        [(1000, 13.9, 1.1), (120, 9.1, 0.9)],  # a tenth at wrong poses
        [(1000, 9.2, 1.1), (1000, 10.8, 1.6)],  # a small particle
        [(50, 80, 20)],
        [(800, 15, 4)],  # an uneven one
    ],
)
def test_a_good_set_has_no_junk(peaks: list[tuple[int, float, float]]) -> None:
    for seed in range(5):
        found = quality(np.maximum(normal(seed, *peaks), 8.0))
        assert found.junk_share < max(0.01, 2 * found.junk_error)
        assert found.junk_error < 0.03
        assert not found.like_noise
        assert np.mean(found.probability > 0.5) > 0.98
        assert found.sentence() == ""


@pytest.mark.parametrize(("junk", "good"), [(100, 100), (30, 170), (600, 600), (60, 940)])
@pytest.mark.parametrize(("mean", "width"), [(30.0, 2.0), (12.0, 1.3)])
def test_junk_is_named_and_counted(junk: int, good: int, mean: float, width: float) -> None:
    off = []
    for seed in range(8):
        found = quality(normal(seed, (junk, 6.5, 0.7), (good, mean, width)))
        assert np.mean(found.probability[:junk] < 0.5) > 0.8
        assert np.mean(found.probability[junk:] > 0.5) > 0.95
        off.append((found.junk_share - junk / (junk + good)) / found.junk_error)
        assert not found.like_noise
        assert bool(found.sentence()) == (found.junk_share > 0.05)
    assert np.abs(off).max() < 2.0, "the share is right within its error"


def test_junk_with_some_shape_lies_near_noise_and_clearly_below_the_particles() -> None:
    """As another molecule does: above noise, but far below particles."""
    other = normal(0, (60, 8.4, 0.85), (140, 28.3, 1.7))
    found = quality(other)
    assert found.junk_share == pytest.approx(0.3, abs=0.01)
    assert found.junk_error == pytest.approx(np.sqrt(0.21 / 200), rel=0.1)
    assert found.probability[:60].max() < 0.01
    assert found.probability[60:].min() > 0.99
    assert not found.like_noise
    both = quality(np.concatenate([other, normal(1, (200, 6.3, 0.6), (100, 28.3, 1.7))]))
    assert both.junk_share == pytest.approx(260 / 500, abs=0.02)
    half_the_contrast = quality(normal(0, (60, 14, 1.0), (140, 28, 1.7)))
    assert half_the_contrast.junk_share < 0.01
    few_higher = quality(normal(0, (190, 10, 1.0), (10, 45, 2)))
    assert few_higher.junk_share < 0.01


def test_the_share_is_less_certain_where_peaks_overlap() -> None:
    apart = quality(normal(0, (500, 6.5, 0.7), (500, 20, 1)))
    near = quality(normal(0, (500, 6.5, 0.7), (500, 8.5, 1)))
    assert near.junk_error > 1.2 * apart.junk_error
    assert apart.junk_error == pytest.approx(np.sqrt(0.25 / 1000), rel=0.01)


def test_a_probability_never_rises_with_less_significance() -> None:
    own = normal(0, (300, 6.5, 0.8), (700, 25, 8))
    own[:3] = 0.0, 1.0, -5.0  # an empty image, and worse
    found = quality(own)
    assert np.all(np.diff(found.probability[np.argsort(own)]) >= -1e-12)
    assert found.probability[:3].max() < 0.05


def test_the_order_of_particles_does_not_matter() -> None:
    own = normal(0, (300, 6.5, 0.8), (700, 12, 1.5))
    order = np.random.default_rng(0).permutation(len(own))
    one, other = quality(own), quality(own[order])
    np.testing.assert_allclose(other.probability, one.probability[order], rtol=1e-9)
    assert other.junk_share == one.junk_share


def test_half_maps_that_share_nothing_are_like_noise() -> None:
    own = normal(0, (200, 10.0, 1.2))
    assert quality(own, held=normal(1, (200, 0.3, 1.0))).like_noise
    assert "not in" in quality(own, held=normal(1, (200, 0.3, 1.0))).sentence()
    assert not quality(own, held=normal(1, (200, 3.0, 1.0))).like_noise
    # nothing independent was compared
    matches = Matches(own * 5, np.full(200, 50.0), np.zeros(200), np.zeros(200))
    found = particle_quality(matches, 1.0)
    assert found is not None
    assert not found.like_noise


def test_without_matches_or_with_too_few_there_is_no_verdict() -> None:
    assert particle_quality(Matches.unknown(100), 0.7) is None
    few = Matches(*(np.ones(10) for _ in range(4)))
    assert particle_quality(few, 0.7) is None


def test_a_wide_set_near_noise_leaves_room_for_little_of_it() -> None:
    """The peak of noise is narrow: it cannot stand for particles that spread around it."""
    found = quality(normal(0, (1000, 9.5, 2.5)))
    assert found.junk_share == 0
    assert found.junk_error < 0.06
