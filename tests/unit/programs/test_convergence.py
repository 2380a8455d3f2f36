"""When a refinement stops searching everywhere, and when it stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.programs.convergence import (
    FEWEST_EXHAUSTIVE,
    MOST_EXHAUSTIVE,
    FinishedIteration,
    decide,
)


def searched(*steps: tuple[float, float]) -> list[FinishedIteration]:
    """Exhaustive steps of (resolution, jumped)."""
    return [FinishedIteration(resolution, jumped, True, False) for resolution, jumped in steps]


def local(*resolutions: float, complete: bool = False) -> list[FinishedIteration]:
    return [FinishedIteration(resolution, 0.0, False, complete) for resolution in resolutions]


CALM = searched((20, 1.0), (10, 0.4), (9, 0.01))
DECISIONS = {
    # history, iterations allowed, target -> stop, exhaustive, complete
    "first iteration": ([], 20, None, (False, True, False)),
    "first iteration that is also the last": ([], 1, None, (False, True, True)),
    "few searches yet, though calm": (searched((9, 0.0), (9, 0.0)), 20, None, (False, True, False)),
    "calm": (CALM, 20, None, (False, False, False)),
    "restless, better": (searched((20, 1), (15, 0.5), (10, 0.5)), 20, None, (False, True, False)),
    "restless, calming": (searched((9, 1), (9, 0.5), (9, 0.3)), 20, None, (False, True, False)),
    "restless, stuck": (searched((9, 1), (9, 0.5), (9, 0.5)), 20, None, (False, False, False)),
    "searched long enough": (
        searched(*((20 - i, 0.5 - i / 20) for i in range(MOST_EXHAUSTIVE))),
        20,
        None,
        (False, False, False),
    ),
    "one local iteration": ([*CALM, *local(9)], 20, None, (False, False, False)),
    "local, better": ([*CALM, *local(8, 7)], 20, None, (False, False, False)),
    "local, better once of two": ([*CALM, *local(8, 9)], 20, None, (False, False, False)),
    "converged without all data": ([*CALM, *local(9, 9)], 20, None, (False, False, True)),
    "converged with all data": (
        [*CALM, *local(9), *local(9, complete=True)],
        20,
        None,
        (True, False, True),
    ),
    "target reached": (CALM, 20, 9.0, (False, False, True)),
    "target reached within a hair": (CALM, 20, 8.96, (False, False, True)),
    "target not reached": (CALM, 20, 8.9, (False, False, False)),
    "target reached with all data": (
        [*CALM, *local(8, complete=True)],
        20,
        8.5,
        (True, False, True),
    ),
    "the last one allowed is next": (CALM, 4, None, (False, False, True)),
    "all iterations done": (CALM, 3, None, (True, False, True)),
    "resumed with fewer iterations than done": (CALM, 1, None, (True, False, True)),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decision(name: str) -> None:
    history, most, target, expected = DECISIONS[name]
    following = decide(history, most, target)
    assert (following.stop, following.exhaustive, following.complete) == expected
    assert following.reason


MEASURED = st.tuples(
    st.floats(2.0, 60.0), st.floats(0.0, 1.0), st.booleans()
)  # resolution, jumped, whether all shells fitted although they were not asked for


@given(
    measured=st.lists(MEASURED, min_size=41, max_size=41),
    most=st.integers(1, 40),
    target=st.none() | st.floats(1.0, 60.0),
)
def test_every_refinement_ends_well(
    measured: list[tuple[float, float, bool]], most: int, target: float | None
) -> None:
    history: list[FinishedIteration] = []
    for resolution, jumped, fitted in measured:
        following = decide(history, most, target)
        if following.stop:
            break
        history.append(
            FinishedIteration(
                resolution, jumped, following.exhaustive, following.complete or fitted
            )
        )
    assert 1 <= len(history) <= most, "ends, and not later than allowed"
    assert following.stop
    assert history[-1].complete, "the results are made of all data"
    kinds = [step.exhaustive for step in history]
    assert kinds == sorted(kinds, reverse=True), "no search after a local iteration"
    assert sum(kinds) <= MOST_EXHAUSTIVE
    if target is None:
        assert sum(kinds) >= min(FEWEST_EXHAUSTIVE, most)
