"""The orientations of a run and its resolution by direction, as a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem.orientation_spread import view_density

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.programs.alarms import Findings, RunEvidence
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.iteration import RefineState


def draw_orientations(path: Path, findings: Findings, state: RefineState, data: Dataset) -> None:
    """Write from where the particles are seen, and the FSC by direction, as a PNG."""
    from mpipar.views.plots import orientation_picture

    geometry, directions = data.geometry, findings.evidence.directions
    assert directions is not None  # it is measured at the end
    mark = findings.maps.mark
    if mark:  # then nothing finer than the start is claimed in any direction
        coarse = np.maximum(directions.resolution, findings.evidence.start.resolution)
        directions = replace(directions, resolution=coarse)
    orientation_picture(
        path,
        view_density(state.poses.rotations, data.symmetry),
        findings.maps.corrected,
        directions,
        geometry.box * geometry.pixel_size,
        title=mark or _spread_in_words(findings.evidence),
    )


def _spread_in_words(evidence: RunEvidence) -> str:
    found, spread = evidence.directions, evidence.spread
    efficiency = f"efficiency of the orientations {spread.efficiency:.2f}, " if spread else ""
    by_direction = f"{found.best:.1f} to {found.worst:.1f} Å by direction" if found else ""
    return efficiency + by_direction
