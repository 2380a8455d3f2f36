"""When a refinement stops searching everywhere, and when it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.programs.convergence import (
    FEWEST_EXHAUSTIVE,
    FEWEST_SOFT,
    LOCAL,
    MOST_EXHAUSTIVE,
    MOST_SOFT,
    SEARCH,
    SOFT,
    FinishedIteration,
    decide,
    seconds_after,
    signal_is_shown,
    with_everyone,
)


def soft(*evidence: float, jumped: float = 0.5, peak: float = 0.1) -> list[FinishedIteration]:
    return [FinishedIteration(30.0, jumped, SOFT, False, value, peak) for value in evidence]


def searched(*steps: tuple[float, float]) -> list[FinishedIteration]:
    """Searches of (resolution, jumped)."""
    return [FinishedIteration(resolution, jumped, SEARCH, False, 9) for resolution, jumped in steps]


def local(
    *resolutions: float, complete: bool = False, drift: float = 0.01
) -> list[FinishedIteration]:
    return [
        FinishedIteration(resolution, 0.0, LOCAL, complete, 9, drift=drift)
        for resolution in resolutions
    ]


CALM = searched((20, 1.0), (10, 0.01))
DECISIONS = {
    # history, iterations allowed, target -> stop, kind, complete
    "first iteration": ([], 20, None, (False, SOFT, False)),
    "first iteration that is also the last": ([], 1, None, (False, SEARCH, True)),
    "last one allowed while soft": (soft(1, 2), 3, None, (False, SEARCH, True)),
    "few soft ones, though calm": (soft(5, 5, jumped=0.0), 20, None, (False, SOFT, False)),
    "evidence rises": (soft(1, 2, 3, 4, 4.1), 20, None, (False, SOFT, False)),
    "evidence rises on average": (soft(1, 4, 5, 4.8, 5.1), 20, None, (False, SOFT, False)),
    "evidence stands": (soft(1, 4, 5, 5, 5, 5.1), 20, None, (False, SEARCH, False)),
    "soft and calm": (soft(1, 2, 3, 4, jumped=0.02), 20, None, (False, SEARCH, False)),
    "soft and likely": (soft(1, 2, 3, jumped=0.3, peak=0.41), 20, None, (False, SEARCH, False)),
    "likely, but more move than are unlikely": (
        soft(1, 2, 3, jumped=0.3, peak=0.75),
        20,
        None,
        (False, SOFT, False),
    ),
    "likely but restless": (soft(1, 2, 3, jumped=0.6, peak=0.9), 20, None, (False, SOFT, False)),
    "few soft ones, though likely": (soft(1, 2, peak=0.9), 20, None, (False, SOFT, False)),
    "soft for long": (soft(*range(1, MOST_SOFT + 1)), 40, None, (False, SEARCH, False)),
    "one search, though calm": (searched((9, 0.0)), 20, None, (False, SEARCH, False)),
    "calm": (CALM, 20, None, (False, LOCAL, False)),
    "restless, better": (searched((20, 1), (15, 0.5), (10, 0.5)), 20, None, (False, SEARCH, False)),
    "restless, calming": (searched((9, 1), (9, 0.5), (9, 0.3)), 20, None, (False, SEARCH, False)),
    "restless, stuck": (searched((9, 1), (9, 0.5), (9, 0.5)), 20, None, (False, LOCAL, False)),
    "searched long enough": (
        searched(*((20 - i, 0.5 - i / 20) for i in range(MOST_EXHAUSTIVE))),
        20,
        None,
        (False, LOCAL, False),
    ),
    "one local iteration": ([*CALM, *local(9)], 20, None, (False, LOCAL, False)),
    "local, better": ([*CALM, *local(8, 7)], 20, None, (False, LOCAL, False)),
    "local, better once of two": ([*CALM, *local(8, 9)], 20, None, (False, LOCAL, False)),
    "converged without all data": ([*CALM, *local(10, 10)], 20, None, (False, LOCAL, True)),
    "no better, but still drifting": (
        [*CALM, *local(10, 10, drift=0.1)],
        20,
        None,
        (False, LOCAL, False),
    ),
    "converged with all data": (
        [*CALM, *local(10), *local(10, complete=True)],
        20,
        None,
        (True, LOCAL, True),
    ),
    "target reached": (CALM, 20, 10.0, (False, LOCAL, True)),
    "target reached within a hair": (CALM, 20, 9.96, (False, LOCAL, True)),
    "target not reached": (CALM, 20, 9.9, (False, LOCAL, False)),
    "target reached with all data": (
        [*CALM, *local(8, complete=True)],
        20,
        8.5,
        (True, LOCAL, True),
    ),
    "the last one allowed is next": (CALM, 3, None, (False, LOCAL, True)),
    "all iterations done": (CALM, 2, None, (True, LOCAL, True)),
    "resumed with fewer iterations than done": (CALM, 1, None, (True, LOCAL, True)),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decision(name: str) -> None:
    history, most, target, expected = DECISIONS[name]
    following = decide(history, most, target)
    assert (following.stop, following.kind, following.complete) == expected
    assert following.reason


MEASURED = st.tuples(
    st.floats(2.0, 60.0), st.floats(0.0, 1.0), st.booleans(), st.floats(-9.0, 99.0)
)  # resolution, jumped, whether all shells fitted although they were not asked for, evidence


@given(
    measured=st.lists(MEASURED, min_size=61, max_size=61),
    most=st.integers(1, 60),
    target=st.none() | st.floats(1.0, 60.0),
)
def test_every_refinement_ends_well(
    measured: list[tuple[float, float, bool, float]], most: int, target: float | None
) -> None:
    history: list[FinishedIteration] = []
    for resolution, jumped, fitted, evidence in measured:
        following = decide(history, most, target)
        if following.stop:
            break
        complete = following.complete or (fitted and following.kind != SOFT)
        history.append(FinishedIteration(resolution, jumped, following.kind, complete, evidence))
    assert 1 <= len(history) <= most, "ends, and not later than allowed"
    assert following.stop
    assert history[-1].complete, "the results are made of all data"
    kinds = [step.kind for step in history]
    assert kinds == sorted(kinds, key=[SOFT, SEARCH, LOCAL].index), "no way back"
    assert kinds.count(SOFT) <= MOST_SOFT
    assert kinds.count(SEARCH) <= MOST_EXHAUSTIVE
    if target is None:
        assert kinds.count(SOFT) >= min(FEWEST_SOFT, most - 1)
        assert kinds.count(SEARCH) >= min(FEWEST_EXHAUSTIVE, max(most - MOST_SOFT, 1))


REST = {
    # history, kind under way, seconds, iterations allowed -> seconds after it, from and to
    "nothing timed": ([], SOFT, {}, 40, None),
    "soft ones say nothing of the others": (soft(1, 2), SOFT, {SOFT: 9.0}, 40, None),
    "first search": (soft(1, 2, 3), SEARCH, {SOFT: 9.0}, 40, None),
    "second search": (CALM[:1], SEARCH, {SEARCH: 10.0}, 40, (2 * 1.0, 4 * 10.0 + 4 * 15.0)),
    "many searches": (CALM * 3, SEARCH, {SEARCH: 10.0}, 40, (2 * 1.0, 10.0 + 4 * 15.0)),
    "first local one": (CALM, LOCAL, {SEARCH: 10.0}, 40, (1.0, 3 * 15.0)),
    "second local one": (CALM + local(9), LOCAL, {SEARCH: 10.0, LOCAL: 3.0}, 40, (0.0, 2 * 3.0)),
    "more than usual": (CALM + local(*range(9, 0, -1)), LOCAL, {LOCAL: 3.0}, 40, (0.0, 3.0)),
    "resumed": (CALM, LOCAL, {}, 40, None),
    "few allowed": (CALM, LOCAL, {LOCAL: 3.0}, 4, (3.0, 3.0)),
    "none allowed": (CALM, LOCAL, {LOCAL: 3.0}, 3, (0.0, 0.0)),
}


@pytest.mark.parametrize("case", REST)
def test_rest_of_a_run_is_a_range_or_nothing(case):
    history, kind, seconds, allowed, expected = REST[case]
    assert seconds_after(history, kind, seconds, allowed) == expected


def test_signal_is_shown_by_what_follows_soft_iterations():
    assert signal_is_shown([*soft(1, 2, 3), *CALM])
    assert not any(map(signal_is_shown, ([], soft(1), CALM)))


def test_iterations_with_all_follow_those_with_some_only_if_these_show_no_signal() -> None:
    some = [replace(step, everyone=False) for step in soft(1, 2, 3, jumped=0.02)]
    assert not decide([], 20, None).everyone
    assert not decide(some[:2], 20, None).everyone
    assert decide(some, 20, None).kind == SEARCH
    following = with_everyone(20, some)
    assert following is not None
    assert (following.kind, following.everyone, following.stop) == (SOFT, True, False)
    assert with_everyone(4, some) is None, "no iteration is left but the last one"
    assert with_everyone(5, some) is not None
    more = some + soft(5)
    assert decide(more, 20, None).kind == SOFT, "those with all are counted anew"
    assert decide(more, 20, None).everyone
    assert with_everyone(20, more) is None
