"""Fourier shell correlation (FSC), and the resolution that it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

from mpipar.cryoem.fourier import shell_of_half_volume
from mpipar.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLD_STANDARD = 0.143
"""Threshold for two independent half maps (Rosenthal & Henderson 2003)."""


def fourier_shell_correlation(
    half1: NDArray[np.floating], half2: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the correlation of two half maps, shell by shell.

    half1, half2   (n, n, n), axes z y x, same box and pixel size
    returns        (n // 2 + 1,); entry k is frequency k / (n * pixel_size) in 1/A; 0 where a shell
                   is empty
    raises         InputError if the maps differ in shape or are not cubes
    """
    if half1.shape != half2.shape or half1.shape != (len(half1),) * 3:
        raise InputError(f"FSC needs two cubes of one size, not {half1.shape} and {half2.shape}")
    first = scipy.fft.rfftn(np.asarray(half1, np.float32))
    second = scipy.fft.rfftn(np.asarray(half2, np.float32))
    return correlation_of_transforms(first, second, half1.shape[0])


def correlation_of_transforms(
    first: NDArray[np.complexfloating], second: NDArray[np.complexfloating], box: int
) -> NDArray[np.float64]:
    """Return the FSC of two half transforms (n, n, n // 2 + 1) from ``rfftn``: (n // 2 + 1,)."""
    product = _shell_sum((first * second.conj()).real, box)
    power1 = _shell_sum(first.real**2 + first.imag**2, box)
    power2 = _shell_sum(second.real**2 + second.imag**2, box)
    total = np.sqrt(power1 * power2)
    return np.asarray(np.where(total > 0, product / np.where(total > 0, total, 1.0), 0.0))


def _shell_sum(values: NDArray[np.floating], box: int) -> NDArray[np.float64]:
    twice = np.full(
        values.shape[2], 2.0
    )  # each component off the x = 0 plane stands for its Friedel mate too
    twice[0] = 1.0
    if box % 2 == 0:
        twice[-1] = 1.0
    shell = shell_of_half_volume(box)
    sums = np.bincount(shell.ravel() + 1, (values * twice).ravel(), minlength=box // 2 + 2)
    return np.asarray(sums[1 : box // 2 + 2])


def corrected_correlation(
    half1: NDArray[np.floating],
    half2: NDArray[np.floating],
    mask: NDArray[np.floating],
    seed: np.random.SeedSequence,
    unmasked: NDArray[np.float64],
    masked: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the FSC inside a mask, without the correlation that the mask itself causes.

    half1, half2      (n, n, n)
    mask              (n, n, n), 0 to 1
    seed              of the random phases
    unmasked, masked  (n // 2 + 1,) FSC of the half maps without and inside the mask
    returns           (n // 2 + 1,)

    Phases beyond the shell where the unmasked FSC falls below 0.8 are made random; correlation that
    remains inside the mask is caused by the mask: true = (masked - random) / (1 - random)
    (Chen et al. 2013, Ultramicroscopy 135).
    """
    start = first_shell_below(unmasked, 0.8) or len(unmasked) - 1
    random = np.random.default_rng(seed)
    scrambled = [randomise_phases(half, start, random) * mask for half in (half1, half2)]
    # a mask makes maps more similar, never less: below zero there is nothing to correct
    by_mask = np.maximum(fourier_shell_correlation(*scrambled), 0.0)
    corrected = np.array(masked, np.float64)
    # the first shells after the cut still touch unscrambled ones
    usable = (np.arange(len(masked)) >= start + 2) & (by_mask < 1.0)
    gain = (masked[usable] - by_mask[usable]) / (1.0 - by_mask[usable])
    corrected[usable] = np.maximum(gain, 0.0)
    return corrected


def randomise_phases(
    volume: NDArray[np.floating], first_shell: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Replace all phases from `first_shell` outwards by random ones; amplitudes stay."""
    transform = scipy.fft.rfftn(np.asarray(volume, np.float32))
    shell = shell_of_half_volume(volume.shape[0])
    change = (shell >= first_shell) | (shell < 0)
    angles = 2.0 * np.pi * random.random(np.count_nonzero(change), dtype=np.float32)
    turns = np.exp(1j * angles).astype(np.complex64)
    transform[change] = np.abs(transform[change]) * turns
    return np.asarray(scipy.fft.irfftn(transform, s=volume.shape), np.float32)


def first_shell_below(curve: NDArray[np.floating], threshold: float) -> int | None:
    """Return the first shell, from 2 on, with a correlation below `threshold`, or None."""
    below = np.flatnonzero(np.asarray(curve[2:]) < threshold)
    return int(below[0]) + 2 if below.size else None


def last_resolved_shell(curve: NDArray[np.floating], threshold: float, patience: int = 3) -> int:
    """Return the shell before the first `patience` shells in a row that are below `threshold`.

    A single shell can be low where the molecule scatters almost nothing, as hollow viruses do.
    """
    low = np.append(np.asarray(curve[2:]) < threshold, np.ones(patience, bool))
    runs = np.lib.stride_tricks.sliding_window_view(low, patience).all(axis=1)
    return int(np.argmax(runs)) + 1


def resolution_of(
    curve: NDArray[np.floating], threshold: float, box: int, pixel_size: float
) -> float:
    """Return the resolution in Angstrom where a curve first falls below `threshold`, interpolated.

    curve       (box // 2 + 1,) FSC per shell
    pixel_size  Angstrom
    returns     the Nyquist limit if the curve stays above
    """
    shell = first_shell_below(curve, threshold)
    if shell is None:
        return 2.0 * pixel_size
    before, after = float(curve[shell - 1]), float(curve[shell])
    part = (before - threshold) / (before - after) if before > threshold else 0.0
    return box * pixel_size / (shell - 1 + part)
