"""Simulated particle images for `gpu.py`, in memory, and how to align them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from jobs.scaling.simulated_set import PIXEL_SIZE, SIGNAL_TO_NOISE, projections, volume_of
from mpipar.cryoem import alignment, orientation_grids, pose_spread, reconstruction, symmetry
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.ctf import CtfParameters
from mpipar.cryoem.fourier import largest_radius
from mpipar.cryoem.search_plan import Sampling, plan_search, plan_soft
from mpipar.programs.block_rows import ImageGeometry, ParticleRows
from mpipar.programs.soft_stage import SoftStage, spectrum_of
from mpipar.programs.stages import AlignStage

if TYPE_CHECKING:
    from numpy.typing import NDArray

TINY_BOX = 32  # below: for the simulator
SEARCH, LOCAL, SOFT = "search", "local", "soft"


@dataclass(frozen=True)
class Problem:
    """Simulated images of one box, whose poses are known, and how to align them.

    rows   of the images, with no pose known; `near`: with poses near the true ones
    soft   the stage of a soft iteration that uses all detail that such ones use
    """

    stage: AlignStage
    shared: dict[str, Any]
    soft: SoftStage
    soft_shared: dict[str, Any]
    images: NDArray[np.float32]
    rows: ParticleRows
    near: ParticleRows
    true: Poses

    def spectrum(self) -> NDArray[np.float64]:
        """Return the noise (s,) of images in discs, for soft iterations."""
        return spectrum_of(self.soft_shared, 1, self.soft.geometry)


def make_problem(box: int, count: int, *, exhaustive: bool, seed: int = 1) -> Problem:
    """Simulate images; an exhaustive search is the hardest: no pose known, detail to Nyquist."""
    random = np.random.default_rng((seed, box))
    pixel_size = PIXEL_SIZE.get(box, 3.0)
    volume = volume_of(box, seed)
    true = Poses(
        Rotation.random(count, random_state=seed + 1).as_matrix(),
        random.normal(0, 0.015 * box, (count, 2)),
        np.zeros(count),
    )
    one, zero = np.ones(count), np.zeros(count)
    defocus = random.uniform(8000, 20000, count)
    ctf = CtfParameters(
        defocus, defocus - 300, 40 * one, 300 * one, 2.7 * one, 0.1 * one, zero, zero, one
    )
    images = projections(volume, true, ctf, pixel_size)
    deviation = float(images.std()) / np.sqrt(SIGNAL_TO_NOISE)
    images += (deviation * random.normal(size=images.shape)).astype(np.float32)
    sampling = Sampling(box, 0.7 * box, largest_radius(box))
    plan = plan_search(sampling, box // 2 - 3, exhaustive=exhaustive, free_scale=False)
    if box < TINY_BOX:
        plan = replace(plan, step=45.0, shift_range=1.0, shift_step=1.0, candidates=3, survivors=2)
    power = np.full((2, largest_radius(box) + 1), deviation**2 * box**2)
    reference = alignment.make_reference(volume, plan.radius)
    transforms = reference.transform[None]
    shared: dict[str, Any] = {"noise": power, "reference1": transforms, "reference2": transforms}
    if exhaustive:
        shared["orientations"] = half_grid(plan.step, seed)
    else:
        shared["deviates"] = pose_spread.deviates(np.random.SeedSequence(seed))
    bound = float(np.abs(images).sum(axis=(1, 2)).max() / power.min())
    scales = reconstruction.fixed_point(bound, float(1 / power.min()), count)
    stage = AlignStage(
        ImageGeometry(box, pixel_size, 0.35 * box), plan, largest_radius(box), scales
    )
    unknown = Poses(np.broadcast_to(np.eye(3), (count, 3, 3)), np.zeros((count, 2)), zero - np.inf)
    turn = Rotation.from_rotvec(random.normal(0, np.radians(0.7), (count, 3))).as_matrix()
    known = Poses(true.rotations @ turn, true.shifts + random.normal(0, 0.3, (count, 2)), zero)
    settled = np.zeros(count, bool)
    rows, near = (ParticleRows(1, ctf, zero, one, poses, settled) for poses in (unknown, known))
    soft, soft_shared = soft_stage_of(sampling, stage, volume, power)
    return Problem(stage, shared, soft, soft_shared, images, rows, near, true)


def soft_stage_of(
    sampling: Sampling, stage: AlignStage, volume: NDArray[np.float32], power: NDArray[np.float64]
) -> tuple[SoftStage, dict[str, Any]]:
    """Return the stage of a soft iteration, and its shared arrays."""
    shell = sampling.box // 2 - 3
    plan = plan_soft(sampling, shell, 4, spread=None, free_scale=False)
    if sampling.box < TINY_BOX:
        plan = replace(plan, step=45.0, reach=1.0, shift_step=1.0)
    transform = alignment.make_reference(volume, plan.radius).transform[None]
    shared = {"noise": power, "reference1": transform, "orientations": half_grid(plan.step, 1)}
    return SoftStage(stage.geometry, plan, stage.scales), shared


def half_grid(step: float, seed: int) -> NDArray[np.float32]:
    """Return orientations of which the half-turned ones are understood."""
    return orientation_grids.orientation_grid(
        step, symmetry.operators("C1"), np.random.SeedSequence(seed), half_turn=True
    )


def part_of(rows: ParticleRows, which: slice) -> ParticleRows:
    """Return some of the rows."""
    every = np.arange(len(rows.offset))[which]
    poses = Poses(rows.poses.rotations[which], rows.poses.shifts[which], rows.poses.score[which])
    return ParticleRows(
        rows.half, rows.ctf.take(every), rows.offset[which], rows.gain[which], poses,
        rows.settled[which],
    )  # fmt: skip
