"""Objects as pickles with arrays beside them."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.interfaces.calls.pickling import UnreadableObject, pickle_each, unpickle_each


class NotPicklable:
    def __reduce__(self):
        raise ZeroDivisionError("not me")


class NotReadable:
    def __reduce__(self):
        return divmod, (1, 0)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1000.0),
        np.arange(1000.0)[::3],
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(12).reshape(3, 4)[:, 1:3],
        np.zeros((0, 5)),
    ],
    ids=["plain", "strided", "Fortran", "window", "empty"],
)
def test_memory_of_an_array_is_never_inside_the_pickle(array):
    pickled, failed = pickle_each([{"array": array}])
    assert failed == []
    assert len(pickled[0]) < 300
    assert sum(memoryview(buffer).nbytes for buffer in pickled[3]) == array.nbytes
    (back,) = unpickle_each(pickled, copy=True)
    np.testing.assert_array_equal(back["array"], array)


@pytest.mark.parametrize("copy", [True, False])
def test_arrays_that_come_out_can_be_written_to(copy):
    array = np.arange(5.0)
    array.flags.writeable = False
    (back,) = unpickle_each(pickle_each([array])[0], copy=copy)
    back += 1
    assert array[0] == 0


def test_copies_do_not_share_memory_with_the_pickled_array():
    array = np.zeros(3)
    (back,) = unpickle_each(pickle_each([array])[0], copy=True)
    back += 1
    assert array.tolist() == [0, 0, 0]


def test_what_cannot_be_pickled_costs_no_other():
    objects = [np.arange(3), [np.arange(4), NotPicklable()], "a", lambda: 0, np.arange(5)]
    pickled, failed = pickle_each(objects)
    assert [position for position, _ in failed] == [1, 3]
    assert isinstance(failed[0][1], ZeroDivisionError)
    first, second, third = unpickle_each(pickled, copy=False)
    assert (len(first), second, len(third)) == (3, "a", 5)


def test_what_cannot_be_read_costs_no_other():
    pickled, _ = pickle_each([np.arange(3), NotReadable(), np.arange(4)])
    first, second, third = unpickle_each(pickled, copy=False)
    assert isinstance(second, UnreadableObject)
    assert isinstance(second.error, ZeroDivisionError)
    assert (first.size, third.size) == (3, 4)


def test_no_two_objects_share_a_list():
    shared = [1]
    first, second = unpickle_each(pickle_each([(shared, 1), (shared, 2)])[0], copy=False)
    first[0].append(2)
    assert second == ([1], 2)
