"""The stage that calls functions: what happens on a worker with the calls of a user.

    crew: parcel of calls --Task--> CallStage.run: setup once, then each call
    crew: answers <--Reply(kinds, pieces, where, seconds)----+

A context is a block, so that its setup reaches each worker once. Exceptions of the user are values
here: the runtime retries what a lost worker took with it, never what raised.
"""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from mpipar.interfaces.calls.answers import Answer, Raised, Returned, SetupRaised
from mpipar.interfaces.calls.pickling import (
    Pieces,
    UnreadableValue,
    are_plain,
    is_of_main,
    pack,
    unpack_each,
    whole,
)
from mpipar.runtime.stage import Block, Stage, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.interfaces.calls.user_main import UserMain

__all__ = [
    "BatchReply",
    "Call",
    "CallStage",
    "answers_of",
    "is_in_task",
    "setup_block",
    "values_of",
    "with_open",
]

Call: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""A function, its arguments, its keyword arguments."""

RETURNED, RAISED, SETUP, MAIN = 0, 1, 2, 3
DATA, ENDS, MARKS, PASSES, BUFFER = "data", "ends", "marks", "passes", "buffer"
OPEN = "open"
NOTHING: dict[str, Any] = {}
_inside = threading.local()


def is_in_task() -> bool:
    """Whether this thread is running a call of a user."""
    return bool(getattr(_inside, "task", False))


class BatchReply(NamedTuple):
    """What became of the calls of a bundle; of its first ones only, if they took too long."""

    kinds: bytes  # one for each call; a single SETUP or MAIN stands for all
    pieces: Pieces  # values; (exception, traceback) of what raised
    together: bool  # whether the one piece is the list of all values
    where: str
    seconds: float
    unsent: bool  # its arrays are still the worker's own

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchReply, tuple(self)


def setup_block(setup: Callable[[], Any], *, passes_setup: bool) -> dict[str, NDArray[Any]]:
    """Return the block of a context. Raises what pickling its setup raises.

    setup         run once on each worker
    passes_setup  functions get what it returns before their own arguments
    """
    (data, ends, marks, buffers), failed = pack([setup])
    for _, error in failed:
        raise error
    block: dict[str, NDArray[Any]] = {
        DATA: np.frombuffer(data, np.uint8),
        ENDS: np.array(ends, np.int64),
        MARKS: np.array(marks, np.int64),
        PASSES: np.array(passes_setup),
    }
    for number, buffer in enumerate(buffers):
        block[f"{BUFFER}{number}"] = np.frombuffer(buffer, np.uint8)
    return block


def with_open(block: Block, numbers: Iterable[int]) -> dict[str, NDArray[Any]]:
    """Return a block that also says which older contexts workers must keep."""
    return {**block, OPEN: np.array(list(numbers), np.int64)}


def _pieces_of(block: Block) -> Pieces:
    count = sum(name.startswith(BUFFER) for name in block)
    buffers = tuple(block[f"{BUFFER}{number}"] for number in range(count))
    ends, marks = tuple(block[ENDS].tolist()), tuple(block[MARKS].tolist())
    return block[DATA].tobytes(), ends, marks, buffers


class _WorkerContexts:
    """One worker's state: the user's main module, and the contexts that were set up here."""

    def __init__(self, main: UserMain) -> None:
        self.main = main
        self.where = f"{socket.gethostname()} (process {os.getpid()})"
        self._lock = threading.RLock()
        self._prefixes: dict[int, tuple[Any, ...] | _CaughtException] = {}
        main.extend_search()

    def prefix(self, context: int, block: Block | None) -> tuple[Any, ...] | _CaughtException:
        """What functions get before their own arguments; set up now if that was not done yet."""
        if block is None:
            return ()
        with self._lock:  # the other threads of this worker wait for the setup
            if context not in self._prefixes:
                kept = set(block[OPEN].tolist())
                for other in list(self._prefixes):
                    if other < context and other not in kept:
                        del self._prefixes[other]
                self._prefixes[context] = self._set_up(block)
            return self._prefixes[context]

    def _set_up(self, block: Block) -> tuple[Any, ...] | _CaughtException:
        try:
            (setup,) = self.read(_pieces_of(block), own=True)
            made = whole(setup)()
            return tuple(made) if block[PASSES].item() else ()
        except BaseException as error:  # also SystemExit: it is an answer, not our end
            return _CaughtException(error)

    def read(self, pieces: Pieces, *, own: bool) -> Iterator[Any]:
        """Return the objects; after the user's main module has been run, if they may need it."""
        if is_of_main(pieces):
            self.main.load()
        return unpack_each(pieces, own=own)


