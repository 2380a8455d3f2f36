"""The sum of the workers' partials, along a tree of ranks, a few megabytes at a time.

    leaf --Partial 0, 1, 2..--> node --Partial 0, 1..--> ... --> rank 0
         <------- More --------      <----- More -----

A partial is one sequence of chunks: the arrays in order of name, each cut into pieces. Arrays that
a worker lacks count as zero and need no memory there. A node adds the chunks of its children to its
own and passes the sum on; rank 0 gives it to the stage's totals. A node's own partial stays as it
was, because the reduction starts again when a rank is lost. `More` keeps a child at most WINDOW
chunks ahead of its parent, so that no rank holds more than that for each child.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.errors import ProtocolError
from mpipar.runtime.machines.broadcast import below
from mpipar.runtime.machines.messages import (
    MASTER,
    Collect,
    Layout,
    More,
    Partial,
    Rank,
    Reduce,
    Send,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.runtime.machines.broadcast import Groups
    from mpipar.runtime.stage import Sums, Totals

CHUNK = 1 << 18  # elements: 2 MiB
WINDOW = 4  # chunks
FAN_IN = 3  # children of a rank


def layout_of(sums: Sums) -> Layout:
    """Return names and shapes, sorted by name."""
    return tuple((name, sums[name].shape) for name in sorted(sums))


def check_sums(partial: Mapping[str, Any] | None) -> Sums | None:
    """Return the arrays of a program's `partial()`, made contiguous; TypeError unless int64."""
    if partial is None:
        return None
    for name, array in partial.items():
        kind = getattr(array, "dtype", type(array).__name__)
        if not isinstance(array, np.ndarray) or kind != np.int64:
            raise TypeError(f"partial() must return int64 arrays, but {name!r} is {kind}")
    return {name: np.ascontiguousarray(array) for name, array in partial.items()}


class PartialChunks:
    """A partial as a sequence of one-dimensional views; zeros for arrays that are missing."""

    def __init__(self, sums: Sums, layout: Layout, size: int = CHUNK) -> None:
        nothing, shapes = np.zeros(size, np.int64), dict(layout)
        self._pieces = [
            sums[name].reshape(-1)[start : start + size]
            if name in sums
            else nothing[: prod(shapes[name]) - start]
            for name, start in _places_of_chunks(layout, size)
        ]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        return self._pieces[index]


class ReductionNode:
    """One worker's part in one reduction."""

    def __init__(self, order: Reduce, own: PartialChunks) -> None:
        self.order = order
        self._own = own
        self._next = 0  # chunk to pass on next
        self._limit = WINDOW  # the parent awaits chunks below this
        self._sums: dict[int, NDArray[np.int64]] = {}
        self._received: dict[int, int] = {}  # by chunk: how many children have sent it

    def start(self) -> list[Send]:
        """Send the first chunks, if no child has to send its part before."""
        return self._advance()

    def add(self, message: Partial) -> list[Send]:
        """A chunk has come from a child."""
        chunk = message.chunk
        if chunk in self._sums:
            self._sums[chunk] += message.data
        else:
            self._sums[chunk] = self._own[chunk] + message.data
        self._received[chunk] = self._received.get(chunk, 0) + 1
        return self._advance()

    def more(self, message: More) -> list[Send]:
        """The parent awaits more chunks."""
        self._limit = max(self._limit, message.limit)
        return self._advance()

    def _advance(self) -> list[Send]:
        sends: list[Send] = []
        order, children = self.order, self.order.children
        while self._next < min(self._limit, len(self._own)):
            chunk = self._next
            if self._received.get(chunk, 0) < len(children):
                break
            self._received.pop(chunk, None)
            data = self._sums.pop(chunk) if children else self._own[chunk]
            message = Partial(order.serial, order.number, chunk, data)
            sends.append(Send(order.parent, message))
            self._next += 1
        if sends and children:
            more = More(order.serial, order.number, self._next + WINDOW)
            sends += [Send(child, more) for child in children]
        return sends


