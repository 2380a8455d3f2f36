"""Soft masks, backgrounds and diameters."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.cryoem import masks
from mpipar.cryoem.fourier import volume_transform
from mpipar.cryoem.solvent import solvent_mask
from mpipar.errors import InputError
from tests.support import naive


def test_edge_is_one_inside_and_zero_outside():
    edge = masks.soft_edge(np.array([0, 5, 6, 7, 9, 20.0]), 5, 4)
    assert edge == pytest.approx([1, 1, 0.8536, 0.5, 0, 0], abs=1e-4)


@pytest.mark.parametrize("box", [16, 17])
def test_sphere_is_centred_on_half_the_box(box):
    sphere = masks.soft_sphere(box, 4, 2)
    half = box // 2
    assert sphere.shape == (box,) * 3
    assert sphere[half, half, half] == 1
    assert sphere[half + 5, half, half] == sphere[half, half - 5, half] == pytest.approx(0.5)
    assert sphere[half, half, half + 6] == 0


def test_discs_follow_their_particles():
    discs = masks.soft_discs(16, np.array([[0, 0], [3, -2]]), 3, 1)
    np.testing.assert_array_equal(np.roll(discs[0], (-2, 3), (0, 1)), discs[1])
    assert discs[1, 8 - 2, 8 + 3] == 1


def test_background_is_what_lies_outside_the_circle():
    images = np.zeros((2, 16, 16), np.float32)
    images[1] += 3
    images[:, 8, 8] = 1000
    random = np.random.default_rng(0).normal(size=(16, 16))
    images[1] += random.astype(np.float32)
    mean, deviation = masks.background(images, 6)
    y, x = np.mgrid[:16, :16] - 8
    outside = x * x + y * y > 36
    assert mean == pytest.approx([0, 3 + random[outside].mean()], abs=1e-5)
    assert deviation == pytest.approx([0, random[outside].std()], abs=1e-5)


def test_background_of_a_particle_as_wide_as_the_box_is_its_corners():
    mean, _ = masks.background(np.ones((1, 16, 16), np.float32), 100)
    assert mean == pytest.approx(1)


def test_diameter_reaches_the_farthest_strong_density():
    places = np.array([[6.0, 0, 0], [0, -2, 0]])
    volume = naive.Blobs(places, np.ones(2), 1.0).volume(32)
    # the blob falls to a tenth at 2.15 pixels from its middle
    assert masks.particle_diameter(volume, 2.0) == pytest.approx(2 * (6 + 2 + 1) * 2.0)
    assert masks.particle_diameter(volume * 1e-9, 2.0) == masks.particle_diameter(volume, 2.0)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_volume_without_density_has_no_diameter(value):
    with pytest.raises(InputError, match="no positive density"):
        masks.particle_diameter(np.full((16, 16, 16), value, np.float32), 1.0)


def test_solvent_mask_follows_the_molecule_and_stays_in_the_sphere():
    box, pixel_size = 32, 4.0
    molecule = naive.Blobs(np.array([[x, 0.0, 0.0] for x in (-6, -3, 0, 3, 6)]), np.ones(5), 1.5)
    sphere = masks.soft_sphere(box, 13, 3)
    noise = np.random.default_rng(0).normal(size=(box,) * 3) * 1e-3
    transform = volume_transform(molecule.volume(box) + noise)
    mask = solvent_mask(transform, sphere, pixel_size, 12.0)
    assert (mask <= sphere).all()
    assert mask[16, 16, 16 + 6] == 1
    assert mask[16, 16 + 12, 16] == 0
    assert mask.sum() < 0.6 * sphere.sum()


def test_solvent_mask_of_nothing_is_the_sphere():
    sphere = masks.soft_sphere(16, 5, 2)
    nothing = np.zeros((16, 16, 9), np.complex64)
    assert solvent_mask(nothing, sphere, 4.0, 12.0) is sphere
