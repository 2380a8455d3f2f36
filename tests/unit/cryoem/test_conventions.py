"""The conventions of CONVENTIONS.md, as cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpipar.cryoem.alignment import make_reference, phases, slices_of
from mpipar.cryoem.ctf import CtfParameters, contrast_transfer
from mpipar.cryoem.fourier import components, image_components, volume_half_transform
from mpipar.cryoem.rotations import from_euler
from mpipar.cryoem.symmetry import operators
from tests.support import naive

BOX = 16
WANTED = components(BOX, 5)
FLAT = np.eye(3)[None]


def index_of(kx: int, ky: int) -> int:
    return int(np.flatnonzero((WANTED.frequencies == (kx, ky)).all(axis=1))[0])


def point_image(x: int, y: int) -> np.ndarray:
    image = np.zeros((1, BOX, BOX), np.float32)
    image[0, BOX // 2 + y, BOX // 2 + x] = 1
    return image


def test_arrays_are_z_y_x_with_the_origin_at_half_the_box():
    volume = naive.Blobs(np.array([[3.0, 2.0, -4.0]]), np.ones(1), 0.4).volume(BOX)
    assert np.argwhere(volume == volume.max()).tolist() == [[8 - 4, 8 + 2, 8 + 3]]


def test_fourier_sign_is_minus_and_the_centre_has_phase_zero():
    at_centre = image_components(point_image(0, 0), WANTED)
    np.testing.assert_allclose(at_centre, 1, atol=1e-6)
    # one pixel to the right: exp(-2 pi i / 16) at kx = 1
    right = image_components(point_image(1, 0), WANTED)[0, index_of(1, 0)]
    assert right == pytest.approx(complex(math.cos(math.pi / 8), -math.sin(math.pi / 8)), abs=1e-6)
    down = image_components(point_image(0, 4), WANTED)[0, index_of(0, 1)]
    assert down == pytest.approx(-1j, abs=1e-6)


def test_zero_frequency_is_the_sum():
    image = np.full((1, BOX, BOX), 0.5, np.float32)
    assert image_components(image, WANTED)[0, 0] == pytest.approx(128)
    volume = np.full((8, 8, 8), 0.5, np.float32)
    assert volume_half_transform(volume, 2, 3)[8, 8, 0] == pytest.approx(256)


def test_unit_orientation_projects_along_z():
    molecule = naive.Blobs(np.array([[3.0, -1.0, 4.0]]), np.array([2.0]), 1.2)
    reference = make_reference(molecule.volume(BOX), 5)
    projected = slices_of(reference, FLAT, WANTED.frequencies).view(np.complex64)
    image = molecule.volume(BOX).sum(axis=0)[None]  # over z: what is left is [y, x]
    ratio = projected / image_components(image, WANTED)
    # on the voxels of the transform interpolation does not attenuate, and undoing it overshoots
    np.testing.assert_allclose(np.abs(ratio), 1.06, atol=0.06)
    np.testing.assert_allclose(np.angle(ratio), 0, atol=0.07)


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((90, 0, 0), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
        ((0, 90, 0), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
        ((0, 0, 90), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
        # rot acts last on the map's axes, psi first: Rz(90) Ry(90) Rz(0)
        ((90, 90, 0), [[0, -1, 0], [0, 0, 1], [-1, 0, 0]]),
        ((0, 90, 90), [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    ],
)
def test_euler_angles(angles, expected):
    np.testing.assert_allclose(from_euler(np.array([angles], float))[0], expected, atol=1e-12)


def test_viewing_direction_is_the_third_column():
    rot, tilt = math.radians(30), math.radians(50)
    seen_from = from_euler(np.array([[30.0, 50.0, 77.0]]))[0, :, 2]
    expected = (math.sin(tilt) * math.cos(rot), math.sin(tilt) * math.sin(rot), math.cos(tilt))
    assert seen_from == pytest.approx(expected)


@pytest.mark.parametrize(
    ("angles", "seen_at"),
    [
        ((0, 0, 0), (4, 0)),
        # image coordinate = R^T map coordinate: in-plane turn by psi moves x to -y
        ((0, 0, 90), (0, -4)),
        ((90, 0, 0), (0, -4)),
        # seen along x: a point on x lies on the axis of view
        ((0, 90, 0), (0, 0)),
        # and from below it is on the other side
        ((0, 180, 0), (-4, 0)),
    ],
)
def test_a_point_on_the_x_axis_is_seen_at(angles, seen_at):
    molecule = naive.Blobs(np.array([[4.0, 0.0, 0.0]]), np.ones(1), 1.2)
    reference = make_reference(molecule.volume(BOX), 5)
    rotation = from_euler(np.array([angles], float))
    projected = slices_of(reference, rotation, WANTED.frequencies).view(np.complex64)[0]
    at = [np.angle(projected[index_of(1, 0)]), np.angle(projected[index_of(0, 1)])]
    assert np.array(at) * -BOX / (2 * math.pi) == pytest.approx(seen_at, abs=0.05)


def test_hand_is_kept():
    molecule = naive.blobs(BOX, seed=2)
    mirrored = naive.Blobs(molecule.places * (1, 1, -1), molecule.weights, molecule.width)
    rotation = from_euler(np.array([[20.0, 60.0, 40.0]]))
    reference = make_reference(molecule.volume(BOX), 5)
    projected = slices_of(reference, rotation, WANTED.frequencies).view(np.complex64)[0]
    true, other = (
        image_components(m.image(BOX, rotation[0])[None].astype(np.float32), WANTED)[0]
        for m in (molecule, mirrored)
    )
    assert np.abs(projected - true).max() < 0.12 * np.abs(projected - other).max()


def test_shift_is_where_the_particle_lies():
    centred, moved = (image_components(point_image(*at), WANTED) for at in ((0, 0), (3, -2)))
    back = moved * phases(np.array([[3.0, -2.0]]), WANTED.frequencies, BOX)
    np.testing.assert_allclose(back, centred, atol=1e-6)


def ctf_at(kx: float, ky: float, **changed: float) -> float:
    plain = {
        "defocus_u": 0.0, "defocus_v": 0.0, "defocus_angle": 0.0, "voltage": 300.0,
        "spherical_aberration": 0.0, "amplitude_contrast": 0.0, "phase_shift": 0.0,
        "b_factor": 0.0, "scale": 1.0,
    }  # fmt: skip
    parameters = CtfParameters(**{k: np.array([v]) for k, v in (plain | changed).items()})
    # box 10 of 1 A: k cycles per box is k / 10 per Angstrom
    return float(contrast_transfer(parameters, np.array([[kx, ky]]), 10, 1.0)[0, 0])


def test_ctf_by_hand():
    # 300 kV: 0.019687 A. Defocus 5000 A at 1/10 A: pi x 0.019687 x 5000 x 0.01 = 3.0924
    assert ctf_at(1, 0, defocus_u=5000, defocus_v=5000) == pytest.approx(math.sin(3.0924), abs=1e-3)
    # underfocus is positive and starts positive
    assert ctf_at(0.1, 0, defocus_u=5000, defocus_v=5000) > 0
    # 2.7 mm at 1/2 A: pi / 2 x 2.7e7 x 0.019687^3 x 0.0625 = 20.225; it acts against defocus
    assert ctf_at(5, 0, spherical_aberration=2.7) == pytest.approx(-math.sin(20.225), abs=5e-3)
    assert ctf_at(0, 0, amplitude_contrast=0.1) == pytest.approx(0.1)
    assert ctf_at(0, 0, phase_shift=90) == pytest.approx(1)
    assert ctf_at(0, 0, phase_shift=30, scale=0.8) == pytest.approx(0.4)
    # exp(-100 / 4 x 1/100)
    assert ctf_at(1, 0, phase_shift=90, b_factor=100) == pytest.approx(math.exp(-0.25))


def test_astigmatism_points_u_along_its_angle():
    # U along y: at (0, k) the defocus is U, at (k, 0) it is V
    along_y = {"defocus_u": 6000.0, "defocus_v": 3000.0, "defocus_angle": 90.0}
    assert ctf_at(0, 1, **along_y) == pytest.approx(ctf_at(0, 1, defocus_u=6000, defocus_v=6000))
    assert ctf_at(1, 0, **along_y) == pytest.approx(ctf_at(1, 0, defocus_u=3000, defocus_v=3000))
    # 45 degrees is the diagonal x = y, not x = -y
    diagonal = {"defocus_u": 6000.0, "defocus_v": 3000.0, "defocus_angle": 45.0}
    even = {"defocus_u": 6000.0, "defocus_v": 6000.0}
    assert ctf_at(1, 1, **diagonal) == pytest.approx(ctf_at(1, 1, **even))
    assert ctf_at(1, -1, **diagonal) != pytest.approx(ctf_at(1, -1, **even), abs=0.01)


def test_symmetry_axes():
    third = operators("C3")
    expected = [[-0.5, -math.sqrt(3) / 2, 0.0], [math.sqrt(3) / 2, -0.5, 0.0], [0.0, 0.0, 1.0]]
    assert any(np.allclose(operator, expected) for operator in third)
    assert any(np.allclose(operator, np.diag([1, -1, -1])) for operator in operators("D3"))
    assert not any(np.allclose(operator, np.diag([-1, 1, -1])) for operator in operators("D3"))
