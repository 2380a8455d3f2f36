"""Which calls go to a worker together.

One message for each call would keep rank 0 busy with messages. Calls that are known to be short,
and of which many wait, travel in bundles of BUNDLE_SECONDS; any other call travels alone.
"""

from __future__ import annotations

import pickle
import types
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol, overload

from mpipar.interfaces.calls.answers import Returned
from mpipar.interfaces.calls.pickling import Pieces, are_plain, pack

if TYPE_CHECKING:
    from mpipar.interfaces.calls.answers import Answer
    from mpipar.interfaces.calls.call_stage import Call

__all__ = [
    "BatchSize",
    "CallBatch",
    "CallFeed",
    "PackedCalls",
    "SameCalls",
    "SingleCalls",
    "pack_calls",
]

BUNDLE_SECONDS: Final = 0.002
BUNDLE_CALLS: Final = 512
SHARES: Final = 4  # bundles that each worker shall get of what waits
PATIENCE_SECONDS: Final = 0.02
BY_REFERENCE: Final = (types.FunctionType, types.BuiltinFunctionType, type)


class CallFeed(Protocol):
    """Where calls come from and answers go to. All but `waiting` in the crew's thread only."""

    chunk: int  # calls that shall travel together, whatever they take

    def waiting(self) -> int:
        """How many calls can be taken, at most."""
        ...

    def take(self, limit: int) -> tuple[Sequence[Any], Sequence[Call]]:
        """Give up to `limit` calls and a key for each; they go to a worker now."""
        ...

    def returned(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """These calls that were taken have returned."""
        ...

    def answered(self, key: Any, answer: Answer) -> None:
        """What became of a call that was taken, whatever it is."""
        ...

    def settle(self) -> None:
        """There is nothing more to tell for now."""
        ...


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
    """Calls of one feed that travel together; each is told of once, by `returned` or `answered`."""

    feed: CallFeed
    keys: Sequence[Any]
    calls: Sequence[Call]

    @property
    def size(self) -> int:
        """How many calls there are."""
        return len(self.keys)

    def part(self, begin: int, end: int | None = None) -> CallBatch:
        """Some of them."""
        return CallBatch(self.feed, self.keys[begin:end], self.calls[begin:end])

    def without(self, places: Collection[int]) -> CallBatch:
        """All but those at these places."""
        kept = [at for at in range(self.size) if at not in places]
        return CallBatch(self.feed, [self.keys[at] for at in kept], [self.calls[at] for at in kept])


class BatchSize:
    """How long the calls of a context take, and so how many are sent at once."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def note(self, calls: int, seconds: float) -> None:
        """So many calls took so long. What is slow now counts at once, what is fast by and by."""
        each = seconds / calls
        before = each if self._mean is None else self._mean
        self._mean = max(each, (before + each) / 2)

    def size(self, waiting: int, workers: int) -> int:
        """How many of the waiting calls to bundle."""
        if self._mean is None:
            return 1
        fitting = BUNDLE_CALLS if self._mean == 0 else int(BUNDLE_SECONDS / self._mean)
        return max(1, min(fitting, BUNDLE_CALLS, waiting // (SHARES * workers)))


@dataclass(frozen=True, slots=True)
class PackedCalls:
    """Calls as they travel; a worker reads it in `calls.CallStage`.

    First come functions, which the calls name by number. Then each call is a piece; or, together,
    one piece is a list of the arguments of the only function.
    """

    functions: int
    together: bool
    pieces: Pieces


def pack_calls(calls: Sequence[Call]) -> tuple[PackedCalls, list[tuple[int, Exception]]]:
    """Pickle calls, with each plain function only once; also tell which ones cannot be pickled.

    returns   the parcel without those calls; [(position among the calls, error)]
    """
    same = _same(calls)
    # Plain values can share a pickle, which is several times as fast: nothing can go wrong with
    # them, and nobody can tell whether two calls have got the same one.
    if same is not None and are_plain(chain.from_iterable(same.arguments)):
        return PackedCalls(1, True, pack([same.function, same.arguments])[0]), []
    numbers, functions = dict[Any, int | None](), list[Any]()
    made: list[tuple[Any, Any, Any]] = []
    for function, arguments, keywords in calls:
        if type(function) not in BY_REFERENCE:
            number = None
        elif function in numbers:
            number = numbers[function]
        else:
            number = numbers[function] = len(functions) if _is_picklable(function) else None
            functions += [function] if number is not None else []
        made.append((function if number is None else number, arguments, keywords))
    pieces, failed = pack([*functions, *made])
    parcel = PackedCalls(len(functions), False, pieces)
    return parcel, [(at - len(functions), error) for at, error in failed]


def _same(calls: Sequence[Call]) -> SameCalls | None:
    """The calls, if all are of one plain function and without keywords."""
    function = calls[0][0]
    if type(function) not in BY_REFERENCE or not _is_picklable(function):
        return None
    if isinstance(calls, SameCalls):
        return calls
    if any(other is not function or keywords for other, _, keywords in calls):
        return None
    return SameCalls(function, [tuple(arguments) for _, arguments, _ in calls])


def _is_picklable(function: Any) -> bool:
    try:
        pickle.dumps(function)
    except Exception:  # any: then the call itself fails to be pickled, and tells why
        return False
    return True


class SingleCalls:
    """The feed of calls that come one by one, with their own claim and done."""

    chunk = 1

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[[], bool], Callable[[Answer], None], Call]] = deque()

    def put(self, claim: Callable[[], bool], done: Callable[[Answer], None], call: Call) -> None:
        """Add a call. Any thread."""
        self._calls.append((claim, done, call))

    def waiting(self) -> int:
        return len(self._calls)

    def take(self, limit: int) -> tuple[list[Any], list[Call]]:
        keys, calls = list[Any](), list[Any]()
        while self._calls and len(keys) < limit:
            claim, done, call = self._calls.popleft()
            if claim():
                keys.append(done)
                calls.append(call)
        return keys, calls

    def returned(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        for done, value in zip(keys, values, strict=True):
            done(Returned(value))

    def answered(self, key: Any, answer: Answer) -> None:
        key(answer)

    def settle(self) -> None:
        """Each answer was told at once."""
