"""What programs report in status.json besides their progress; `docs/status.md` explains it."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpipar.runtime.reports import PoolStatistics

__all__ = ["of_pool", "time_left"]

KIBIBYTE = 1024


def of_pool(workers: int, now: PoolStatistics) -> dict[str, Any]:
    """Return how many workers there are and what they have done, and rank 0's memory."""
    return {
        "workers": {
            "alive": workers,
            "busy": now.running_workers,
            "late": now.late,
            "lost": now.lost,
        },
        "tasks": {
            "done": now.done,
            "total": now.total,
            "stolen": now.stolen,
            "run_again": now.run_again,
        },
        "bytes_served": now.bytes_served,
        "master_memory": KIBIBYTE * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def time_left(now: PoolStatistics, after: tuple[float, float] | None) -> dict[str, Any]:
    """Return the seconds that this phase goes on, and the run at least and at most; {}: not known.

    after   seconds that the run goes on after the phase, at least and at most
    """
    if not 0 < now.done <= now.total:
        return {}
    left = now.elapsed * (now.total - now.done) / now.done
    phase = {"phase_seconds_left": round(left, 1)}
    if after is None:
        return phase
    return phase | {"run_seconds_left": [round(left + seconds, 1) for seconds in after]}
