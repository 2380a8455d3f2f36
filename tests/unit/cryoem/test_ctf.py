"""Contrast transfer against the formula written out for one frequency; see also conventions."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpipar.cryoem.ctf import CtfParameters, contrast_transfer, electron_wavelength
from mpipar.cryoem.fourier import components
from tests.support import naive

BOX, PIXEL_SIZE = 32, 1.7
WANTED = components(BOX, 15)

optics = st.builds(
    naive.Optics,
    u=st.floats(-5000, 40000),
    v=st.floats(-5000, 40000),
    angle=st.floats(-180, 180),
    kilovolt=st.sampled_from([100.0, 200.0, 300.0]),
    cs=st.floats(0, 3),
    amplitude=st.floats(0, 0.3),
    phase_shift=st.floats(0, 180),
    b_factor=st.floats(0, 200),
    scale=st.floats(0.1, 2),
)


def parameters(*particles: naive.Optics) -> CtfParameters:
    columns = np.array([astuple(particle) for particle in particles]).T
    return CtfParameters(*columns)


@settings(max_examples=30, deadline=None)
@given(particle=optics)
def test_ctf_is_the_formula(particle):
    found = contrast_transfer(parameters(particle), WANTED.frequencies, BOX, PIXEL_SIZE)[0]
    for v in range(0, len(found), 29):
        kx, ky = WANTED.frequencies[v] / (BOX * PIXEL_SIZE)
        assert found[v] == pytest.approx(naive.contrast(kx, ky, particle), abs=0.01)


@pytest.mark.parametrize(
    ("kilovolt", "angstrom"), [(100, 0.037014), (200, 0.025079), (300, 0.019687)]
)
def test_wavelengths_of_the_textbook(kilovolt, angstrom):
    assert electron_wavelength(np.array([kilovolt]))[0] == pytest.approx(angstrom, rel=2e-4)


def test_particles_are_taken_in_the_order_asked_for():
    some = [naive.Optics(u=1000.0 * n, v=900.0 * n, scale=n) for n in range(1, 5)]
    taken = parameters(*some).take(np.array([3, 1]))
    both = contrast_transfer(taken, WANTED.frequencies, BOX, PIXEL_SIZE)
    each = [
        contrast_transfer(parameters(some[n]), WANTED.frequencies, BOX, PIXEL_SIZE) for n in (3, 1)
    ]
    np.testing.assert_array_equal(both, np.concatenate(each))
