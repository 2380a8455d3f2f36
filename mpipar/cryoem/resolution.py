"""Fourier shell correlation (FSC), and the resolution that it shows.

A curve is read through its *decreasing fit*, so that no single shell decides. The first crossing,
which most programs take, is the same on a curve that only falls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem.fourier import (
    shell_products,
    shells_by_square,
    volume_of_transform,
    volume_transform,
)
from mpipar.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GOLD_STANDARD = 0.143
"""Threshold for two independent half maps (Rosenthal & Henderson 2003)."""
WINDOW = 3
"""Shells that end a curve when their mean is below the threshold: what rises later is not read."""


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
    return correlation_of_transforms(volume_transform(half1), volume_transform(half2))


def correlation_of_transforms(
    first: NDArray[np.complex64], second: NDArray[np.complex64]
) -> NDArray[np.float64]:
    """Return the FSC of two half transforms (n, n, n // 2 + 1): (n // 2 + 1,)."""
    product, power1, power2, _ = shell_products(first, second).T
    total = np.sqrt(power1 * power2)
    return np.asarray(np.where(total > 0, product / np.where(total > 0, total, 1.0), 0.0))


def masked_correlation(
    halves: Sequence[NDArray[np.float32]], mask: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the FSC of two half maps (n, n, n) inside a mask: (n // 2 + 1,)."""
    first, second = (volume_transform(half * mask) for half in halves)
    return correlation_of_transforms(first, second)


def corrected_correlation(
    transforms: Sequence[NDArray[np.complex64]],
    mask: NDArray[np.float32],
    seed: np.random.SeedSequence,
    unmasked: NDArray[np.float64],
    masked: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the FSC inside a mask, without the correlation that the mask itself causes.

    transforms        (n, n, n // 2 + 1) of either half map; used up
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
    for transform in transforms:
        randomise_phases(transform, start, random)
    scrambled = [volume_of_transform(transform, mask.shape[0]) for transform in transforms]
    # a mask makes maps more similar, never less: below zero there is nothing to correct
    by_mask = np.maximum(masked_correlation(scrambled, mask), 0.0)
    corrected = np.array(masked, np.float64)
    # the first shells after the cut still touch unscrambled ones
    usable = (np.arange(len(masked)) >= start + 2) & (by_mask < 1.0)
    gain = (masked[usable] - by_mask[usable]) / (1.0 - by_mask[usable])
    corrected[usable] = np.maximum(gain, 0.0)
    return corrected


def randomise_phases(
    transform: NDArray[np.complex64], first_shell: int, random: np.random.Generator
) -> None:
    """Replace all phases from `first_shell` outwards by random ones, in place; amplitudes stay.

    transform  (n, n, n // 2 + 1)
    """
    box, kept = len(transform), len(shells_by_square(first_shell - 1))
    k = np.fft.fftfreq(box, 1.0 / box).astype(np.int64)
    square = k[:, None] ** 2 + np.arange(transform.shape[2]) ** 2
    for kz, plane in zip(k, transform, strict=True):
        change = square >= kept - kz * kz
        angles = np.float32(2.0 * np.pi) * random.random(np.count_nonzero(change), np.float32)
        amplitudes = np.abs(plane[change])
        turned = np.empty(len(angles), np.complex64)
        turned.real, turned.imag = amplitudes * np.cos(angles), amplitudes * np.sin(angles)
        plane[change] = turned


def first_shell_below(curve: NDArray[np.floating], threshold: float) -> int | None:
    """Return the first shell, from 2 on, with a correlation below `threshold`, or None."""
    below = np.flatnonzero(np.asarray(curve[2:]) < threshold)
    return int(below[0]) + 2 if below.size else None


def decreasing_fit(
    values: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the sequence that never rises and is nearest to `values`: isotonic regression.

    values   (s,)
    weights  (s,) positive; the sum of weight * (fit - value)^2 is the smallest possible
    returns  (s,); fit_k = min over i <= k of max over j >= k of the weighted mean of values i..j
             (Robertson, Wright & Dykstra 1988, Order Restricted Statistical Inference, 1.4)
    """
    sums, total = (
        np.concatenate([[0.0], np.cumsum(terms, dtype=np.float64)])
        for terms in (np.multiply(weights, values), weights)
    )
    # entry [i, j] is the mean of values i..j, of use where i <= j
    span = total[None, 1:] - total[:-1, None]
    means = (sums[None, 1:] - sums[:-1, None]) / np.where(span > 0, span, 1.0)
    best_end = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
    started = np.triu(np.ones(means.shape, bool))
    return np.asarray(np.where(started, best_end, np.inf).min(axis=0))


def fitted_curve(curve: NDArray[np.floating], threshold: float) -> NDArray[np.float64]:
    """Return the part of a curve that its resolution is read from, without the jitter of shells.

    curve    (s,) FSC per shell
    returns  (r,), r <= s: shells 0 and 1 as they are, then the decreasing fit, each shell weighted
             by its components (as k^2), up to and with the first `WINDOW` shells whose mean is
             below `threshold`; all shells if there are none

    The last shell with a fit of at least `threshold` is the one up to which the excess of
    correlation, sum of k^2 (FSC - threshold), is largest. A dip of one or two shells, where the
    molecule scatters almost nothing, as hollow viruses do, ends nothing; nor does one low shell
    among higher ones. A revival beyond a valley is not read: it can be the mask's, or come from
    interpolation. Raising any value of the curve never makes the reading coarser.
    """
    weights = np.arange(2, len(curve), dtype=np.float64) ** 2
    values = np.asarray(curve[2:], np.float64)
    excess = np.convolve(weights * (values - threshold), np.ones(WINDOW), "valid")
    valleys = np.flatnonzero(excess < 0) if len(values) >= WINDOW else np.zeros(0, int)
    end = int(valleys[0]) + WINDOW if valleys.size else len(values)
    return np.concatenate([curve[:2], decreasing_fit(values[:end], weights[:end])])


def crossing_shell(curve: NDArray[np.floating], threshold: float) -> float | None:
    """Return where the fitted curve falls below `threshold`, in shells, interpolated; or None."""
    fit = fitted_curve(curve, threshold)
    shell = first_shell_below(fit, threshold)
    if shell is None:
        return None
    before, after = float(fit[shell - 1]), float(fit[shell])
    return shell - 1 + ((before - threshold) / (before - after) if before > threshold else 0.0)


def last_resolved_shell(curve: NDArray[np.floating], threshold: float) -> int:
    """Return the last shell at which the fitted curve is not below `threshold`, at least 1."""
    crossing = crossing_shell(curve, threshold)
    return len(curve) - 1 if crossing is None else int(crossing)


def resolution_of(
    curve: NDArray[np.floating], threshold: float, box: int, pixel_size: float
) -> float:
    """Return the resolution in Angstrom where the fitted curve falls below `threshold`.

    curve       (box // 2 + 1,) FSC per shell
    pixel_size  Angstrom
    returns     linear between shells; the Nyquist limit if the curve stays above
    """
    crossing = crossing_shell(curve, threshold)
    return 2.0 * pixel_size if crossing is None else box * pixel_size / crossing


def limited_by_pixels(curve: NDArray[np.floating], threshold: float, last: int) -> bool:
    """Return whether a curve stays above `threshold` up to the last shell that images fill.

    curve  (s,) FSC per shell
    last   that shell; what falls only there has no shell left to show that it falls

    The resolution is then a limit of the pixels, not of the particles.
    """
    crossing = crossing_shell(curve[: last + 1], threshold)
    return crossing is None or crossing > last - 1
