"""A small set of particles of a phantom, as files that refine reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mrcfile
import numpy as np
import pandas as pd

from mpipar.cryoem.ctf import CtfParameters, contrast_transfer
from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.cryoem.rotations import from_euler
from mpipar.cryoem.symmetry import operators
from mpipar.formats.mrc import write_volume
from mpipar.formats.tables import write_tables

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COUNT: Final = 200
BOX: Final = 32
PIXEL_SIZE: Final = 6.0  # A
SYMMETRY: Final = "d2"  # a quarter of the orientations to search
BLOBS: Final = 12  # in the asymmetric unit
WIDTH: Final = 1.2  # standard deviation of a blob, pixels
NOISE: Final = 1.5  # standard deviation, in that of the signal
MODEL_SHELL: Final = 5.0  # what the initial model is low-passed to


@dataclass(frozen=True)
class ParticleFiles:
    """What refine needs."""

    star: Path
    model: Path


def write_particle_files(folder: Path) -> ParticleFiles:
    """Write particles.star, particles.mrcs and init.mrc; always the same."""
    random = np.random.default_rng(20)
    centres = _centres(random)
    angles = np.column_stack(
        [
            random.uniform(-180, 180, COUNT),
            np.degrees(np.arccos(random.uniform(-1, 1, COUNT))),
            random.uniform(-180, 180, COUNT),
        ]
    )
    shifts = random.normal(scale=1.0, size=(COUNT, 2))
    ctf = _microscope(random)
    images = _with_ctf(_projections(centres, angles, shifts), ctf)
    images += random.normal(scale=NOISE * images.std(), size=images.shape)
    images -= images.mean()
    images /= images.std()
    with mrcfile.new(folder / "particles.mrcs", overwrite=True) as file:
        file.set_data(images.astype(np.float32))
        file.voxel_size = PIXEL_SIZE
    files = ParticleFiles(folder / "particles.star", folder / "init.mrc")
    model = filter_shells(_phantom(centres), lowpass_gain(BOX, MODEL_SHELL))
    write_volume(files.model, model, PIXEL_SIZE)
    write_tables(files.star, _tables(ctf))
    return files


def _centres(random: np.random.Generator) -> NDArray[np.float64]:
    """Where the blobs are: (blob, 3) x y z, evenly within a ball and its symmetry mates."""
    directions = random.normal(size=(BLOBS, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    radii = 0.28 * BOX * random.uniform(size=BLOBS) ** (1 / 3)
    mates = operators(SYMMETRY) @ (directions * radii[:, None]).T
    return np.concatenate(list(mates.transpose(0, 2, 1)))


def _phantom(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Volume (n, n, n), axes z y x, of Gaussian blobs."""
    x = np.arange(BOX) - BOX // 2
    one = np.exp(-0.5 * ((x[None, None, :] - centres[:, :, None]) / WIDTH) ** 2)  # (blob, xyz, n)
    return np.asarray(np.einsum("bz,by,bx->zyx", one[:, 2], one[:, 1], one[:, 0]))


def _projections(
    centres: NDArray[np.float64], angles: NDArray[np.float64], shifts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Images (p, n, n) of the blobs, each particle `shifts` pixels off the centre."""
    seen = np.einsum("pji,bj->pbi", from_euler(angles), centres)[:, :, :2] + shifts[:, None]
    x = np.arange(BOX) - BOX // 2
    one = np.exp(-0.5 * ((x - seen[..., None]) / WIDTH) ** 2)  # (p, blob, xy, n)
    return np.asarray(np.einsum("pby,pbx->pyx", one[:, :, 1], one[:, :, 0]))


def _microscope(random: np.random.Generator) -> CtfParameters:
    def same(value: float) -> NDArray[np.float64]:
        return np.full(COUNT, value)

    defocus = random.uniform(10_000, 25_000, COUNT)
    return CtfParameters(
        defocus_u=defocus + 200,
        defocus_v=defocus - 200,
        defocus_angle=random.uniform(0, 180, COUNT),
        voltage=same(300),
        spherical_aberration=same(2.7),
        amplitude_contrast=same(0.1),
        phase_shift=same(0),
        b_factor=same(0),
        scale=same(1),
    )


def _with_ctf(images: NDArray[np.float64], ctf: CtfParameters) -> NDArray[np.float64]:
    k = np.fft.fftfreq(BOX, 1 / BOX)
    ky, kx = np.meshgrid(k, k[: BOX // 2 + 1], indexing="ij")
    frequencies = np.column_stack([kx.ravel(), ky.ravel()])
    transfer = contrast_transfer(ctf, frequencies, BOX, PIXEL_SIZE).reshape(-1, *kx.shape)
    return np.asarray(np.fft.irfft2(np.fft.rfft2(images) * transfer, s=(BOX, BOX)))


def _tables(ctf: CtfParameters) -> dict[str, pd.DataFrame]:
    optics = {
        "rlnOpticsGroupName": "phantom",
        "rlnOpticsGroup": 1,
        "rlnVoltage": 300,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnImagePixelSize": PIXEL_SIZE,
        "rlnImageSize": BOX,
        "rlnImageDimensionality": 2,
    }
    particles = {
        "rlnImageName": [f"{number:06d}@particles.mrcs" for number in range(1, COUNT + 1)],
        "rlnOpticsGroup": 1,
        "rlnDefocusU": ctf.defocus_u,
        "rlnDefocusV": ctf.defocus_v,
        "rlnDefocusAngle": ctf.defocus_angle,
    }
    return {
        "optics": pd.DataFrame([optics]).astype(str),
        "particles": pd.DataFrame(particles).astype(str),
    }
