"""The maps of the last finished iteration, as files in the run's folder while the run goes on."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mpipar.programs import exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.programs.dataset import Dataset
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.iteration import Maps
    from mpipar.store.project import Project

PRELIMINARY: Final = "PRELIMINARY, may show the initial model and noise"
"""The mark of maps while it is not known whether the images hold any signal."""
DEAREST_PICTURE: Final = 0.03
"""Of the time since the last one, that a picture may take."""
FIRST_PICTURE: Final = 1.0  # seconds that one takes, about, with the import of matplotlib


class MapFiles:
    """Writes the maps of finished iterations, each marked as not finished, in place of older ones.

    A picture is left out if it were dear, so that quick iterations stay quick.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn_at = clock()
        self._picture_seconds = FIRST_PICTURE

    def write(
        self,
        project: Project,
        inputs: RefineInputs,
        data: Dataset,
        maps: Maps,
        iteration: int,
    ) -> None:
        """Replace map.mrc, half1.mrc, half2.mrc, fsc.txt and, if time allows, fsc.png."""
        unfinished = unfinished_label(iteration)
        exports.write_maps(project, inputs, data, maps, unfinished=unfinished)
        begun = self._clock()
        if self._picture_seconds > DEAREST_PICTURE * (begun - self._drawn_at):
            return
        exports.write_picture(project, inputs, data, maps, unfinished=unfinished)
        self._drawn_at = self._clock()
        self._picture_seconds = self._drawn_at - begun


def unfinished_label(iteration: int) -> str:
    """Return what is said of the maps of an iteration while others may follow."""
    return f"iteration {iteration}, not finished"


def preliminary(maps: Maps) -> Maps:
    """Return maps with the mark that signal has not been shown yet."""
    return replace(maps, mark=PRELIMINARY)
