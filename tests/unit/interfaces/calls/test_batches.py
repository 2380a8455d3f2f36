"""Which calls travel together."""

from __future__ import annotations

import functools
import operator

import pytest

from mpipar.interfaces.calls.batches import BATCH_CALLS, BatchSize, pack_calls
from mpipar.interfaces.calls.pickling import unpickle_each


@pytest.mark.parametrize(
    ("seconds", "waiting", "size"),
    [
        (None, 10_000, 1),  # not known yet
        (1.0, 10_000, 1),  # long
        (0.001, 10_000, 2),
        (0.0001, 10_000, 20),
        (0.0001, 100, 8),  # three workers get four shares each
        (0.0001, 10, 1),  # few are left
        (0.0, 1_000_000, BATCH_CALLS),
    ],
)
def test_batches_are_of_short_calls_of_which_many_wait(seconds, waiting, size):
    batch_size = BatchSize()
    if seconds is not None:
        batch_size.record(1, seconds)
    assert batch_size.choose(waiting, workers=3) == size


def test_one_long_call_makes_batches_small():
    batch_size = BatchSize()
    batch_size.record(1000, 0.001)
    assert batch_size.choose(10_000, 3) > 100
    batch_size.record(100, 0.5)
    assert batch_size.choose(10_000, 3) == 1


def test_plain_values_share_a_pickle_and_a_function_is_in_it_once():
    packed, failed = pack_calls([(operator.add, (n, 1.5), {}) for n in range(100)])
    assert failed == []
    assert (packed.functions, packed.together) == (1, True)
    function, arguments = unpickle_each(packed.pickled, copy=False)
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
    packed, failed = pack_calls([call, (operator.neg, (1,), {})])
    assert (packed.together, failed) == (False, [])
    functions, calls = [], list(unpickle_each(packed.pickled, copy=False))
    functions, calls = calls[: packed.functions], calls[packed.functions :]
    assert [f.__name__ for f in functions][-1] == "neg"
    assert calls[-1] == (len(functions) - 1, (1,), {})


def test_a_function_that_cannot_be_pickled_fails_its_own_calls_only():
    calls = [(operator.neg, (1,), {}), (lambda x: x, (1,), {}), (operator.neg, (2,), {})]
    packed, failed = pack_calls(calls)
    assert [at for at, _ in failed] == [1]
    assert len(list(unpickle_each(packed.pickled, copy=False))) == packed.functions + 2
