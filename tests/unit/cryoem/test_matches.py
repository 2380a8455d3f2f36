"""Matches with half maps: the two terms of the score, against their definition and for noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpipar.cryoem.matches import Matches, match_terms, significance


def drawn(seed: int, *shape: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(size=shape) + 1j * random.normal(size=shape)
    return values.astype(np.complex64)


def test_terms_are_those_of_the_definition() -> None:
    slices, images = drawn(0, 3, 7), drawn(1, 3, 7)
    phases = np.exp(1j * np.angle(drawn(2, 3, 7))).astype(np.complex64)
    ctf = np.random.default_rng(3).uniform(-1, 1, (3, 7)).astype(np.float32)
    noise = np.arange(1.0, 8.0)
    weighted = images * ctf / noise
    data = np.stack([weighted.real, weighted.imag, ctf**2 / noise], axis=-1).astype(np.float32)
    cross, quadratic = match_terms(slices, phases, data)
    for b in range(3):
        expected = [0.0, 0.0]
        for v in range(7):
            centred = complex(phases[b, v] * images[b, v])
            model = complex(slices[b, v]) * float(ctf[b, v])
            expected[0] += (model.conjugate() * centred).real / noise[v]
            expected[1] += abs(model) ** 2 / noise[v]
        assert (cross[b], quadratic[b]) == pytest.approx(expected, rel=1e-5)


def test_noise_has_a_standard_normal_significance_and_a_score_below_zero() -> None:
    count, components, power = 4000, 60, 5.0
    images = drawn(4, count, components) * np.float32(np.sqrt(power / 2))  # mean |X|^2 is power
    data = np.stack([images.real, images.imag, np.ones(images.shape)], axis=-1) / power
    slices = drawn(5, count, components)
    ones = np.ones((count, components), np.complex64)
    cross, quadratic = match_terms(slices, ones, data.astype(np.float32))
    found = Matches(cross, quadratic, cross, quadratic)
    assert abs(found.held_significance.mean()) < 4 / np.sqrt(count)
    assert found.held_significance.std() == pytest.approx(1.0, abs=0.05)
    assert found.held_score.mean() == pytest.approx(-quadratic.mean() / 2, rel=0.05)
    np.testing.assert_array_equal(found.own_significance, found.held_significance)


def test_an_empty_reference_is_no_match() -> None:
    np.testing.assert_array_equal(significance(np.zeros(2), np.zeros(2)), 0.0)
    np.testing.assert_allclose(significance(np.array([6.0]), np.array([8.0])), 3.0)


def test_matches_of_blocks_come_back_in_the_order_of_the_list() -> None:
    blocks = (np.array([3, 0]), np.array([1]))
    parts = [(rows, Matches(*(rows + 10.0 * term for term in range(4)))) for rows in blocks]
    whole = Matches.joined(parts, 4)
    names = Matches.__dataclass_fields__
    for name, row in itertools.product(names, (0, 1, 3)):
        assert getattr(whole, name)[row] == row + 10.0 * list(names).index(name)
    assert np.isnan(whole.held_score[2]), "in no block"
