"""A set of particles as every program gets it, and the search for the images it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from mpipar.errors import InputError, MissingInputError
from mpipar.formats.tables import row_list

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

PARENTS_SEARCHED: Final = 3
STACK_MARK: Final = ":mrcs"  # RELION's way to say that a file is a stack whatever its suffix


@dataclass(frozen=True)
class ParticleSet:
    """Particles with their images, microscope and, where known, poses.

    Arrays have one entry per particle, in the order of the file.
    """

    path: Path
    count: int
    stacks: tuple[Path, ...]  # absolute
    stack: NDArray[np.int32]  # index into stacks
    slice: NDArray[np.int64]  # image within the stack, from zero
    voltage: NDArray[np.float64]  # kV
    spherical_aberration: NDArray[np.float64]  # mm
    amplitude_contrast: NDArray[np.float64]  # fraction
    defocus_u: NDArray[np.float64]  # A, underfocus positive
    defocus_v: NDArray[np.float64]  # A
    defocus_angle: NDArray[np.float64]  # degrees
    phase_shift: NDArray[np.float64]  # degrees
    b_factor: NDArray[np.float64]  # A^2
    ctf_scale: NDArray[np.float64]
    pixel_size: float  # A
    optics_group: NDArray[np.int32]  # as numbered in `optics`
    half: NDArray[np.int8]  # 1 or 2; 0 = not given
    angles: NDArray[np.float64] | None  # (p, 3) degrees: rot tilt psi
    origins: NDArray[np.float64] | None  # (p, 2) A
    table: pd.DataFrame  # all columns of the file, as text
    optics: pd.DataFrame  # RELION 3.1's optics table, made from the columns of a 3.0 file; as text
    warnings: tuple[str, ...]  # what was assumed or ignored


def locate_images(
    path: Path, names: Sequence[object]
) -> tuple[tuple[Path, ...], NDArray[np.int32], NDArray[np.int64]]:
    """Split image names `000012@folder/stack.mrcs` and find their stacks on disk.

    path      the STAR file; stacks are looked for from the current folder, then beside it
    names     (p,) rlnImageName
    returns   absolute stack paths, (p,) int32 index into them, (p,) int64 image from zero
    raises    InputError naming the particle whose image name cannot be understood,
              MissingInputError with all places tried if a stack is not there
    """
    numbers_of_stack: dict[str, int] = {}
    stack = np.empty(len(names), np.int32)
    image = np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        number, at, file = str(name).partition("@")
        if not at:  # a file with one image
            number, file = "", number
        file = file.removesuffix(STACK_MARK)
        stack[row] = numbers_of_stack.setdefault(file, len(numbers_of_stack))
        if (number and not number.strip().isdecimal()) or not file or not isinstance(name, str):
            raise InputError(
                f"{path}: particle {row + 1} has rlnImageName = {name}; it must read like "
                "000012@folder/stack.mrcs"
            )
        image[row] = int(number or 1) - 1
    if (image < 0).any():
        row = int(np.argmin(image))
        raise InputError(
            f"{path}: particle {row + 1} has rlnImageName = {names[row]}; images count from 1"
        )
    return *_find_stacks(path, list(numbers_of_stack), stack), image


def _find_stacks(
    path: Path, files: Sequence[str], stack: NDArray[np.int32]
) -> tuple[tuple[Path, ...], NDArray[np.int32]]:
    """Return the paths of the stacks, each once, and the particles' indices into them."""
    found: dict[Path, int] = {}
    place = np.empty(len(files), np.int32)
    missing: list[int] = []
    for number, file in enumerate(files):
        candidate = next((p for p in _places(path, file) if p.is_file()), None)
        if candidate is None:
            missing.append(number)
        else:
            place[number] = found.setdefault(candidate, len(found))
    if missing:
        tried = "".join(f"\n    {place}" for place in _places(path, files[missing[0]]))
        rows = np.flatnonzero(np.isin(stack, missing))
        others = f" and {len(missing) - 1} more stacks" if len(missing) > 1 else ""
        raise MissingInputError(
            f"{path}: image stack {files[missing[0]]}{others} not found, needed by "
            f"{rows.size} particles (rows {row_list(rows)}); looked for{tried}\n"
            "run from the folder that the names are relative to, or correct rlnImageName"
        )
    return tuple(found), place[stack]


def _places(path: Path, file: str) -> Iterator[Path]:
    """Yield where a stack may be: from here, or from the STAR file's folder and those above it."""
    if Path(file).is_absolute():
        yield Path(file)
        return
    yield Path.cwd() / file
    folder = path.absolute().parent
    for parent in [folder, *folder.parents][: PARENTS_SEARCHED + 1]:
        if parent != Path.cwd():
            yield parent / file


def image_file(stack: Path) -> str:
    """Return a stack's name for rlnImageName; RELION takes .mrc for a volume without the mark."""
    return str(stack) if stack.suffix == ".mrcs" else f"{stack}{STACK_MARK}"


def duplicates(stack: NDArray[Any], image: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows whose image an earlier row has named."""
    return np.flatnonzero(pd.DataFrame({"stack": stack, "image": image}).duplicated().to_numpy())