class _CaughtException:
    """An exception as a value: with its traceback as text, and picklable in any case."""

    def __init__(self, error: BaseException) -> None:
        self.text = "".join(traceback.format_exception(error))
        self.error = error.with_traceback(None)

    def picklable(self) -> tuple[BaseException, str]:
        """Return the exception and its traceback, or what says why the exception cannot travel."""
        try:
            pickle.loads(pickle.dumps(self.error))
        except Exception as error:  # any: it runs the user's code
            what = f"{type(self.error).__name__}: {self.error}"
            text = f"{what} (the exception itself cannot be pickled: {error})"
            return pickle.PicklingError(text), self.text
        return self.error, self.text


class CallStage(Stage):
    """Calls functions; see the diagram above."""

    def __init__(self, main: UserMain) -> None:
        self.main = main

    def start(self, shared: Mapping[str, Any]) -> _WorkerContexts:
        del shared
        return _WorkerContexts(self.main)

    def run(self, task: Task, block: Block | None, state: _WorkerContexts) -> BatchReply:
        context, patience, count, together, pieces = task.payload
        start = time.perf_counter()
        _inside.task = True
        try:
            prefix = state.prefix(context, block)
            if isinstance(prefix, _CaughtException):
                kinds, made = bytearray([SETUP]), [prefix]
            else:
                objects = state.read(pieces, own=self.main.is_here)
                start = time.perf_counter()  # of the calls: setup and main module count once only
                functions = list(itertools.islice(objects, count))
                calls = ((0, each, NOTHING) for each in next(objects)) if together else objects
                kinds, made = _perform(prefix, functions, calls, start + patience)
        except BaseException as error:  # the user's main module cannot be run here
            kinds, made = bytearray([MAIN]), [_CaughtException(error)]
        finally:
            _inside.task = False
        pieces, together = _pack_made(kinds, made)  # which may change the kinds
        seconds = time.perf_counter() - start
        return BatchReply(bytes(kinds), pieces, together, state.where, seconds, self.main.is_here)


def _perform(
    prefix: tuple[Any, ...], functions: list[Any], calls: Iterable[Any], until: float
) -> tuple[bytearray, list[Any]]:
    """Make the calls, as many as there is time for; return their kinds and what came of them."""
    kinds, made = bytearray(), list[Any]()
    for call in calls:
        try:
            function, arguments, keywords = whole(call)
            if type(function) is int:
                function = whole(functions[function])
            made.append(function(*prefix, *arguments, **keywords))
            kinds.append(RETURNED)
        except BaseException as error:  # SystemExit, too, is what became of this call
            made.append(_CaughtException(error))
            kinds.append(RAISED)
        if time.perf_counter() > until:
            break
    return kinds, made


def _pack_made(kinds: bytearray, made: list[Any]) -> tuple[Pieces, bool]:
    """Pickle what came of the calls; a result that cannot be becomes the error that says so.

    returns   pieces, and whether the one piece is the list of all values
    """
    if are_plain(made):
        return pack([made])[0], True
    for position, kind in enumerate(kinds):
        if kind != RETURNED:
            made[position] = made[position].picklable()
    pieces, failed = pack(made)
    if failed:
        for position, error in failed:
            kinds[position] = RAISED
            made[position] = _CaughtException(error).picklable()
        pieces, _ = pack(made)
    return pieces, False


def values_of(reply: BatchReply) -> list[Any] | None:
    """Return the values that the calls returned, if each of them did."""
    if any(reply.kinds):
        return None
    found = list(unpack_each(reply.pieces, own=reply.unsent))
    if reply.together:
        return list(found[0])
    return None if any(type(value) is UnreadableValue for value in found) else found


def answers_of(reply: BatchReply, count: int) -> list[Answer]:
    """Return what became of the calls of a bundle of `count`, or of its first ones."""
    where = reply.where
    found = list(unpack_each(reply.pieces, own=reply.unsent))
    if reply.kinds[0] in {SETUP, MAIN}:
        told = SetupRaised if reply.kinds[0] == SETUP else Raised
        return [told(*_pair(found[0]), where)] * count
    return [
        Returned(made)
        if kind == RETURNED and not isinstance(made, UnreadableValue)
        else Raised(*_pair(made), where)
        for kind, made in zip(reply.kinds, found, strict=True)
    ]


def _pair(made: Any) -> tuple[BaseException, str]:
    """Exception and traceback, also of a value that cannot be read back here."""
    if isinstance(made, UnreadableValue):
        return made.error, "".join(traceback.format_exception(made.error))
    error, text = made
    return error, text
