"""How often a worker speaks to rank 0: the more ranks there are, the less often, for rank 0 is one.

Rank 0 handles some 15,000 messages a second. A result can wait as long as its worker has other
tasks to run: nobody is idle for it.
"""

from __future__ import annotations

BEAT_SECONDS = 1.0
BEATS_PER_SECOND = 2000.0  # of all ranks together
REPORTS_PER_SECOND = 10_000.0  # likewise
PHASES = 64
SHORTEST_WAIT = 0.1  # below, a result is reported at once


def beat_seconds(ranks: int) -> float:
    """Return after how long a silence a worker says that it is alive."""
    return max(BEAT_SECONDS, ranks / BEATS_PER_SECOND)


def report_seconds(ranks: int) -> float:
    """Return how long a result may wait for the next one, so that they travel together."""
    seconds = ranks / REPORTS_PER_SECOND
    return seconds if seconds >= SHORTEST_WAIT else 0.0


def first_report(rank: int, ranks: int) -> float:
    """Return how much of that has passed at the start, lest all ranks report at once."""
    return report_seconds(ranks) * (rank % PHASES) / PHASES
