"""When a refinement stops searching everywhere, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST_EXHAUSTIVE = 3
MOST_EXHAUSTIVE = 8
SETTLED = 0.02
"""Fraction of particles that may still change their grid orientation when that search ends."""
PATIENCE = 2
"""Iterations without a better resolution after which a refinement has converged."""
SMALLEST_GAIN = 0.005
"""Relative gain in resolution that counts as one."""


@dataclass(frozen=True)
class FinishedIteration:
    """One finished iteration, as far as decisions need it."""

    resolution: float  # Angstrom
    jumped: float  # fraction of particles whose orientation changed by more than a grid step
    exhaustive: bool
    complete: bool  # whether every shell to Nyquist was back-projected


@dataclass(frozen=True)
class NextIteration:
    """What comes after: stop, or another iteration, exhaustive or not, with all shells or not."""

    stop: bool
    exhaustive: bool
    complete: bool
    reason: str


def decide(
    history: Sequence[FinishedIteration], most_iterations: int, target: float | None
) -> NextIteration:
    """Decide from all finished iterations, oldest first; none asks for the first iteration."""
    last_allowed = len(history) + 1 >= most_iterations
    if not history:
        return NextIteration(
            stop=False, exhaustive=True, complete=last_allowed, reason="first iteration"
        )
    last = history[-1]
    reason = _reason_to_stop(history, most_iterations, target)
    if reason and (last.complete or len(history) >= most_iterations):
        return NextIteration(stop=True, exhaustive=False, complete=True, reason=reason)
    if reason:
        return NextIteration(
            stop=False,
            exhaustive=False,
            complete=True,
            reason=f"{reason}; last iteration with all data",
        )
    exhaustive = last.exhaustive and _still_unsettled(history)
    return NextIteration(
        stop=False, exhaustive=exhaustive, complete=last_allowed, reason="going on"
    )


def _reason_to_stop(
    history: Sequence[FinishedIteration], most_iterations: int, target: float | None
) -> str:
    if len(history) >= most_iterations:
        return f"{most_iterations} iterations done"
    if target is not None and history[-1].resolution <= target * (1 + SMALLEST_GAIN):
        return f"target resolution of {target:g} A reached"
    local = [number for number, step in enumerate(history) if not step.exhaustive]
    if len(local) < PATIENCE:
        return ""
    best_before = min(step.resolution for step in history[:-PATIENCE])
    recent = min(step.resolution for step in history[-PATIENCE:])
    if recent > best_before * (1 - SMALLEST_GAIN):
        return "converged: no better resolution in the last iterations"
    return ""


def _still_unsettled(history: Sequence[FinishedIteration]) -> bool:
    searched = [step for step in history if step.exhaustive]
    if len(searched) < FEWEST_EXHAUSTIVE:
        return True
    if len(searched) >= MOST_EXHAUSTIVE or searched[-1].jumped <= SETTLED:
        return False
    improving = searched[-1].resolution < searched[-2].resolution * (1 - SMALLEST_GAIN)
    calming = searched[-1].jumped < 0.8 * searched[-2].jumped
    return improving or calming
