"""What the stages of a refinement know of the images, and of the particles of one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem import masks

if TYPE_CHECKING:
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

    def disc(self) -> NDArray[np.float32]:
        """Return the disc (n, n) of a particle in the middle of its image."""
        return np.asarray(masks.soft_discs(self.box, np.zeros((1, 2)), self.radius, MASK_EDGE)[0])

    def covered(self) -> float:
        """Return the disc's mean square: the share of the noise's power that it leaves."""
        return float(np.mean(np.square(self.disc(), dtype=np.float64)))

    def discs(self, shifts: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the discs (b, n, n) of particles with these shifts (b, 2), to whole pixels."""
        return masks.soft_discs(self.box, np.rint(shifts), self.radius, MASK_EDGE)


@dataclass(frozen=True)
class ParticleRows:
    """The payload of AlignStage's tasks: the particles of a block, one row each.

    half           half set of all of them, 1 or 2
    offset, gain   (b,) an image is used as (image - offset) * gain
    poses          the last ones
    settled        (b,) whether a search over all orientations has confirmed the pose
    fold           of all of them, in their half set: the part that is left out of their reference
    folded         whether their slices are added to the sums of their fold, or of their half set
    """

    half: int
    ctf: CtfParameters
    offset: NDArray[np.float64]
    gain: NDArray[np.float64]
    poses: Poses
    settled: NDArray[np.bool_]
    fold: int = 0
    folded: bool = False

    @property
    def sums(self) -> str:
        """The name of the sums that their slices are added to."""
        return f"half{self.half}.{self.fold}" if self.folded else f"half{self.half}"

    def scaled(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the images (b, n, n) as they are used."""
        offset, gain = (part[:, None, None].astype(np.float32) for part in (self.offset, self.gain))
        return np.asarray((images - offset) * gain)


@dataclass(frozen=True)
class MeasuredRows:
    """The payload of MeasureStage's tasks: CTF and shifts (b, 2) in pixels of a block's images."""

    ctf: CtfParameters
    shifts: NDArray[np.float64]
