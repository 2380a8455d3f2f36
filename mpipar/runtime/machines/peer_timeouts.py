"""Time limits for what a worker awaits of another one, in case the link between them is broken.

A switch or a firewall can break the links between workers while all workers reach rank 0. Then no
worker is silent towards rank 0, but what a worker awaits of another one may never come:

    Begin, of the parent in the tree   the worker asks rank 0, which from then on sends it directly
    a block, of a former victim        the worker asks rank 0 for the block
    the answer to a steal              Unreachable: one of the two is cut off; tasks may be lost
    a part of the sum                  rank 0 begins again, with trees within hosts (`master.py`)

This is done after LONG patiences; a worker that rank 0 does not hear is cut off after one. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpipar.runtime.machines.messages import Rank

LONG = 2.0
"""Patiences that a worker waits for another one."""
LOOKS = 20
"""How often in that time a worker looks at what it awaits."""


class PeerWait(NamedTuple):
    """Something that a worker awaits of another rank.

    `which` is different for each Begin, steal or block.
    """

    kind: str  # begin, steal or block
    rank: Rank
    which: tuple[int, ...]


class PeerTimeouts:
    """For how long one worker has been waiting for each thing that it awaits."""

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
