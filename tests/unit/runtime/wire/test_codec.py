from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpipar.runtime.machines.messages import Begin, BlockReply, Finished, Partial
from mpipar.runtime.stage import Stage
from mpipar.runtime.wire import codec


class Nothing(Stage):
    def run(self, task, block, state):
        return None


def there_and_back(message):
    frame, large = codec.encode(message)
    sizes = codec.large_sizes(frame)
    assert sizes == [len(view) for view in large]
    arrived = [np.frombuffer(bytes(view), np.uint8).copy() for view in large]
    return codec.decode(bytearray(frame), arrived)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


ARRAYS = hnp.arrays(
    st.sampled_from([np.int64, np.float32, np.complex64, np.int8]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
)


@given(st.dictionaries(st.text(), ARRAYS | st.integers() | st.text(), max_size=5))
def test_arrays_and_objects_come_back_as_they_were(shared):
    message = there_and_back(Begin(3, 1, Nothing(), shared, ((0, 1), (2,))))
    assert same(shared, dict(message.shared))
    assert (message.serial, message.tree, type(message.stage)) == (3, ((0, 1), (2,)), Nothing)


@pytest.mark.parametrize("elements", [1, 1000, 2000, 100_000])
def test_array_memory_is_never_inside_the_pickle(elements):
    data = np.arange(elements, dtype=np.int64)
    frame, large = codec.encode(Partial(1, 1, 0, data))
    if data.nbytes >= codec.SMALL:
        assert len(frame) < 1000
        assert np.shares_memory(np.frombuffer(large[0], np.uint8), data)
    assert same(data, there_and_back(Partial(1, 1, 0, data)).data)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: a[:, 1:99],
        lambda a: a.T,
        lambda a: a[::-1, ::-1],
        lambda a: a[1:],
    ],
    ids=["every other row", "columns", "transposed", "backwards", "rows"],
)
def test_views_of_any_layout_travel_beside_the_pickle(view):
    array = view(np.arange(160_000.0).reshape(400, 400))
    frame, large = codec.encode(BlockReply(0, 1, {"x": array}))
    assert len(frame) < 1000
    assert len(large) == 1
    assert same(
        np.ascontiguousarray(array),
        np.ascontiguousarray(there_and_back(BlockReply(0, 1, {"x": array})).arrays["x"]),
    )


def test_large_pickle_leaves_the_frame_too():
    text = "word " * 100_000
    frame, large = codec.encode(Finished(1, ((0, text),), 0.1))
    assert (len(frame), len(large)) == (16, 1)
    assert there_and_back(Finished(1, ((0, text),), 0.1)).results == ((0, text),)


def test_arrays_of_objects_are_pickled_as_they_are():
    array = np.array([{"a": 1}, None, "x"] * 3, dtype=object)[::2]
    arrived = there_and_back(Finished(1, ((0, array),), 0.1)).results[0][1]
    assert arrived.tolist() == array.tolist()


def test_what_cannot_be_pickled_raises():
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        codec.encode(Finished(1, ((0, lambda: None),), 0.1))


def test_small_arrays_are_aligned_and_keep_their_read_only_mark():
    arrays = {
        "a": np.zeros(3, np.int8),
        "b": np.arange(5.0),
        "c": np.arange(3, dtype=np.complex128),
    }
    arrays["b"].flags.writeable = False
    arrived = there_and_back(BlockReply(0, 1, arrays)).arrays
    assert all(array.flags.aligned for array in arrived.values())
    assert [array.flags.writeable for array in arrived.values()] == [True, False, True]


@pytest.mark.parametrize("size", [0, 10, 1000, codec.SMALL, 3 * codec.SMALL])
def test_what_was_read_can_be_sent_on(size):
    """A stolen task travels twice, and calls of an executor are pickles with raw buffers."""
    data: Any = np.arange(size, dtype=np.uint8)
    payload = {"buffers": (pickle.PickleBuffer(data.tobytes()), pickle.PickleBuffer(data))}
    again = there_and_back(there_and_back(payload))
    assert [bytes(buffer) for buffer in again["buffers"]] == 2 * [data.tobytes()]


# numpy itself makes some others native when they are pickled
TYPES = (hnp.scalar_dtypes() | hnp.array_dtypes()).map(lambda kind: kind.newbyteorder("="))


@given(hnp.arrays(TYPES, hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_of_any_type_come_back_as_they_were(array):
    views = array, array.T, array[..., :1] if array.ndim else array
    for view, found in zip(views, there_and_back(views), strict=True):
        assert (found.dtype, found.shape) == (view.dtype, view.shape)
        assert found.tobytes() == view.tobytes()
        assert found.flags.writeable
        if view.flags.forc:
            assert found.flags.f_contiguous == view.flags.f_contiguous


def test_what_a_type_says_beyond_its_name_is_kept():
    noted = np.dtype(np.float32, metadata={"unit": "A"})
    (found,) = there_and_back((np.zeros(3, noted),))
    assert found.dtype.metadata == {"unit": "A"}
