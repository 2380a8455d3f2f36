"""The arrays of a refinement's commits: axes, units and meaning of each; tables of text as arrays.

The notes stand as attributes at each dataset, so that any HDF5 tool shows what an array is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from mpipar.formats.reading import UNDECODED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.programs.block_rows import ImageGeometry

NOTES: Final[dict[str, tuple[str, str, str]]] = {
    "map": ("z y x", "", "map of all particles, filtered by the FSC; no mask is applied"),
    "half_maps": ("half z y x", "", "half maps, not filtered, not masked"),
    "mask": ("z y x", "", "mask of the FSC, 0 to 1"),
    "references": ("reference z y x", "", "references of all folds of half set 1, then of 2"),
    "before": ("reference z y x", "", "references of the iteration before, while these are soft"),
    "fsc_unmasked": ("shell", "", "FSC of the half maps without a mask"),
    "fsc_masked": ("shell", "", "FSC inside the mask"),
    "fsc_corrected": ("shell", "", "FSC inside the mask, corrected for the mask's own"),
    "fsc": ("shell", "", "FSC that the next iteration weights shells by"),
    "noise": ("half shell", "", "power of a component of the noise"),
    "rotations": ("particle 3 3", "", "map coordinate x y z = R @ image coordinate"),
    "shifts": ("particle xy", "pixel", "where the centre lies, from pixel n // 2"),
    "score": ("particle", "", "half the log-likelihood at the own half map; -inf: not aligned"),
    "settled": ("particle", "", "whether a search over all orientations has confirmed the pose"),
    "peak": ("particle", "", "probability of the most probable pose, of the last soft iteration"),
    "own_cross": ("particle", "", "match with the own half map, cross term"),
    "own_quadratic": ("particle", "", "match with the own half map, quadratic term"),
    "held_cross": ("particle", "", "match with the other half map, cross term"),
    "held_quadratic": ("particle", "", "match with the other half map, quadratic term"),
    "half": ("particle", "", "half set, 1 or 2"),
    "fold": ("particle", "", "fold of the half set, from 0"),
    "offset": ("particle", "", "an image is used as (image - offset) * gain"),
    "gain": ("particle", "", "an image is used as (image - offset) * gain"),
    "largest": ("shell", "", "bound on the amplitude of a component"),
}
"""Axes, unit and meaning of each array; particles are in the order of the list."""
_WASTE: Final = 8  # times the text itself, that a column of equally long cells may take,
_SMALL: Final = 1 << 20  # and bytes more
TEXT: Final = "text of the STAR file, UTF-8"
_PLAIN_LABEL: Final = re.compile(r"[A-Za-z0-9_.:+\-]+")


def notes_of(
    arrays: Mapping[str, NDArray[Any]], geometry: ImageGeometry
) -> dict[str, dict[str, Any]]:
    """Return the attributes of each array's dataset: axes, units, meaning, sampling."""
    width = geometry.box * geometry.pixel_size
    notes: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        if name not in NOTES:
            notes[name] = {"axes": "row", "meaning": TEXT}
            continue
        axes, units, meaning = NOTES[name]
        note: dict[str, Any] = {"axes": axes, "meaning": meaning}
        if units:
            note |= {"units": units, "pixel_size": geometry.pixel_size, "pixel_size_units": "A"}
        if axes.endswith("z y x") and array.size:
            note |= {"voxel_size": width / array.shape[-1], "voxel_size_units": "A"}
        if axes.endswith("shell"):
            note |= {"shell_width": 1.0 / width, "shell_width_units": "1/A"}
        notes[name] = note
    return notes


def text_arrays(prefix: str, table: pd.DataFrame) -> dict[str, NDArray[np.bytes_]]:
    """Return the columns of a table of text as arrays of bytes (p,), by `array_name`.

    All cells of an array are as long as the longest one. Where that would be a waste, the array is
    (k,) uint8: the cells one after the other, with a zero byte between two.
    """
    return {
        array_name(prefix, number, label): _bytes_of(table[label].tolist())
        for number, label in enumerate(table.columns)
    }


def _bytes_of(cells: Sequence[object]) -> NDArray[Any]:
    texts = [str(cell).encode("utf-8", UNDECODED) for cell in cells]
    used = sum(map(len, texts))
    if max(map(len, texts), default=0) * len(texts) > _WASTE * used + _SMALL:
        return np.frombuffer(b"\0".join(texts), np.uint8)
    return np.array(texts or np.zeros(0, "S1"))


def texts_of(array: NDArray[Any]) -> list[str]:
    """Return the cells of a column that `text_arrays` has made."""
    joined = array.dtype.kind == "u"
    texts = array.tobytes().split(b"\0") if joined else array.tolist()
    return [text.decode("utf-8", UNDECODED) for text in texts]


def text_table(
    prefix: str, labels: Sequence[str], arrays: Mapping[str, NDArray[Any]]
) -> pd.DataFrame:
    """Return the table whose columns `text_arrays` has made. KeyError if one is missing."""
    columns: dict[str, pd.Series[Any]] = {
        label: pd.Series(texts_of(arrays[array_name(prefix, number, label)]), dtype=object)
        for number, label in enumerate(labels)
    }
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


def array_name(prefix: str, number: int, label: str) -> str:
    """Return the array's name of a column: `particles.rlnImageName`; of odd labels its number."""
    plain = _PLAIN_LABEL.fullmatch(label)
    return f"{prefix}.{label}" if plain else f"{prefix}.column {number}"
