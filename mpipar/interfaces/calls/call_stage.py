"""The stage that calls functions: what happens on a worker with the calls of a user.

    CallRouter: PackedCalls --Task--> CallStage.run: the setup once, then each call
    CallRouter: answers <--BatchReply----+

The setup of a queue is a block, so that it reaches each worker once. Exceptions of the user are
values here: the runtime runs again what a lost worker took with it, never what raised.
"""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpipar.interfaces.calls.answers import Answer, Raised, Returned, SetupRaised
from mpipar.interfaces.calls.definitions import define, explain, of_block
from mpipar.interfaces.calls.pickling import (
    PickledObjects,
    UnreadableObject,
    are_plain,
    is_of_main,
    object_or_raise,
    pickle_each,
    unpickle_each,
)
from mpipar.interfaces.calls.user_main import at_load
from mpipar.runtime.stage import Block, Stage, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.interfaces.calls.definitions import Definition
    from mpipar.interfaces.calls.surroundings import Surroundings
    from mpipar.interfaces.calls.user_main import UserMain

__all__ = [
    "BatchReply",
    "CallStage",
    "is_in_call",
    "is_setup_of_main",
    "setup_block",
    "with_open_queues",
]

RETURNED, RAISED, SETUP_RAISED, MAIN_RAISED = 0, 1, 2, 3
DATA, ENDS, MARKS, PASSES, BUFFER = "data", "ends", "marks", "passes", "buffer"
OPEN = "open"
NO_KEYWORDS: dict[str, Any] = {}
_thread = threading.local()
_stages: list[str] = []  # that have begun in this process: without any there is no call here


def is_in_call() -> bool:
    """Whether this thread is making a call of a user."""
    return bool(_stages) and bool(getattr(_thread, "in_call", False))


class BatchReply(NamedTuple):
    """What became of the calls of a batch; of its first calls only, if they took too long."""

    kinds: bytes  # one for each call; a single SETUP_RAISED or MAIN_RAISED stands for all
    pickled: PickledObjects  # the values; (exception, traceback) of a call that raised
    together: bool  # whether one pickle is the list of all values
    where: str  # host and process
    seconds: float
    same_process: bool  # as that of the router: the arrays are still the worker's own

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchReply, tuple(self)

    def _objects(self) -> list[Any]:
        return list(unpickle_each(self.pickled, copy=self.same_process))

    def values(self) -> list[Any] | None:
        """Return the values that the calls returned; None if some call has none."""
        if any(self.kinds):
            return None
        objects = self._objects()
        if self.together:
            return list(objects[0])
        return None if any(type(value) is UnreadableObject for value in objects) else objects

    def answers(self, count: int) -> list[Answer]:
        """Return what became of the calls of a batch of `count`, or of its first calls."""
        objects = self._objects()
        if self.kinds[0] in {SETUP_RAISED, MAIN_RAISED}:
            failure = SetupRaised if self.kinds[0] == SETUP_RAISED else Raised
            return [failure(*_error_of(objects[0]), self.where)] * count
        return [
            Returned(value)
            if kind == RETURNED and not isinstance(value, UnreadableObject)
            else Raised(*_error_of(value), self.where)
            for kind, value in zip(self.kinds, objects, strict=True)
        ]


def _error_of(value: Any) -> tuple[BaseException, str]:
    """Return exception and traceback of a call that raised, or whose value cannot be read here."""
    if isinstance(value, UnreadableObject):
        return value.error, "".join(traceback.format_exception(value.error))
    error, text = value
    return error, text


def setup_block(setup: Callable[[], Any], *, passes_setup: bool) -> dict[str, NDArray[Any]]:
    """Return the block of a queue. Raises what pickling its setup raises.

    setup         run once on each worker
    passes_setup  functions get what the setup returns before their own arguments
    """
    (data, ends, marks, buffers), failed = pickle_each([setup])
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


def is_setup_of_main(block: Block) -> bool:
    """Whether reading a queue's setup may need the user's main module."""
    return is_of_main(_pickled_setup(block))


def with_open_queues(block: Block, numbers: Iterable[int]) -> dict[str, NDArray[Any]]:
    """Return a block that also says of which queues workers must keep the setup."""
    return {**block, OPEN: np.array(list(numbers), np.int64)}


def _pickled_setup(block: Block) -> PickledObjects:
    count = sum(name.startswith(BUFFER) for name in block)
    buffers = tuple(block[f"{BUFFER}{number}"] for number in range(count))
    ends, marks = tuple(block[ENDS].tolist()), tuple(block[MARKS].tolist())
    return block[DATA].tobytes(), ends, marks, buffers


