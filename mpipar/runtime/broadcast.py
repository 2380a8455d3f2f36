"""The tree over which a run's start travels: to each host once, and then from rank to rank there.

         0 ---------> 4 ---------> 7        leaders, one of each host, are a heap under rank 0
       1 2 3         5 6          8 9       the ranks of a host are a heap under their leader

The groups of this tree are ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from mpipar.runtime.messages import MASTER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mpipar.runtime.messages import Rank

Groups: TypeAlias = "Sequence[Sequence[Rank]]"

_T = TypeVar("_T")

FAN_OUT = 3


def grouped(
    workers: Iterable[Rank], hosts: Mapping[Rank, str], alone: Collection[Rank] = ()
) -> tuple[tuple[Rank, ...], ...]:
    """Return the ranks host by host, rank 0's host first and it first of all.

    A rank that is `alone`, or whose host is not known, is taken for a host of its own.
    """
    groups: dict[str | Rank, list[Rank]] = {hosts.get(MASTER, MASTER): [MASTER]}
    for rank in workers:
        host = rank if rank in alone else hosts.get(rank, rank)
        groups.setdefault(host, []).append(rank)
    return tuple(tuple(group) for group in groups.values())


def children_of(rank: Rank, groups: Groups) -> tuple[Rank, ...]:
    """Return the ranks to which this one passes a broadcast on; none if it is not in the tree."""
    for number, group in enumerate(groups):
        if rank in group:
            position = group.index(rank)
            others = _below(number, groups) if position == 0 else ()
            return (*(other[0] for other in others), *_below(position, group))
    return ()


def _below(position: int, heap: Sequence[_T]) -> Sequence[_T]:
    first = position * FAN_OUT + 1
    return heap[first : first + FAN_OUT]


def is_neighbour(rank: Rank, other: Rank, groups: Groups) -> bool:
    """Whether two ranks of the tree are on one host."""
    return any(rank in group and other in group for group in groups)
