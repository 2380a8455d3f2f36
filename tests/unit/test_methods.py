"""Formulas of docs/methods.md against the code: computed again from the page, slowly, by loops.

Nothing here calls a function of the code to get what it expects.
"""

from __future__ import annotations

import cmath
import itertools
import math

import numpy as np
import pytest

from mpipar.cryoem import alignment, masks, noise
from mpipar.cryoem.ctf import CtfParameters, contrast_transfer, electron_wavelength
from mpipar.cryoem.fourier import components, image_components, volume_transform
from mpipar.cryoem.reconstruction import FixedPoint, HalfSums, fixed_point, solve
from mpipar.cryoem.resolution import (
    corrected_correlation,
    fourier_shell_correlation,
    resolution_of,
)
from mpipar.cryoem.rotations import from_euler
from mpipar.cryoem.search_plan import Sampling, plan_search
from mpipar.kernels import poses
from tests.support import naive

BOX, RADIUS = 10, 3
ANGLES, SHIFT = (40.0, 70.0, -25.0), (1.3, -0.6)


def wavelength(kilovolt: float) -> float:
    volts = 1000.0 * kilovolt
    return 12.2643247 / math.sqrt(volts * (1 + 0.978466e-6 * volts))


def test_electron_wavelength():
    assert electron_wavelength(np.array([300.0]))[0] == pytest.approx(wavelength(300), rel=1e-12)
    assert wavelength(300) == pytest.approx(0.0196876, abs=1e-7)
    planck, electron, charge, light = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    constant = 1e10 * planck / math.sqrt(2 * electron * charge)
    relativistic = charge / (2 * electron * light**2)
    assert [constant, relativistic] == pytest.approx([12.2642597, 0.9784756e-6], rel=1e-7)
    true = constant / math.sqrt(3e5 * (1 + relativistic * 3e5))
    assert wavelength(300) / true - 1 == pytest.approx(6.4e-6, abs=1e-7)


OPTICS = {
    "defocus_u": 15200.0, "defocus_v": 13900.0, "defocus_angle": 33.0, "voltage": 200.0,
    "spherical_aberration": 2.7, "amplitude_contrast": 0.08, "phase_shift": 12.0,
    "b_factor": 60.0, "scale": 0.9,
}  # fmt: skip
PIXEL = 2.4


def transfer(kx: float, ky: float) -> float:
    q = math.hypot(kx, ky) / (BOX * PIXEL)
    long = wavelength(OPTICS["voltage"])
    u, v = OPTICS["defocus_u"], OPTICS["defocus_v"]
    direction = math.atan2(ky, kx) - math.radians(OPTICS["defocus_angle"])
    defocus = (u + v) / 2 + (u - v) / 2 * math.cos(2 * direction)
    phase = math.pi * long * defocus * q**2
    phase -= math.pi / 2 * OPTICS["spherical_aberration"] * 1e7 * long**3 * q**4
    phase += math.radians(OPTICS["phase_shift"]) + math.asin(OPTICS["amplitude_contrast"])
    return OPTICS["scale"] * math.exp(-OPTICS["b_factor"] * q**2 / 4) * math.sin(phase)


def coded_transfer(frequencies: np.ndarray) -> np.ndarray:
    parameters = CtfParameters(**{name: np.array([value]) for name, value in OPTICS.items()})
    return contrast_transfer(parameters, frequencies, BOX, PIXEL)


def test_contrast_transfer():
    places = [(0, 0), (1, 0), (0, -3), (2, 1), (4, -4)]
    expected = [transfer(*place) for place in places]
    assert max(expected) - min(expected) > 1  # all over the curve
    assert coded_transfer(np.array(places, np.float32))[0] == pytest.approx(expected, abs=2e-6)


def turned(angles: tuple[float, float, float]) -> np.ndarray:
    """Rz(rot) Ry(tilt) Rz(psi)."""
    (c1, s1), (c2, s2), (c3, s3) = ((math.cos(t), math.sin(t)) for t in map(math.radians, angles))
    first = np.array([[c1, -s1, 0], [s1, c1, 0], [0, 0, 1]])
    second = np.array([[c2, 0, s2], [0, 1, 0], [-s2, 0, c2]])
    third = np.array([[c3, -s3, 0], [s3, c3, 0], [0, 0, 1]])
    return np.asarray(first @ second @ third)


