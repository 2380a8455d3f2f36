"""Links between workers that are broken, though all workers reach rank 0: a switch, a firewall.

What a worker awaits of another one may then never come, and nobody is silent towards rank 0:

    Begin, of the parent in the tree     it asks rank 0, which from then on sends it to its host
    a block, of a former victim          the worker asks rank 0 for it
    the answer to a steal                Unreachable: one of the two leaves, for tasks may be lost
    a part of the sum, in either way     rank 0 begins again, with trees within hosts (`master.py`)

This is what is done when it has not come for LONG patiences; after one, rank 0 gives up a worker
that is silent towards itself. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpipar.runtime.machines.messages import Rank

LONG = 2.0
"""Patiences that a worker waits for another one."""
LOOKS = 20
"""How often it looks at what it awaits in that time."""


class PeerWait(NamedTuple):
    """Something awaited of another rank; `which` tells it from an earlier one of its kind."""

    kind: str  # begin, steal or block
    rank: Rank
    which: tuple[int, ...]


class PeerTimeouts:
    """For how long one worker has awaited things of others."""

    def __init__(self, patience: float) -> None:
        """`patience` is that of rank 0, in seconds."""
        self._bound = LONG * patience
        self._passed = 0.0
        self._ages: dict[PeerWait, float] = {}

    def tick(self, awaited: Iterable[PeerWait], seconds: float) -> list[PeerWait]:
        """Time has passed, in which this process was running; return what has not come in time.

        What is returned counts as awaited anew. `awaited` is not looked at every time.
        """
        self._passed += seconds
        if self._passed < self._bound / LOOKS:
            return []
        passed, self._passed = self._passed, 0.0
        before = self._ages
        self._ages = {wait: before.get(wait, -passed) + passed for wait in awaited}
        late = [wait for wait, age in self._ages.items() if age > self._bound]
        for wait in late:
            self._ages[wait] = 0.0
        return late
