"""Messages as bytes: a small frame, and large arrays beside it as raw buffers.

    frame:  count, sizes | pickle | small buffers          large buffers follow on their own
            int64 each; below 0: it follows

Pickle protocol 5 hands out the memory of every array instead of copying it, so an array is never
inside a pickle. A buffer below SMALL bytes is in the frame itself, which saves a message, unless
the frame has FULL bytes already. A larger one follows the frame; so does a pickle that is larger
itself, of a long string or of a list of a million numbers.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Frame: TypeAlias = bytearray | memoryview

SMALL = 1 << 17
FULL = 1 << 21
ALIGNMENT = 16  # of arrays within a frame, as compiled kernels want it


def reduce_array(array: Any) -> Any:
    """Return what pickle stores of an array: as numpy does, but quicker to read back.

    The array is made contiguous, since pickle copies any other array into its own stream.
    """
    dtype = array.dtype
    if dtype.hasobject:
        return array.__reduce_ex__(5)
    if not array.flags.forc:
        array = np.ascontiguousarray(array)
    if dtype.isbuiltin != 1 or dtype.metadata:  # its name does not describe it all
        return array.__reduce_ex__(5)
    order = "C" if array.flags.c_contiguous else "F"
    return _array, (pickle.PickleBuffer(array), dtype.str, array.shape, order)


def _array(buffer: Any, dtype: str, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    return np.ndarray(shape, dtype, buffer, 0, None, order)


class _FramePickler(pickle.Pickler):
    """A pickler that never copies the memory of an array.

    It accepts memoryviews of bytes, which pickle refuses: a buffer that was read out of a frame is
    one, and the payload of a stolen task is sent twice.
    """

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is np.ndarray:
            return reduce_array(obj)
        if kind is memoryview and obj.format == "B" and obj.ndim == 1 and obj.contiguous:
            return memoryview, (pickle.PickleBuffer(obj),)
        return NotImplemented


def blank(size: int) -> Frame:
    """Return memory for a frame. A large one is not set to zero: that costs as much as a copy."""
    return bytearray(size) if size < SMALL else np.empty(size, np.uint8).data


def encode(message: object) -> tuple[Frame, list[memoryview]]:
    """Return a frame, and the large buffers that are to follow it."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _FramePickler(stream, 5, buffer_callback=buffers.append).dump(message)
    views = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes, places, large = [len(view) for view in views], [], []
    end = 8 * (len(views) + 1)
    for index, view in enumerate(views):
        start = end + -end % ALIGNMENT
        if sizes[index] == 0 or (sizes[index] < SMALL and start < FULL):
            places.append((start, view))
            end = start + sizes[index]
        else:
            large.append(view)
            sizes[index] = -sizes[index]
    frame = blank(end)
    struct.pack_into(f"<{len(sizes) + 1}q", frame, 0, len(sizes), *sizes)
    for start, view in places:
        frame[start : start + len(view)] = view
    return frame, large


def _sizes(frame: Frame) -> tuple[int, ...]:
    (count,) = struct.unpack_from("<q", frame)
    return struct.unpack_from(f"<{count}q", frame, 8)


def large_sizes(frame: Frame) -> list[int]:
    """Return the sizes of the buffers that follow a frame."""
    return [-size for size in _sizes(frame) if size < 0]


def decode(frame: Frame, large: Sequence[NDArray[np.uint8]]) -> Any:
    """Return the message; its arrays lie in `large` and in the frame, without a copy."""
    sizes = _sizes(frame)
    view, end = memoryview(frame), 8 * (len(sizes) + 1)
    following = iter(large)
    parts: list[Any] = []
    for size in sizes:
        if size < 0:
            parts.append(next(following))
        else:
            start = end + -end % ALIGNMENT
            end = start + size
            parts.append(view[start:end])
    return pickle.loads(parts[0], buffers=parts[1:])
