"""The tree of ranks along which Begin is sent: to each host once, then between ranks of that host.

         0 ---------> 4 ---------> 7        leaders, one of each host, are a heap under rank 0
       1 2 3         5 6          8 9       the ranks of a host are a heap under their leader

The groups of this tree are ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9)).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from mpipar.runtime.machines.messages import MASTER, Begin, NeedArrays, Rank, Send

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

Groups: TypeAlias = tuple[tuple[Rank, ...], ...]

_T = TypeVar("_T")

FAN_OUT = 3


def grouped(
    workers: Iterable[Rank], hosts: Mapping[Rank, str], separate: Collection[Rank] = ()
) -> Groups:
    """Return the ranks host by host, the host of rank 0 first, and rank 0 before all others.

    A rank in `separate`, or whose host is not known, counts as a host of its own.
    """
    groups: dict[str | Rank, list[Rank]] = {hosts.get(MASTER, MASTER): [MASTER]}
    for rank in workers:
        host = rank if rank in separate else hosts.get(rank, rank)
        groups.setdefault(host, []).append(rank)
    return tuple(tuple(group) for group in groups.values())


def children_of(rank: Rank, groups: Groups) -> tuple[Rank, ...]:
    """Return the ranks to which a rank passes a broadcast on; none if it is not in the tree."""
    for number, group in enumerate(groups):
        if rank in group:
            position = group.index(rank)
            others = below(number, groups, FAN_OUT) if position == 0 else ()
            return (*(other[0] for other in others), *below(position, group, FAN_OUT))
    return ()


def below(position: int, heap: Sequence[_T], fan: int) -> tuple[_T, ...]:
    """Return the children of the node at a position of a heap in which each has `fan` children."""
    first = position * fan + 1
    return tuple(heap[first : first + fan])


def is_neighbour(rank: Rank, other: Rank, groups: Groups) -> bool:
    """Whether two ranks of the tree are on one host."""
    return any(rank in group and other in group for group in groups)


class BroadcastRoutes:
    """The ways on which Begin reaches each worker; ways that fail are avoided in later runs."""

    def __init__(self, hosts: Mapping[Rank, str]) -> None:
        """`hosts`: the host of each rank, the master included; one host has one memory."""
        self._hosts = dict(hosts)
        self._unmappable: set[tuple[Rank, Rank]] = (
            set()
        )  # the first cannot map arrays of the second
        self._unreached: set[Rank] = set()  # Begin did not come to them over other hosts
        self._extra_trees: list[Groups] = []  # of hosts that are not in Begin's own tree

    def groups(self, workers: Iterable[Rank]) -> Groups:
        """Return workers host by host, as `grouped` does."""
        return grouped(workers, self._hosts, {rank for rank, _ in self._unmappable})

    def plan(self, workers: Iterable[Rank]) -> Groups:
        """Return the tree of a new run; a host that Begin missed before gets its own tree."""
        own, *others = self.groups(workers)
        missed = [group for group in others if not self._unreached.isdisjoint(group)]
        self._extra_trees = [(group,) for group in missed]
        return (own, *(group for group in others if group not in missed))

    def start(self, begin: Begin) -> list[Send]:
        """Send Begin to the first ranks of its tree, and of the trees of single hosts."""
        sends = [Send(rank, begin) for rank in children_of(MASTER, begin.tree)]
        return sends + [Send(tree[0][0], replace(begin, tree=tree)) for tree in self._extra_trees]

    def send_directly(self, begin: Begin, rank: Rank) -> Send:
        """Send Begin to a worker that is not in a tree."""
        return Send(rank, replace(begin, tree=((rank,),), plain=True))

    def answer(
        self, begin: Begin, source: Rank, message: NeedArrays, workers: Collection[Rank]
    ) -> Send:
        """A worker has no arrays, or no Begin at all: send Begin, and avoid this way in future."""
        if message.lender == source:
            self._unreached.add(source)
        elif message.lender in (MASTER, *workers):  # else the lender is lost: that is the cause
            self._unmappable.add((source, message.lender))
        return Send(source, replace(begin, tree=self._tree_of(source, begin), plain=True))

    def rank_lost(self, rank: Rank) -> None:
        """A worker is lost."""
        self._unmappable = {pair for pair in self._unmappable if rank not in pair}
        self._unreached.discard(rank)

    def replace_sender(self, begin: Begin, lost: Rank, alive: Collection[Rank]) -> list[Send]:
        """Send Begin in place of a lost rank to its children, which may still await it."""
        begin = replace(begin, tree=self._tree_of(lost, begin))
        return [Send(rank, begin) for rank in children_of(lost, begin.tree) if rank in alive]

    def _tree_of(self, rank: Rank, begin: Begin) -> Groups:
        trees = (begin.tree, *self._extra_trees)
        return next((tree for tree in trees if any(rank in group for group in tree)), ((rank,),))
