from __future__ import annotations

import struct

import numpy as np
import pytest

from mpipar.cryoem.orientation_spread import DirectionalResolution
from mpipar.views.plots import orientation_picture, picture


@pytest.mark.parametrize("box", [8, 33])
def test_picture_is_a_png_of_a_readable_size(tmp_path, box):
    volume = np.zeros((box,) * 3, np.float32)
    volume[2:5, 3:6, 2:7] = 1
    curve = np.linspace(1, 0, box // 2 + 1)
    path = tmp_path / "picture.png"
    picture(path, volume, 2.5, {"masked": curve, "unmasked": list(curve**2)}, 7.5, title="A title")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > 1000
    assert height > 600


def test_empty_map_and_no_resolution_are_no_error(tmp_path):
    path = tmp_path / "picture.png"
    picture(path, np.zeros((8, 8, 8), np.float32), 1.0, {"FSC": np.zeros(5)}, 0.0)
    assert path.exists()


@pytest.mark.parametrize("views", [0, 3, 100_000])
def test_orientations_are_a_png_however_many_there_are(tmp_path, views):
    cells = 12 * 32**2
    density = np.bincount(np.arange(views) % cells, minlength=cells).astype(np.float32)
    curves = np.linspace(1, 0, 9) * np.array([[1.0], [0.5], [0.8]])
    curves[:, :3] = np.nan
    directions = DirectionalResolution(np.eye(3), curves, np.array([5.0, 9.0, 6.0]))
    path = tmp_path / "picture.png"
    orientation_picture(path, density, np.linspace(1, 0, 9), directions, 40.0, title="A title")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24])[0] > 1000


def test_directions_of_which_nothing_is_known_are_no_error(tmp_path):
    path = tmp_path / "picture.png"
    unknown = DirectionalResolution(np.eye(3), np.full((3, 5), np.nan), np.full(3, 4.0))
    orientation_picture(path, np.ones(12 * 32**2, np.float32), np.zeros(5), unknown, 16.0)
    assert path.exists()
