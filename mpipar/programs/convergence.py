"""When a refinement ends its search over all orientations, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOFT, SEARCH, LOCAL = "soft", "all", "local"
"""Kinds of iterations: all poses of a grid, each with its weight; the best pose of all; the best
pose near the last one."""
FEWEST_SOFT, MOST_SOFT = 3, 16  # soft iterations
CALM = 0.05
"""They end when at most this fraction of particles still change their orientation in one,"""
SMALLEST_RISE = 0.008
"""or when the evidence per particle rises by less than this fraction in one,"""
LIKELY = 0.4
"""or when the most probable pose of an image has this probability on average, unless more particles
change than have an improbable pose: then it is the reference that still changes. From then on
searches for the best pose, which see finer detail, mend more poses in less time."""
FEWEST_EXHAUSTIVE = 2  # iterations that search all orientations, at least
MOST_EXHAUSTIVE = 8  # and at most
SETTLED = 0.02
"""The search ends when at most this fraction of particles still change their orientation."""
PATIENCE = 2
"""Local iterations without a better resolution after which a refinement has converged,"""
STILL: Final = 0.07
"""if in the last one half of the particles have moved their rims by no more than this fraction of
the resolution. A map that is bent by a poor start unbends slowly, and all the time its half maps
agree on the bend."""
SMALLEST_GAIN = 0.005
"""A resolution counts as better if it is better by this fraction."""
USUAL: Final = {SEARCH: (2, 6), LOCAL: (2, 4)}
"""Iterations of each kind that 20 simulated sets took, from few to many."""
LOCAL_TO_SEARCH: Final = 0.1, 1.5
"""Seconds of a local iteration over those of a search, while none has been timed; 0.15 to 1.2 in
three sets: the more detail, the more."""


@dataclass(frozen=True)
class FinishedIteration:
    """What `decide` needs to know of a finished iteration; commits store it by field name."""

    resolution: float  # Angstrom
    jumped: float  # fraction of particles whose orientation changed by more than a grid step
    kind: str  # SOFT, SEARCH or LOCAL
    complete: bool  # whether every shell up to Nyquist was back-projected
    evidence: float  # mean log-likelihood ratio per particle to no particle; of soft iterations
    peak: float = 0.0  # mean probability of the most probable poses; of soft iterations
    drift: float = 0.0  # median way of the particles' rims over the resolution; of other iterations
    everyone: bool = True  # whether all particles took part; of soft iterations


@dataclass(frozen=True)
class NextIteration:
    """The decision: stop, or do another iteration of this kind."""

    stop: bool
    kind: str  # SOFT, SEARCH or LOCAL
    complete: bool  # back-project every shell up to Nyquist
    reason: str  # for the user
    everyone: bool = True  # all particles take part, also in a soft iteration of a large set


def decide(
    history: Sequence[FinishedIteration], most_iterations: int, target: float | None
) -> NextIteration:
    """Decide what comes next, from all finished iterations, oldest first.

    target   A; stop at that resolution
    """
    last_allowed = len(history) + 1 >= most_iterations
    if not history:
        kind = SEARCH if last_allowed else SOFT
        return NextIteration(
            stop=False, kind=kind, complete=last_allowed, reason="first iteration", everyone=False
        )
    last = history[-1]
    reason = _reason_to_stop(history, most_iterations, target)
    if reason and (last.complete or len(history) >= most_iterations):
        return NextIteration(stop=True, kind=LOCAL, complete=True, reason=reason)
    if reason:
        return NextIteration(
            stop=False,
            kind=LOCAL,
            complete=True,
            reason=f"{reason}; last iteration with all data",
        )
    kind = _next_kind(history)
    if kind == SOFT and last_allowed:  # soft iterations do not go out to Nyquist
        kind = SEARCH
    return NextIteration(
        stop=False, kind=kind, complete=last_allowed, reason="going on", everyone=last.everyone
    )


def with_everyone(most_iterations: int, history: Sequence[FinishedIteration]) -> (
    NextIteration | None
):  # fmt: skip
    """Return what comes next if some particles have shown no signal; None: nothing can."""
    if history[-1].everyone or len(history) + 1 >= most_iterations:
        return None
    reason = "some particles have shown no signal yet"
    return NextIteration(stop=False, kind=SOFT, complete=False, reason=reason)


def _next_kind(history: Sequence[FinishedIteration]) -> str:
    if history[-1].kind == SOFT:
        return SOFT if _still_rising(history) else SEARCH
    return SEARCH if history[-1].kind == SEARCH and _must_search_again(history) else LOCAL


def _still_rising(history: Sequence[FinishedIteration]) -> bool:
    """Whether soft iterations still find something. Single ones vary with their random grids.

    Those with some of the particles and those with all are looked at apart.
    """
    history = [step for step in history if step.everyone == history[-1].everyone]
    if len(history) < FEWEST_SOFT:
        return True
    last = history[-1]
    likely = last.peak >= LIKELY and last.jumped <= 1.0 - last.peak
    if len(history) >= MOST_SOFT or last.jumped <= CALM or likely:
        return False
    if len(history) < 4:  # noqa: PLR2004 - two and two are compared
        return True
    parts = history[-4:-2], history[-2:]
    before, recent = (sum(step.evidence for step in part) for part in parts)
    return recent > before * (1.0 + SMALLEST_RISE) ** 2


def _reason_to_stop(
    history: Sequence[FinishedIteration], most_iterations: int, target: float | None
) -> str:
    if len(history) >= most_iterations:
        return f"{most_iterations} iteration{'s' if most_iterations > 1 else ''} done"
    if target is not None and history[-1].resolution <= target * (1 + SMALLEST_GAIN):
        return f"target resolution of {target:g} A reached"
    local = [number for number, step in enumerate(history) if step.kind == LOCAL]
    if len(local) < PATIENCE:
        return ""
    best_before = min(step.resolution for step in history[:-PATIENCE])
    recent = min(step.resolution for step in history[-PATIENCE:])
    if recent > best_before * (1 - SMALLEST_GAIN) and history[-1].drift <= STILL:
        return "converged: no better resolution in the last iterations"
    return ""


def _must_search_again(history: Sequence[FinishedIteration]) -> bool:
    searched = [step for step in history if step.kind == SEARCH]
    if len(searched) < FEWEST_EXHAUSTIVE:
        return True
    if len(searched) >= MOST_EXHAUSTIVE or searched[-1].jumped <= SETTLED:
        return False
    improving = searched[-1].resolution < searched[-2].resolution * (1 - SMALLEST_GAIN)
    fewer_jumps = searched[-1].jumped < 0.8 * searched[-2].jumped
    return improving or fewer_jumps


def signal_is_shown(history: Sequence[FinishedIteration]) -> bool:
    """Whether signal was looked for and found: only then do others follow soft iterations."""
    kinds = [step.kind for step in history]
    return SOFT in kinds and kinds[-1] != SOFT


def seconds_after(
    history: Sequence[FinishedIteration],
    kind: str,
    seconds: Mapping[str, float],
    most_iterations: int,
) -> tuple[float, float] | None:
    """Return for how long a refinement usually goes on after the iteration under way, as a range.

    kind      of that iteration
    seconds   that the last iteration of each kind took
    returns   None where iterations are to follow of which nothing is known
    """
    if SEARCH not in seconds and kind != LOCAL:
        return None
    done = [step.kind for step in history] + [kind]
    left = {each: _left(each, kind, done.count(each)) for each in (SEARCH, LOCAL)}
    search = seconds.get(SEARCH, 0.0)
    locals_take = [seconds.get(LOCAL, share * search) for share in LOCAL_TO_SEARCH]
    if not any(locals_take):
        return None
    allowed = max(0, most_iterations - len(done))
    ends = []
    for end in (0, 1):
        searches = min(left[SEARCH][end], allowed)
        local = min(left[LOCAL][end], allowed - searches)
        ends.append(searches * search + local * locals_take[end])
    return ends[0], ends[1]


def _left(kind: str, under_way: str, done: int) -> tuple[int, int]:
    """Return how many iterations of a kind usually follow one, of which some are done."""
    fewest, most = USUAL[kind]
    if kind == SEARCH and under_way == LOCAL:
        return 0, 0
    return max(0, fewest - done), max(1, most - done)
