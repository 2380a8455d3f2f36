"""How much of a GPU's memory an alignment takes: by a formula, before anything is on the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.alignment import SearchPlan, shift_grid
from mpipar.cryoem.fourier import components
from mpipar.cryoem.reconstruction import sums_shape

if TYPE_CHECKING:
    from mpipar.cryoem.posterior import SoftPlan

ROWS_PER_PRODUCT: Final = 8192
"""Rows of one matrix product of the grid search, images times shifts: enough that starting it takes
no time beside it. The products of 15,000 orientations then take 500 MB."""
SOFT_ROWS: Final = 16384
"""The same of the products of soft iterations, two at a time. Each group of images
takes some thirty launches of kernels, so few groups are better."""
SLICES_PER_INSERTION: Final = 2048
"""Slices that are inserted at once: their memory does not grow with the poses of a block."""
KEPT: Final = 2
"""References, with all that is made of them, that a worker keeps on the card in soft iterations."""
LARGEST_DEVICE_BLOCK: Final = 512  # images: enough to fill a card
LIBRARIES: Final = 700e6  # bytes: the context, cuBLAS, cuFFT, compiled kernels


def device_bytes(box: int, plan: SearchPlan, radius: int, orientations: int, images: int) -> float:
    """Return about how many bytes a worker takes of its card in a search or local refinement.

    radius   cycles per box that are back-projected
    images   of one block
    """
    voxels = int(np.prod(sums_shape(plan.radius)[:3]))
    halves = 2.0 * (8 * voxels + 8 * int(np.prod(sums_shape(radius))))
    coarse = len(components(box, plan.coarse_radius).shell)
    shifts = len(shift_grid(plan.shift_range, plan.shift_step))
    search = 2.0 * 12 * orientations * coarse
    # cupy keeps the products of a shorter last group beside those of a full one
    products = 8.0 * ROWS_PER_PRODUCT * orientations + 8.0 * images * shifts * coarse
    scores = 10.0 * images * orientations
    pixels = 32.0 * images * box * box  # the images, discs and their temporary arrays
    count = len(components(box, radius).shell)
    values = 32.0 * images * count + 70.0 * max(images, SLICES_PER_INSERTION) * count
    return (
        LIBRARIES
        + halves
        + (search + products + scores if plan.exhaustive else 0)
        + max(pixels, values)
    )


def soft_device_bytes(box: int, plan: SoftPlan, orientations: int, images: int) -> float:
    """Return about how many bytes a worker takes of its card in a soft iteration.

    orientations   of the grid, without the half-turned ones
    images         of one block
    """
    known = len(components(box, plan.insertion_radius).shell)
    slices = KEPT * 12.0 * orientations * known
    by_pose = KEPT * 24.0 * orientations * known
    # two products, with what cupy keeps of those of a shorter last group; sums of a block
    columns = min(SOFT_ROWS, images * len(shift_grid(plan.reach, plan.shift_step)))
    products = 2.0 * 8.0 * columns * orientations + 36.0 * orientations * known
    volumes = 2.0 * 8.0 * int(np.prod(sums_shape(plan.insertion_radius)))
    pixels = 32.0 * images * box * box
    return LIBRARIES + slices + by_pose + products + volumes + pixels