class WorkerReduction:
    """The reductions of one run on one worker: its partial, and its place in the tree."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the reduction under way
        self._own: Sums | None = None
        self._node: ReductionNode | None = None
        self._early: list[Partial] = []  # that came before Reduce

    def collect(self, message: Collect) -> None:
        """A reduction begins; an earlier one that is under way has ended."""
        self.number = message.number
        self._own = self._node = None
        self._early = [early for early in self._early if early.number >= message.number]

    def gathered(self, sums: Sums | None) -> Layout | None:
        """Keep the partial of the stage until the run is over; return its layout, if any."""
        self._own = sums
        return None if sums is None else layout_of(sums)

    def handle(self, message: Reduce | Partial | More) -> list[Send]:
        """Take one message; return what to send."""
        match message:
            case Reduce():
                return self._on_reduce(message)
            case Partial():
                return self._on_partial(message)
            case More():
                node = self._current(message.number)
                return node.more(message) if node is not None else []

    def _current(self, number: int) -> ReductionNode | None:
        return self._node if self._node is not None and self.number == number else None

    def _on_reduce(self, message: Reduce) -> list[Send]:
        if self._own is None or self.number != message.number:
            return []
        self._node = ReductionNode(message, PartialChunks(self._own, message.layout))
        early, self._early = self._early, []
        sends = self._node.start()
        return sends + [send for chunk in early for send in self._on_partial(chunk)]

    def _on_partial(self, message: Partial) -> list[Send]:
        node = self._current(message.number)
        if node is not None:
            return node.add(message)
        if self.number is None or message.number >= self.number:
            self._early.append(message)
        return []


def tree_of_ranks(ranks: Sequence[Rank]) -> dict[Rank, tuple[Rank, ...]]:
    """Return the children of each rank in a heap of all ranks, rank 0 at the top."""
    order = (MASTER, *ranks)
    return {rank: below(at, order, FAN_IN) for at, rank in enumerate(order)}


def tree_of_hosts(groups: Groups) -> dict[Rank, tuple[Rank, ...]]:
    """Return the children of each rank where only rank 0 has children on other hosts.

    groups   the ranks of each host from `broadcast.grouped`: the host of rank 0 first
    """
    tree = {rank: below(at, host, FAN_IN) for host in groups for at, rank in enumerate(host)}
    tree[MASTER] += tuple(host[0] for host in groups[1:])
    return tree


class WholeSums:
    """The totals of a stage that says nothing else: int64 arrays."""

    def __init__(self, layout: Layout) -> None:
        self.sums: Sums = {name: np.empty(shape, np.int64) for name, shape in layout}

    def take(self, name: str, start: int, piece: NDArray[np.int64]) -> None:
        """Take elements from `start` on of an array's sum, flattened."""
        self.sums[name].reshape(-1)[start : start + len(piece)] = piece


class RootReduction:
    """The reduction on rank 0: the place of each worker in the tree, and the total.

    Rank 0 holds at most WINDOW chunks for each child; a chunk that all have sent goes to `totals`.
    """

    def __init__(
        self,
        serial: int,
        number: int,
        layouts: dict[Rank, Layout],
        tree: Mapping[Rank, tuple[Rank, ...]] | None = None,
        totals: Callable[[Layout], Totals] = WholeSums,
    ) -> None:
        """Prepare the total.

        layouts  of each worker that has something to add
        tree     the children of each of these workers and of rank 0
        totals   makes what takes the sums
        """
        self.serial, self.number = serial, number
        self._tree = tree_of_ranks(sorted(layouts)) if tree is None else tree
        self._children = self._tree[MASTER]
        self._layout = _union(layouts)
        self.totals = totals(self._layout)
        self._places = list(_places_of_chunks(self._layout, CHUNK))
        self._next = 0  # chunk that is complete next
        self._sums: dict[int, NDArray[np.int64]] = {}
        self._received: dict[int, int] = {}  # by chunk: how many children have sent it

    @property
    def done(self) -> bool:
        """Whether every chunk has arrived from every child."""
        return self._next == len(self._places)

    def start(self) -> list[Send]:
        """Send its place to each worker."""
        return [
            Send(child, Reduce(self.serial, self.number, rank, self._tree[child], self._layout))
            for rank, children in self._tree.items()
            for child in children
        ]

    def add(self, message: Partial) -> list[Send]:
        """A chunk has come from a child of rank 0."""
        chunk = message.chunk
        # without changing what a child has sent, which may be its own partial
        before = self._sums.get(chunk)
        self._sums[chunk] = message.data if before is None else before + message.data
        self._received[chunk] = self._received.get(chunk, 0) + 1
        if self._received[chunk] < len(self._children):
            return []
        del self._received[chunk]
        self.totals.take(*self._places[chunk], self._sums.pop(chunk))
        self._next += 1  # each child sends its chunks in order
        if self._next + WINDOW > len(self._places):
            return []
        more = More(self.serial, self.number, self._next + WINDOW)
        return [Send(child, more) for child in self._children]


def _places_of_chunks(layout: Layout, size: int) -> Iterator[tuple[str, int]]:
    """Return of each chunk the array that it is of, and where it begins there."""
    return ((name, start) for name, shape in layout for start in range(0, prod(shape), size))


def _union(layouts: dict[Rank, Layout]) -> Layout:
    """Return the layout of all arrays that any worker has."""
    known: dict[str, tuple[Rank, tuple[int, ...]]] = {}
    for rank, layout in sorted(layouts.items()):
        for name, shape in layout:
            first, agreed = known.setdefault(name, (rank, shape))
            if shape != agreed:
                raise ProtocolError(
                    f"the partials of ranks {first} and {rank} differ in the shape of {name!r}: "
                    f"{agreed} and {shape}; a stage must sum the same arrays on every worker"
                )
    return tuple((name, shape) for name, (_, shape) in sorted(known.items()))
