"""Transforms against sums over pixels; component lists and shells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpipar.cryoem.fourier import (
    blend_shells,
    components,
    filter_shells,
    image_components,
    interpolation_falloff,
    lowpass_gain,
    shell_means,
    shell_of_half_volume,
    shells_by_square,
    supported_shell,
    undo_falloff,
    volume_from_rows,
    volume_half_transform,
    volume_of_transform,
    volume_transform,
)
from mpipar.errors import InputError
from tests.support import naive


@pytest.mark.parametrize(("box", "radius"), [(8, 3), (16, 7), (16, 8), (32, 5), (64, 32)])
def test_components_hold_one_of_each_friedel_pair(box, radius):
    wanted = components(box, radius)
    ours = {tuple(k) for k in wanted.frequencies.astype(int).tolist()}
    mates = {(-kx, -ky) for kx, ky in ours}
    disc = {
        (x, y)
        for x in range(-radius, radius + 1)
        for y in range(-radius, radius + 1)
        if round(math.hypot(x, y)) <= radius and max(abs(x), abs(y)) < box // 2
    }
    assert len(ours) == len(wanted.frequencies)
    assert ours | mates == disc
    assert ours & mates == {(0, 0)}
    assert tuple(wanted.frequencies[0]) == (0, 0)


def test_every_smaller_radius_is_a_prefix():
    wanted = components(40, 19)
    assert (np.diff(wanted.distance) >= 0).all()
    for radius in (1, 4, 13, 19):
        count = wanted.within(radius)
        inside = np.hypot(*wanted.frequencies.T) < radius + 0.5
        assert inside[:count].all()
        assert not inside[count:].any()
    smaller = components(40, 13)
    np.testing.assert_array_equal(smaller.frequencies, wanted.frequencies[: wanted.within(13)])


def test_shells_are_nearest_whole_distances():
    wanted = components(24, 11)
    np.testing.assert_array_equal(wanted.shell, np.rint(np.hypot(*wanted.frequencies.T)))
    values = np.random.default_rng(0).normal(size=(2, len(wanted.shell))).astype(np.float32)
    sums = wanted.shell_sums(values)
    assert sums.shape == (2, 12)
    expected = [values[:, wanted.shell == shell].sum(axis=1) for shell in range(12)]
    np.testing.assert_allclose(sums.T, expected, atol=1e-4)


@pytest.mark.parametrize(("box", "radius"), [(16, 9), (16, 0), (16, 20), (15, 4)])
def test_components_refuse_what_does_not_fit(box, radius):
    with pytest.raises(ValueError, match=str(box)):
        components(box, radius)


def test_image_components_are_the_sums_over_pixels():
    images = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    wanted = components(8, 3)
    found = image_components(images, wanted)
    assert found.dtype == np.complex64
    for b in range(2):
        for v, (kx, ky) in enumerate(wanted.frequencies):
            expected = naive.image_transform(images[b], int(kx), int(ky))
            assert found[b, v] == pytest.approx(expected, abs=1e-4)


def test_images_of_another_box_are_refused():
    with pytest.raises(InputError, match="box 12 given where box 8"):
        image_components(np.zeros((1, 12, 12), np.float32), components(8, 3))


@pytest.mark.parametrize("box", [8, 9])
def test_volume_transform_is_the_sum_over_voxels(box):
    volume = np.random.default_rng(1).normal(size=(box,) * 3).astype(np.float32)
    half = volume_half_transform(volume, 2, 3)
    centre = len(half) // 2
    assert half.shape == (2 * 8 + 1, 2 * 8 + 1, 8 + 2)
    for x, y, z in [(0, 0, 0), (1, 0, 0), (0, 3, -2), (6, -6, 5), (2, 5, 0)]:
        expected = naive.volume_transform(volume, x / 2, y / 2, z / 2)
        assert half[centre + z, centre + y, x] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("box", "radius"), [(8, 3), (16, 7), (16, 4), (10, 20)])
def test_volume_comes_back_from_its_transform(box, radius):
    volume = naive.blobs(box, seed=3).volume(box)
    half = volume_half_transform(volume, 2, radius)
    back = volume_from_rows(lambda part: half[:, part], half.shape[1:], 2, box)
    # the corners of Fourier space that were cropped off are small for a smooth volume
    assert np.abs(back - volume).max() < (0.15 if 2 * radius < box - 2 else 0.03) * volume.max()
    again = volume_half_transform(back, 2, radius)
    assert np.abs(again - half).max() < 0.02 * np.abs(half).max()


def test_falloff_is_what_interpolation_takes_off():
    """Averaged over a cell, trilinear interpolation multiplies the volume by sinc^2 per axis."""
    box, radius = 16, 3
    falloff = interpolation_falloff(box, 2)
    assert falloff[8] == 1
    volume = np.ones((box,) * 3, np.float32)
    undo_falloff(volume, 2)
    assert volume[10, 5, 12] == pytest.approx(1 / (falloff[10] * falloff[5] * falloff[12]))
    place = np.zeros((box,) * 3, np.float32)
    place[8 + 2, 8 - 3, 8 + 4] = 1  # at x, y, z = 4, -3, 2
    half = volume_half_transform(place, 2, radius)
    offsets = np.random.default_rng(0).uniform(-1, 1, (400, 3))
    ratio = [
        naive.trilinear(half, 2 + k) / np.exp(-2j * np.pi * ((2 + k) @ (4, -3, 2)) / (2 * box))
        for k in offsets
    ]
    assert np.mean(ratio) == pytest.approx(1 / volume[10, 5, 12], abs=0.02)


def test_shells_of_a_volume():
    shell = shell_of_half_volume(8)
    assert shell.shape == (8, 8, 5)
    assert (shell[0, 0, 0], shell[1, 0, 0], shell[-1, 0, 0], shell[0, 0, 4]) == (0, 1, 1, 4)
    assert shell[2, 2, 2] == 3  # 3.46
    assert shell[4, 4, 4] == -1


@pytest.mark.parametrize("box", [12, 13])
def test_filter_shells_multiplies_shells(box):
    volume = np.random.default_rng(0).normal(size=(box,) * 3)
    gain = np.linspace(1, 0.2, box // 2 + 1)
    filtered = filter_shells(volume, gain)
    before, after = np.fft.rfftn(volume), np.fft.rfftn(filtered)
    shell = shell_of_half_volume(box)
    np.testing.assert_allclose(after, before * np.append(gain, 0)[shell], atol=1e-3)


def test_a_share_of_each_shell_comes_from_another_volume():
    one, other = np.random.default_rng(0).normal(size=(2, 13, 13, 13)).astype(np.float32)
    share = np.linspace(1, 0.2, 7)
    transform = volume_transform(one)
    blend_shells(transform, volume_transform(other), share)
    ones = np.ones(7)
    expected = filter_shells(one, ones - share) + filter_shells(other, share)
    np.testing.assert_allclose(volume_of_transform(transform, 13), expected, atol=1e-5)


@pytest.mark.parametrize("sampling", [1, 2])
def test_shells_by_square_are_nearest_whole_distances(sampling):
    shell = shells_by_square(5, sampling)
    distances = [math.sqrt(square) / sampling for square in range(2 * len(shell))]
    assert shell.tolist() == [round(k) for k in distances if round(k) <= 5]


def test_shell_means_are_means_over_all_components():
    volume = np.random.default_rng(0).normal(size=(12,) * 3).astype(np.float32)
    transform = np.fft.fftn(np.fft.ifftshift(volume)).real
    k = np.fft.fftfreq(12, 1 / 12)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))
    expected = [transform[shell == s].mean() for s in range(7)]
    np.testing.assert_allclose(shell_means(volume), expected, atol=1e-4)


def test_lowpass_passes_below_and_stops_above_its_cutoff():
    gain = lowpass_gain(32, 8.0, edge=4.0)
    assert gain.shape == (17,)
    assert (gain[:7] == 1).all()
    assert gain[8] == pytest.approx(0.5)
    assert (gain[10:] == 0).all()


@pytest.mark.parametrize("cutoff", [4, 9, 13])
def test_supported_shell_is_that_of_the_filter(cutoff: int) -> None:
    volume = naive.blobs(32, seed=2).volume(32)
    volume[16, 14, 17] += 3.0 * volume.max()  # has all frequencies
    assert supported_shell(volume) == 16
    filtered = filter_shells(volume, lowpass_gain(32, cutoff))
    assert abs(supported_shell(filtered) - cutoff) <= 1
    assert supported_shell(-5.0 * filtered + 3.0) == supported_shell(filtered)
