"""Names in the user's `__main__` that workers lack, and how workers get them.

A forked process has whatever its parent has. Workers run the module level of the script, and get
the rest with the calls that need it: what the script binds below its main guard, and all of a
program on stdin or in a notebook. They get it as it is at the first call of an executor, and again
if the name is bound anew.
"""

from __future__ import annotations

import io
import itertools
import pickle
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mpipar.interfaces.calls.by_value import ByValuePickler, names_in
from mpipar.interfaces.calls.main_names import MainNames, global_names
from mpipar.interfaces.calls.pickling import UnreadableObject, object_or_raise, unpickle_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.interfaces.calls.user_main import UserMain

__all__ = [
    "Definition",
    "MainDefinitions",
    "as_block",
    "define",
    "explain",
    "names_needed_by",
    "of_block",
]

MAIN: Final = "__main__"
SMALL_STATE: Final = 1 << 16  # bytes of a container that the script may have changed in place
CONTAINERS: Final = (dict, list, set)
ROWS: Final = "definitions"
BUFFER: Final = "defined"


class Definition(NamedTuple):
    """A name of `__main__` for workers."""

    name: str
    version: int  # in the order of time; a worker that has it has nothing to do
    pickled: bytes | None  # None: it cannot be sent
    buffers: tuple[Any, ...]  # the memory of arrays; or why it cannot be sent

    @property
    def size(self) -> int:
        return len(self.pickled or b"") + sum(
            memoryview(buffer).nbytes for buffer in self.buffers if not isinstance(buffer, str)
        )


@dataclass
class _Sent:
    """A definition, what it is of, and the other names that it needs."""

    value: Any
    definition: Definition
    needs: Sequence[str]
    moment: int


def names_needed_by(things: Iterable[Any]) -> list[str]:
    """Return the names in `__main__` that workers need for objects that they will get pickled."""
    names = list[str]()
    for thing in things:
        named, enclosed = names_in(thing)
        names += named
        for function in enclosed:
            names += global_names(function)
    return names


class MainDefinitions:
    """What workers lack of the main module of this process."""

    def __init__(self, main: UserMain) -> None:
        self._names: MainNames | None = None
        self._main = main
        self._sent: dict[str, _Sent] = {}
        self._moment = 0
        self._versions = itertools.count(1)
        self._lock = threading.Lock()

    def look_again(self) -> None:
        """Have objects that were changed in place sent again, if a call needs them from now on."""
        self._moment += 1

    def needed(self, names: Iterable[str]) -> tuple[Definition, ...]:
        """Return the definitions that workers need for these names in `__main__`."""
        with self._lock:
            return tuple(self._collect(list(names)))

    def _collect(self, todo: list[str]) -> Iterator[Definition]:
        if self._names is None:
            self._names = self._main.names()
        values, seen = sys.modules[MAIN].__dict__, set[str]()
        while todo:
            name = todo.pop()
            if name in seen or name not in values or name.startswith("__"):
                continue
            seen.add(name)
            value = values[name]
            todo += global_names(value)
            is_known = self._names.has(name, value)
            if is_known and type(value) not in CONTAINERS:
                continue
            sent = self._define(name, value, is_known=is_known)
            todo += sent.needs
            if sent.definition.pickled is not None or not is_known:
                yield sent.definition

    def _define(self, name: str, value: Any, *, is_known: bool) -> _Sent:
        before = self._sent.get(name)
        if before is not None and before.value is value and before.moment == self._moment:
            return before
        stream, buffers = _Bounded(SMALL_STATE if is_known else None), list[pickle.PickleBuffer]()
        pickler = ByValuePickler(stream, defining=name, buffer_callback=stream.noting(buffers))
        needs = list[str]()
        try:
            pickler.dump(value)
        except Exception as error:
            definition = Definition(name, 0, None, (f"{type(error).__name__}: {error}",))
        else:
            needs = list(pickler.named)
            for function in pickler.enclosed:
                needs += global_names(function)
            raw = tuple(pickle.PickleBuffer(buffer.raw()) for buffer in buffers)
            definition = Definition(name, 0, stream.getvalue(), raw)
        old = before.definition if before is not None else None
        is_same = old is not None and old[2:] == definition[2:] and not definition.buffers
        version = old.version if is_same and old is not None else next(self._versions)
        sent = _Sent(value, definition._replace(version=version), needs, self._moment)
        self._sent[name] = sent
        return sent


