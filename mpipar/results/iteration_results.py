"""A finished iteration of a refinement: volumes, poses and curves, each read when asked for."""

from __future__ import annotations

import datetime as dt
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem.masks import soft_sphere
from mpipar.cryoem.matches import Matches
from mpipar.cryoem.particle_quality import particle_quality
from mpipar.cryoem.rotations import to_euler
from mpipar.errors import NoSignalError
from mpipar.formats.star import pose_columns
from mpipar.programs.block_rows import MASK_EDGE, ImageGeometry
from mpipar.programs.commit_arrays import array_name, texts_of
from mpipar.programs.convergence import FinishedIteration, signal_is_shown
from mpipar.programs.map_files import PRELIMINARY, unfinished_label
from mpipar.programs.quality import judged_columns
from mpipar.programs.soft_iteration import NO_SIGNAL
from mpipar.results.frames import frame_of
from mpipar.results.volume_array import VolumeArray

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from mpipar.store.project import Commit, Project
    from mpipar.store.schema import CommitInfo

__all__ = ["IterationResults", "RunConstants", "RunEnd"]


@dataclass(frozen=True)
class RunConstants:
    """What all iterations of a run share: box in pixels, voxel size in A, radius in pixels.

    radius   of the sphere outside of which the map is set to zero; None: not recorded
    """

    box: int
    voxel_size: float
    radius: float | None


@dataclass(frozen=True)
class RunEnd:
    """How far a run has come: its last iteration so far, and what verdict.json says."""

    last: int
    verdict: Mapping[str, Any]


