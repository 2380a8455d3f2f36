"""The quality of a run's particles, from its state; as columns and as a picture."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem.particle_quality import density_of, particle_quality

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.cryoem.matches import Matches
    from mpipar.cryoem.particle_quality import ParticleQuality
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.iteration import RefineState


def quality_of(data: Dataset, state: RefineState) -> ParticleQuality | None:
    """Return the quality of all particles; None if they were not aligned, or are too few."""
    return particle_quality(state.matches, data.geometry.covered())


def quality_columns(
    state: RefineState, quality: ParticleQuality | None
) -> dict[str, NDArray[np.float64]]:
    """Return what particles.star says of each particle's score and quality, by label.

    rlnLogLikeliContribution   half the log-likelihood at the own half map
    rlnParticleFigureOfMerit   probability that the image holds the particle; RELION's
                               `relion_reconstruct --fom_weighting` weights images with it
    mpiparSignificance         of the match with the own half map; the histogram of particles.png
    mpiparHeldOutScore         half the log-likelihood at the half map that has not seen the
                               particle, over the detail that the half maps do not share
    """
    return {"rlnLogLikeliContribution": state.poses.score} | judged_columns(state.matches, quality)


def judged_columns(
    matches: Matches, quality: ParticleQuality | None
) -> dict[str, NDArray[np.float64]]:
    """Return the columns of `quality_columns` besides the score; none without quality."""
    if quality is None:
        return {}
    return {
        "rlnParticleFigureOfMerit": quality.probability,
        "mpiparSignificance": quality.significance,
        "mpiparHeldOutScore": matches.held_score,
    }


def draw_quality(path: Path, quality: ParticleQuality | None) -> None:
    """Write the histogram of significance with its peaks as a PNG."""
    from mpipar.views.plots import score_picture

    if quality is None:
        score_picture(path, np.zeros(0), {}, title="particles were not judged: too few, or no pose")
        return
    named = {"junk": quality.mixture.junk, "particles": quality.mixture.good}
    curves = {name: partial(density_of, peaks) for name, peaks in named.items() if peaks}
    title = quality.sentence() or "no junk found"
    score_picture(path, quality.significance, curves, title=title)
