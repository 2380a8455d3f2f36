"""How evenly orientations fill Fourier space, and the resolution of half maps by direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import scipy.fft

from mpipar.cryoem.fourier import shell_of_half_volume
from mpipar.cryoem.healpix import cell_of, cell_vectors
from mpipar.cryoem.resolution import GOLD_STANDARD

if TYPE_CHECKING:
    from numpy.typing import NDArray

VIEW_CELLS: Final = 32
"""HEALPix resolution to which view directions are rounded: cells of 1.8 degrees."""
ASKED_CELLS: Final = 16
"""That of the directions in which the sampling is asked, and of a map's components: 3.7 degrees."""
MEAN_COUNT: Final = 50.0
"""Views that a direction has on average: the band of a view is as wide as that needs, so that
chance alone costs an even spread no more than 2 %."""
NARROWEST, WIDEST = 0.05, 0.25
"""Half widths of that band, as sines: 2.9 degrees, 14.5 degrees."""
EMPTY: Final = 0.02
"""A direction with less than this fraction of the mean sampling counts as without data."""
FEWEST_VIEWS: Final = 100
"""Particles times operators whose spread can be judged."""

CONE: Final = 20.0
"""Degrees from its axis to the edge of a cone of the directional FSC (Tan et al. 2017)."""
AXES: Final = 100
"""Axes of cones, spread over a half sphere."""
FEWEST_COMPONENTS: Final = 30
"""Independent components that a cone needs in a shell: by chance their correlation is 0 +- 0.13."""
POOLED: Final = 1
"""Shells on either side that are pooled with each, before the correlation is taken."""


@dataclass(frozen=True)
class OrientationSpread:
    """How evenly a set of orientations samples Fourier space.

    efficiency   0 to 1: the fraction of the particles that would do as well if evenly spread
    empty        fraction of the directions in Fourier space without data
    """

    efficiency: float
    empty: float


@dataclass(frozen=True)
class DirectionalResolution:
    """The FSC of two half maps by direction.

    axes         (m, 3) unit vectors x y z, on a half sphere
    curves       (m, n // 2 + 1) FSC in a cone about each axis; NaN in shells with too few
                 components
    resolution   (m,) A, where each curve falls below 0.143
    """

    axes: NDArray[np.float64]
    curves: NDArray[np.float64]
    resolution: NDArray[np.float64]

    @property
    def best(self) -> float:
        """The resolution in A of the best direction."""
        return float(self.resolution.min())

    @property
    def worst(self) -> float:
        """The resolution in A of the worst direction."""
        return float(self.resolution.max())


def spread_of(
    rotations: NDArray[np.floating], symmetry: NDArray[np.float64]
) -> OrientationSpread | None:
    """Return how evenly orientations and their symmetry mates sample Fourier space.

    rotations   (p, 3, 3) map coordinate = R @ image coordinate
    symmetry    (g, 3, 3) operators
    returns     None for too few views

    A view along the unit vector v holds the components across v. A direction u is sampled by
    ``s(u) = number of views with |u . v| < w``, w the half width of a central slice. The sampling
    compensation factor (Baldwin & Lyumkis 2020, Prog. Biophys. Mol. Biol. 150) is the harmonic
    mean of s over its mean: ``SCF = 1 / (<s> <1 / s>)``, by which the spectral signal-to-noise
    ratio of a whole shell falls behind that of an even spread. It is 1 for that, and 0.81 for side
    views from all around one axis. Here 1 / s is bounded: where s < 0.02 <s>, a direction counts as
    empty, with s = 0.02 <s>. (They treat empty directions apart, as SCF*, which depends on the
    number of particles. The efficiency of cryoEF, Naydenova & Russo 2017, Nat. Commun. 8, asks the
    same of the width of the point spread function; that needs a B factor and a resolution.)
    """
    views = len(rotations) * len(symmetry)
    if views < FEWEST_VIEWS:
        return None
    counts = view_density(rotations, symmetry)
    width = min(max(MEAN_COUNT / views, NARROWEST), WIDEST)
    seen = counts > 0
    directions = cell_vectors(VIEW_CELLS)[seen].astype(np.float32)
    # opposite directions are sampled alike: the first half of the grid has one of each
    asked = cell_vectors(ASKED_CELLS)[: 6 * ASKED_CELLS**2].astype(np.float32)
    sampling = np.concatenate(
        [
            (np.abs(some @ directions.T) < width).astype(np.float32) @ counts[seen]
            for some in np.array_split(asked, 8)
        ]
    )
    relative = sampling / sampling.mean()
    return OrientationSpread(
        float(1.0 / (1.0 / np.maximum(relative, EMPTY)).mean()), float((relative < EMPTY).mean())
    )


