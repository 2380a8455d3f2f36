"""Half maps of noise agree as rarely as promised, whatever mixes their voxels; signal is seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mpipar.cryoem import significance
from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.cryoem.masks import soft_sphere
from mpipar.cryoem.significance import significant_shell

BOX, BEYOND, PAIRS = 22, 2, 40
EVERYWHERE = np.ones((BOX,) * 3, np.float32)
SPHERE, TIGHT = soft_sphere(BOX, 7, 3), soft_sphere(BOX, 3, 2)


def white(random):
    return random.normal(size=(2, BOX, BOX, BOX)).astype(np.float32)


def with_twofolds(random):
    halves = white(random)[:, 1:, 1:, 1:]
    turned = [halves[:, ::-1, ::-1], halves[:, ::-1, :, ::-1], halves[:, :, ::-1, ::-1]]
    return np.pad(halves + sum(turned), ((0, 0), (1, 0), (1, 0), (1, 0)))


def of_few_directions(random):
    """As from preferred orientations: strong near one plane of the transform."""
    transform = np.fft.fftn(white(random), axes=(1, 2, 3))
    k = np.fft.fftfreq(BOX)
    length = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)
    steep = np.abs(k[:, None, None]) / np.maximum(length, 1e-9)
    return np.fft.ifftn(transform * np.exp(-((steep / 0.2) ** 2)), axes=(1, 2, 3)).real


def smeared(random):
    """As from soft poses: each component spread over orientations some 20 degrees apart."""
    turns = Rotation.from_rotvec(random.normal(0, 0.35, (12, 3))).as_matrix()
    return np.stack([sum(turned(half, turn) for turn in turns) for half in white(random)])


def turned(volume, turn):
    centre = np.full(3, BOX // 2)
    return ndimage.affine_transform(volume, turn, offset=centre - turn @ centre, order=1)


@pytest.mark.parametrize(
    ("noise", "mask", "order"),
    [
        (white, EVERYWHERE, 1),
        (white, SPHERE, 1),
        (white, TIGHT, 1),
        (with_twofolds, SPHERE, 4),
        (of_few_directions, SPHERE, 1),
        (smeared, SPHERE, 1),
    ],
    ids=["no mask", "sphere", "tight mask", "symmetry", "preferred orientations", "soft poses"],
)
def test_noise_agrees_as_rarely_as_promised(noise, mask, order):
    random = np.random.default_rng(1)
    found = [significant_shell(noise(random), mask, order, BEYOND, 0.05) for _ in range(PAIRS)]
    # 7 of 40 and more have a chance of 0.3 % where 0.05 is true
    assert np.count_nonzero(np.array(found) > BEYOND) <= 6


def test_what_the_halves_share_before_the_shell_does_not_count():
    random, found = np.random.default_rng(2), []
    for _ in range(PAIRS):
        halves = white(random)
        shared = filter_shells(halves[0], lowpass_gain(BOX, BEYOND + 0.5))
        found.append(significant_shell(halves + 5 * shared, SPHERE, 1, BEYOND, 0.05))
    assert np.count_nonzero(np.array(found) > BEYOND) <= 6


def test_weak_signal_is_seen_about_as_far_as_it_goes():
    random, found = np.random.default_rng(3), []
    for _ in range(10):
        signal = filter_shells(white(random)[0], lowpass_gain(BOX, 8))
        found.append(significant_shell(white(random) + 0.9 * signal, EVERYWHERE, 1, BEYOND))
    assert min(found) >= 6
    assert 7 <= np.median(found) <= 9


def test_good_map_is_significant_in_a_tight_mask_with_high_symmetry():
    random, box = np.random.default_rng(4), 48
    mask = soft_sphere(box, 14, 3)
    signal = filter_shells(random.normal(size=(box,) * 3), lowpass_gain(box, 18))
    halves = (signal + 0.3 * random.normal(size=(2, box, box, box))).astype(np.float32)
    assert significant_shell(halves, mask, 60, 4) >= 12


def test_identical_halves_agree_everywhere_and_empty_ones_nowhere():
    one = white(np.random.default_rng(7))[:1]
    assert significant_shell(np.repeat(one, 2, axis=0), SPHERE, 1, BEYOND) == BOX // 2
    assert significant_shell(np.zeros((2, BOX, BOX, BOX)), SPHERE, 1, BEYOND) == BEYOND


def test_large_box_is_cut_and_finds_the_same(monkeypatch):
    random, box = np.random.default_rng(5), 40
    signal = filter_shells(random.normal(size=(box,) * 3), lowpass_gain(box, 8))
    halves = (signal + random.normal(size=(2, box, box, box))).astype(np.float32)
    mask = soft_sphere(box, 14, 4)
    whole = significant_shell(halves, mask, 1, BEYOND)
    monkeypatch.setattr(significance, "SMALLEST_BOX", 24)
    assert abs(significant_shell(halves, mask, 1, BEYOND) - whole) <= 1
    assert whole >= 7


def test_shells_without_data_are_no_agreement():
    random = np.random.default_rng(6)
    gain = lowpass_gain(BOX, 6, 0.1)
    halves = np.stack([filter_shells(half, gain) for half in white(random)])
    signal = filter_shells(white(random)[0], gain)
    assert BEYOND < significant_shell(halves + 3 * signal, SPHERE, 1, BEYOND) <= 6
    assert significant_shell(halves + 3 * signal, SPHERE, 1, 9) == 9