class _WorkerSetups:
    """The state of one worker: the user's main module, and the setups that were run here."""

    def __init__(self, main: UserMain) -> None:
        self.main = main
        self.where = f"{socket.gethostname()} (process {os.getpid()})"
        self._lock = threading.RLock()
        self._arguments: dict[int, tuple[Any, ...] | _CaughtException] = {}  # by queue
        self._surroundings: Surroundings | None = None  # that were entered last
        main.extend_search()

    def define(self, definitions: Sequence[Definition], block: Block | None) -> None:
        """Give the user's main module the names that it lacks here, and the calls need."""
        if not definitions and block is not None:
            definitions = list(of_block(block))
        if definitions and not self.main.is_this_process:
            with self._lock:
                self._load_main()
                define(definitions, at_load)

    def enter(self, surroundings: Surroundings) -> None:
        """Give this process the surroundings of the calls that follow, unless it has them."""
        with self._lock:
            if not self.main.is_this_process and surroundings != self._surroundings:
                surroundings.enter()
                self._surroundings = surroundings

    def arguments(self, queue: int, block: Block | None) -> tuple[Any, ...] | _CaughtException:
        """Return what functions get before their own arguments; run the setup if it was not yet."""
        if block is None or DATA not in block:
            return ()
        with self._lock:  # the other threads of this worker wait for the setup
            if queue not in self._arguments:
                kept = set(block[OPEN].tolist())
                for other in list(self._arguments):
                    if other < queue and other not in kept:
                        del self._arguments[other]
                self._arguments[queue] = self._run_setup(block)
            return self._arguments[queue]

    def _run_setup(self, block: Block) -> tuple[Any, ...] | _CaughtException:
        try:
            (setup,) = self.unpickle(_pickled_setup(block), copy=True)
            result = object_or_raise(setup)()
            return tuple(result) if block[PASSES].item() else ()
        except BaseException as error:  # also SystemExit: the calls fail, and the worker goes on
            return _CaughtException(error)

    def unpickle(self, pickled: PickledObjects, *, copy: bool) -> Iterator[Any]:
        """Return the objects; first run the user's main module, if they may need it."""
        if is_of_main(pickled):
            self._load_main()
        return unpickle_each(pickled, copy=copy)

    def _load_main(self) -> None:
        if self.main.load() and self._surroundings is not None:
            self._surroundings.enter()  # again: the main module was run in those of the beginning


class _CaughtException:
    """An exception as a value: with its traceback as text, and picklable in any case."""

    def __init__(self, error: BaseException) -> None:
        explain(error)
        self.text = "".join(traceback.format_exception(error))
        self.error = error.with_traceback(None)

    def picklable(self) -> tuple[BaseException, str]:
        """Return the exception, or an error that says why it cannot be pickled; its traceback."""
        try:
            pickle.loads(pickle.dumps(self.error))
        except BaseException as error:  # any: it comes from the user's code
            what = f"{type(self.error).__name__}: {self.error}"
            text = f"{what} (the exception itself cannot be pickled: {error})"
            return pickle.PicklingError(text), self.text
        return self.error, self.text


class CallStage(Stage):
    """Calls functions; see the diagram above."""

    def __init__(self, main: UserMain) -> None:
        self.main = main

    def start(self, shared: Mapping[str, Any]) -> _WorkerSetups:
        del shared
        _stages[:] = [type(self).__name__]
        return _WorkerSetups(self.main)

    def run(self, task: Task, block: Block | None, state: _WorkerSetups) -> BatchReply:
        queue, surroundings, definitions, longest, count, together, pickled = task.payload
        same_process = self.main.is_this_process
        start = time.perf_counter()
        _thread.in_call = True
        try:
            state.enter(surroundings or self.main.now)
            state.define(definitions, block)
            first = state.arguments(queue, block)
            if isinstance(first, _CaughtException):
                kinds, results = bytearray([SETUP_RAISED]), [first]
            else:
                objects = state.unpickle(pickled, copy=same_process)
                start = time.perf_counter()  # setup and main module do not count as calls
                functions = list(itertools.islice(objects, count))
                calls = ((0, each, NO_KEYWORDS) for each in next(objects)) if together else objects
                kinds, results = _make_calls(first, functions, calls, start + longest)
        except BaseException as error:  # the user's main module cannot be run here
            kinds, results = bytearray([MAIN_RAISED]), [_CaughtException(error)]
        finally:
            _thread.in_call = False
        pickled, together = _pickle_results(kinds, results)  # which may change the kinds
        seconds = time.perf_counter() - start
        return BatchReply(bytes(kinds), pickled, together, state.where, seconds, same_process)


def _make_calls(
    first: tuple[Any, ...], functions: list[Any], calls: Iterable[Any], until: float
) -> tuple[bytearray, list[Any]]:
    """Make calls until that time, one at least; return their kinds and values or exceptions."""
    kinds, results = bytearray(), list[Any]()
    for call in calls:
        try:
            function, arguments, keywords = object_or_raise(call)
            if type(function) is int:
                function = object_or_raise(functions[function])
            results.append(function(*first, *arguments, **keywords))
            kinds.append(RETURNED)
        except BaseException as error:  # also SystemExit: the call fails, and the worker goes on
            results.append(_CaughtException(error))
            kinds.append(RAISED)
        if time.perf_counter() > until:
            break
    return kinds, results


def _pickle_results(kinds: bytearray, results: list[Any]) -> tuple[PickledObjects, bool]:
    """Pickle the results of calls; a value that cannot be pickled becomes the error that says so.

    returns   the pickles, and whether one pickle is the list of all values
    """
    if are_plain(results):
        return pickle_each([results])[0], True
    for position, kind in enumerate(kinds):
        if kind != RETURNED:
            results[position] = results[position].picklable()
    pickled, failed = pickle_each(results)
    if failed:
        for position, error in failed:
            kinds[position] = RAISED
            results[position] = _CaughtException(error).picklable()
        pickled, _ = pickle_each(results)
    return pickled, False
