"""The tree over which a run's start travels: a heap of ranks, rank 0 first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.runtime.messages import Rank

FAN_OUT = 3


def children_of(rank: Rank, tree: Sequence[Rank]) -> tuple[Rank, ...]:
    """Return the ranks to which this one passes a broadcast on."""
    first = tree.index(rank) * FAN_OUT + 1
    return tuple(tree[first : first + FAN_OUT])
