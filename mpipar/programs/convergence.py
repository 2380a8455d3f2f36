"""When a refinement ends its search over all orientations, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST_EXHAUSTIVE = 3  # iterations that search all orientations, at least
MOST_EXHAUSTIVE = 8  # and at most
SETTLED = 0.02
"""The search ends when at most this fraction of particles still change their orientation."""
PATIENCE = 2
"""Local iterations without a better resolution after which a refinement has converged."""
SMALLEST_GAIN = 0.005
"""A resolution counts as better if it is better by this fraction."""


@dataclass(frozen=True)
class FinishedIteration:
    """What `decide` needs to know of a finished iteration; commits store it by field name."""

    resolution: float  # Angstrom
    jumped: float  # fraction of particles whose orientation changed by more than a grid step
    exhaustive: bool  # whether all orientations were searched
    complete: bool  # whether every shell up to Nyquist was back-projected


@dataclass(frozen=True)
class NextIteration:
    """The decision: stop, or do another iteration of this kind."""

    stop: bool
    exhaustive: bool  # search all orientations
    complete: bool  # back-project every shell up to Nyquist
    reason: str  # for the user


def decide(
    history: Sequence[FinishedIteration], most_iterations: int, target: float | None
) -> NextIteration:
    """Decide what comes next, from all finished iterations, oldest first.

    target   A; stop at that resolution
    """
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
    exhaustive = last.exhaustive and _must_search_again(history)
    return NextIteration(
        stop=False, exhaustive=exhaustive, complete=last_allowed, reason="going on"
    )


def _reason_to_stop(
    history: Sequence[FinishedIteration], most_iterations: int, target: float | None
) -> str:
    if len(history) >= most_iterations:
        return f"{most_iterations} iteration{'s' if most_iterations > 1 else ''} done"
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


def _must_search_again(history: Sequence[FinishedIteration]) -> bool:
    searched = [step for step in history if step.exhaustive]
    if len(searched) < FEWEST_EXHAUSTIVE:
        return True
    if len(searched) >= MOST_EXHAUSTIVE or searched[-1].jumped <= SETTLED:
        return False
    improving = searched[-1].resolution < searched[-2].resolution * (1 - SMALLEST_GAIN)
    fewer_jumps = searched[-1].jumped < 0.8 * searched[-2].jumped
    return improving or fewer_jumps
