from __future__ import annotations

import struct

import numpy as np
import pytest

from mpipar.views.plots import picture


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
