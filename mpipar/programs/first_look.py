"""The first look at all images: their statistics, copies, bad pixels and contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mpipar.cryoem.fourier import shell_means
from mpipar.cryoem.masks import soft_sphere
from mpipar.formats.tables import row_list
from mpipar.programs import contrast, copies, dataset
from mpipar.programs.block_rows import MASK_EDGE
from mpipar.programs.look_stage import LookStage
from mpipar.programs.stages import MeasureStage
from mpipar.programs.stored_images import ImageFindings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.programs.dataset import ImageConstants, Start
    from mpipar.programs.images import StackSource
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.look_stage import ImageLook
    from mpipar.programs.stages import ImageStatistics
    from mpipar.runtime.stage import Task
    from mpipar.settings import RefineSettings

Measure: TypeAlias = Callable[["StackSource", LookStage, "list[Task]"], "Sequence[ImageLook]"]
"""Runs LookStage on all blocks of a source."""


@dataclass(frozen=True)
class FirstLook:
    """What the first look has found.

    constants   of the images; the gain is negative where the contrast is inverted
    spectra     (2, s) first noise spectra
    source      the images, cut into blocks of one half set each; the one that was measured, if no
                particle had to change its half set
    notes       what was adapted, for the user
    """

    constants: ImageConstants
    spectra: NDArray[np.float64]
    source: StackSource
    notes: tuple[str, ...]


def look_at_all(
    inputs: RefineInputs, start: Start, settings: RefineSettings, measure: Measure
) -> FirstLook:
    """Look at all images once.

    raises   InputError for images that cannot be used
    """
    geometry = start.geometry
    half = dataset.half_sets(inputs.particles, settings.seed)
    copies.require_two_halves(inputs.particles, half)
    fold = dataset.folds_of(half, start.symmetry_order)
    source = inputs.stacks.divided(dataset.blocks_of(half, fold))
    sphere = soft_sphere(inputs.box, geometry.radius, MASK_EDGE)
    last = max(
        2, min(round(inputs.box * inputs.pixel_size / start.resolution) + 1, inputs.box // 2)
    )
    profile = shell_means(start.model * sphere)[: last + 1]
    tasks = dataset.measure_tasks(source.blocks, inputs.particles)
    looks = _statistics(source, measure(source, LookStage(MeasureStage(geometry, profile)), tasks))
    notes = [*_hot_notes(source), *_rim_notes(source)]
    pixels, images = copies.first_of_pixels(source.blocks, looks)
    notes += copies.pixel_notes(inputs.particles, half, pixels, images)
    half = copies.together(half, images)
    notes += copies.require_two_halves(inputs.particles, half)
    fold = dataset.folds_of(half, start.symmetry_order, images)
    blocks, looks = _cut_anew(source.blocks, looks, dataset.blocks_of(half, fold))
    constants, spectra = dataset.measure(inputs.box, half, blocks, looks)
    constants = replace(constants, fold=fold)
    notes += _scale_notes(constants)
    products = contrast.products_of(constants, spectra, blocks, looks)
    inverted, said = contrast.inverted_images(inputs.particles, products, settings.contrast)
    constants = replace(constants, gain=np.where(inverted, -constants.gain, constants.gain))
    notes += said
    if blocks is not source.blocks:
        source = source.divided(blocks)
    return FirstLook(constants, spectra, source, tuple(notes))


def _statistics(source: StackSource, looks: Sequence[ImageLook]) -> Sequence[ImageStatistics]:
    """Return what was measured, block by block, and note in the source what was found.

    raises   InputError naming the first unusable image
    """
    source.note(ImageFindings.joined([look.findings for look in looks]))
    return [look.statistics for look in looks if look.statistics is not None]


def _cut_anew(
    blocks: Sequence[NDArray[np.int64]],
    looks: Sequence[ImageStatistics],
    fitting: tuple[NDArray[np.int64], ...],
) -> tuple[Sequence[NDArray[np.int64]], Sequence[ImageStatistics]]:
    """Return the fitting blocks and what was measured of each; the old ones if they are these."""
    if len(blocks) == len(fitting) and all(map(np.array_equal, blocks, fitting)):
        return blocks, looks
    place = np.argsort(np.concatenate(blocks))
    names = looks[0].__dataclass_fields__
    whole = type(looks[0])(
        *(np.concatenate([getattr(look, name) for look in looks])[place] for name in names)
    )
    return fitting, [whole.take(rows) for rows in fitting]


def _hot_notes(source: StackSource) -> list[str]:
    rows = np.array(sorted(source.hot_pixels), np.int64)
    if not rows.size:
        return []
    note = (
        "pixels far beyond all others of their image are set to its median: "
        f"{sum(source.hot_pixels.values())} in {_named(rows)}"
    )
    return [note]


def _rim_notes(source: StackSource) -> list[str]:
    rows = np.array(sorted(source.filled_rims), np.int64)
    if not rows.size:
        return []
    note = (
        "pixels beyond a circle all have one value, which is not that of the background: the mean "
        f"of the pixels inside is used instead, in {_named(rows)}"
    )
    return [note]


def _scale_notes(constants: ImageConstants) -> list[str]:
    if constants.normalised:
        note = (
            "the images are not normalised (background mean 0, deviation 1); each one is "
            "normalised here"
        )
        return [note]
    rows = np.flatnonzero((constants.gain != 1.0) | (constants.offset != 0.0))
    if not rows.size:
        return []
    note = (
        f"of quite another grey scale than the other images: {_named(rows)}; the background is "
        "brought to mean 0 and deviation 1"
    )
    return [note]


def _named(rows: NDArray[np.int64]) -> str:
    if rows.size == 1:
        return f"particle {rows[0] + 1}"
    return f"{rows.size} particles (rows {row_list(rows)})"
