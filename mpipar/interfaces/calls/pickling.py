"""Python objects as bytes: many small pickles in one, with the memory of arrays beside them.

Each object is pickled for itself, so that one that cannot be pickled, or read back, costs no other,
and no two of them come to share a list. Arrays are never copied into a pickle.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from mpipar.runtime.wire.codec import reduce_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Pieces", "UnreadableValue", "are_plain", "is_of_main", "pack", "unpack_each", "whole"]

Pieces: TypeAlias = tuple[bytes, tuple[int, ...], tuple[int, ...], tuple[Any, ...]]
"""Pickles in a row; where each ends; which buffer is each one's last; the buffers."""


PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})


class _Reducers(dict[type, Any]):
    """How types are taken apart: arrays as below, all others as everywhere."""

    def __missing__(self, kind: type) -> Any:
        return copyreg.dispatch_table[kind]


def _reduce_array(array: Any) -> Any:
    """Make it writable first, because what is read back from a read-only buffer is read-only, too.

    Elsewhere an array that was pickled and read back can be written to.
    """
    flags = array.flags
    if flags.forc and not flags.writeable and not array.dtype.hasobject:
        array = array.copy(order="K")  # of any other a copy is made anyway
    return reduce_array(array)


class _CallPickler(pickle.Pickler):
    dispatch_table = _Reducers({np.ndarray: _reduce_array})


def pack(objects: Iterable[Any]) -> tuple[Pieces, list[tuple[int, Exception]]]:
    """Pickle each object; return the pieces of those that could be, and the others' errors.

    returns   pieces, [(position among the objects, error)]; what failed is not in the pieces
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = _CallPickler(stream, 5, buffer_callback=buffers.append)
    ends, marks, failed = list[int](), list[int](), list[tuple[int, Exception]]()
    for position, item in enumerate(objects):
        try:
            pickler.dump(item)
        except Exception as error:  # any: it comes from the user's own __reduce__ and __getstate__
            failed.append((position, error))
            stream.seek(ends[-1] if ends else 0)
            stream.truncate()
            del buffers[marks[-1] if marks else 0 :]
        else:
            ends.append(stream.tell())
            marks.append(len(buffers))
        pickler.clear_memo()
    views = tuple(buffer.raw() for buffer in buffers)
    frozen = tuple(pickle.PickleBuffer(view) for view in views)
    return (stream.getvalue(), tuple(ends), tuple(marks) if frozen else (), frozen), failed


def are_plain(values: Iterable[Any]) -> bool:
    """Whether all are numbers, texts and the like, which always can be pickled and read back."""
    return PLAIN.issuperset(map(type, values))


def unpack_each(pieces: Pieces, *, own: bool) -> Iterator[Any]:
    """Return the objects again, one by one; instead of one that cannot be read, its exception.

    own   copy the arrays' memory: for pieces that were not sent, but still are the packer's
    """
    data, ends, marks, buffers = pieces
    view, begin, first = memoryview(data), 0, 0
    for position, end in enumerate(ends):
        last = marks[position] if marks else 0
        mine: Sequence[Any] = buffers[first:last]
        if mine:
            mine = [_writable(buffer, own=own) for buffer in mine]
        try:
            yield pickle.loads(view[begin:end], buffers=mine)
        except Exception as error:  # any: it runs the user's code
            yield UnreadableValue(error)
        begin, first = end, last


def _writable(buffer: Any, *, own: bool) -> Any:
    """An unpickled array can be written to, whatever the pickled one was."""
    return bytearray(buffer) if own or memoryview(buffer).readonly else buffer


def whole(found: Any) -> Any:
    """Return an object that `unpack_each` gave; raise what kept it from being read, if it was."""
    if isinstance(found, UnreadableValue):
        raise found.error
    return found


class UnreadableValue:
    """What stands for an object that could not be read back."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def is_of_main(pieces: Pieces) -> bool:
    """Whether reading them may need the user's main module."""
    return b"__main__" in pieces[0] or b"__mp_main__" in pieces[0]
