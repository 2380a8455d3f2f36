"""Which particles take part in soft iterations: of large sets, some are enough at first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from mpipar.programs.dataset import Dataset

SUBSET: Final = 10_000
"""Particles with which a large set begins: what soft iterations are for is a map with the detail of
the grid, 10 to 20 A, for which the first searches of all particles need no more than that."""
LARGE: Final = 1.5
"""Times so many particles, at least, are in a large set."""


def is_large(data: Dataset) -> bool:
    """Return whether some of the particles do for the first iterations. No set with folds is."""
    return len(data.half) > LARGE * SUBSET and not data.fold.any()


def soft_part(data: Dataset, *, everyone: bool) -> Dataset:
    """Return the data set with the blocks of particles that take part in a soft iteration.

    Of a large set these are some blocks of each half set, evenly over the list, the same in every
    iteration.

    everyone   all take part in any case
    """
    if everyone or not is_large(data):
        return data
    count = len(data.half)
    chosen: list[int] = []
    for half in (1, 2):
        mine = [place for place, rows in enumerate(data.blocks) if data.half[rows[0]] == half]
        blocks = max(1, round(len(mine) * SUBSET / count))
        chosen += [mine[n] for n in np.linspace(0, len(mine) - 1, blocks).round().astype(int)]
    blocks_of_part = tuple(data.blocks[place] for place in chosen)
    return replace(data, blocks=blocks_of_part, served_as=tuple(chosen))


def size_of(part: Dataset) -> int:
    """Return how many particles take part."""
    return sum(map(len, part.blocks))
