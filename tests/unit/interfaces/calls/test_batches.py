"""Which calls travel together."""

from __future__ import annotations

import functools
import operator

import pytest

from mpipar.interfaces.calls.batches import BUNDLE_CALLS, BatchSize, SingleCalls, pack_calls
from mpipar.interfaces.calls.pickling import unpack_each


@pytest.mark.parametrize(
    ("seconds", "waiting", "size"),
    [
        (None, 10_000, 1),  # not known yet
        (1.0, 10_000, 1),  # long
        (0.001, 10_000, 2),
        (0.0001, 10_000, 20),
        (0.0001, 100, 8),  # three workers get four shares each
        (0.0001, 10, 1),  # few are left
        (0.0, 1_000_000, BUNDLE_CALLS),
    ],
)
def test_bundles_are_of_short_calls_of_which_many_wait(seconds, waiting, size):
    pace = BatchSize()
    if seconds is not None:
        pace.note(1, seconds)
    assert pace.size(waiting, workers=3) == size


def test_one_long_call_ends_the_bundling():
    pace = BatchSize()
    pace.note(1000, 0.001)
    assert pace.size(10_000, 3) > 100
    pace.note(100, 0.5)
    assert pace.size(10_000, 3) == 1


def test_plain_values_share_a_pickle_and_a_function_is_in_it_once():
    parcel, failed = pack_calls([(operator.add, (n, 1.5), {}) for n in range(100)])
    assert failed == []
    assert (parcel.functions, parcel.together) == (1, True)
    function, arguments = unpack_each(parcel.pieces, own=False)
    assert function is operator.add
    assert arguments == [(n, 1.5) for n in range(100)]


@pytest.mark.parametrize(
    "call",
    [
        (operator.add, ([1], [2]), {}),
        (sorted, ("ab",), {"reverse": True}),
        (functools.partial(operator.add, 1), (2,), {}),
    ],
    ids=["lists", "keywords", "an object as function"],
)
def test_other_calls_are_pickled_each_for_itself(call):
    parcel, failed = pack_calls([call, (operator.neg, (1,), {})])
    assert (parcel.together, failed) == (False, [])
    functions, calls = [], list(unpack_each(parcel.pieces, own=False))
    functions, calls = calls[: parcel.functions], calls[parcel.functions :]
    assert [f.__name__ for f in functions][-1] == "neg"
    assert calls[-1] == (len(functions) - 1, (1,), {})


def test_a_function_that_cannot_be_pickled_fails_its_own_calls_only():
    calls = [(operator.neg, (1,), {}), (lambda x: x, (1,), {}), (operator.neg, (2,), {})]
    parcel, failed = pack_calls(calls)
    assert [at for at, _ in failed] == [1]
    assert len(list(unpack_each(parcel.pieces, own=False))) == parcel.functions + 2


def test_calls_that_are_not_claimed_are_forgotten():
    feed, told = SingleCalls(), []
    for number in range(4):
        feed.put(
            functools.partial(operator.eq, number % 2, 0),
            told.append,
            (operator.neg, (number,), {}),
        )
    keys, calls = feed.take(2)
    assert [call[1] for call in calls] == [(0,), (2,)]
    assert feed.waiting() == 1
    feed.returned(keys, [0, -2])
    assert [answer.value for answer in told] == [0, -2]
