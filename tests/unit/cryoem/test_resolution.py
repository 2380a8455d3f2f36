"""FSC against loops over voxels, known signal-to-noise, and masks that cannot flatter."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.cryoem.masks import soft_sphere
from mpipar.cryoem.resolution import (
    GOLD_STANDARD,
    corrected_correlation,
    first_shell_below,
    fourier_shell_correlation,
    randomise_phases,
    resolution_of,
)
from mpipar.errors import InputError
from tests.support import naive

SEED = np.random.SeedSequence(11)


def masked_correlation(halves, mask):
    half1, half2 = halves
    unmasked = fourier_shell_correlation(half1, half2)
    masked = fourier_shell_correlation(half1 * mask, half2 * mask)
    return corrected_correlation(half1, half2, mask, SEED, unmasked, masked)


def noise_maps(box: int, count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, box, box, box)).astype(np.float32)


@pytest.mark.parametrize("box", [8, 9])
def test_fsc_is_the_definition(box):
    first, second = noise_maps(box)
    second += 0.7 * first
    expected = naive.shell_correlation(first, second)
    assert fourier_shell_correlation(first, second) == pytest.approx(expected, abs=1e-5)


def test_identical_maps_correlate_fully_and_opposite_ones_not_at_all():
    volume = noise_maps(16, 1)[0]
    assert fourier_shell_correlation(volume, 3 * volume) == pytest.approx(1, abs=1e-5)
    assert fourier_shell_correlation(volume, -volume) == pytest.approx(-1, abs=1e-5)


def test_independent_noise_does_not_correlate():
    curve = fourier_shell_correlation(*noise_maps(48))
    assert np.abs(curve[6:]).max() < 0.12


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_known_signal_to_noise_gives_its_correlation(ratio):
    signal, first, second = noise_maps(40, 3)
    curve = fourier_shell_correlation(signal * ratio**0.5 + first, signal * ratio**0.5 + second)
    assert curve[8:].mean() == pytest.approx(ratio / (ratio + 1), abs=0.02)


def test_empty_shells_count_as_zero():
    empty = np.zeros((8, 8, 8), np.float32)
    np.testing.assert_array_equal(fourier_shell_correlation(empty, noise_maps(8, 1)[0]), 0)


@pytest.mark.parametrize(
    "shapes", [((8, 8, 8), (9, 9, 9)), ((8, 8, 9), (8, 8, 9)), ((8, 8), (8, 8))]
)
def test_maps_that_do_not_match_are_refused(shapes):
    with pytest.raises(InputError, match="two cubes of one size"):
        fourier_shell_correlation(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_tight_mask_does_not_make_noise_look_resolved():
    mask = soft_sphere(32, 4, 1)
    plain, corrected = [], []
    for seed in range(8):
        halves = noise_maps(32, seed=seed)
        plain.append(fourier_shell_correlation(*(half * mask for half in halves))[4:])
        corrected.append(masked_correlation(halves, mask)[4:])
    # few independent voxels are left: some shells correlate well by chance alone
    assert np.max(plain) > 0.3
    assert (np.array(corrected) <= np.maximum(plain, 0) + 1e-6).all()


def test_mask_shared_by_both_maps_is_taken_off():
    """Half maps that share nothing but an offset inside a hard-edged mask."""
    box, mask = 32, soft_sphere(32, 7, 1)
    halves = [5 + noise for noise in noise_maps(box)]
    plain = fourier_shell_correlation(*(half * mask for half in halves))
    corrected = masked_correlation(halves, mask)
    assert plain[4:9].mean() > 0.3
    assert np.abs(corrected[4:]).mean() < 0.5 * np.abs(plain[4:]).mean()


def test_mask_brings_out_a_signal_inside_it():
    box = 32
    signal = filter_shells(noise_maps(box, 1, seed=5)[0], lowpass_gain(box, 9)) * soft_sphere(
        box, 7, 2
    )
    halves = [signal + 0.35 * noise for noise in noise_maps(box)]
    plain = fourier_shell_correlation(*halves)
    masked = masked_correlation(halves, soft_sphere(box, 8, 3))
    assert masked[3:8].mean() > plain[3:8].mean() + 0.1
    assert masked[12:].mean() < 0.1


def test_identical_maps_stay_identical_in_a_mask():
    volume = naive.blobs(24).volume(24)
    curve = masked_correlation([volume, volume], soft_sphere(24, 8, 3))
    assert curve == pytest.approx(1, abs=1e-4)


def test_random_phases_keep_amplitudes_and_low_shells():
    volume = noise_maps(16, 1)[0]
    scrambled = randomise_phases(volume, 4, np.random.default_rng(0))
    before, after = np.fft.rfftn(volume), np.fft.rfftn(scrambled)
    np.testing.assert_allclose(after[:3, :3, :3], before[:3, :3, :3], atol=1e-3)
    # off the planes that are their own mates
    np.testing.assert_allclose(np.abs(after[:, :, 1:8]), np.abs(before[:, :, 1:8]), atol=1e-3)
    assert np.abs(fourier_shell_correlation(volume, scrambled)[6:]).max() < 0.4


def test_first_shell_below_starts_at_two():
    assert first_shell_below(np.array([0, 0, 0.9, 0.5, 0.1, 0.7]), 0.6) == 3
    assert first_shell_below(np.array([1, 0, 0.9]), 0.5) is None
    assert first_shell_below(np.array([1, 1, 0.1]), 0.5) == 2


@pytest.mark.parametrize(
    ("curve", "shell"),
    [
        ([1, 1, 1, 1, 0.243, 0.043, 0], 4.5),
        ([1, 1, 1, 1, GOLD_STANDARD, 0.0, 0], 4),
        ([1, 1, 0.1, 1, 1, 1, 1], 1 + (1 - GOLD_STANDARD) / 0.9),
        ([0, 0, 0, 0, 0, 0, 0], 1),
    ],
)
def test_resolution_is_interpolated_between_shells(curve, shell):
    found = resolution_of(np.array(curve, float), GOLD_STANDARD, box=12, pixel_size=1.5)
    assert found == pytest.approx(12 * 1.5 / shell)


def test_resolution_that_never_falls_is_nyquist():
    assert resolution_of(np.ones(7), 0.5, box=12, pixel_size=1.5) == 3.0
