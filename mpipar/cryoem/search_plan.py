"""The extent and the steps of the search for poses in each iteration of a refinement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpipar.cryoem.alignment import SearchPlan
from mpipar.cryoem.fourier import largest_radius
from mpipar.cryoem.posterior import SoftPlan

COARSE_DETAIL = 8.0
"""The grid search uses detail down to diameter / 8: enough to tell orientations from each other,
with few enough components to be fast."""
LARGEST_COARSE = 24
"""Cycles per box that the grid search uses at most, because its memory and time grow with their
square. The limit matters only if the particle fills less than a third of its box."""
GRID_STEP = 10.0
"""Degrees between grid orientations: a turn that moves the rim of the particle by about 0.6 of the
detail diameter / 8."""
MOST_REFINED = 2.0
"""How much finer, at most, the grid search of a symmetric particle is."""
SOFT_DETAIL = 9.4
"""Soft iterations use detail down to diameter / 9.4."""
BEYOND_START = 4
"""Shells beyond the start's filter that soft iterations back-project at least: whether half maps
agree on detail that the start does not have can only be told where they have some."""
COARSEST_STEP = 12.0
"""Degrees between orientations of a soft iteration, at most."""
SHIFT_RANGE = 0.085
"""Search range for the centre, as a fraction of the box."""
SPREADS = 2.75
"""Range of the shifts in a soft iteration, as a multiple of their standard deviation along one
axis: 2 % of normal shifts are larger, and the next iterations can still find those."""
FEWEST_STEPS = 2.0  # of a shift, out to which a soft iteration looks at least


def finer_for(symmetry_order: int) -> float:
    """Return by which factor the grid search is finer for a symmetric particle.

    Between symmetry mates a symmetric particle looks similar at low resolution, so that only finer
    detail shows its orientation. Its asymmetric unit is small, so that a finer search is cheap.
    """
    return float(min(MOST_REFINED, symmetry_order ** (1 / 6)))


@dataclass(frozen=True)
class Sampling:
    """The geometry from which the search of each iteration is planned.

    box             pixels
    diameter        of the particle, pixels
    finest_shell    the last shell that may be used
    symmetry_order  number of operators of the point group
    """

    box: int
    diameter: float
    finest_shell: int
    symmetry_order: int = 1

    def alignment_radius(self, resolved_shell: int) -> int:
        """Return the cycles per box used to align if half maps agree out to `resolved_shell`."""
        margin = max(3, round(0.1 * resolved_shell))
        return min(max(4, resolved_shell + margin), self.finest_shell)

    def insertion_radius(self, alignment_radius: int, last: bool) -> int:
        """Return the cycles per box that are back-projected: more than are used to align.

        Else the FSC could not show a better resolution.
        """
        limit = largest_radius(self.box)
        return limit if last else min(limit, math.ceil(1.4 * alignment_radius) + 8)


def plan_search(
    sampling: Sampling,
    resolved_shell: int,
    *,
    exhaustive: bool,
    free_scale: bool,
    doubtful: bool = False,
) -> SearchPlan:
    """Return the plan of one iteration.

    resolved_shell  shell of the current resolution
    exhaustive      search all orientations; else climb from the previous poses
    free_scale      fit the grey scale of the reference to each image, because that of a first model
                    is arbitrary
    doubtful        the images say little: a finer grid, and more candidates from it
    """
    radius = sampling.alignment_radius(resolved_shell)
    finer = finer_for(sampling.symmetry_order)
    detail = (SOFT_DETAIL if doubtful else COARSE_DETAIL) * finer
    coarse = min(radius, LARGEST_COARSE, round(detail * sampling.box / sampling.diameter))
    reach = max(3.0, SHIFT_RANGE * sampling.box)
    return SearchPlan(
        coarse_radius=coarse,
        middle_radius=min(radius, round(1.5 * coarse)),
        radius=radius,
        step=GRID_STEP * COARSE_DETAIL / detail,
        shift_range=reach,
        shift_step=min(reach / 2.5, sampling.box / (4.0 * coarse)),
        candidates=48 if doubtful else 24,
        survivors=10 if doubtful else 4,
        free_scale=free_scale,
        exhaustive=exhaustive,
    )


def plan_soft(
    sampling: Sampling,
    resolved_shell: int,
    start_shell: int,
    *,
    spread: float | None,
    free_scale: bool,
) -> SoftPlan:
    """Return the plan of one soft iteration.

    All shells of the grid's detail are back-projected from the first iteration on, and used as soon
    as the reference has them: images that are matched at the start's resolution only keep to the
    first poses that they find.

    start_shell   the shell that the start is filtered to
    spread        standard deviation of the shifts along one axis, pixels; None: not known yet
    """
    widest = sampling.box / sampling.diameter
    finest = round(SOFT_DETAIL * finer_for(sampling.symmetry_order) * widest)
    finest = min(finest, LARGEST_COARSE, sampling.finest_shell)
    radius = min(sampling.alignment_radius(resolved_shell), finest)
    widest_reach = max(3.0, SHIFT_RANGE * sampling.box)
    shift_step = min(widest_reach / 2.5, sampling.box / (4.0 * radius))
    if spread is None:
        reach, spread = widest_reach, widest_reach / 2.0
    else:
        spread = min(max(spread, widest_reach / 5.0), widest_reach)
        reach = min(widest_reach, max(FEWEST_STEPS * shift_step, SPREADS * spread))
    return SoftPlan(
        radius=radius,
        insertion_radius=min(max(finest, start_shell + BEYOND_START), sampling.finest_shell),
        step=min(COARSEST_STEP, GRID_STEP * COARSE_DETAIL * widest / radius),
        reach=reach,
        shift_step=shift_step,
        spread=spread,
        free_scale=free_scale,
    )
