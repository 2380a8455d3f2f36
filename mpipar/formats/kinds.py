"""What a file is that is not what its reader expects: told by its first bytes, or by its suffix."""

from __future__ import annotations

from typing import Final

import numpy as np

HEAD_BYTES: Final = 1024
"""How much of a file its kind is told by; an MRC header is as long."""

CONVERT: Final = "convert it to MRC"
EMAN2: Final = f"{CONVERT}, with e2proc2d.py (images) or e2proc3d.py (volumes)"
RELION: Final = f"{CONVERT}, with relion_image_handler"
IMOD: Final = f"{CONVERT}, with dm2mrc of IMOD"
LIST_INSTEAD: Final = "images alone do not say their defocus: give the STAR file that lists them"
ATOMS: Final = "make a map of it, with e2pdb2mrc.py or molmap of ChimeraX"
CRYOSPARC: Final = "convert it with csparc2star.py (pyem) or cs2star"
EMAN_LIST: Final = "convert it with e2refinetorelion3.py or e2convertrelion.py"
SCIPION: Final = "export a STAR file from Scipion"
REPEAT: Final = "the download has failed: repeat it"

BEGINNINGS: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (0, b"II*\0", "a TIFF file", EMAN2),
    (0, b"MM\0*", "a TIFF file", EMAN2),
    (0, b"II+\0", "a BigTIFF or EER file", EMAN2),
    (0, b"MM\0+", "a BigTIFF file", EMAN2),
    (0, b"\x89HDF", "an HDF5 file", EMAN2),
    (0, b"\x89PNG", "a PNG file", EMAN2),
    (0, b"\xff\xd8\xff", "a JPEG file", EMAN2),
    (0, b"SIMPLE  =", "a FITS file", EMAN2),
    (208, b"MAP ", "an MRC file", f"{CONVERT} of mode 2"),
    (0, b"\x93NUMPY", "a NumPy or cryoSPARC file", CRYOSPARC),
    (0, b"SQLite format 3", "an SQLite file", SCIPION),
    (0, b"#LST", "a list of EMAN2", EMAN_LIST),
    (0, b"#LSX", "a list of EMAN2", EMAN_LIST),
    (0, b"# XMIPP_STAR", "a list of Xmipp", SCIPION),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "get the file itself: git lfs pull"),
    (0, b"<!DOCTYPE html", "a web page", REPEAT),
    (0, b"<!doctype html", "a web page", REPEAT),
    (0, b"<html", "a web page", REPEAT),
    (0, b"HEADER    ", "an atomic model", ATOMS),
    (0, b"ATOM  ", "an atomic model", ATOMS),
    (257, b"ustar", "a tar archive", "take the files out of it: tar -xf"),
)
SUFFIXES: Final = {
    ".spi": ("a SPIDER file", RELION),
    ".img": ("an IMAGIC file", EMAN2),
    ".hed": ("an IMAGIC header", EMAN2),
    ".hdf": ("an HDF5 file", EMAN2),
    ".dm3": ("a DigitalMicrograph file", IMOD),
    ".dm4": ("a DigitalMicrograph file", IMOD),
    ".tif": ("a TIFF file", EMAN2),
    ".tiff": ("a TIFF file", EMAN2),
    ".eer": ("an EER file", EMAN2),
    ".mrc": ("an MRC file", f"{CONVERT} of mode 2"),
    ".mrcs": ("an MRC file", f"{CONVERT} of mode 2"),
    ".cs": ("a cryoSPARC file", CRYOSPARC),
    ".lst": ("a list of EMAN2", EMAN_LIST),
    ".par": ("a list of FREALIGN or cisTEM", "convert it with par2star.py (pyem)"),
    ".xmd": ("a list of Xmipp", SCIPION),
    ".sqlite": ("a list of Scipion", SCIPION),
    ".pdb": ("an atomic model", ATOMS),
    ".cif": ("an atomic model", ATOMS),
    ".star": ("a STAR file", "give the stack or volume that it names"),
}
SPIDER_FORMS: Final = frozenset({1.0, 3.0, -11.0, -12.0, -21.0, -22.0})
SHOWN: Final = 30  # characters of a text


def kind_of(head: bytes, suffix: str, *, list_wanted: bool = False) -> str:
    """Return what a file is, and what to do, as a clause that begins with 'it is'; '' if unknown.

    head          the first bytes of the file, HEAD_BYTES if it has so many
    suffix        of its name, such as '.tif'; '' to look at the bytes only
    list_wanted   whether a list of particles should stand there, not images
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    found = next(
        (
            (what, advice)
            for place, beginning, what, advice in BEGINNINGS
            if (head[place:] if place else start).startswith(beginning)
        ),
        None,
    )
    if found is None:
        found = SUFFIXES.get(".spi" if _is_spider(head) else suffix.lower())
    if found is None:
        return ""
    what, advice = found
    return f"it is {what}; {LIST_INSTEAD if list_wanted and advice.startswith(CONVERT) else advice}"


def text_of_kind(head: bytes) -> str:
    """Return a clause that shows how a text begins; '' if the first bytes are those of no text."""
    text = head.decode("latin-1").strip()
    if not text or any(ord(sign) < ord(" ") and not sign.isspace() for sign in text):
        return ""
    line = text.splitlines()[0]
    return f"it is a text that begins with {line[:SHOWN]!r}"


def _is_spider(head: bytes) -> bool:
    """Whether the numbers of a SPIDER header agree with each other, in either byte order."""
    for order in "<>":
        words = np.frombuffer(head[: len(head) // 4 * 4], f"{order}f4")[:23]
        if words.size < 23 or float(words[4]) not in SPIDER_FORMS:  # noqa: PLR2004
            continue
        columns, records, header_bytes, record_bytes = words[[11, 12, 21, 22]].tolist()
        if columns >= 1 and record_bytes == 4 * columns and header_bytes == records * record_bytes:
            return True
    return False
