"""Whether the images show bright particles or dark ones: told by their product with the model.

The mean projection of the model over all orientations is the same from all sides, so that no
orientation is needed. If the images hold that molecule, their mean has the projection's shape, and
its sign says which contrast they have. If the shapes differ, the sign says nothing: a hollow model
has a negative product with solid particles that are as bright as itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.formats.tables import row_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet
    from mpipar.programs.dataset import ImageConstants
    from mpipar.programs.stages import ImageStatistics

CERTAIN: Final = 6.0
"""Standard errors by which the images' mean product with the model must differ from zero."""
ALIKE: Final = 0.7
"""Correlation of the images' mean with the model's mean projection from which they are one
molecule: 0.9 and more with the right model, 0.6 at most with wrong ones of either sign."""
FEWEST: Final = 10  # images whose mean product has a standard error worth the name


@dataclass(frozen=True)
class Products:
    """What the first look says of each image's likeness to the model, noise taken into account.

    product    (p,) with the model's mean projection
    measured   (p, t) the same per shell
    expected   (p, t) of the mean projection with itself
    """

    product: NDArray[np.float64]
    measured: NDArray[np.float64]
    expected: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64]) -> Products:
        """Return those of some images."""
        return Products(self.product[rows], self.measured[rows], self.expected[rows])

    def certainty(self) -> float:
        """Return the mean product in standard errors: far below zero for dark particles."""
        error = self.product.std() / np.sqrt(self.product.size)
        if self.product.size < FEWEST or not error > 0:
            return 0.0
        return float(self.product.mean() / error)

    def likeness(self) -> float:
        """Return the correlation, -1 to 1, of the images' mean with the mean projection."""
        measured, expected = self.measured.sum(axis=0), self.expected.sum(axis=0)
        some = expected > 0
        power = expected.sum() * (measured[some] ** 2 / expected[some]).sum()
        return float(measured[some].sum() / np.sqrt(power)) if power > 0 else 0.0

    def sign(self) -> int:
        """Return 1 for bright particles, -1 for dark ones, 0 if that does not show."""
        certainty, likeness = self.certainty(), self.likeness()
        if abs(certainty) < CERTAIN or abs(likeness) < ALIKE:
            return 0
        return 1 if certainty > 0 else -1


def products_of(
    constants: ImageConstants,
    spectra: NDArray[np.float64],
    blocks: Sequence[NDArray[np.int64]],
    looks: Sequence[ImageStatistics],
) -> Products:
    """Return the products of all images with the model, from what was measured of each block."""
    count, shells = len(constants.half), looks[0].likeness.shape[1]
    measured, expected = np.zeros((count, shells)), np.zeros((count, shells))
    for rows, look in zip(blocks, looks, strict=True):
        noise = spectra[constants.half[rows[0]] - 1, :shells]
        measured[rows] = constants.gain[rows, None] * (look.likeness / noise)
        expected[rows] = look.expected / noise
    # without zero frequency, which holds the background
    measured, expected = measured[:, 1:], expected[:, 1:]
    return Products(measured.sum(axis=1), measured, expected)


def inverted_images(
    particles: ParticleSet, products: Products, choice: str
) -> tuple[NDArray[np.bool_], list[str]]:
    """Return which images (p,) have their sign turned, and notes.

    choice   `auto`, `as-is` or `invert`

    Groups of images with another contrast than most are turned, or left, by themselves: stacks that
    were put together from several sessions.
    """
    if choice != "auto":
        return np.full(particles.count, choice == "invert"), []
    everywhere = products.sign()
    inverted = np.full(particles.count, everywhere < 0)
    for numbers in (particles.optics_group, particles.stack):
        for rows in _groups(numbers):
            if sign := products.take(rows).sign():
                inverted[rows] = sign < 0
    return inverted, [*_turned(inverted), *_in_doubt(products, inverted, everywhere)]


def _groups(numbers: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Return the indices of each group of particles with one number."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _turned(inverted: NDArray[np.bool_]) -> list[str]:
    if not inverted.any():
        return []
    rows = np.flatnonzero(inverted)
    some = "" if inverted.all() else f" in {rows.size} of them (rows {row_list(rows)})"
    note = (
        f"the contrast of the images is inverted{some}, dark particles on bright ice, as their "
        "product with the model says: their sign is turned; --contrast as-is leaves it"
    )
    return [note]


def _in_doubt(products: Products, inverted: NDArray[np.bool_], everywhere: int) -> list[str]:
    """Return a note if it does not show whether particles are bright, and nothing was turned."""
    certainty, likeness = products.certainty(), products.likeness()
    if everywhere or inverted.any() or certainty > CERTAIN:
        return []
    if certainty < -CERTAIN:
        note = (
            "the images look dark where the model is bright, but their mean has not its shape "
            f"(correlation {likeness:.2f}): they are used as they are; is it the right model? If "
            "the particles are dark, say --contrast invert"
        )
        return [note]
    note = (
        "it does not show whether the particles are bright or dark (product with the model: "
        f"{certainty:.1f} standard errors): the images are used as they are, bright particles "
        "expected; --contrast invert turns them"
    )
    return [note]
