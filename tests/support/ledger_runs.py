"""Tasks for runs of the stage Ledger, and what is right at the end of such a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpipar.runtime.stage import Task


def make_tasks(count: int, with_blocks: bool) -> list[Task]:
    """Tasks 0, 1, .., each with the block of its number if there are blocks."""
    return [Task(number, number if with_blocks else None, None) for number in range(count)]


def check(run: Any, count: int) -> None:
    """Each of so many tasks has its result, and is in the sums exactly once."""
    assert run.error is None
    assert [run.results[number] for number in range(count)] == [7 * n for n in range(count)]
    assert run.sums["counted"].tolist() == [1] * count
    assert np.all(run.sums["value"] == 7 * count * (count - 1) // 2)
