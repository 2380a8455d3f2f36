"""Simulated particles with known poses: in memory, or as the files of a refinement."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

from mpipar.cryoem import alignment, symmetry
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.ctf import CtfParameters, contrast_transfer
from mpipar.cryoem.fourier import components, filter_shells, largest_radius, lowpass_gain
from mpipar.formats.mrc import write_volume

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXEL_SIZE = {64: 3.0, 128: 1.6, 256: 0.8}
SIGNAL_TO_NOISE = 0.05
FALLOFF = 0.2  # of the box: the shell where amplitudes are down by e
START = 30.0  # A, that the initial model is low-passed to
AT_ONCE = 250  # images that a process makes in one go


def volume_of(box: int, seed: int, group: str = "C1") -> NDArray[np.float32]:
    """Return a density of this symmetry, with detail as fine as the pixels show."""
    random = np.random.default_rng(seed)
    volume = np.zeros((box, box, box), np.float32)
    places = random.normal(size=(8 * box, 3))
    places *= (0.32 * box * random.uniform(size=len(places)) ** (1 / 3))[:, None] / np.sqrt(
        (places**2).sum(axis=1)
    )[:, None]
    operators = symmetry.operators(group)
    if len(operators) == 1:
        places += np.array([-1, 0, 2])  # off the centre
    heights = random.uniform(0.3, 2.0, len(places)).astype(np.float32)
    own = slice(0, max(1, len(places) // len(operators)))  # as many points in all for any group
    for operator in operators:
        x, y, z = (np.rint(places[own] @ operator.T).astype(int) + box // 2).T
        np.add.at(volume, (z, y, x), heights[own])
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


def stack_part(
    box: int, seed: int, group: str, first: int, count: int
) -> tuple[Poses, NDArray[np.float32]]:
    """Return poses and images without noise of some particles of a set."""
    random = np.random.default_rng((seed, box, first))
    turns = Rotation.random(count, random_state=seed + first).as_matrix()
    true = Poses(turns, random.normal(0, 0.015 * box, (count, 2)), np.zeros(count))
    volume = volume_of(box, seed, group)
    images = projections(volume, true, optics_of(count), PIXEL_SIZE.get(box, 3.0))
    return true, images


def optics_of(count: int) -> CtfParameters:
    """Return CTF parameters with defocus from 0.8 to 2 micrometres."""
    one, zero = np.ones(count), np.zeros(count)
    defocus = np.linspace(8000, 20000, count)
    return CtfParameters(
        defocus, defocus - 300, 40 * one, 300 * one, 2.7 * one, 0.1 * one, zero, zero, one
    )


@dataclass(frozen=True)
class SetOptions:
    """What is simulated: `count` images of this box, white noise, a point group."""

    box: int
    count: int
    group: str = "C1"
    signal_to_noise: float = SIGNAL_TO_NOISE
    seed: int = 1

    @property
    def pixel_size(self) -> float:
        """The size of a pixel in A."""
        return PIXEL_SIZE.get(self.box, 3.0)


def write_part(folder: Path, options: SetOptions, deviation: float, each: int, first: int) -> Poses:
    """Write some particles, from number `first` on, with noise; return their true poses."""
    count = min(each, options.count - first)
    true, images = stack_part(options.box, options.seed, options.group, first, each)
    noise = np.random.default_rng((options.seed, first)).standard_normal(images.shape, np.float32)
    with mrcfile.mmap(folder / "particles.mrcs", mode="r+", permissive=True) as out:
        out.data[first : first + count] = (images / np.float32(deviation) + noise)[:count]
    return alignment.first(true, count)


def write_set(folder: Path, options: SetOptions, cores: int) -> Poses:
    """Write particles.star, particles.mrcs, init.mrc and truth.mrc; return the true poses."""
    box, count, seed, group = options.box, options.count, options.seed, options.group
    each = min(AT_ONCE, count)
    starts = range(0, count, each)
    pixel_size = options.pixel_size
    clean = stack_part(box, seed, group, 0, each)[1]
    deviation = float(clean.std()) / np.sqrt(options.signal_to_noise)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, box, box)
    with mrcfile.new_mmap(
        folder / "particles.mrcs", shape=shape, mrc_mode=2, overwrite=True
    ) as out:
        out.voxel_size = pixel_size
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        work = partial(write_part, folder, options, deviation, each)
        parts = pool.map(work, starts, chunksize=1)
    truth = volume_of(box, seed, group)
    write_volume(folder / "truth.mrc", truth, pixel_size)
    low = filter_shells(truth, lowpass_gain(box, box * pixel_size / START))
    write_volume(folder / "init.mrc", low, pixel_size)
    (folder / "particles.star").write_text(star_of(count, each, box, pixel_size))
    return alignment.joined(*parts)


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
