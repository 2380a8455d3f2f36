"""Which calls travel to a worker together, and how they are packed.

A message for each call would keep rank 0 busy with messages. Calls that are known to be short, and
of which many wait, travel in batches of BATCH_SECONDS; any other call travels alone.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, overload

from mpipar.interfaces.calls.call_kinds import PICKLED_BY_NAME, kind_of
from mpipar.interfaces.calls.pickling import PickledObjects, are_plain, is_interrupt, pickle_each

if TYPE_CHECKING:
    from mpipar.interfaces.calls.feeds import Call, CallFeed

__all__ = ["BatchSize", "CallBatch", "PackedCalls", "SameCalls", "pack_calls"]

BATCH_SECONDS: Final = 0.002
BATCH_CALLS: Final = 512
BATCHES_PER_WORKER: Final = 4  # at least, of the calls that wait
BATCHES_AHEAD: Final = 2  # for each worker, of calls that are not short
MOST_KINDS: Final = 1000
LONGEST_BATCH_SECONDS: Final = 0.02  # after which a worker sends the rest of a batch back


class SameCalls(Sequence["Call"]):
    """Calls of one function, each with arguments of its own and no keywords."""

    def __init__(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
        self.function = function
        self.arguments = arguments

    def __len__(self) -> int:
        return len(self.arguments)

    @overload
    def __getitem__(self, at: int) -> Call: ...
    @overload
    def __getitem__(self, at: slice) -> SameCalls: ...
    def __getitem__(self, at: int | slice) -> Call | SameCalls:
        if isinstance(at, slice):
            return SameCalls(self.function, self.arguments[at])
        return self.function, self.arguments[at], {}


@dataclass(frozen=True, slots=True)
class CallBatch:
    """Calls of one feed that travel together, and the keys by which the feed knows them."""

    feed: CallFeed
    keys: Sequence[Any]
    calls: Sequence[Call]

    @property
    def kind(self) -> Any:
        """What says how long the calls take."""
        return kind_of(self.calls[0][0])

    @property
    def size(self) -> int:
        """How many calls there are."""
        return len(self.keys)

    def part(self, begin: int, end: int | None = None) -> CallBatch:
        """Return a batch of the calls from `begin` to `end`."""
        return CallBatch(self.feed, self.keys[begin:end], self.calls[begin:end])

    def without(self, positions: Collection[int]) -> CallBatch:
        """Return a batch of all calls but those at these positions."""
        kept = [at for at in range(self.size) if at not in positions]
        return CallBatch(self.feed, [self.keys[at] for at in kept], [self.calls[at] for at in kept])


class BatchSize:
    """How long the calls of a kind take, and so how many of them make a batch."""

    def __init__(self) -> None:
        self._mean: float | None = None  # seconds of a call

    def record(self, calls: int, seconds: float) -> None:
        """Note that so many calls took so long: slow calls count at once, fast ones by halves."""
        each = seconds / calls
        before = each if self._mean is None else self._mean
        self._mean = max(each, (before + each) / 2)

    def choose(self, waiting: int, workers: int) -> int:
        """Return how many of the waiting calls to send in one batch."""
        if self._mean is None:
            return 1
        fitting = BATCH_CALLS if self._mean == 0 else int(BATCH_SECONDS / self._mean)
        return max(1, min(fitting, BATCH_CALLS, waiting // (BATCHES_PER_WORKER * workers)))

    def most_batches(self, workers: int) -> float:
        """Return how many batches may be under way: calls that were sent cannot be cancelled."""
        if self._mean is None:
            return workers
        return math.inf if self._mean < BATCH_SECONDS else BATCHES_AHEAD * workers


@dataclass(frozen=True, slots=True)
class PackedCalls:
    """Calls as they travel; `CallStage.run` reads them on the worker.

    The first pickles are functions, which the calls name by number. Then each call has a pickle of
    its own; or, if `together`, one pickle is the list of the arguments of the only function.
    """

    functions: int  # how many
    together: bool
    pickled: PickledObjects


def pack_calls(calls: Sequence[Call]) -> tuple[PackedCalls, list[tuple[int, Exception]]]:
    """Pickle calls, with each plain function only once; also say which could not be pickled.

    returns   the packed calls, without those; [(position among the calls, error)]
    """
    same = _as_same_calls(calls)
    # Plain values can share a pickle, which is several times as fast: pickling them cannot fail,
    # and they are immutable, so two calls may get the same object.
    if same is not None and are_plain(chain.from_iterable(same.arguments)):
        return PackedCalls(1, True, pickle_each([same.function, same.arguments])[0]), []
    numbers, functions = dict[Any, int | None](), list[Any]()
    packed: list[tuple[Any, Any, Any]] = []
    for function, arguments, keywords in calls:
        if type(function) not in PICKLED_BY_NAME:
            number = None
        elif function in numbers:
            number = numbers[function]
        else:
            number = numbers[function] = len(functions) if _is_picklable(function) else None
            functions += [function] if number is not None else []
        packed.append((function if number is None else number, arguments, keywords))
    pickled, failed = pickle_each([*functions, *packed])
    errors = [(position - len(functions), error) for position, error in failed]
    return PackedCalls(len(functions), False, pickled), errors


def _as_same_calls(calls: Sequence[Call]) -> SameCalls | None:
    """Return the calls as SameCalls; None unless all are of one plain function, no keywords."""
    function = calls[0][0]
    if type(function) not in PICKLED_BY_NAME or not _is_picklable(function):
        return None
    if isinstance(calls, SameCalls):
        return calls
    if any(other is not function or keywords for other, _, keywords in calls):
        return None
    return SameCalls(function, [tuple(arguments) for _, arguments, _ in calls])


def _is_picklable(function: Any) -> bool:
    try:
        pickle.dumps(function)
    except BaseException as error:  # any: the call itself cannot be pickled, its error says why
        if is_interrupt(error):
            raise
        return False
    return True
