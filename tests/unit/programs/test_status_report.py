"""What programs report of their pool."""

from __future__ import annotations

import pytest

from mpipar.programs.status_report import of_pool, time_left
from mpipar.runtime.reports import PoolStatistics


def statistics(done: int, total: int = 40, elapsed: float = 10.0) -> PoolStatistics:
    return PoolStatistics(
        done, total, 3, 2, elapsed, lost=1, late=4, run_again=5, bytes_served=10**6
    )


@pytest.mark.parametrize(
    ("done", "after", "left"),
    [
        (0, (5.0, 9.0), {}),
        (10, None, {"phase_seconds_left": 30.0}),
        (10, (5.0, 9.0), {"phase_seconds_left": 30.0, "run_seconds_left": [35.0, 39.0]}),
        (40, (5.0, 9.0), {"phase_seconds_left": 0.0, "run_seconds_left": [5.0, 9.0]}),
    ],
)
def test_time_left_goes_on_at_the_rate_so_far(done, after, left):
    assert time_left(statistics(done), after) == left


def test_report_of_the_pool():
    found = of_pool(7, statistics(10))
    assert found["workers"] == {"alive": 7, "busy": 2, "late": 4, "lost": 1}
    assert found["tasks"] == {"done": 10, "total": 40, "stolen": 3, "run_again": 5}
    assert found["bytes_served"] == 10**6
    assert 10**7 < found["master_memory"] < 10**11
