"""Python objects as bytes: many small pickles in a row, with the memory of arrays beside them.

Each object is pickled for itself. So an object that cannot be pickled, or read back, harms no
other, and no two objects come to share a list. Arrays are never copied into a pickle.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from mpipar.errors import StoppedError
from mpipar.interfaces.calls.by_value import ByValuePickler, reduce_writable_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "PickledObjects",
    "UnreadableObject",
    "are_plain",
    "as_exception",
    "is_interrupt",
    "is_of_main",
    "object_or_raise",
    "pickle_each",
    "unpickle_each",
]

PickledObjects: TypeAlias = tuple[bytes, tuple[int, ...], tuple[int, ...], tuple[Any, ...]]
"""Pickles in a row; the end of each in there; how many buffers there are up to it; the buffers.

The third is empty if there are no buffers."""

NOT_PICKLED: Final = "an object cannot be pickled"
PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})


class _Reducers(dict[type, Any]):
    """How types are pickled: arrays as below, all others as the standard library does."""

    def __missing__(self, kind: type) -> Any:
        return copyreg.dispatch_table[kind]


class _CallPickler(pickle.Pickler):
    dispatch_table = _Reducers({np.ndarray: reduce_writable_array})


def pickle_each(
    objects: Iterable[Any],
) -> tuple[PickledObjects, list[tuple[int, Exception]]]:
    """Pickle each object for itself.

    returns   the pickles of those that could be pickled; [(position, error)] of the others
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = _CallPickler(stream, 5, buffer_callback=buffers.append)
    ends, marks, failed = list[int](), list[int](), list[tuple[int, Exception]]()
    for position, item in enumerate(objects):
        try:
            pickler.dump(item)
        except BaseException as error:  # any: it comes from the user's __reduce__ and __getstate__
            if is_interrupt(error):
                raise
            stream.seek(ends[-1] if ends else 0)
            stream.truncate()
            del buffers[marks[-1] if marks else 0 :]
            by_value = _pickle_by_value(item)
            if by_value is None:
                failed.append((position, _with_advice(as_exception(error, NOT_PICKLED))))
                continue
            stream.write(by_value[0])
            buffers += by_value[1]
        finally:
            pickler.clear_memo()
        ends.append(stream.tell())
        marks.append(len(buffers))
    views = tuple(buffer.raw() for buffer in buffers)
    frozen = tuple(pickle.PickleBuffer(view) for view in views)
    return (stream.getvalue(), tuple(ends), tuple(marks) if frozen else (), frozen), failed


def _pickle_by_value(item: Any) -> tuple[bytes, list[pickle.PickleBuffer]] | None:
    """Pickle what has functions or classes of the main program that no name leads to, or None."""
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = ByValuePickler(stream, buffer_callback=buffers.append)
    try:
        pickler.dump(item)
    except BaseException as error:  # any: it comes from the user's code
        if is_interrupt(error):
            raise
        return None
    return (stream.getvalue(), buffers) if pickler.enclosed else None


def _with_advice(error: Exception) -> Exception:
    """Return the error of a function or class that has no name in an imported module."""
    text = str(error)
    if "local object" not in text and "attribute lookup" not in text:
        return error
    return type(error)(f"{text}: define it at the top level of its module, or in the script itself")


def are_plain(values: Iterable[Any]) -> bool:
    """Whether all are numbers, texts and the like, which always can be pickled and read back."""
    return PLAIN.issuperset(map(type, values))


def unpickle_each(pickled: PickledObjects, *, copy: bool) -> Iterator[Any]:
    """Yield the objects again; an UnreadableObject for an object that cannot be read back.

    copy   copy the memory of arrays: for pickles that were not sent, but are still the pickler's
    """
    data, ends, marks, buffers = pickled
    view, begin, first = memoryview(data), 0, 0
    for position, end in enumerate(ends):
        last = marks[position] if marks else 0
        own: Sequence[Any] = buffers[first:last]
        if own:
            own = [_writable(buffer, copy=copy) for buffer in own]
        yield _read_back(view[begin:end], own)
        begin, first = end, last


def _read_back(pickled: memoryview, buffers: Sequence[Any]) -> Any:
    try:
        return pickle.loads(pickled, buffers=buffers)
    except BaseException as error:  # any: it comes from the user's code
        if is_interrupt(error):
            raise
        return UnreadableObject(as_exception(error, "an object cannot be read back"))


def is_interrupt(error: BaseException) -> bool:
    """Whether an error is a signal to this process: those are raised in its main thread."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and isinstance(error, KeyboardInterrupt | StoppedError)


def as_exception(error: BaseException, what: str) -> Exception:
    """Return an error that ends no program: for SystemExit and the like, one that names it.

    what   what has failed with it
    """
    if isinstance(error, Exception):
        return error
    text = traceback.format_exception_only(error)[-1].strip()
    replaced = pickle.PicklingError(f"{what}: its own code raised {text}")
    replaced.__cause__ = error.with_traceback(None)
    return replaced


def _writable(buffer: Any, *, copy: bool) -> Any:
    """Return the memory of an array that may be written to, whatever the pickled array was."""
    return bytearray(buffer) if copy or memoryview(buffer).readonly else buffer


class UnreadableObject:
    """The place of an object that could not be read back."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def object_or_raise(found: Any) -> Any:
    """Return an object that `unpickle_each` gave; raise the error of an UnreadableObject."""
    if isinstance(found, UnreadableObject):
        raise found.error
    return found


def is_of_main(pickled: PickledObjects) -> bool:
    """Whether reading the objects may need the user's main module."""
    return b"__main__" in pickled[0] or b"__mp_main__" in pickled[0]