class IterationResults:
    """What one finished iteration has found. It never changes; what is asked for is read anew.

    number       of the iteration, from 1
    time         when it was committed, in UTC
    attributes   plain values of the commit, by name
    arrays       every array of the commit by name, as the store has it
    """

    def __init__(
        self,
        project: Project,
        info: CommitInfo,
        first: Commit,
        constants: RunConstants,
        end: RunEnd,
    ) -> None:
        self._project, self._info, self._first = project, info, first
        self._constants, self._end = constants, end
        self.number: int = info.number
        self.time = dt.datetime.fromtimestamp(info.time, dt.timezone.utc)
        self.attributes: dict[str, Any] = dict(info.attributes)
        self.kind: str = self._history[-1].kind

    @property
    def _history(self) -> list[FinishedIteration]:
        return [FinishedIteration(**step) for step in self.attributes["history"]]

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return self._project.load(self._info).arrays

    @property
    def is_final(self) -> bool:
        """Whether these are the results of a run that has ended well."""
        return self._is_last and self._end.verdict.get("verdict") == "done"

    @property
    def _is_last(self) -> bool:
        return self.number == self._end.last

    @property
    def mark(self) -> str:
        """What everybody who sees the maps must know; empty: nothing."""
        reason = str(self._end.verdict.get("reason", ""))
        if self._is_last and reason.startswith(NoSignalError.__name__):
            return NO_SIGNAL
        return "" if self.is_final or signal_is_shown(self._history) else PRELIMINARY

    @property
    def label(self) -> str:
        """What is written into the header of a map: that it is not the last one, and the mark."""
        if self.is_final or self.mark == NO_SIGNAL:
            return self.mark
        number, last = self.number, self._end.last
        which = unfinished_label(number) if self._is_last else f"iteration {number} of {last}"
        return f"{which}: {self.mark}" if self.mark else which

    @property
    def resolution(self) -> float | None:
        """In A, as the log has it: FSC 0.143 inside the mask. None: no signal was found.

        While iterations are soft, nothing finer than the start's filter is claimed.
        """
        return None if self.mark == NO_SIGNAL else float(self.attributes["resolution"])

    @property
    def map(self) -> VolumeArray:
        """The map of all particles, filtered by the FSC, (n, n, n) float32, axes z y x.

        Outside of the particle's sphere it is zero, as in map.mrc. The sphere of runs that were
        begun by mpipar 0.1.0 is not known: then the map is not cut.
        """
        combined, radius = self.arrays["map"], self._constants.radius
        if radius is None:
            return self._volume(combined)
        return self._volume(combined * soft_sphere(self._constants.box, radius, MASK_EDGE))

    @property
    def half_maps(self) -> tuple[VolumeArray, VolumeArray]:
        """Both half maps, not filtered, not masked, each (n, n, n) float32, axes z y x."""
        first, second = self.arrays["half_maps"]
        return self._volume(first), self._volume(second)

    @property
    def mask(self) -> VolumeArray:
        """The mask of the FSC, (n, n, n) float32, 0 to 1, axes z y x."""
        return self._volume(self.arrays["mask"])

    def _volume(self, data: NDArray[np.float32]) -> VolumeArray:
        return VolumeArray.of(data, self._constants.voxel_size)

    @property
    def fsc(self) -> pd.DataFrame:
        """The FSC of the half maps, one row per shell from 1 to n / 2.

        Columns: `shell`, `frequency` (1/A), `resolution` (A), `unmasked`, `masked`, `corrected`
        (for the mask's own effect). `fsc.attrs["mark"]` is the iteration's mark.
        """
        arrays = self.arrays
        curves = {name: arrays[f"fsc_{name}"] for name in ("unmasked", "masked", "corrected")}
        shell = np.arange(len(curves["unmasked"]))
        frequency = shell / (self._constants.box * self._constants.voxel_size)
        with np.errstate(divide="ignore"):
            columns = {"shell": shell, "frequency": frequency, "resolution": 1.0 / frequency}
        table = frame_of({name: values[1:] for name, values in (columns | curves).items()})
        table.attrs["mark"] = self.mark
        return table

    @property
    def poses(self) -> pd.DataFrame:
        """The particles with their poses, one row each, in the order of the list.

        rlnImageName                               absolute; left out if it was not recorded
        rlnAngleRot, rlnAngleTilt, rlnAnglePsi     degrees
        rlnOriginXAngst, rlnOriginYAngst           A
        rlnRandomSubset                            half set, 1 or 2
        rlnLogLikeliContribution                   half the log-likelihood at the own half map
        """
        arrays, first = self.arrays, self._first.arrays
        labels = self._first.attributes.get("columns", {}).get("particles", [])
        columns: dict[str, Any] = {}
        if _IMAGE in labels:
            columns[_IMAGE] = texts_of(first[array_name("particles", labels.index(_IMAGE), _IMAGE)])
        origins = -arrays["shifts"] * self._constants.voxel_size
        columns |= pose_columns(to_euler(arrays["rotations"]), origins, first["half"])
        return frame_of(columns | {"rlnLogLikeliContribution": arrays["score"]})

    @property
    def quality(self) -> pd.DataFrame:
        """How good each particle is, one row each: the further columns of particles.star.

        rlnParticleFigureOfMerit   probability that the image holds the particle, 0 to 1
        mpiparSignificance         of the match with the own half map, standard deviations of noise
        mpiparHeldOutScore         half the log-likelihood at the half map that has not seen it

        Without columns if particles were not aligned, or are too few to tell.
        """
        arrays, names = self.arrays, Matches.__dataclass_fields__
        radius, box = self._constants.radius, self._constants.box
        if radius is None or not set(names) <= set(arrays):
            return frame_of({})
        matches = Matches(*(arrays[name] for name in names))
        geometry = ImageGeometry(box, self._constants.voxel_size, radius)
        return frame_of(judged_columns(matches, particle_quality(matches, geometry.covered())))

    def __repr__(self) -> str:
        found = "none claimed" if self.resolution is None else f"{self.resolution:.2f} A"
        said = f"; {self.mark}" if self.mark else ""
        return (
            f"iteration {self.number} ({self.kind}) of {self._project.path}: resolution {found}, "
            f"{100 * self.attributes['jumped']:.1f} % of the particles moved, committed "
            f"{self.time:%Y-%m-%d %H:%M} UTC{said}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.fsc.round(4).to_html(index=False, border=0)}"


_IMAGE = "rlnImageName"
