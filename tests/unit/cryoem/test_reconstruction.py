"""From slices with known poses back to the molecule, exactly the same in any order."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mpipar.cryoem.alignment import weigh
from mpipar.cryoem.fourier import OVERSAMPLING, components, image_components
from mpipar.cryoem.reconstruction import (
    LARGEST_SUM_BITS,
    SLICES_PER_VOXEL,
    FixedPoint,
    HalfSums,
    OrientationSums,
    cosets,
    empty_sums,
    fixed_point,
    half_sums,
    insert,
    solve,
)
from mpipar.cryoem.resolution import fourier_shell_correlation
from mpipar.cryoem.symmetry import operators
from mpipar.errors import ProtocolError
from tests.support import naive

BOX, RADIUS = 24, 11
WANTED = components(BOX, RADIUS)
C1 = operators("C1")


def halved_at_zero(values: np.ndarray) -> np.ndarray:
    values[:, 0] *= 0.5  # zero frequency is its own Friedel mate
    return values


def sums_of(
    molecule: naive.Blobs, rotations: np.ndarray, scales: FixedPoint, radius: int = RADIUS
) -> np.ndarray:
    wanted = components(BOX, radius)
    images = np.array([molecule.image(BOX, rotation) for rotation in rotations], np.float32)
    ctf = np.ones((len(images), len(wanted.shell)), np.float32)
    values = weigh(image_components(images, wanted), ctf, np.ones(len(wanted.shell), np.float32))
    sums = empty_sums(radius)
    insert(sums, halved_at_zero(values), rotations, wanted, scales)
    return sums


def test_sums_by_orientation_are_those_of_slices_of_known_pose():
    molecule = naive.blobs(BOX)
    rotations = Rotation.random(200, random_state=0).as_matrix().astype(np.float32)
    images = np.array([molecule.image(BOX, rotation) for rotation in rotations], np.float32)
    ones = np.ones((len(images), len(WANTED.shell)), np.float32)
    values = halved_at_zero(weigh(image_components(images, WANTED), ones, ones[0]))
    scales = fixed_point(float(molecule.weights.sum()), 1.0, 400)
    expected = empty_sums(RADIUS)
    for _ in range(2):
        insert(expected, values, rotations.astype(np.float64), WANTED, scales)
    sums = OrientationSums(rotations, WANTED, scales)
    planes = np.moveaxis(values, 2, 0)
    for rows in (np.arange(200), np.arange(150), np.arange(150, 200)):
        sums.add(planes[:, rows], rows)
    found = sums.inserted(RADIUS)
    assert np.array_equal(found, sums.inserted(RADIUS))
    for part in range(3):
        largest = np.abs(expected[..., part]).max()
        np.testing.assert_allclose(found[..., part], expected[..., part], atol=2e-3 * largest)
    maps = [solve(half_sums(one, scales, C1, BOX), None, RADIUS) for one in (found, expected)]
    assert np.abs(maps[0] - maps[1]).max() < 2e-3 * np.abs(maps[1]).max()


def test_many_slices_give_back_the_molecule():
    molecule = naive.blobs(BOX)
    scales = fixed_point(float(molecule.weights.sum()), 1.0, 1500)
    sums = sums_of(molecule, Rotation.random(1500, random_state=0).as_matrix(), scales)
    volume = solve(half_sums(sums, scales, C1, BOX), None, RADIUS)
    truth = molecule.volume(BOX)
    assert fourier_shell_correlation(volume, truth)[: int(0.8 * BOX / 2) + 1].min() > 0.95
    scale = (volume * truth).sum() / (truth * truth).sum()
    assert scale == pytest.approx(1, abs=0.02)
    assert np.corrcoef(volume.ravel(), truth.ravel())[0, 1] > 0.99


def test_ctf_and_noise_weights_cancel():
    """CTF x image summed over CTF^2: the molecule again, whatever contrast each image has."""
    molecule = naive.blobs(BOX)
    rotations = Rotation.random(600, random_state=1).as_matrix()
    defocus = np.random.default_rng(0).uniform(0.2, 0.6, 600)
    ctf = np.cos(defocus[:, None] * WANTED.distance).astype(np.float32)
    images = np.array([molecule.image(BOX, rotation) for rotation in rotations], np.float32)
    weights = (1 / (1 + WANTED.distance)).astype(np.float32)
    values = halved_at_zero(weigh(image_components(images, WANTED) * ctf, ctf, weights))
    scales, sums = fixed_point(float(molecule.weights.sum()), 1.0, 600), empty_sums(RADIUS)
    insert(sums, values, rotations, WANTED, scales)
    volume = solve(half_sums(sums, scales, C1, BOX), None, RADIUS)
    truth = molecule.volume(BOX)
    assert (volume * truth).sum() / (truth * truth).sum() == pytest.approx(1, abs=0.03)
    assert fourier_shell_correlation(volume, truth)[:9].min() > 0.95


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11), max_size=3))
def test_blocks_in_any_order_give_the_same_bits(order, cuts):
    molecule, scales = naive.blobs(BOX), FixedPoint(2.0**30, 2.0**40)
    rotations = Rotation.random(12, random_state=2).as_matrix()
    whole = sums_of(molecule, rotations, scales, radius=6)
    parts = np.split(np.array(order), sorted(cuts))
    pieces = [sums_of(molecule, rotations[part], scales, radius=6) for part in parts]
    assert np.array_equal(np.sum(pieces, axis=0, dtype=np.int64), whole)


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.one_of(st.floats(-180, 180), st.sampled_from([0, 45, 54.7356, 90]))] * 3),
    sign=st.sampled_from([-1.0, 1.0]),
    particles=st.integers(1, 10**6),
    largest=st.floats(1e-12, 1e12),
)
def test_no_slice_exceeds_the_share_that_bounds_the_sums(angles, sign, particles, largest):
    rotation = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    wanted = components(16, 7)
    values = np.full((1, len(wanted.shell), 3), sign * largest, np.float32)
    scales = fixed_point(float(np.float32(largest)), float(np.float32(largest)), particles)
    sums = empty_sums(7)
    insert(sums, values, rotation[None], wanted, scales)
    # all particles in this one orientation, and the mates at x = 0 on top
    most = max(int(sums.max()), -int(sums.min())) * 2 * particles
    assert most < 2**LARGEST_SUM_BITS
    in_units = most / (2 * particles * scales.value * float(np.float32(largest)))
    assert in_units < SLICES_PER_VOXEL / 2


@given(value=st.floats(0, 1e300), weight=st.floats(0, 1e300), particles=st.integers(0, 10**9))
def test_scales_are_powers_of_two_within_the_bound(value, weight, particles):
    scales = fixed_point(value, weight, particles)
    for scale, largest in ((scales.value, value), (scales.weight, weight)):
        assert math.frexp(scale)[0] == 0.5
        assert largest * scale * SLICES_PER_VOXEL * particles <= 2**62


@pytest.mark.parametrize("value", [2**62, -(2**62), -(2**63)])
def test_overflow_of_either_sign_is_an_error_that_says_where(value):
    sums = empty_sums(2)
    sums[3, 4, 1, 2] = value
    where = re.escape(f"overflowed: {value} (weight, voxel z y x [3, 4, 1])")
    with pytest.raises(ProtocolError, match=where):
        half_sums(sums, FixedPoint(1.0, 1.0), C1, 8)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("C1", []), ("C5", [5]), ("D7", [7, 2]), ("T", [3, 4]), ("O", [4, 6]), ("I2", [5, 12])],
)
def test_products_of_cosets_are_the_group(name, lengths):
    group = operators(name)
    parts = cosets(group)
    assert [len(part) for part in parts] == lengths
    products = np.eye(3)[None]
    for part in parts:
        products = np.einsum("aij,bjk->abik", part, products).reshape(-1, 3, 3)
    assert len(products) == len(group)
    assert all(
        np.isclose(products, operator, atol=1e-6).all(axis=(1, 2)).sum() == 1 for operator in group
    )


@pytest.mark.parametrize("name", ["C3", "D2", "O"])
def test_averaging_is_the_mean_over_all_operators(name):
    molecule, scales = naive.blobs(BOX), fixed_point(100.0, 1.0, 400)
    sums = sums_of(molecule, Rotation.random(400, random_state=3).as_matrix(), scales)
    volume = solve(half_sums(sums, scales, operators(name), BOX), None, RADIUS)
    places = np.concatenate([molecule.places @ operator.T for operator in operators(name)])
    weights = np.tile(molecule.weights, len(operators(name))) / len(operators(name))
    truth = naive.Blobs(places, weights, molecule.width).volume(BOX)
    assert fourier_shell_correlation(volume, truth)[:8].min() > 0.97
    assert (volume * truth).sum() / (truth * truth).sum() == pytest.approx(1, abs=0.03)


def test_averaged_sums_are_symmetric_voxel_by_voxel():
    molecule, scales = naive.blobs(BOX), fixed_point(100.0, 1.0, 50)
    sums = sums_of(molecule, Rotation.random(50, random_state=3).as_matrix(), scales)
    halves = half_sums(sums, scales, operators("C4"), BOX)
    reach = np.arange(-23, 24)
    z, y, x = (k.ravel() for k in np.meshgrid(reach, reach, reach[23:], indexing="ij"))
    # up to the outermost voxels that a slice touches
    inside = (x * x + y * y + z * z <= 23**2) & (y >= 0)
    for half in (halves.values[..., :2] @ (1, 1j), halves.values[..., 2]):
        # x, y -> -y, x is a quarter turn, which moves voxels whole; here seen from y, -x
        here, there = half[z + 24, y + 24, x][inside], half[z + 24, 24 - x, y][inside]
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5 * np.abs(half).max())


def test_wiener_term_damps_what_does_not_correlate():
    molecule, scales = naive.blobs(BOX), fixed_point(100.0, 1.0, 300)
    sums = sums_of(molecule, Rotation.random(300, random_state=4).as_matrix(), scales)
    halves = half_sums(sums, scales, C1, BOX)
    plain = np.abs(np.fft.rfftn(solve(halves, None, RADIUS)))
    good = np.abs(np.fft.rfftn(solve(halves, np.full(13, 0.999), RADIUS)))
    bad = np.abs(np.fft.rfftn(solve(halves, np.zeros(13), RADIUS)))
    half = np.abs(np.fft.rfftn(solve(halves, np.full(3, 0.5), RADIUS)))  # short: its end goes on
    low = np.s_[1:5, 1:5, 1:5]
    assert good[low].sum() == pytest.approx(plain[low].sum(), rel=0.02)
    assert half[low].sum() == pytest.approx(plain[low].sum() / 2, rel=0.15)
    assert bad[low].sum() < 0.01 * plain[low].sum()


def test_nothing_lies_beyond_the_radius():
    molecule, scales = naive.blobs(BOX), fixed_point(100.0, 1.0, 100)
    sums = sums_of(molecule, Rotation.random(100, random_state=5).as_matrix(), scales, radius=6)
    volume = solve(half_sums(sums, scales, C1, BOX), None, 6)
    power = np.abs(np.fft.rfftn(volume)) ** 2
    k = np.fft.fftfreq(BOX, 1 / BOX)
    beyond = np.hypot(np.hypot(k[:, None, None], k[None, :, None]), np.arange(13)) > 8
    assert power[beyond].sum() < 0.01 * power.sum()


def test_nothing_inserted_gives_an_empty_map():
    halves = half_sums(empty_sums(5), fixed_point(1.0, 1.0, 1), operators("D2"), 16)
    volume = solve(halves, np.full(9, 0.5), 5)
    assert volume.shape == (16, 16, 16)
    np.testing.assert_array_equal(volume, 0)


def test_map_of_both_halves_is_that_of_their_sums():
    molecule, scales = naive.blobs(BOX), fixed_point(100.0, 1.0, 200)
    turns = Rotation.random(120, random_state=5).as_matrix()
    parts = [sums_of(molecule, part, scales) for part in (turns[:50], turns[50:])]
    one, two, both = (half_sums(sums, scales, C1, BOX) for sums in (*parts, parts[0] + parts[1]))
    curve = np.linspace(1.0, 0.1, BOX // 2 + 1)
    expected = solve(both, curve, RADIUS)
    found = solve(one, curve, RADIUS, other=two)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_mean_weight_counts_image_frequencies():
    values: np.ndarray = np.zeros(empty_sums(4).shape, np.float32)
    centre = values.shape[0] // 2
    values[centre, centre, 0, 2] = 5.0
    values[centre, centre, 3 * OVERSAMPLING, 2] = 1.0
    values[centre - 4 * OVERSAMPLING, centre, 0, 2] = 2.0
    mean = HalfSums.of(values, BOX).mean_weight
    k = np.arange(-centre, centre + 1) / OVERSAMPLING
    kx = np.arange(values.shape[2]) / OVERSAMPLING
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + kx[None, None, :] ** 2))
    expected = [5.0, 0.0, 0.0, 1.0, 2.0] / np.array([(shell == s).sum() for s in range(5)])
    np.testing.assert_allclose(mean[:5], expected)
