"""A set of particles as every program gets it, and the search for the images it names."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import pandas as pd

from mpipar.errors import InputError, MissingInputError, counted
from mpipar.formats.mrc import STACK_MARK
from mpipar.formats.reading import link_to_nowhere, reading
from mpipar.formats.tables import row_list

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

PARENTS_SEARCHED: Final = 3
OTHER_FORMATS: Final = re.compile(r":(spi|img|hed|tif|tiff|eer|raw|inf|vol|xmp|dat)$")
OTHER_MARK: Final = ":mrc"  # RELION's way to say that a file is an MRC file whatever its suffix
PACKED_SUFFIXES: Final = (".gz", ".bz2", ".xz", ".zst")
LONGEST_NUMBER: Final = 18  # digits that an int64 holds


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
    marked: frozenset[Path]  # stacks that the list calls stacks, whatever their headers say
    unnumbered: NDArray[np.bool_]  # whether the list names a file without the image's number
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


@dataclass(frozen=True)
class ImagePlaces:
    """Where the images of a list are; arrays have one entry per particle."""

    stacks: tuple[Path, ...]  # absolute
    stack: NDArray[np.int32]  # index into stacks
    image: NDArray[np.int64]  # within the stack, from zero
    marked: frozenset[Path]  # stacks that the list calls stacks, whatever their headers say
    unnumbered: NDArray[np.bool_]  # whether the name has no number


def locate_images(path: Path, names: Sequence[object]) -> ImagePlaces:
    """Split image names `000012@folder/stack.mrcs` and find their stacks on disk.

    path     the STAR file; stacks are looked for from the current folder, then beside it
    names    (p,) rlnImageName
    raises   InputError naming the particle whose image name cannot be understood,
             MissingInputError with all places tried if a stack is not there
    """
    numbers_of_stack: dict[str, int] = {}
    stack = np.empty(len(names), np.int32)
    image = np.empty(len(names), np.int64)
    unnumbered = np.zeros(len(names), np.bool_)
    marked: set[int] = set()
    for row, name in enumerate(names):
        number, file, mark = _split_name(str(name))
        if not file or not isinstance(name, str) or not _is_number(number):
            raise InputError(
                f"{path}: particle {row + 1} has rlnImageName = {name}; it must read like "
                "000012@folder/stack.mrcs"
            )
        stack[row] = numbers_of_stack.setdefault(file, len(numbers_of_stack))
        image[row] = int(number or 1) - 1
        unnumbered[row] = not number
        if mark:
            marked.add(int(stack[row]))
    if (image < 0).any():
        row = int(np.argmin(image))
        raise InputError(
            f"{path}: particle {row + 1} has rlnImageName = {names[row]}; images count from 1"
        )
    stacks, place = _find_stacks(path, list(numbers_of_stack), stack)
    return ImagePlaces(
        stacks=stacks,
        stack=place[stack],
        image=image,
        marked=frozenset(stacks[place[number]] for number in marked),
        unnumbered=unnumbered,
    )


def _split_name(name: str) -> tuple[str, str, bool]:
    """Return number, file, and whether the file is marked as a stack.

    The number is '' where the name has none, which is right for a file of one image.
    """
    number, at, file = name.partition("@")
    if not at:
        number, file = "", number
    plain = file.removesuffix(STACK_MARK)
    return number.strip(), plain.removesuffix(OTHER_MARK), plain != file


def _is_number(text: str) -> bool:
    """Whether the text before the @ counts an image; no text is right too."""
    return not text or (text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER)


def _find_stacks(
    path: Path, files: Sequence[str], stack: NDArray[np.int32]
) -> tuple[tuple[Path, ...], NDArray[np.int32]]:
    """Return the paths of the stacks, each once, and the index of each file into them."""
    found: dict[Path, int] = {}
    place = np.empty(len(files), np.int32)
    missing: list[int] = []
    for number, file in enumerate(files):
        try:
            candidate = _first_file(_places(path, file))
        except MissingInputError as error:
            row = int(np.flatnonzero(stack == number)[0])
            raise MissingInputError(f"particle {row + 1} of {path}: {error}") from error
        if candidate is None:
            missing.append(number)
        else:
            place[number] = found.setdefault(candidate, len(found))
    if missing:
        _refuse_missing(path, [files[number] for number in missing], np.isin(stack, missing))
    return tuple(found), place


def _refuse_missing(path: Path, files: Sequence[str], needed: NDArray[np.bool_]) -> NoReturn:
    """Raise the error of stacks that are not there; `needed`, (p,), by which particles."""
    rows = np.flatnonzero(needed)
    if mark := OTHER_FORMATS.search(files[0]):
        raise InputError(
            f"{path}: particle {rows[0] + 1} names {files[0]}, which is marked as {mark[0]}; "
            "stacks can be read in the format MRC only: convert them"
        )
    tried = "".join(f"\n    {_described(place)}" for place in _places(path, files[0]))
    others = f" and {len(files) - 1} more stacks" if len(files) > 1 else ""
    packed = _packed(_places(path, files[0]))
    unpack = f"{packed} is there: decompress it, or " if packed else ""
    raise MissingInputError(
        f"{path}: image stack {files[0]}{others} not found, needed by "
        f"{counted(rows.size, 'particle')} (rows {row_list(rows)}); looked for{tried}\n"
        f"{unpack}run from the folder that the names are relative to, or correct rlnImageName"
    )


def _first_file(places: Iterator[Path]) -> Path | None:
    """Return the first place where there is a file.

    raises   MissingInputError if there is none, and the operating system does not say of a place
             whether there is one
    """
    unknown: MissingInputError | None = None
    for place in places:
        try:
            if _is_file(place):
                return place
        except MissingInputError as error:  # noqa: PERF203 - a try costs nothing beside a file
            unknown = unknown or error
    if unknown is not None:
        raise unknown
    return None


def _is_file(path: Path) -> bool:
    with reading(path):
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def _described(place: Path) -> str:
    """Return a place where no file was found, and in brackets what is there instead."""
    if target := link_to_nowhere(place):
        return f"{place} (a link to {target}, which does not exist)"
    try:
        if place.exists():
            what = "a folder" if place.is_dir() else "neither a file nor a folder"
            return f"{place} ({what})"
    except (OSError, ValueError):
        pass
    return str(place)


def _packed(places: Iterator[Path]) -> Path | None:
    """Return a compressed file in the place of one that is missing."""
    names = (place.with_name(place.name + suffix) for place in places for suffix in PACKED_SUFFIXES)
    return next((name for name in names if name.is_file()), None)


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


def rival_stacks(particles: ParticleSet) -> list[tuple[Path, Path]]:
    """Return pairs of a stack that is used and another one in the other places of the same name."""
    names = particles.table["rlnImageName"]
    pairs: list[tuple[Path, Path]] = []
    for number, row in enumerate(np.unique(particles.stack, return_index=True)[1].tolist()):
        taken = particles.stacks[number]
        places = _places(particles.path, _split_name(str(names.iloc[row]))[1])
        pairs.extend((taken, place) for place in places if _is_another(place, taken))
    return pairs


def _is_another(place: Path, taken: Path) -> bool:
    try:
        return place != taken and place.is_file() and not place.samefile(taken)
    except OSError:  # what cannot be read could not have been used
        return False


def image_file(stack: Path) -> str:
    """Return a stack's name for rlnImageName; RELION takes .mrc for a volume without the mark."""
    return str(stack) if stack.suffix == ".mrcs" else f"{stack}{STACK_MARK}"


def duplicates(stack: NDArray[Any], image: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows whose image an earlier row has named."""
    return np.flatnonzero(pd.DataFrame({"stack": stack, "image": image}).duplicated().to_numpy())
