"""Which calls go to a worker together.

One message for each call would keep rank 0 busy with messages. Calls that are known to be short,
and of which many wait, travel in bundles of BUNDLE_SECONDS; any other call travels alone.
"""

from __future__ import annotations

import pickle
import types
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from mpipar.interfaces.packing import Pieces, pack

if TYPE_CHECKING:
    from mpipar.interfaces.answers import Answer
    from mpipar.interfaces.calls import Call

__all__ = ["Feed", "Flight", "Pace", "pack_calls"]

BUNDLE_SECONDS: Final = 0.002
BUNDLE_CALLS: Final = 512
SHARES: Final = 4  # bundles that each worker shall get of what waits
PATIENCE_SECONDS: Final = 0.02
BY_REFERENCE: Final = (types.FunctionType, types.BuiltinFunctionType, type)


class Feed(Protocol):
    """Where calls come from and answers go to. All but `waiting` in the crew's thread only."""

    chunk: int  # calls that shall travel together, whatever they take

    def waiting(self) -> int:
        """How many calls can be taken, at most."""
        ...

    def take(self, limit: int) -> list[tuple[Any, Call]]:
        """Give up to `limit` calls, each with a key; they go to a worker now."""
        ...

    def answer(self, key: Any, answer: Answer) -> None:
        """What became of a call that was taken; once for each."""
        ...

    def settle(self) -> None:
        """There are no more answers for now."""
        ...


class Flight(NamedTuple):
    """A call on its way."""

    feed: Feed
    key: Any
    call: Call


class Pace:
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


def pack_calls(flights: list[Flight]) -> tuple[int, Pieces, list[tuple[int, Exception]]]:
    """Pickle calls, with each plain function only once; also tell which calls cannot be pickled.

    returns   number of functions, which come before the calls and are named by number in them;
              pieces; [(position among the flights, error)]
    """
    numbers, functions = dict[Any, int | None](), list[Any]()
    calls: list[tuple[Any, Any, Any]] = []
    for _, _, (function, arguments, keywords) in flights:
        if type(function) not in BY_REFERENCE:
            calls.append((function, arguments, keywords))
            continue
        if function not in numbers:
            numbers[function] = len(functions) if _is_picklable(function) else None
            functions += [function] if numbers[function] is not None else []
        number = numbers[function]
        calls.append((function if number is None else number, arguments, keywords))
    pieces, failed = pack([*functions, *calls])
    return len(functions), pieces, [(at - len(functions), error) for at, error in failed]


def _is_picklable(function: Any) -> bool:
    try:
        pickle.dumps(function)
    except Exception:  # any: then the call itself fails to be pickled, and tells why
        return False
    return True


class Singles:
    """The feed of calls that come one by one, with their own claim and done."""

    chunk = 1

    def __init__(self) -> None:
        self._calls: deque[tuple[Any, Call]] = deque()

    def put(self, claim: Any, done: Any, call: Call) -> None:
        """Add a call. Any thread."""
        self._calls.append(((claim, done), call))

    def waiting(self) -> int:
        return len(self._calls)

    def take(self, limit: int) -> list[tuple[Any, Call]]:
        taken: list[tuple[Any, Call]] = []
        while self._calls and len(taken) < limit:
            (claim, done), call = self._calls.popleft()
            if claim():
                taken.append((done, call))
        return taken

    def answer(self, key: Any, answer: Answer) -> None:
        key(answer)

    def settle(self) -> None:
        """Each answer was told at once."""
