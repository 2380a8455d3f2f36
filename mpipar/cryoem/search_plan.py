"""How wide and how fine each iteration of a refinement looks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpipar.cryoem.alignment import SearchPlan
from mpipar.cryoem.fourier import largest_radius

COARSE_DETAIL = 8.0
"""The grid search uses detail down to diameter / 8: enough to tell orientations apart, few enough
components to be fast."""
LARGEST_COARSE = 24
"""Cycles per box that the grid search uses at most: memory and time of the search go with their
square, and where this matters the particle fills less than a third of its box."""
GRID_STEP = 10.0
"""Degrees between grid orientations; at detail diameter / 8 that moves the rim by about 0.6 of that
detail."""
MOST_REFINED = 2.0
"""How much finer, at most, the grid search of a symmetric particle is."""
SHIFT_RANGE = 0.085
"""Search range for the centre, as a fraction of the box."""


def finer_for(symmetry_order: int) -> float:
    """How much finer to look at a symmetric particle than at one without symmetry.

    Turned mates of a symmetric particle look alike at low resolution, so that its orientation shows
    only in finer detail; and its asymmetric unit is small, so that finer is cheap.
    """
    return float(min(MOST_REFINED, symmetry_order ** (1 / 6)))


@dataclass(frozen=True)
class Sampling:
    """The geometry that plans follow.

    box           pixels
    diameter      of the particle, pixels
    finest_shell  the last one that may be used
    symmetry_order  operators of the point group
    """

    box: int
    diameter: float
    finest_shell: int
    symmetry_order: int = 1

    def alignment_radius(self, resolved_shell: int) -> int:
        """Cycles per box used to align when the half maps agree out to `resolved_shell`."""
        margin = max(3, round(0.1 * resolved_shell))
        return min(max(4, resolved_shell + margin), self.finest_shell)

    def insertion_radius(self, alignment_radius: int, last: bool) -> int:
        """Cycles per box that are back-projected: more than aligned, so that FSC can show more."""
        limit = largest_radius(self.box)
        return limit if last else min(limit, math.ceil(1.4 * alignment_radius) + 8)


def plan_search(
    sampling: Sampling, resolved_shell: int, *, exhaustive: bool, free_scale: bool
) -> SearchPlan:
    """The plan of one iteration.

    resolved_shell  shell of the current resolution
    exhaustive      search all orientations; else climb from the previous poses
    free_scale      fit the reference's scale to each image: for a model whose grey scale means
                    nothing yet
    """
    radius = sampling.alignment_radius(resolved_shell)
    finer = finer_for(sampling.symmetry_order)
    detail = COARSE_DETAIL * finer
    coarse = min(radius, LARGEST_COARSE, round(detail * sampling.box / sampling.diameter))
    reach = max(3.0, SHIFT_RANGE * sampling.box)
    return SearchPlan(
        coarse_radius=coarse,
        middle_radius=min(radius, round(1.5 * coarse)),
        radius=radius,
        step=GRID_STEP / finer,
        shift_range=reach,
        shift_step=min(reach / 2.5, sampling.box / (4.0 * coarse)),
        candidates=24,
        survivors=4,
        free_scale=free_scale,
        exhaustive=exhaustive,
    )
