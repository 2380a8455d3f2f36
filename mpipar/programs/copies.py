"""Images that stand in a particle list more than once, and their half sets.

If copies of an image were in different half sets, the noise of the image would be in both half
maps, and the FSC would show a resolution that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from mpipar.cryoem.copied_images import first_alike
from mpipar.errors import InputError
from mpipar.formats.tables import row_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet
    from mpipar.programs.stages import ImageStatistics

FEWEST_PER_HALF: Final = 2
LOPSIDED: Final = 1 / 3  # of one half set's size that the other one should have


def first_of_file(particles: ParticleSet) -> NDArray[np.int64]:
    """Return for each particle the first one, (p,), that names the same image of the same file.

    A file is known by device and inode, not by the path that leads to it.
    """
    known: dict[tuple[int, int], int] = {}
    same = np.empty(len(particles.stacks), np.int64)
    for number, path in enumerate(particles.stacks):
        found = path.stat()
        same[number] = known.setdefault((found.st_dev, found.st_ino), number)
    return _first(same[particles.stack], particles.slice)


def first_of_pixels(
    blocks: Sequence[NDArray[np.int64]], looks: Sequence[ImageStatistics]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each particle the first one, (p,), with the same pixels, and with the same image.

    blocks   particle indices, all of them
    looks    what was measured of each block

    Images are the same if they differ by grey scale, sign or rounding only.
    """
    rows = np.concatenate(blocks)
    digests = np.empty(rows.size, np.uint64)
    digests[rows] = np.concatenate([look.digest for look in looks])
    vectors = np.empty((rows.size, looks[0].signature.shape[1]), np.float32)
    vectors[rows] = np.concatenate([look.signature for look in looks])
    first = _first(digests)
    vectors[first != np.arange(rows.size)] = 0.0  # known already
    return first, first_alike(vectors)[first]


def _first(*keys: NDArray[Any]) -> NDArray[np.int64]:
    table = pd.DataFrame({str(number): key for number, key in enumerate(keys)})
    groups = table.groupby(list(table.columns), sort=False).ngroup().to_numpy()
    first = np.unique(groups, return_index=True)[1]
    return np.asarray(first[groups], np.int64)


def together(parts: NDArray[np.int8], first: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return half sets or folds (p,) in which each copy of an image is where the first one is."""
    return np.asarray(parts[first], np.int8)


def file_note(particles: ParticleSet) -> list[str]:
    """Return a note if particles name one image by several paths; the list's reader sees others."""
    first = first_of_file(particles)
    spelled = _first(particles.stack, particles.slice)
    hidden = np.flatnonzero((first != np.arange(first.size)) & (spelled == np.arange(first.size)))
    if not hidden.size:
        return []
    row = int(hidden[0])
    paths = [particles.stacks[particles.stack[i]] for i in (row, int(first[row]))]
    note = (
        f"{hidden.size} particles name by another path an image that stands in the list already "
        f"(rows {row_list(hidden)}; {paths[0]} is the file {paths[1]}): it counts twice; all "
        "copies of an image are put into one half set"
    )
    return [note]


def pixel_notes(
    particles: ParticleSet,
    half: NDArray[np.int8],
    pixels: NDArray[np.int64],
    images: NDArray[np.int64],
) -> list[str]:
    """Return notes on images, of one file or several, that are copies of each other.

    pixels, images   (p,) from `first_of_pixels`
    """
    file, rows = first_of_file(particles), np.arange(half.size)
    notes = []
    for how, first, seen in (
        ("have the same pixels as", pixels, file),
        ("are but for grey scale, sign or rounding copies of", images, pixels),
    ):
        again = np.flatnonzero((first != rows) & (seen == rows))
        if again.size:
            moved = int(np.count_nonzero(half[first[again]] != half[again]))
            notes.append(
                f"{again.size} particles {how} an earlier one (rows {row_list(again)}; particle "
                f"{again[0] + 1} is particle {first[again[0]] + 1}): they count twice; {moved} of "
                "them stood in the other half set and are put into that of the first"
            )
    return notes


def require_two_halves(particles: ParticleSet, half: NDArray[np.int8]) -> list[str]:
    """Return a note on half sets of quite other sizes.

    raises   InputError if copies of images leave too few particles in a half set
    """
    sizes = [int(np.count_nonzero(half == number)) for number in (1, 2)]
    if min(sizes) < FEWEST_PER_HALF:
        raise InputError(
            f"{particles.path} names so many copies of the same images that half sets of "
            f"{sizes[0]} and {sizes[1]} particles are left, because copies belong into one half "
            "set; does each row name an image of its own?"
        )
    if min(sizes) >= LOPSIDED * max(sizes):
        return []
    note = (
        f"the half sets have {sizes[0]} and {sizes[1]} particles: the FSC, and the resolution that "
        "it gives, are those of the smaller one"
    )
    return [note]
