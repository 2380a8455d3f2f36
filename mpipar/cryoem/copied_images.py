"""Images that are copies of one another, found by their signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from mpipar.cryoem.signatures import unit_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME: Final = 0.999  # correlation of signatures from which two images are one
NEIGHBOURS: Final = 3  # of each image that are looked at, itself included
COMPARED: Final = 16  # numbers of a signature by which neighbours are looked for
COMMON: Final = 0.5  # share of the power of all signatures that one pattern must not have
MOST_COMMON: Final = 4  # such patterns that are taken out
FEWEST: Final = 32  # images that a common pattern is told from


def first_alike(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return for each signature (p, d) the index of the first one, (p,), of the same image.

    For a million images this takes a minute and 0.6 GB.
    """
    first = np.arange(len(vectors))
    rows = np.flatnonzero(vectors.any(axis=1))
    own = _without_common(vectors[rows])
    rows, own = rows[own.any(axis=1)], own[own.any(axis=1)]
    found = np.arange(rows.size)
    while True:  # each image has but a few neighbours, so that groups grow over several rounds
        known = np.flatnonzero(found == np.arange(rows.size))
        again = known[_groups(own[known])]
        if np.array_equal(again, known):
            break
        found[known] = again
        found = found[found]
    first[rows] = rows[found]
    return first


def _groups(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return for each signature the first one of its group; copies may be in several groups."""
    count = len(vectors)
    if count < 2:  # noqa: PLR2004 - two images can be one
        return np.arange(count)
    # the magnitudes of two vectors differ by no more than the vectors do, whichever sign one has
    near = np.abs(vectors[:, :COMPARED])
    reach = float(np.sqrt(2.0 * (1.0 - SAME)))
    found = cKDTree(near).query(near, k=NEIGHBOURS, distance_upper_bound=reach)[1]
    left, right = np.repeat(np.arange(count), NEIGHBOURS), found.ravel()
    pairs = (right < count) & (right != left)
    left, right = left[pairs], right[pairs]
    same = np.abs((vectors[left] * vectors[right]).sum(axis=1)) >= SAME
    links = coo_array((same[same], (left[same], right[same])), shape=(count, count))
    label = connected_components(links, directed=False)[1]
    return np.asarray(np.unique(label, return_index=True)[1][label])


def _without_common(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return signatures without patterns that all images share, such as the rim of a mask."""
    rest = vectors
    for _ in range(MOST_COMMON if len(vectors) >= FEWEST else 0):
        power, patterns = np.linalg.eigh(rest.T.astype(np.float64) @ rest)
        if power[-1] <= COMMON * power.sum():
            break
        pattern = patterns[:, -1].astype(np.float32)
        rest = rest - np.outer(rest @ pattern, pattern)
    return rest if rest is vectors else unit_vectors(rest)
