"""Junk is named in the columns of particles.star, on the scale of the disc's own noise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.cryoem.masks import soft_discs
from mpipar.cryoem.matches import Matches
from mpipar.programs.block_rows import MASK_EDGE, ImageGeometry
from mpipar.programs.quality import draw_quality, quality_columns, quality_of
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from pathlib import Path

JUNK = np.arange(40) < 15


@pytest.fixture
def made(tmp_path: Path) -> Small:
    """A state of 40 particles, of which the first 15 match like noise."""
    made = small(tmp_path / "input")
    random = np.random.default_rng(0)
    wanted = np.where(JUNK, random.normal(6.4, 0.7, 40), random.normal(20, 2, 40))
    cross = wanted * np.sqrt(8.0 / covered(made))
    matches = Matches(cross, np.full(40, 16.0), cross, np.full(40, 16.0))
    state = dataclasses.replace(made.state, matches=matches)
    return dataclasses.replace(made, state=state)


def covered(made: Small) -> float:
    box = made.data.geometry.box
    disc = soft_discs(box, np.zeros((1, 2)), made.data.geometry.radius, MASK_EDGE)
    return float((disc**2).mean())


def test_columns_name_the_junk(made: Small) -> None:
    quality = quality_of(made.data, made.state)
    assert quality is not None
    columns = quality_columns(made.state, quality)
    assert ((columns["rlnParticleFigureOfMerit"] < 0.5) == JUNK).all()
    assert columns["mpiparSignificance"][JUNK].mean() == pytest.approx(6.4, abs=0.6)
    np.testing.assert_allclose(columns["mpiparHeldOutScore"], made.state.matches.held_cross - 8)
    assert columns["rlnLogLikeliContribution"] is made.state.poses.score


def test_significance_does_not_depend_on_how_much_of_the_image_the_disc_covers(made: Small) -> None:
    """Noise of masked images, scored at a pose that it did not choose, has a deviation of 1."""
    from mpipar.cryoem import alignment, noise
    from mpipar.cryoem.fourier import components, image_components
    from mpipar.cryoem.matches import match_terms

    box, count = 32, 600
    wanted = components(box, 10)
    random = np.random.default_rng(0)
    images = random.normal(size=(count, box, box)).astype(np.float32)
    x = np.arange(box) - box // 2
    particle = np.exp(-0.5 * (x[:, None] ** 2 + x[None] ** 2) / 2.5**2)[None].astype(np.float32)
    for radius in (6.0, 11.0):
        masked = images * soft_discs(box, np.zeros((count, 2)), radius, MASK_EDGE)
        transform = image_components(masked, wanted)
        power = noise.residual_power(transform, transform[:, :0], wanted).sum(axis=0)
        weights = noise.weights(noise.spectrum(power, count, wanted), wanted)
        data = alignment.weigh(transform, np.ones(transform.shape, np.float32), weights)
        slices = np.repeat(image_components(particle, wanted), count, axis=0)
        data[:, 0] = 0.0
        terms = match_terms(slices, np.ones_like(slices), data)
        geometry = ImageGeometry(box, 3.0, radius)
        state = dataclasses.replace(made.state, matches=Matches(*terms, *terms))
        found = quality_of(dataclasses.replace(made.data, geometry=geometry), state)
        assert found is not None
        assert found.significance.std() == pytest.approx(1.0, abs=0.12)
        assert abs(found.significance.mean()) < 0.2


def test_a_picture_is_drawn_with_and_without_a_verdict(made: Small, tmp_path: Path) -> None:
    for name, quality in (("some", quality_of(made.data, made.state)), ("none", None)):
        draw_quality(tmp_path / name, quality)
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_state_without_matches_has_only_the_score(made: Small) -> None:
    state = dataclasses.replace(made.state, matches=Matches.unknown(40))
    assert quality_of(made.data, state) is None
    assert set(quality_columns(state, None)) == {"rlnLogLikeliContribution"}
