"""Images that stand in a particle list more than once, and their half sets.

If copies of an image were in different half sets, the noise of the image would be in both half
maps, and the FSC would show a resolution that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mpipar.formats.tables import row_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet


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
    blocks: Sequence[NDArray[np.int64]], digests: Sequence[NDArray[np.uint64]]
) -> NDArray[np.int64]:
    """Return for each particle the first one, (p,), whose image has the same pixels.

    blocks    particle indices, all of them
    digests   (b,) hash of the pixels of each image of a block
    """
    rows = np.concatenate(blocks)
    values = np.empty(rows.size, np.uint64)
    values[rows] = np.concatenate(digests)
    return _first(values)


def _first(*keys: NDArray[Any]) -> NDArray[np.int64]:
    table = pd.DataFrame({str(number): key for number, key in enumerate(keys)})
    groups = table.groupby(list(table.columns), sort=False).ngroup().to_numpy()
    first = np.unique(groups, return_index=True)[1]
    return np.asarray(first[groups], np.int64)


def together(half: NDArray[np.int8], first: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return half sets (p,) in which each copy of an image is in the half of the first one."""
    return np.asarray(half[first], np.int8)


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
    particles: ParticleSet, half: NDArray[np.int8], first: NDArray[np.int64]
) -> list[str]:
    """Return a note if images of different files, or of one, have the same pixels."""
    rows = np.arange(first.size)
    again = np.flatnonzero((first != rows) & (first_of_file(particles) == rows))
    if not again.size:
        return []
    moved = int(np.count_nonzero(half[first] != half))
    note = (
        f"{again.size} particles have the same pixels as an earlier one (rows {row_list(again)}; "
        f"particle {again[0] + 1} is particle {first[again[0]] + 1}): they count twice; {moved} of "
        "them stood in the other half set and are put into that of the first"
    )
    return [note]
