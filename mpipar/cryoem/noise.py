"""The noise spectrum: per shell, the power of the difference between images and reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpipar.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.fourier import Components


def residual_power(
    images: NDArray[np.complex64], model: NDArray[np.complex64], wanted: Components
) -> NDArray[np.float64]:
    """Return the sum over each shell of |image - model|^2, (b, s).

    images  (b, v) complex64
    model   (b, w) complex64: the first w of the v components; zero for the others
    """
    residual = images.copy()
    residual[:, : model.shape[1]] -= model
    return wanted.shell_sums(residual.real**2 + residual.imag**2)


def spectrum(power: NDArray[np.float64], images: int, wanted: Components) -> NDArray[np.float64]:
    """Return the mean power per component of each shell, (s,), positive everywhere.

    power   (s,) sums over `images` images
    raises  InputError if all images are empty
    """
    per_shell = np.diff(np.append(wanted.starts, len(wanted.shell)))
    mean = power / (per_shell * max(images, 1))
    if not np.all(np.isfinite(mean)) or mean.max() <= 0:
        raise InputError(
            "the particle images hold no signal at all (every Fourier component is zero)"
        )
    return np.asarray(np.maximum(mean, mean.max() * 1e-9))


def weights(noise: NDArray[np.float64], wanted: Components) -> NDArray[np.float32]:
    """Return 1 / noise of the shell of each component, (v,).

    noise   (s,) power per shell
    """
    return np.asarray(1.0 / noise[wanted.shell], np.float32)
