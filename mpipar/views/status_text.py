"""The status of runs as text for a terminal of 80 columns: one run in lines, several as a table."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import counted
from mpipar.views.progress import duration, span

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["status_lines", "status_table"]

WIDTH: Final = 80
MEGABYTE: Final = 1_000_000
GIGABYTE: Final = 1_000_000_000
ITERATIONS_SHOWN: Final = 5
HEADER: Final = ("run", "state", "doing", "resolution", "left", "job or host")


def status_lines(status: dict[str, Any]) -> list[str]:
    """Return one run's status as lines; what is not known is left out."""
    name = Path(status["folder"]).name
    lines = [f"{name}: {status['state']}"]
    lines += textwrap.wrap(
        status["reason"],
        WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines += [f"  {line}" for line in _facts(status)]
    shown = status["iterations"][-ITERATIONS_SHOWN:]
    if shown:
        lines += ["", "  iteration  search  resolution A  moved %"]
        lines += [_row_of(step) for step in shown]
    return lines


def status_table(statuses: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of runs, one line each."""
    rows = [HEADER, *(_cells(status) for status in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _facts(status: dict[str, Any]) -> list[str]:
    lines = []
    if status["created"]:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(status["created"]))
        starts = (status["writer"] or {}).get("epoch", 1)
        again = f", started {starts} times" if starts > 1 else ""
        lines.append(f"`mpipar {status['kind']}` of {begun}{again}")
    job = (status["writer"] or {}).get("job")
    if job:
        restarts = f", restart {job['restarts']}" if job["restarts"] else ""
        known = "" if job["state"] == "unknown" else f": {job['state']}"
        lines.append(f"{job['system']} job {job['id']}{restarts}{known}")
    if status["phase"] and status["total"]:
        left = _left(status) if _goes_on(status) else ""
        lines.append(f"{_doing(status)} of {status['total']}{f', {left}' if left else ''}")
    if status["resolution"]:
        finished = counted(status["iteration"], "iteration")
        lines.append(f"{finished} finished, resolution {status['resolution']:.2f} A")
    return lines + _counts(status)


def _counts(status: dict[str, Any]) -> list[str]:
    lines = []
    if status["unit"] == "commands":
        failed, again = status["failed"] or 0, status["retried"] or 0
        lines.append(
            f"commands: {status['running']} running, {failed} failed, {again} tried again, "
            f"{status['done_before']} done in earlier starts"
        )
    workers, tasks = status["workers"], status["tasks"]
    if workers:
        lines.append(
            f"workers: {workers['alive']} alive ({workers['busy']} busy, {workers['late']} late), "
            f"{workers['lost']} lost"
        )
    if tasks:
        lines.append(
            f"tasks: {tasks['done']} of {tasks['total']} done, {tasks['stolen']} stolen, "
            f"{tasks['run_again']} run again"
        )
    if status["master_memory"]:
        served = (status["bytes_served"] or 0) / MEGABYTE
        memory = status["master_memory"] / GIGABYTE
        lines.append(f"rank 0: {served:.0f} MB served, {memory:.1f} GB memory at most")
    return lines


def _goes_on(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "running")


def _doing(status: dict[str, Any]) -> str:
    return f"{status['phase']}, {status['done']}"


def _left(status: dict[str, Any]) -> str:
    run, phase = status["run_seconds_left"], status["phase_seconds_left"]
    if run:
        return f"the run: {span(*run)} left"
    return f"{duration(phase)} left in this phase" if phase else ""


def _row_of(step: dict[str, Any]) -> str:
    resolution, moved = step["resolution"] or 0.0, 100 * (step["jumped"] or 0.0)
    return f"  {step['iteration']:>9}  {step['kind']:>6}  {resolution:>12.2f}  {moved:>7.2f}"


def _cells(status: dict[str, Any]) -> tuple[str, ...]:
    doing = "-"
    if _goes_on(status) and status["total"]:
        doing = f"{status['phase']} {status['done'] / status['total']:.0%}"
    elif status["iteration"]:
        doing = counted(status["iteration"], "iteration")
    elif status["total"]:
        doing = f"{status['done']} of {status['total']} {status['unit']}"
    writer = status["writer"] or {}
    job = writer.get("job")
    where = f"{job['system']} {job['id']}" if job else writer.get("host") or "-"
    resolution = f"{status['resolution']:.2f} A" if status["resolution"] else "-"
    left = status["run_seconds_left"] if _goes_on(status) else None
    return (
        Path(status["folder"]).name,
        status["state"],
        doing,
        resolution,
        span(*left).removeprefix("about ") if left else "-",
        where,
    )
