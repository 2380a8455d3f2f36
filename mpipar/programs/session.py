"""What one run of `mpipar refine` holds together: settings, input, project, workers, view."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpipar.errors import counted
from mpipar.programs import status_report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpipar.programs.convergence import FinishedIteration
    from mpipar.programs.devices import DeviceChoice
    from mpipar.programs.inputs import RefineInputs
    from mpipar.runtime.pool import Pool
    from mpipar.runtime.reports import PoolStatistics, RunResult
    from mpipar.runtime.stage import Stage, Task
    from mpipar.settings import RefineSettings
    from mpipar.store.project import Project
    from mpipar.views.progress import View


@dataclass
class Clock:
    """Seconds spent in each phase."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside under `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - start


@dataclass
class RefineSession:
    """One run: its settings, input, project folder, pool, view, history, and GPUs.

    seconds   that the last iteration of each kind took
    after     seconds that are left after the iteration under way, at least and at most, if known
    """

    settings: RefineSettings
    inputs: RefineInputs
    project: Project
    pool: Pool
    view: View
    clock: Clock
    history: list[FinishedIteration] = field(default_factory=list)
    devices: DeviceChoice | None = None
    device: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    after: tuple[float, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show the phase in the view, and count the time inside under `name`."""
        self.view.phase(name)
        with self.clock.phase(name):
            yield

    def run(
        self,
        label: str,
        stage: Stage,
        shared: dict[str, Any],
        tasks: list[Task],
        resolution: float | None = None,
        particles: int | None = None,
    ) -> RunResult:
        """Run a stage on the workers, showing progress in particles.

        resolution   in Angstrom, of the references, for people
        particles    that take part; None: all
        """
        count, total = particles or self.inputs.particles.count, len(tasks)
        known = None if resolution is None else f"{resolution:.1f} A"

        def watch(now: PoolStatistics) -> None:
            self._tell_losses()
            done = count * now.done // max(total, 1)
            self.view.progress(label, done, count, self.after, resolution=known, stolen=now.stolen)
            report = status_report.of_pool(self.pool.workers, now)
            left = status_report.time_left(now, self.after)
            self.project.status(
                phase=label, done=done, total=count, unit="particles", **left, **report
            )

        try:
            return self.pool.run(stage, shared, tasks, watch=watch)
        finally:
            self._tell_losses()
            for path, times in self.inputs.stacks.new_retries():
                failed = f"failed {counted(times, 'time')}"
                self.view.say(f"note: reads of {path} {failed} and were tried again")

    def _tell_losses(self) -> None:
        for change in (*self.pool.new_losses(), *self.pool.new_gains()):
            self.view.say(str(change))
