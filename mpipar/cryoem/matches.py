"""How well particles match the two half maps at their poses: their own, and the held-out one.

Both matches are the two terms of the score in `mpipar.cryoem.alignment`, cross and quadratic, in
half log-likelihood units as all scores of a refinement: the exponent proper is twice that
(CONVENTIONS.md). Where an image holds only noise, and that noise did not choose the pose, cross is
normal with mean 0 and variance quadratic / 2. (The disc that images are masked with makes
neighbouring components alike: the variance is larger by about the box's area over the disc's.) So

    score         cross - quadratic / 2      below 0 for noise: the reference explains nothing
    significance  cross / sqrt(quadratic / 2)  about a standard normal number for noise

The significance knows no grey scale, so contrast, defocus and views spread it less than the score.

The half map of the other half set has not seen the particle, so the particle's noise is not in it,
and the pose was not chosen to agree with it: the gold standard (Henderson et al. 2012), for single
particles. That holds for shells in which the half maps are independent. Coarser ones are shared.
Where both half maps show the molecule, a pose that was chosen for one of them agrees a little with
the other, even if the image is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Matches:
    """The terms of particles' scores at their last poses, (b,) float64 each; NaN: not known.

    own_cross, own_quadratic    against the half map that the particle is in, over all shells that
                                the last climb used
    held_cross, held_quadratic  against the other half map, over the independent ones of these
    """

    own_cross: NDArray[np.float64]
    own_quadratic: NDArray[np.float64]
    held_cross: NDArray[np.float64]
    held_quadratic: NDArray[np.float64]

    @property
    def own_significance(self) -> NDArray[np.float64]:
        """Of the match with the own half map; the pose was chosen for it, so noise has 6 to 9."""
        return significance(self.own_cross, self.own_quadratic)

    @property
    def held_significance(self) -> NDArray[np.float64]:
        """Of the match with the held-out half map; about 0 if the half maps share no signal."""
        return significance(self.held_cross, self.held_quadratic)

    @property
    def held_score(self) -> NDArray[np.float64]:
        """Half the log-likelihood at the held-out half map, relative to an empty one."""
        return np.asarray(self.held_cross - 0.5 * self.held_quadratic)

    @staticmethod
    def unknown(count: int) -> Matches:
        """Return the matches of particles that were not aligned yet."""
        return Matches(*(np.full(count, np.nan) for _ in range(4)))

    @staticmethod
    def joined(parts: list[tuple[NDArray[np.int64], Matches]], count: int) -> Matches:
        """Return the matches of all `count` particles from those of blocks, with their rows."""
        whole = Matches.unknown(count)
        for rows, part in parts:
            for name in Matches.__dataclass_fields__:
                getattr(whole, name)[rows] = getattr(part, name)
        return whole


def significance(cross: NDArray[np.float64], quadratic: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return cross in its standard deviations for noise; 0 where the reference is empty."""
    deviation = np.sqrt(0.5 * quadratic)
    return np.asarray(np.divide(cross, deviation, out=np.zeros_like(cross), where=deviation != 0))


def match_terms(slices: Any, phases: Any, data: Any) -> tuple[Any, Any]:
    """Return cross and quadratic of images with slices of a reference, (b,) float64 each.

    Arrays are numpy's or, for all three, a GPU's.

    slices  (b, w) complex64: of the reference, without CTF
    phases  (b, w) complex64: factors that move each particle to the origin
    data    (b, w, 3) float32 from `alignment.weigh`
    """
    images = data[..., 0] + 1j * data[..., 1]
    cross = (slices.conj() * phases * images).real
    quadratic = (slices.real**2 + slices.imag**2) * data[..., 2]
    return cross.sum(axis=1, dtype=np.float64), quadratic.sum(axis=1, dtype=np.float64)