def sinc_squared(box: int) -> np.ndarray:
    one = [
        (math.sin(math.pi * x / (2 * box)) / (math.pi * x / (2 * box))) ** 2 if x else 1.0
        for x in range(-(box // 2), box - box // 2)
    ]
    return np.asarray(np.einsum("i,j,k->ijk", one, one, one))


def sliced(volume: np.ndarray, rotation: np.ndarray, kx: int, ky: int) -> complex:
    """The transform of volume / sinc^2 at the voxels of half a cycle, read by interpolation."""
    sharpened = volume / sinc_squared(len(volume))
    point = 2 * (rotation @ np.array([kx, ky, 0.0]))
    low = np.floor(point)
    total = 0j
    for corner in itertools.product((0, 1), repeat=3):
        share = math.prod(p if c else 1 - p for p, c in zip(point - low, corner, strict=True))
        total += share * naive.volume_transform(sharpened, *((low + corner) / 2))
    return total


def half_plane(radius: int) -> list[tuple[int, int]]:
    """One of each Friedel pair in shells 1 to the radius: the score has no zero frequency."""
    plane = itertools.product(range(radius + 1), range(-radius, radius + 1))
    return [
        (kx, ky) for kx, ky in plane if (kx > 0 or ky > 0) and round(math.hypot(kx, ky)) <= radius
    ]


@pytest.mark.parametrize("free", [False, True])
def test_score_of_a_pose(free: bool) -> None:
    random = np.random.default_rng(5)
    volume = naive.blobs(BOX, count=5).volume(BOX)
    image = random.normal(size=(BOX, BOX)) + 2 * volume.sum(axis=0)
    power = np.array([3.0, 20.0, 11.0, 6.0])
    cross = quadratic = 0.0
    for kx, ky in half_plane(RADIUS):
        v, c = power[round(math.hypot(kx, ky))], transfer(kx, ky)
        projection = sliced(volume, turned(ANGLES), kx, ky)
        back = cmath.exp(2j * math.pi * (kx * SHIFT[0] + ky * SHIFT[1]) / BOX)
        moved = naive.image_transform(image, kx, ky) * back
        cross += (projection.conjugate() * c * moved).real / v
        quadratic += c * c * abs(projection) ** 2 / v
    expected = max(cross, 0) ** 2 / (2 * quadratic) if free else cross - quadratic / 2

    wanted = components(BOX, RADIUS)
    transform = image_components(image[None].astype(np.float32), wanted)
    ctf = coded_transfer(wanted.frequencies)
    data = alignment.weigh(transform, ctf, noise.weights(power, wanted))
    data[:, 0] = 0
    reference = alignment.make_reference(volume, RADIUS)
    result = np.empty((1, 3))
    options = poses.ClimbOptions(2, BOX, 0, free, 0.1, 1.0, 5.0)
    rotation, shift = from_euler(np.array([ANGLES])), np.array([SHIFT])
    poses.climb(
        reference.transform,
        wanted.frequencies,
        data[0],
        options,
        rotation,
        shift,
        result,
        np.empty((1, 5, 5)),
    )
    assert result[0] == pytest.approx([expected, cross, quadratic], rel=1e-4)


@pytest.mark.parametrize("radius", [5.0, 8.5])
def test_log_likelihood_is_twice_the_score_and_the_disc_takes_its_share(radius: float) -> None:
    """On noise alone a log-likelihood's cross term has the variance of its quadratic term.

    So a score that must be multiplied by c to be one has quadratic / variance of cross = c.
    """
    random = np.random.default_rng(2)
    wanted = components(20, 6)
    images = random.normal(size=(3000, 20, 20)).astype(np.float32)
    disc = masks.soft_discs(20, np.zeros((1, 2)), radius, 4.0)
    dot = naive.Blobs(np.array([[1.0, -1.0, 0.0]]), np.ones(1), 1.6)
    projection = image_components(dot.image(20, np.eye(3))[None].astype(np.float32), wanted)[0]
    factors = []
    for mask in (np.ones_like(disc), disc):
        transforms = image_components(images * mask, wanted)
        power = (np.abs(transforms) ** 2).mean(axis=0)
        power = np.array([power[wanted.shell == s].mean() for s in range(7)])[wanted.shell]
        cross = (projection.conj() * transforms / power)[:, 1:].real.sum(axis=1)
        quadratic = (np.abs(projection) ** 2 / power)[1:].sum()
        factors.append(float(quadratic / cross.var()))
    share = float((disc**2).mean())
    assert factors == [pytest.approx(2, rel=0.1), pytest.approx(2 * share, rel=0.15)]


def test_fsc_and_its_correction():
    random = np.random.default_rng(3)
    n = 12
    signal, first, second = random.normal(size=(3, n, n, n))
    smooth = naive.blobs(n).volume(n) * 60
    half1, half2 = ((smooth + 0.4 * signal + part).astype(np.float32) for part in (first, second))
    x = np.arange(n) - n // 2
    mask = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 <= 16).astype(np.float32)
    seed = np.random.SeedSequence(7, spawn_key=(4, 1))
    unmasked = naive.shell_correlation(half1, half2)
    masked = naive.shell_correlation(half1 * mask, half2 * mask)
    cut = next(s for s in range(2, n // 2 + 1) if unmasked[s] < 0.8)
    generator = np.random.default_rng(seed)
    scrambled = []
    for half in (half1, half2):
        transform = np.fft.rfftn(half)
        for z, y, kx in itertools.product(range(n), range(n), range(n // 2 + 1)):
            ky, kz = ((k + n // 2) % n - n // 2 for k in (y, z))
            if round(math.sqrt(kx**2 + ky**2 + kz**2)) >= cut:
                turn = cmath.exp(2j * math.pi * float(generator.random(dtype=np.float32)))
                transform[z, y, kx] = abs(transform[z, y, kx]) * turn
        scrambled.append(np.fft.irfftn(transform, s=half.shape, axes=(0, 1, 2)) * mask)
    by_mask = naive.shell_correlation(*scrambled)
    expected = [
        m if s < cut + 2 else max(0.0, (m - max(r, 0.0)) / (1 - max(r, 0.0)))
        for s, (m, r) in enumerate(zip(masked, by_mask, strict=True))
    ]
    assert max(by_mask[cut + 2 :]) > 0.05  # there is something to correct
    coded = fourier_shell_correlation(half1, half2)
    assert coded == pytest.approx(unmasked, abs=1e-5)
    inside = fourier_shell_correlation(half1 * mask, half2 * mask)
    transforms = [volume_transform(half) for half in (half1, half2)]
    corrected = corrected_correlation(transforms, mask, seed, coded, inside)
    assert corrected == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("curve", [None, np.array([1.0, 0.8, 0.3, 0.0])])
def test_map_that_is_solved_from_sums(curve: np.ndarray | None) -> None:
    """F = numerator / (weight + mean weight x t), back to space by a sum over all frequencies."""
    n, radius, m = 6, 2, 12
    random = np.random.default_rng(8)
    reach = 2 * radius + 2
    shape = (2 * reach + 1, 2 * reach + 1, reach + 2)
    numerator = random.normal(size=shape) + 1j * random.normal(size=shape)
    weight = random.uniform(0.2, 3, shape)
    for array in (numerator, weight):  # a map is real: mates in the plane x = 0
        array[:, :, 0] = (array[:, :, 0] + array[::-1, ::-1, 0].conj()) / 2
    shells: dict[int, list[tuple[int, int, int]]] = {s: [] for s in range(radius + 1)}
    for z, y, x in np.ndindex(*shape):
        shell = round(math.sqrt((z - reach) ** 2 + (y - reach) ** 2 + x**2) / 2)
        if shell <= radius:
            shells[shell].append((z, y, x))
    axis = np.arange(n) - n // 2
    density = np.zeros((n, n, n))
    for shell, places in shells.items():
        held = 1e-3 if curve is None else min(max(curve[shell], 0.001), 0.999)
        t = held if curve is None else (1 - held) / held
        mean = np.mean([weight[place] for place in places])
        for z, y, x in places:
            value = numerator[z, y, x] / (weight[z, y, x] + mean * t)
            turns = (z - reach) * axis[:, None, None] + (y - reach) * axis[:, None] + x * axis
            wave = value * np.exp(2j * np.pi * turns / m)
            density += (2 if x else 1) * wave.real / m**3
    values = np.stack([numerator.real, numerator.imag, weight], axis=-1).astype(np.float32)
    sums = HalfSums.of(values, n)
    expected = density / sinc_squared(n)
    assert solve(sums, curve, radius) == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())


def test_wiener_term_of_both_halves_is_that_of_one():
    """2 F / (1 + F) of the sums of both gives the prior that F gives of one half's."""
    for correlation in (0.05, 0.143, 0.5, 0.95):
        whole = 2 * correlation / (1 + correlation)
        ratio = correlation / (1 - correlation)
        assert whole == pytest.approx(2 * ratio / (1 + 2 * ratio))
        mean_of_half, mean_of_both = 3.0, 6.0
        assert mean_of_both * (1 - whole) / whole == pytest.approx(mean_of_half / ratio)


def test_resolution_is_read_between_two_shells():
    curve = np.array([1, 0.99, 0.9, 0.7, 0.4, 0.343, 0.043, 0.02, 0.01, 0.0, 0.0])
    between = (0.343 - 0.143) / (0.343 - 0.043)
    assert resolution_of(curve, 0.143, 20, 1.5) == pytest.approx(20 * 1.5 / (5 + between))


def test_scale_of_the_integers():
    """scale = 2^(61 - ceil(log2(bound) + log2(8 particles))): no sum reaches 2^62."""
    for bound, weight, particles in ((3.7, 0.01, 1000), (1e-9, 5e6, 7), (1e12, 1.0, 123_456)):
        expected = [
            2.0 ** (61 - math.ceil(math.log2(b) + math.log2(8 * particles)))
            for b in (bound, weight)
        ]
        assert fixed_point(bound, weight, particles) == FixedPoint(*expected)
        assert bound * 8 * particles * expected[0] <= 2**61


def test_plan_of_radii():
    """Box 64, diameter 40 pixels, D7, shell 11 resolved: the page's table by hand."""
    finer = 14 ** (1 / 6)
    plan = plan_search(Sampling(64, 40.0, 32, 14), 11, exhaustive=True, free_scale=False)
    assert plan.radius == 11 + 3
    assert Sampling(128, 60.0, 64).alignment_radius(40) == 40 + 4
    assert plan.coarse_radius == min(14, 24, round(8 * finer * 64 / 40))
    assert plan.middle_radius == 14
    assert plan.step == pytest.approx(10 / finer)
    assert plan.shift_range == pytest.approx(0.085 * 64)
    assert plan.shift_step == pytest.approx(min(0.085 * 64 / 2.5, 64 / (4 * 14)))
    assert Sampling(64, 40.0, 32, 14).insertion_radius(14, last=False) == 28
