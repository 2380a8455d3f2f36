"""What the stages of a refinement know of the images, and of the particles of one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mpipar.cryoem.alignment import Poses
    from mpipar.cryoem.ctf import CtfParameters

MASK_EDGE = 5.0
"""Width in pixels of the soft edge of the disc that images are masked with for alignment."""


@dataclass(frozen=True)
class ImageGeometry:
    """What stages know of the images."""

    box: int  # pixels
    pixel_size: float  # A
    radius: float  # of the particle, pixels


@dataclass(frozen=True)
class ParticleRows:
    """The payload of AlignStage's tasks: the particles of a block, one row each.

    half           half set of all of them, 1 or 2
    offset, gain   (b,) an image is used as (image - offset) * gain
    poses          the last ones
    settled        (b,) whether a search over all orientations has confirmed the pose
    """

    half: int
    ctf: CtfParameters
    offset: NDArray[np.float64]
    gain: NDArray[np.float64]
    poses: Poses
    settled: NDArray[np.bool_]


@dataclass(frozen=True)
class MeasuredRows:
    """The payload of MeasureStage's tasks: CTF and shifts (b, 2) in pixels of a block's images."""

    ctf: CtfParameters
    shifts: NDArray[np.float64]
