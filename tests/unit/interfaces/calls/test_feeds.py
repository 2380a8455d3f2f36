"""The feed of calls that have a future each."""

from __future__ import annotations

import operator
from concurrent.futures import Future

import pytest

from mpipar.interfaces.calls.answers import Raised, WorkersGone
from mpipar.interfaces.calls.feeds import SubmittedCalls


@pytest.fixture
def feed():
    return SubmittedCalls(LookupError)


def submit(feed, count):
    futures = [Future() for _ in range(count)]
    for number, future in enumerate(futures):
        feed.append(future, (operator.neg, (number,), {}))
    return futures


def test_calls_that_were_cancelled_are_forgotten(feed):
    futures = submit(feed, 4)
    assert futures[1].cancel()
    keys, calls = feed.take(2)
    assert [call[1] for call in calls] == [(0,), (2,)]
    assert feed.waiting() == 1
    assert not futures[2].cancel(), "a worker has it"
    feed.returned(keys, [0, -2])
    assert [future.result(0) for future in (futures[0], futures[2])] == [0, -2]


def test_future_of_a_failed_call_raises_what_the_interface_makes_of_the_failure(feed):
    submit(feed, 2)
    (first, second), _ = feed.take(2)
    failures = Raised(ValueError(), "", "here"), WorkersGone(OSError())
    for future, failure in zip((first, second), failures, strict=True):
        feed.failed(future, failure)
        assert future.exception(0).args == (failure,)


def test_cancel_spares_the_first_calls_that_are_about_to_be_sent(feed):
    futures = submit(feed, 5)
    feed.cancel(2)
    assert [future.cancelled() for future in futures] == [False, False, True, True, True]
    feed.take(1)
    feed.cancel(2)
    assert [future.cancelled() for future in futures[:2]] == [False, True]