def view_density(
    rotations: NDArray[np.floating], symmetry: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return how many views, with symmetry mates, look along each cell of a HEALPix grid (ring).

    rotations   (p, 3, 3)
    symmetry    (g, 3, 3)
    returns     (12 * 32^2,), sum p g
    """
    centres = cell_vectors(VIEW_CELLS)
    cells = cell_of(VIEW_CELLS, np.asarray(rotations)[:, :, 2])
    own = np.bincount(cells, minlength=len(centres))
    seen = np.flatnonzero(own)
    density: NDArray[np.float32] = np.zeros(len(centres), np.float32)
    for operator in symmetry:  # the cells are turned, not the particles: these can be a million
        mates = cell_of(VIEW_CELLS, centres[seen] @ operator.T)
        density += np.bincount(mates, own[seen], minlength=len(centres)).astype(np.float32)
    return density


def directional_resolution(
    half1: NDArray[np.floating],
    half2: NDArray[np.floating],
    pixel_size: float,
    by_mask: NDArray[np.floating] | None = None,
) -> DirectionalResolution:
    """Return the FSC of two half maps in cones, and where each falls below 0.143.

    half1, half2   (n, n, n), inside the mask
    pixel_size     A
    by_mask        (n // 2 + 1,) correlation that the mask alone causes (Chen et al. 2013), which
                   is taken off: true = (cone - by_mask) / (1 - by_mask)

    In the cone about the axis a, ``FSC_a(k) = sum Re(F1 conj F2) / sqrt(sum |F1|^2 sum |F2|^2)``
    over the components of shells k - 1 .. k + 1 whose direction u has ``|a . u| >= cos 20 degrees``
    (3DFSC: Tan et al. 2017, Nat. Methods 14; conical FSC: Aiyer et al. 2024, Methods Mol. Biol.
    2824). Directions are rounded to cells of 3.7 degrees. Shells in which a cone has fewer than 30
    independent components are left out; a curve that begins below 0.143 is resolved to the shell
    before, at best.
    """
    box = half1.shape[0]
    sums = _sums_of_cells(half1, half2)  # (4, s, cells)
    axes = _half_sphere(AXES)
    inside = np.abs(cell_vectors(ASKED_CELLS) @ axes.T) >= math.cos(math.radians(CONE))
    cones = sums @ inside.astype(np.float64)
    cones[:, 0] = 0.0  # the mean
    padded = np.pad(cones, ((0, 0), (POOLED, POOLED), (0, 0)))
    pooled = np.lib.stride_tricks.sliding_window_view(padded, 2 * POOLED + 1, axis=1).sum(axis=-1)
    product, power1, power2, count = (part.T for part in pooled)
    total = np.sqrt(power1 * power2)
    curves = np.where(total > 0, product / np.where(total > 0, total, 1.0), 0.0)
    if by_mask is not None:
        bounded = np.clip(by_mask, 0.0, 0.99)
        curves = (curves - bounded) / (1.0 - bounded)
    curves[count < 2 * FEWEST_COMPONENTS] = np.nan  # each stands for its Friedel mate, too
    resolution = np.array([_falls_at(curve, box, pixel_size) for curve in curves])
    return DirectionalResolution(axes, curves, resolution)


def _sums_of_cells(half1: NDArray[np.floating], half2: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return what an FSC sums, per shell and cell of direction: (4, n // 2 + 1, cells).

    These are product, power of either map, and the number of components, Friedel mates counted.
    """
    box = half1.shape[0]
    transforms = [scipy.fft.rfftn(np.asarray(half, np.float32)) for half in (half1, half2)]
    shell, cells = shell_of_half_volume(box), 12 * ASKED_CELLS**2
    k, kx = np.fft.fftfreq(box, 1.0 / box), np.arange(box // 2 + 1)
    sums = np.zeros((4, (box // 2 + 1) * cells))
    for plane, kz in enumerate(k):  # a plane at a time: no large arrays
        wanted = shell[plane] > 0
        y, x = np.nonzero(wanted)
        cell = cell_of(ASKED_CELLS, np.stack([kx[x], k[y], np.full(len(x), kz)], axis=1))
        place = shell[plane][wanted].astype(np.int64) * cells + cell
        first, second = (transform[plane][wanted] for transform in transforms)
        twice = np.where((x > 0) & (x < box / 2), 2.0, 1.0)
        values = (
            (first * second.conj()).real,
            first.real**2 + first.imag**2,
            second.real**2 + second.imag**2,
            np.ones(len(x)),
        )
        sums += [np.bincount(place, value * twice, minlength=sums.shape[1]) for value in values]
    return sums.reshape(4, box // 2 + 1, cells)


def _half_sphere(count: int) -> NDArray[np.float64]:
    """Return unit vectors (count, 3) spread evenly over a half sphere, along a spiral."""
    z = (np.arange(count) + 0.5) / count
    turn = np.arange(count) * math.pi * (3.0 - math.sqrt(5.0))
    side = np.sqrt(1.0 - z * z)
    return np.stack([side * np.cos(turn), side * np.sin(turn), z], axis=1)


def _falls_at(curve: NDArray[np.float64], box: int, pixel_size: float) -> float:
    """Return in A where a curve first falls below 0.143 for two shells; Nyquist if it does not."""
    known = np.flatnonzero(np.isfinite(curve))
    if not known.size:
        return 2.0 * pixel_size
    low = curve[known] < GOLD_STANDARD
    falls = np.flatnonzero(low & np.append(low[1:], True))
    if not falls.size:
        return 2.0 * pixel_size
    shell = int(known[falls[0]])
    before, after = float(curve[shell - 1]), float(curve[shell])
    if not before > GOLD_STANDARD:  # also if it is not known
        return box * pixel_size / max(shell - 1, 1)
    return box * pixel_size / (shell - 1 + (before - GOLD_STANDARD) / (before - after))