class _TooLargeError(Exception):
    """More than is sent of a container that a worker has, too."""


class _Bounded(io.BytesIO):
    """A pickle that may not become larger than that, the memory of arrays included."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self._left = limit

    def _count(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise _TooLargeError

    def write(self, data: Any) -> int:
        self._count(len(data))
        return super().write(data)

    def noting(self, buffers: list[pickle.PickleBuffer]) -> Callable[[pickle.PickleBuffer], None]:
        """Return what adds a buffer to the list, and counts it."""

        def note(buffer: pickle.PickleBuffer) -> None:
            self._count(buffer.raw().nbytes)
            buffers.append(buffer)

        return note


def as_block(definitions: Sequence[Definition]) -> dict[str, NDArray[Any]]:
    """Return definitions as a block: large ones go to each worker once, not with each call."""
    rows = [
        (name, version, pickled, buffers if pickled is None else len(buffers))
        for name, version, pickled, buffers in definitions
    ]
    block: dict[str, NDArray[Any]] = {ROWS: np.frombuffer(pickle.dumps(rows), np.uint8)}
    buffers = [one for each in definitions if each.pickled is not None for one in each.buffers]
    for number, buffer in enumerate(buffers):
        block[f"{BUFFER}{number}"] = np.frombuffer(buffer, np.uint8)
    return block


def of_block(block: Mapping[str, NDArray[Any]]) -> Iterator[Definition]:
    """Yield the definitions that `as_block` has put into a block, if it did."""
    if ROWS not in block:
        return
    numbers = itertools.count()
    for name, version, pickled, rest in pickle.loads(block[ROWS].tobytes()):
        if pickled is None:
            yield Definition(name, version, None, rest)
        else:
            buffers = tuple(block[f"{BUFFER}{next(numbers)}"] for _ in range(rest))
            yield Definition(name, version, pickled, buffers)


# Of a worker

_versions: Final = dict[str, int]()  # of the names that this process has got
_not_sent: Final = dict[str, str]()  # names that could not be sent, and why
_defining: Final = threading.Lock()


def define(definitions: Iterable[Definition], at_load: Mapping[str, Any]) -> None:
    """Give this process's `__main__` the names that it lacks. Raises what reading them raises.

    A name that a worker has bound itself, e.g. in an initializer, stays until the user's process
    binds it anew.

    at_load   what the module level of the script has bound here
    """
    with _defining:
        main = sys.modules[MAIN].__dict__
        pending = list[Definition]()
        for definition in definitions:
            name, version, pickled, buffers = definition
            before = _versions.get(name, 0)
            if version <= before:
                continue
            is_own = not before and name in main and main[name] is not at_load.get(name)
            if is_own or pickled is None:
                _versions[name] = version
                _not_sent[name] = "" if pickled is not None else buffers[0]
            else:
                pending.append(definition)
        while pending:
            left = [each for each in pending if not _is_defined(each, main, last=False)]
            if len(left) == len(pending):  # what they need is not among them
                _is_defined(left[0], main, last=True)
            pending = left


def _is_defined(definition: Definition, main: dict[str, Any], *, last: bool) -> bool:
    """Set a name; return False if it needs a name that is not there yet (`last`: raise that)."""
    name, version, pickled, buffers = definition
    assert pickled is not None  # else it is not pending
    ends = (pickled, (len(pickled),), (len(buffers),) if buffers else (), buffers)
    (found,) = unpickle_each(ends, copy=True)
    if isinstance(found, UnreadableObject) and isinstance(found.error, AttributeError) and not last:
        return False
    main[name] = object_or_raise(found)
    _versions[name] = version
    return True


def explain(error: BaseException) -> None:
    """Let the error of a name that could not be sent say so."""
    name = getattr(error, "name", None)
    reason = _not_sent.get(name, "") if isinstance(error, NameError) and name else ""
    if reason:
        text = (
            f"{error}: what the script calls {name} cannot be sent to workers ({reason}); make it "
            "in the function, in an initializer, or at the top of the script"
        )
        error.args = (text, *error.args[1:])
