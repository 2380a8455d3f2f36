"""A refinement, opened for looking: its iterations, particles and history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.errors import InputError, MpiparError
from mpipar.formats.mrc_header import read_header
from mpipar.programs.commit_arrays import text_table
from mpipar.results.frames import frame_of
from mpipar.results.iteration_results import IterationResults, RunConstants, RunEnd
from mpipar.results.opened_run import OpenedRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from mpipar.store.project import Commit, Project

__all__ = ["Refinement"]


class Refinement(OpenedRun):
    """A run of `mpipar refine`: `run[3]` is iteration 3, `run.latest` the newest one.

    box          pixels; 0 before the first commit
    voxel_size   A; NaN if the run was begun by a mpipar that did not record it
    symmetry     name of the point group
    """

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self._first: Commit | None = None
        self._known: RunConstants | None = None

    def _begin(self) -> Commit | None:
        """Return commit 0; None while the run has not looked at its images yet."""
        if self._first is None:
            self._project.refresh()
            commits = self._project.commits()
            self._first = self._project.load(commits[0]) if commits else None
        return self._first

    @property
    def _constants(self) -> RunConstants:
        if self._known is None:
            first = self._begin()
            if first is None:
                return RunConstants(0, np.nan, None)
            attributes, model = first.attributes, first.arrays["references"]
            size = attributes.get("pixel_size") or self._older_voxel_size()
            box = int(attributes.get("box") or model.shape[-1])
            self._known = RunConstants(box, size, attributes.get("radius"))
        return self._known

    def _older_voxel_size(self) -> float:
        """Return the voxel size of the map in the folder, or that of --apix; NaN without both."""
        try:
            size = read_header(self.path / "map.mrc").pixel_size
        except MpiparError:
            size = 0.0
        return size or float(self.settings.get("apix", np.nan))

    @property
    def box(self) -> int:
        return self._constants.box

    @property
    def voxel_size(self) -> float:
        return self._constants.voxel_size

    @property
    def symmetry(self) -> str:
        first = self._begin()
        found = first.attributes.get("symmetry") if first else None
        return str(found or self.settings.get("sym", "c1")).upper()

    @property
    def particles(self) -> pd.DataFrame:
        """The particle list that the run began with, all its columns, as text, in its order.

        rlnImageName is absolute. Without columns if the list was not recorded, as by mpipar 0.1.0.
        """
        return self._text("particles")

    @property
    def optics(self) -> pd.DataFrame:
        """The optics table of the particle list, as text."""
        return self._text("optics")

    def _text(self, name: str) -> pd.DataFrame:
        first = self._begin()
        labels = first.attributes.get("columns", {}).get(name, []) if first else []
        return text_table(name, labels, first.arrays) if first else frame_of({})

    @property
    def iterations(self) -> list[IterationResults]:
        """The finished iterations that were not pruned, oldest first; there may be more soon."""
        self._project.refresh()
        first = self._begin()
        if first is None:
            return []
        commits = self._project.commits()[1:]
        end = RunEnd(commits[-1].number if commits else 0, self.verdict or {})
        constants = self._constants
        return [IterationResults(self._project, info, first, constants, end) for info in commits]

    @property
    def latest(self) -> IterationResults | None:
        """The newest finished iteration; None before the first."""
        found = self.iterations
        return found[-1] if found else None

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[IterationResults]:
        return iter(self.iterations)

    def __getitem__(self, number: int) -> IterationResults:
        """Return a finished iteration by its number, from 1; -1 is the latest.

        raises   InputError if it is not there
        """
        found = {iteration.number: iteration for iteration in self.iterations}
        if number < 0 and -number <= len(found):
            return list(found.values())[number]
        if number not in found:
            numbers = ", ".join(map(str, found)) or "none"
            pruned = "" if not 0 < number < max(found, default=0) else ", which was pruned"
            raise InputError(
                f"{self.path}: has no iteration {number}{pruned}; there are: {numbers}"
            )
        return found[number]

    @property
    def history(self) -> pd.DataFrame:
        """All finished iterations, one row each: `iteration`, `kind`, `resolution` (A), `moved`.

        `moved` is the fraction of particles that turned by more than 1.5 grid steps; then come the
        other fields of `programs/convergence.py`, FinishedIteration. The resolution is that of the
        log: while iterations are soft, no detail finer than the start's filter is claimed.
        """
        latest = self.latest
        steps: list[dict[str, Any]] = latest.attributes["history"] if latest else []
        table = frame_of(steps, columns=_COLUMNS)
        names = {"iteration": np.arange(1, len(table) + 1)} | {
            "moved" if name == "jumped" else name: table[name] for name in _COLUMNS
        }
        return frame_of(names)

    @property
    def provenance(self) -> dict[str, Any]:
        """As of every run, and `environment` (versions, cpu) and `input`, the input's sha256."""
        first = self._begin()
        kept = first.attributes if first else {}
        more = {name: kept[name] for name in ("environment", "input") if name in kept}
        return super().provenance | more

    def _headline(self) -> str:
        first, latest = self._begin(), self.latest
        count = latest.number if latest else 0
        if first is None:
            return f"{super()._headline()}; it has not looked at its images yet"
        number = len(first.arrays["half"])
        mark = latest.mark if latest else ""
        return (
            f"{super()._headline()}: {count} iteration{'s'[: count != 1]} of {number} particles, "
            f"box {self.box} of {self.voxel_size:.4g} A, {self.symmetry}"
            + (f"; {mark}" if mark else "")
        )

    def _table(self) -> pd.DataFrame:
        history = self.history
        shown = {name: history[name] for name in ("iteration", "kind", "resolution", "moved")}
        table: pd.DataFrame = frame_of(shown).round(3)
        return table


_COLUMNS = ["kind", "resolution", "jumped", "complete", "evidence", "peak", "drift"]
