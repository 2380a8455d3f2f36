"""Collective verdicts: a test fails on all ranks or on none."""

from __future__ import annotations

from typing import Any


def assert_on_all_ranks(comm: Any, condition: bool, message: str = "") -> None:
    """Fail on every rank if the condition is false on any.

    A bare assert on one rank leaves the others waiting in the test's next collective call.
    """
    verdicts = comm.allgather((bool(condition), message))
    failed = [f"rank {r}: {said}" for r, (fine, said) in enumerate(verdicts) if not fine]
    assert not failed, "; ".join(failed)
