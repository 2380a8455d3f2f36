"""Simulated particle images for `gpu.py`: in memory, or as the files of a refinement."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

from mpipar.cryoem import alignment, orientation_grids, reconstruction, symmetry
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.ctf import CtfParameters, contrast_transfer
from mpipar.cryoem.fourier import components, filter_shells, largest_radius, lowpass_gain
from mpipar.cryoem.search_plan import Sampling, plan_search
from mpipar.programs.block_rows import ImageGeometry, ParticleRows
from mpipar.programs.stages import AlignStage

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXEL_SIZE = {64: 3.0, 128: 1.6, 256: 0.8}
SIGNAL_TO_NOISE = 0.05
FALLOFF = 0.2  # of the box: the shell where amplitudes are down by e
TINY_BOX = 32  # below: for the simulator


@dataclass(frozen=True)
class Problem:
    """Simulated images of one box, whose poses are known, and how to align them.

    rows   of the images, with no pose known; `near`: with poses near the true ones
    """

    stage: AlignStage
    shared: dict[str, Any]
    images: NDArray[np.float32]
    rows: ParticleRows
    near: ParticleRows
    true: Poses


def volume_of(box: int, seed: int) -> NDArray[np.float32]:
    """Return a density without symmetry, with detail as fine as the pixels show."""
    random = np.random.default_rng(seed)
    volume = np.zeros((box, box, box), np.float32)
    places = random.normal(size=(8 * box, 3))
    places *= (0.32 * box * random.uniform(size=len(places)) ** (1 / 3))[:, None] / np.sqrt(
        (places**2).sum(axis=1)
    )[:, None]
    z, y, x = (np.rint(places + np.array([2, 0, -1])).astype(int) + box // 2).T
    np.add.at(volume, (z, y, x), random.uniform(0.3, 2.0, len(places)).astype(np.float32))
    shells = np.arange(box // 2 + 1)
    falloff = np.exp(-((shells / (FALLOFF * box)) ** 2))
    return filter_shells(volume, falloff * lowpass_gain(box, 0.42 * box, 0.1 * box))


def projections(
    volume: NDArray[np.float32], true: Poses, ctf: CtfParameters, pixel_size: float
) -> NDArray[np.float32]:
    """Return images without noise, (b, n, n)."""
    box = len(volume)
    wanted = components(box, largest_radius(box))
    reference = alignment.make_reference(volume, largest_radius(box))
    kx, ky = wanted.frequencies.T.astype(int)
    sign = 1.0 - 2.0 * ((kx + ky) % 2)
    images = np.empty((len(true.score), box, box), np.float32)
    for b in range(len(images)):
        one = slice(b, b + 1)
        plane = alignment.slices_of(reference, true.rotations[one], wanted.frequencies)
        values = plane.view(np.complex64)[0] * sign
        values *= contrast_transfer(ctf.take(np.array([b])), wanted.frequencies, box, pixel_size)[0]
        values *= alignment.phases(true.shifts[b], wanted.frequencies, box).conj()
        half = np.zeros((box, box // 2 + 1), np.complex64)
        half[ky % box, kx] = values
        on_axis = (kx == 0) & (ky > 0)
        half[-ky[on_axis] % box, 0] = values[on_axis].conj()
        images[b] = np.fft.irfft2(half, s=(box, box))
    return images


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
    shared: dict[str, Any] = {"noise": power, "reference1": reference.transform[None]}
    if exhaustive:
        seeds = np.random.SeedSequence(seed)
        shared["orientations"] = orientation_grids.orientation_grid(
            plan.step, symmetry.operators("C1"), seeds, half_turn=True
        )
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
    return Problem(stage, shared, images, rows, near, true)


def part_of(rows: ParticleRows, which: slice) -> ParticleRows:
    """Return some of the rows."""
    every = np.arange(len(rows.offset))[which]
    poses = Poses(rows.poses.rotations[which], rows.poses.shifts[which], rows.poses.score[which])
    return ParticleRows(
        rows.half, rows.ctf.take(every), rows.offset[which], rows.gain[which], poses,
        rows.settled[which],
    )  # fmt: skip


def stack_part(box: int, seed: int, first: int, count: int) -> tuple[Poses, NDArray[np.float32]]:
    """Return poses and images without noise of some particles of a set."""
    random = np.random.default_rng((seed, box, first))
    turns = Rotation.random(count, random_state=seed + first).as_matrix()
    true = Poses(turns, random.normal(0, 0.015 * box, (count, 2)), np.zeros(count))
    images = projections(volume_of(box, seed), true, optics_of(count), PIXEL_SIZE.get(box, 3.0))
    return true, images


def optics_of(count: int) -> CtfParameters:
    """Return CTF parameters with defocus from 0.8 to 2 micrometres."""
    one, zero = np.ones(count), np.zeros(count)
    defocus = np.linspace(8000, 20000, count)
    return CtfParameters(
        defocus, defocus - 300, 40 * one, 300 * one, 2.7 * one, 0.1 * one, zero, zero, one
    )


def write_set(folder: Path, box: int, count: int, cores: int, seed: int = 1) -> Poses:
    """Write particles.star, particles.mrcs and init.mrc of simulated particles."""
    each = 250
    starts = range(0, count, each)
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        parts = pool.map(partial(stack_part, box, seed, count=each), starts, chunksize=1)
    pixel_size = PIXEL_SIZE.get(box, 3.0)
    random = np.random.default_rng(seed)
    deviation = float(parts[0][1].std()) / np.sqrt(SIGNAL_TO_NOISE)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, box, box)
    with mrcfile.new_mmap(
        folder / "particles.mrcs", shape=shape, mrc_mode=2, overwrite=True
    ) as out:
        for start, (_, images) in zip(starts, parts, strict=True):
            noise = random.standard_normal(images.shape, np.float32)
            out.data[start : start + each] = images / deviation + noise
        out.voxel_size = pixel_size
    low = filter_shells(volume_of(box, seed), lowpass_gain(box, box * pixel_size / 30.0))
    with mrcfile.new(folder / "init.mrc", low.astype(np.float32), overwrite=True) as out:
        out.voxel_size = pixel_size
    (folder / "particles.star").write_text(star_of(count, each, box, pixel_size))
    return alignment.joined(*(true for true, _ in parts))


def star_of(count: int, each: int, box: int, pixel_size: float) -> str:
    """Return the particle list as RELION 3.1 writes it."""
    optics = optics_of(each)
    names = (
        "OpticsGroup", "Voltage", "SphericalAberration", "AmplitudeContrast", "ImagePixelSize",
        "ImageSize", "ImageDimensionality",
    )  # fmt: skip
    columns = ("ImageName", "OpticsGroup", "DefocusU", "DefocusV", "DefocusAngle")
    lines = ["data_optics", "", "loop_", *(f"_rln{name}" for name in names)]
    lines += [f"1 300 2.7 0.1 {pixel_size} {box} 2", "", "data_particles", "", "loop_"]
    lines += [f"_rln{name}" for name in columns]
    for row in range(count):
        u, v = optics.defocus_u[row % each], optics.defocus_v[row % each]
        lines.append(f"{row + 1:06d}@particles.mrcs 1 {u:.2f} {v:.2f} 40.0")
    return "\n".join(lines) + "\n"
