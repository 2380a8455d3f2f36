"""How often a worker reports to rank 0: the more ranks there are, the less often.

Rank 0 handles some 15,000 messages a second, of all workers together. A result can wait as long as
its worker has other tasks to run: no worker is idle meanwhile.
"""

from __future__ import annotations

BEAT_SECONDS = 1.0
BEATS_PER_SECOND = 2000.0  # of all ranks together
REPORTS_PER_SECOND = 10_000.0  # of all ranks together
PHASES = 64  # so many groups of ranks report at different moments
SHORTEST_WAIT = 0.1  # below, a result is reported at once


def beat_seconds(ranks: int) -> float:
    """Return after how many seconds without another message a worker sends a Beat."""
    return max(BEAT_SECONDS, ranks / BEATS_PER_SECOND)


def report_seconds(ranks: int) -> float:
    """Return how many seconds a result may wait for others that are sent in the same message."""
    seconds = ranks / REPORTS_PER_SECOND
    return seconds if seconds >= SHORTEST_WAIT else 0.0


def first_report(rank: int, ranks: int) -> float:
    """Return how many of these seconds count as passed at the start, so that ranks take turns."""
    return report_seconds(ranks) * (rank % PHASES) / PHASES
