"""Noise spectra."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.cryoem import noise
from mpipar.cryoem.fourier import components
from mpipar.errors import InputError

WANTED = components(24, 11)


def random_images(count: int, deviation: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(0)
    parts = random.normal(size=(2, count, len(WANTED.shell))) * deviation[WANTED.shell]
    return np.asarray(parts[0] + 1j * parts[1], np.complex64)


def test_spectrum_of_white_and_coloured_noise():
    deviation = np.linspace(3, 1, 12)
    images = random_images(400, deviation)
    power = noise.residual_power(images, np.zeros((400, 0), np.complex64), WANTED)
    found = noise.spectrum(power.sum(axis=0), 400, WANTED)
    assert found[1:] == pytest.approx(2 * deviation[1:] ** 2, rel=0.08)  # real and imaginary part


def test_residual_takes_the_model_off_a_prefix():
    images = random_images(3, np.ones(12))
    count = WANTED.within(6)
    power = noise.residual_power(images, images[:, :count], WANTED)
    np.testing.assert_array_equal(power[:, :6], 0)
    whole = noise.residual_power(images, images[:, :0], WANTED)
    np.testing.assert_allclose(power[:, 7:], whole[:, 7:], rtol=1e-5)
    np.testing.assert_array_equal(images, random_images(3, np.ones(12)))  # left alone


def test_spectrum_is_positive_where_a_shell_is_empty():
    power = np.ones(12)
    power[5] = 0
    assert (noise.spectrum(power, 1, WANTED) > 0).all()


@pytest.mark.parametrize("power", [np.zeros(12), np.full(12, np.nan), np.array([np.inf] * 12)])
def test_images_without_signal_are_refused(power):
    with pytest.raises(InputError, match="no signal"):
        noise.spectrum(power, 3, WANTED)


def test_weights_are_one_over_noise():
    spectrum = np.linspace(1, 4, 12)
    weights = noise.weights(spectrum, WANTED)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(
        weights, 1 / spectrum[np.rint(WANTED.distance).astype(int)], rtol=1e-6
    )
