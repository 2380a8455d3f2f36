"""How evenly orientations fill Fourier space, and the FSC by direction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem.orientation_spread import (
    CONE,
    EMPTY,
    NARROWEST,
    DirectionalResolution,
    OrientationSpread,
    directional_resolution,
    spread_of,
    view_density,
)
from mpipar.cryoem.resolution import fourier_shell_correlation, resolution_of
from mpipar.cryoem.rotations import from_euler
from mpipar.cryoem.symmetry import operators

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOX, PIXEL_SIZE = 48, 2.0


def anywhere(count: int, seed: int = 0) -> NDArray[np.float64]:
    some = Rotation.random(max(count, 1), random_state=seed)  # older scipy refuses none
    return np.asarray(some.as_matrix()[:count])


def about_z(
    count: int, share: float, degrees: float, seed: int = 1, lowest: float = 0.0
) -> NDArray[np.float64]:
    """Orientations of which a share looks within some degrees of z, the others from anywhere."""
    random = np.random.default_rng(seed)
    near = round(share * count)
    if near == 0:
        return anywhere(count, seed)
    cosine = random.uniform(math.cos(math.radians(degrees)), math.cos(math.radians(lowest)), near)
    tilt = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    rot, psi = random.uniform(-180, 180, (2, near))
    return np.concatenate(
        [from_euler(np.stack([rot, tilt, psi], axis=1)), anywhere(count - near, seed)]
    )


def side_views(count: int) -> NDArray[np.float64]:
    return about_z(count, 1.0, 90.0, lowest=90.0)


def judged(rotations: NDArray[np.float64], group: str = "C1") -> OrientationSpread:
    spread = spread_of(rotations, operators(group))
    assert spread is not None
    return spread


@pytest.mark.parametrize("count", [100, 200, 5000])
@pytest.mark.parametrize("group", ["C1", "D7", "I"])
def test_an_even_spread_is_efficient_whatever_the_number(count: int, group: str) -> None:
    spread = judged(anywhere(count), group)
    assert spread.efficiency > 0.95
    assert spread.empty == 0


@pytest.mark.parametrize("count", [200, 20_000])
def test_side_views_are_as_good_as_the_theory_says(count: int) -> None:
    """0.81 for views from all around one axis (Baldwin & Lyumkis 2020)."""
    assert judged(side_views(count)).efficiency == pytest.approx(0.8, abs=0.05)


def test_a_preferred_view_costs_most_of_the_particles() -> None:
    efficiencies = [
        judged(about_z(2000, share, 20)).efficiency for share in (0.0, 0.5, 0.8, 0.9, 1.0)
    ]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[1] > 0.6
    assert efficiencies[2] == pytest.approx(0.3, abs=0.1)
    assert efficiencies[4] < 0.05


def test_one_view_fills_one_plane_only() -> None:
    spread = judged(about_z(2000, 1.0, 0.1))
    assert spread.empty == pytest.approx(1 - NARROWEST, abs=0.02)
    assert spread.efficiency < 0.03


def test_symmetry_mates_look_from_other_sides() -> None:
    tilted = from_euler(np.array([[30.0, 90.0, 0.0]])) @ about_z(2000, 1.0, 20)
    assert judged(tilted).efficiency < 0.1
    assert judged(tilted, "D7").efficiency > 0.7
    assert judged(tilted, "O").efficiency > 3 * judged(tilted, "C4").efficiency
    # a rotation about the common view brings nothing new
    assert judged(about_z(2000, 1.0, 20), "C7").efficiency < 0.1


@pytest.mark.parametrize("rotations", [anywhere(1500), side_views(1500), about_z(1500, 0.8, 30)])
@pytest.mark.parametrize("group", ["C1", "C3"])
def test_efficiency_is_as_defined(rotations: NDArray[np.float64], group: str) -> None:
    """Counted view by view, without cells."""
    views = np.concatenate([operator @ rotations[:, :, 2].T for operator in operators(group)], 1)
    asked = anywhere(3000, seed=5)[:, :, 0]
    sampling = np.array([np.count_nonzero(np.abs(u @ views) < NARROWEST) for u in asked])
    relative = np.maximum(sampling / sampling.mean(), EMPTY)
    expected = 1 / (1 / relative).mean()
    assert judged(rotations, group).efficiency == pytest.approx(expected, rel=0.05)


def test_too_few_views_are_not_judged() -> None:
    assert spread_of(anywhere(99), operators("C1")) is None
    assert spread_of(anywhere(50), operators("C2")) is not None


def test_density_counts_each_mate_once() -> None:
    density = view_density(anywhere(300), operators("D2"))
    assert density.sum() == 300 * 4


def halves(missing: float = 0.0, noise: float = 0.35) -> list[NDArray[np.float64]]:
    """Two half maps of one object that falls off outwards, without a cone about z, in degrees."""
    random = np.random.default_rng(3)
    k = np.fft.fftfreq(BOX, 1 / BOX)
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    distance = np.sqrt(kz**2 + ky**2 + kx**2)
    kept = np.abs(kz) <= distance * math.cos(math.radians(missing)) if missing else distance >= 0
    object_ = np.fft.fftn(random.normal(size=(BOX,) * 3)) * np.exp(-((distance / 9) ** 2)) * kept
    signal = np.fft.ifftn(object_).real
    return [signal + noise * signal.std() * random.normal(size=signal.shape) for _ in range(2)]


def by_direction(maps: list[NDArray[np.float64]]) -> DirectionalResolution:
    return directional_resolution(maps[0], maps[1], PIXEL_SIZE)


def test_an_even_map_is_as_good_in_all_directions() -> None:
    first, second = halves()
    everywhere = resolution_of(fourier_shell_correlation(first, second), 0.143, BOX, PIXEL_SIZE)
    found = directional_resolution(first, second, PIXEL_SIZE)
    assert np.median(found.resolution) == pytest.approx(everywhere, rel=0.06)
    assert found.worst / found.best < 1.4


def test_a_missing_cone_is_the_worst_direction() -> None:
    found = by_direction(halves(missing=35))
    even = by_direction(halves())
    worst = found.axes[np.argmax(found.resolution)]
    assert abs(worst[2]) > math.cos(math.radians(15))
    assert found.worst > 2 * even.worst
    aside = np.abs(found.axes[:, 2]) < math.cos(math.radians(35 + CONE))
    assert found.resolution[aside].max() <= 1.1 * even.worst


def test_curves_are_as_defined() -> None:
    """Component by component; directions are rounded to cells, so some at the rim differ."""
    first, second = halves(noise=0.6)
    found = directional_resolution(first, second, PIXEL_SIZE)
    k = np.fft.fftfreq(BOX, 1 / BOX)
    kz, ky, kx = (axis.ravel() for axis in np.meshgrid(k, k, k, indexing="ij"))
    distance = np.sqrt(kx**2 + ky**2 + kz**2)
    one, two = np.fft.fftn(first).ravel(), np.fft.fftn(second).ravel()
    for number in (0, 40, 99):
        along = np.abs(np.stack([kx, ky, kz], axis=1) @ found.axes[number])
        inside = (along >= distance * math.cos(math.radians(CONE))) & (distance > 0)
        for shell in (8, 12, 17):
            some = inside & (np.abs(np.rint(distance) - shell) <= 1)
            power = (np.abs(one[some]) ** 2).sum() * (np.abs(two[some]) ** 2).sum()
            expected = (one[some] * two[some].conj()).real.sum() / np.sqrt(power)
            assert found.curves[number, shell] == pytest.approx(expected, abs=0.04)


def test_shells_with_too_few_components_are_left_out() -> None:
    found = by_direction(halves())
    assert np.isnan(found.curves[:, :3]).all()
    assert np.isfinite(found.curves[:, 10:]).all()


def test_what_the_mask_causes_is_taken_off() -> None:
    first, second = halves()
    plain = directional_resolution(first, second, PIXEL_SIZE)
    corrected = directional_resolution(first, second, PIXEL_SIZE, np.full(BOX // 2 + 1, 0.3))
    np.testing.assert_allclose(corrected.curves, (plain.curves - 0.3) / 0.7)
    assert corrected.best > plain.best


def test_axes_are_unit_vectors_of_a_half_sphere() -> None:
    axes = by_direction(halves()).axes
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1)
    nearest = np.sort(np.abs(axes @ axes.T), axis=1)[:, -2]
    assert np.degrees(np.arccos(nearest)).max() < 2 * CONE / 2  # no direction is far from all axes


def test_maps_of_nothing_are_not_resolved() -> None:
    found = by_direction([np.zeros((16, 16, 16))] * 2)
    assert (found.resolution >= 16 * PIXEL_SIZE / 8).all()
    assert found.best > 2 * PIXEL_SIZE
