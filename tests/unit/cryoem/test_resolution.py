"""FSC against loops over voxels, known signal-to-noise, and masks that cannot flatter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.cryoem.fourier import (
    filter_shells,
    lowpass_gain,
    volume_of_transform,
    volume_transform,
)
from mpipar.cryoem.masks import soft_sphere
from mpipar.cryoem.resolution import (
    GOLD_STANDARD,
    corrected_correlation,
    crossing_shell,
    decreasing_fit,
    first_shell_below,
    fourier_shell_correlation,
    last_resolved_shell,
    limited_by_pixels,
    masked_correlation,
    randomise_phases,
    resolution_of,
)
from mpipar.errors import InputError
from tests.support import naive

SEED = np.random.SeedSequence(11)


def corrected_inside(halves, mask):
    unmasked = fourier_shell_correlation(*halves)
    transforms = [volume_transform(half) for half in halves]
    masked = masked_correlation(halves, mask)
    return corrected_correlation(transforms, mask, SEED, unmasked, masked)


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
        corrected.append(corrected_inside(halves, mask)[4:])
    # few independent voxels are left: some shells correlate well by chance alone
    assert np.max(plain) > 0.3
    assert (np.array(corrected) <= np.maximum(plain, 0) + 1e-6).all()


def test_mask_shared_by_both_maps_is_taken_off():
    """Half maps that share nothing but an offset inside a hard-edged mask."""
    box, mask = 32, soft_sphere(32, 7, 1)
    halves = [5 + noise for noise in noise_maps(box)]
    plain = fourier_shell_correlation(*(half * mask for half in halves))
    corrected = corrected_inside(halves, mask)
    assert plain[4:9].mean() > 0.3
    assert np.abs(corrected[4:]).mean() < 0.5 * np.abs(plain[4:]).mean()


def test_mask_brings_out_a_signal_inside_it():
    box = 32
    signal = filter_shells(noise_maps(box, 1, seed=5)[0], lowpass_gain(box, 9)) * soft_sphere(
        box, 7, 2
    )
    halves = [signal + 0.35 * noise for noise in noise_maps(box)]
    plain = fourier_shell_correlation(*halves)
    masked = corrected_inside(halves, soft_sphere(box, 8, 3))
    assert masked[3:8].mean() > plain[3:8].mean() + 0.1
    assert masked[12:].mean() < 0.1


def test_identical_maps_stay_identical_in_a_mask():
    volume = naive.blobs(24).volume(24)
    curve = corrected_inside([volume, volume], soft_sphere(24, 8, 3))
    assert curve == pytest.approx(1, abs=1e-4)


def test_random_phases_keep_amplitudes_and_low_shells():
    volume = noise_maps(16, 1)[0]
    transform = volume_transform(volume)
    randomise_phases(transform, 4, np.random.default_rng(0))
    scrambled = volume_of_transform(transform, 16)
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
        ([1, 1, 0.1, 0, 0, 1, 1], 1 + (1 - GOLD_STANDARD) / 0.9),
        ([0, 0, 0, 0, 0, 0, 0], 1),
    ],
)
def test_resolution_is_interpolated_between_shells(curve, shell):
    found = resolution_of(np.array(curve, float), GOLD_STANDARD, box=12, pixel_size=1.5)
    assert found == pytest.approx(12 * 1.5 / shell)


def test_resolution_that_never_falls_is_nyquist():
    assert resolution_of(np.ones(7), 0.5, box=12, pixel_size=1.5) == 3.0
    assert last_resolved_shell(np.ones(7), 0.5) == 6


curves = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=24).map(np.array)


def position(curve):
    crossing = crossing_shell(curve, GOLD_STANDARD)
    return len(curve) - 1 if crossing is None else crossing


def simulated_curves(truth, share, count, seed=0):
    """FSC of halves with a known signal, in a mask that keeps `share` of the independent voxels."""
    random, ratio = np.random.default_rng(seed), truth / (1 - truth)
    found = np.zeros((count, len(truth)))
    for shell in range(len(truth)):
        voxels = max(2, round(4 * np.pi * shell**2 * share))
        signal, first, second = random.normal(size=(3, count, voxels))
        first, second = (np.sqrt(ratio[shell]) * signal + noise for noise in (first, second))
        power = np.sqrt((first**2).sum(1) * (second**2).sum(1))
        found[:, shell] = (first * second).sum(1) / power
    return found


def correlation_of_decay(shells, decay, strength):
    ratio = strength * np.exp(-decay * np.arange(shells) ** 2)
    return ratio / (1 + ratio)


def first_crossing(curve):
    shell = first_shell_below(curve, GOLD_STANDARD)
    if shell is None:
        return len(curve) - 1
    before, after = curve[shell - 1], curve[shell]
    return shell - 1 + max(0.0, before - GOLD_STANDARD) / max(before - after, 1e-12)


@given(curves)
def test_decreasing_fit_is_the_definition(values):
    weights = np.arange(1.0, len(values) + 1)
    places = range(len(values))
    expected = [
        min(
            max(np.average(values[i : j + 1], weights=weights[i : j + 1]) for j in places[k:])
            for i in range(k + 1)
        )
        for k in places
    ]
    assert decreasing_fit(values, weights) == pytest.approx(expected, abs=1e-12)


@given(curves, st.lists(st.floats(0, 0.5), min_size=24, max_size=24))
def test_a_higher_curve_never_reads_as_a_coarser_resolution(curve, rise):
    assert position(curve + rise[: len(curve)]) >= position(curve) - 1e-9


@given(curves)
def test_a_curve_that_only_falls_is_read_at_its_first_crossing(values):
    curve = np.sort(values)[::-1]
    assert position(curve) == pytest.approx(first_crossing(curve), abs=1e-6)


@given(curves)
def test_reading_lies_at_the_last_resolved_shell_and_not_before_a_curve_first_falls(curve):
    resolved = last_resolved_shell(curve, GOLD_STANDARD)
    assert resolved <= position(curve) <= min(resolved + 1, len(curve) - 1)
    steady = np.flatnonzero(np.minimum.accumulate(curve[2:]) >= GOLD_STANDARD)
    assert position(curve) >= (steady[-1] + 2 if steady.size else 1)


@given(curves, st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_nothing_beyond_a_valley_is_read(curve, later):
    valley = np.append(curve, [-1.0, -1.0, -1.0])
    assert position(np.append(valley, later)) == position(valley)


@pytest.mark.parametrize("dip", [[0.1], [0.0, 0.1]])
def test_dip_of_a_hollow_virus_is_passed_over(dip):
    before = [1, 1, 0.97, 0.95, 0.9, 0.8, 0.6]
    curve = np.array([*before, *dip, 0.7, 0.6, 0.5, 0.3, 0.1, 0.05, 0.0, 0.0])
    expected = len(before) + len(dip) + 3 + (0.3 - GOLD_STANDARD) / 0.2
    assert position(curve) == pytest.approx(expected)


def test_one_shell_moves_the_reading_by_about_one_shell():
    """12.46 and 13.39 A of one map: a shell of 0.130 or 0.150 before one of 0.250."""
    common, after = [1, 1, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.25, 0.1, 0.05, 0.0, 0.02]
    low, high = (np.array([*common, value, *after]) for value in (0.130, 0.150))
    assert first_crossing(high) - first_crossing(low) > 1.5
    assert position(high) - position(low) < 0.1


@pytest.mark.parametrize(
    ("share", "strength", "spread"),
    [(0.1, 30, 1.0), (0.1, 3, 0.5), (0.02, 30, 0.5)],
    ids=["plain", "slow", "tight mask"],
)
def test_reading_is_right_on_average_and_steadier_than_first_crossings(share, strength, spread):
    truth = correlation_of_decay(33, np.log(6 * strength) / 20**2, strength)
    at, found = position(truth), simulated_curves(truth, share, 300)
    ours = np.array([position(curve) / at - 1 for curve in found])
    plain = np.array([first_crossing(curve) / at - 1 for curve in found])
    assert abs(ours.mean()) < 0.015
    assert ours.std() < spread * plain.std()
    assert np.percentile(ours, 97.5) < np.percentile(plain, 97.5) + 0.04


def test_revival_near_nyquist_does_not_make_the_reading_finer():
    truth = correlation_of_decay(33, 0.018, 30)
    truth[21:] = 0.3
    found = [position(curve) for curve in simulated_curves(truth, 0.1, 200)]
    assert np.mean(found) == pytest.approx(position(truth), abs=0.3)
    assert np.percentile(found, 99) < 19


@pytest.mark.parametrize(
    ("curve", "limited"),
    [
        ([1, 1, 0.9, 0.8, 0.7, 0.6], True),
        ([1, 1, 0.9, 0.8, 0.7, 0.1], True),
        ([1, 1, 0.9, 0.8, 0.1, 0.0], False),
        ([1, 1, 0.9, 0.05, 0.7, 0.6], True),
    ],
)
def test_curve_that_does_not_fall_before_the_last_shell_is_limited_by_pixels(curve, limited):
    assert limited_by_pixels(np.array(curve, float), GOLD_STANDARD, 5) == limited
    for mixed in (0.0, 0.9):
        unfilled = np.array([*curve, mixed, mixed])
        assert limited_by_pixels(unfilled, GOLD_STANDARD, 5) == limited
