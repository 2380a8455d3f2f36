"""Opening the files that users name: every failure becomes one message, compressed files are read.

A text may begin with a byte-order mark, as Windows editors save it, in UTF-8 or in UTF-16.
"""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import lzma
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from mpipar.errors import ADVICE, InputError, MissingInputError, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNDECODED: Final = "surrogateescape"  # names in any encoding come back byte for byte
COMPRESSED: Final = {
    b"\x1f\x8b\x08": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"\x1f\x9d\x90": ("compress", "uncompress"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    b"\x5d\0\0\x80\0": ("lzma", "unlzma"),
}
MARKS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
READING_ADVICE: Final = {
    **ADVICE,
    errno.EACCES: "ask its owner for the right to read it, and to enter the folders above it",
    errno.EPERM: "ask its owner for the right to read it",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EIO: "the disk or the connection to it fails: copy the file from elsewhere",
}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is opened and read into an error with its path.

    raises   MissingInputError if there is no such file, or it cannot be read; InputError if it is
             compressed and damaged
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is compressed and damaged ({error}); copy or download it again"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        target = link_to_nowhere(path)
        what = f"is a link to {target}, which does not exist" if target else "does not exist"
        raise MissingInputError(f"{path} {what}") from None
    except IsADirectoryError as error:
        raise MissingInputError(f"{path} cannot be read: it is a folder, not a file") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: {error}; save it as UTF-8") from error
    except ValueError as error:  # a zero byte, or a sign that no file name can hold
        raise MissingInputError(f"{str(path)!r} cannot be the name of a file: {error}") from error


def link_to_nowhere(path: Path) -> str:
    """Return what a symbolic link leads to if that does not exist; '' for all other paths."""
    try:
        return "" if path.exists() or not path.is_symlink() else str(path.readlink())
    except (OSError, ValueError):
        return ""


def unreadable(path: Path, error: OSError) -> MissingInputError:
    """Return the error of a file that the operating system does not let us read."""
    return MissingInputError(f"{path} cannot be read: {reason_of(error, READING_ADVICE)}")


def compression_of(head: bytes) -> tuple[str, str] | None:
    """Return the name of a compression and the command that takes it off; None for plain files.

    head   the first bytes of the file; six are enough
    """
    return next((names for magic, names in COMPRESSED.items() if head.startswith(magic)), None)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file to be read from its beginning; gzip, bzip2 and xz are taken off.

    raises   what `reading` raises; InputError for compressions that cannot be read here
    """
    with reading(path), path.open("rb") as file:
        found = compression_of(file.peek(8))  # a pipe cannot be wound back
        if found is None:
            yield file
            return
        name, command = found
        match name:
            case "gzip":
                plain: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile = gzip.GzipFile(fileobj=file)
            case "bzip2":
                plain = bz2.BZ2File(file)
            case "xz":
                plain = lzma.LZMAFile(file)  # noqa: SIM115 - closed below
            case _:
                raise InputError(
                    f"{path} is compressed with {name}; decompress it first: {command}"
                )
        with io.BufferedReader(cast("Any", plain)) as buffered:
            if again := compression_of(buffered.peek(8)):
                raise InputError(
                    f"{path} is compressed twice, with {again[0]} and {name}: decompress it "
                    f"({command})"
                )
            yield buffered


@contextmanager
def opened_text(path: Path) -> Iterator[io.TextIOBase]:
    """Open a text: UTF-8, or what its byte-order mark says. Bytes that are not UTF-8 are kept.

    raises   what `opened` raises
    """
    with opened(path) as file, decoded(file) as text:
        yield text


def text_of(path: Path, data: bytes) -> str:
    """Return the bytes of a file as text, decoded as by `opened_text`. Raises InputError."""
    source = io.BufferedReader(cast("Any", io.BytesIO(data)))
    with reading(path), decoded(source) as text:
        return text.read()


def decoded(file: io.BufferedReader) -> io.TextIOWrapper:
    """Return the text of an open file, as `opened_text` does."""
    encoding = encoding_of(file.peek(4)) or "utf-8"
    errors = UNDECODED if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors)


def encoding_of(head: bytes) -> str:
    """Return the encoding that a text's byte-order mark names; '' without one."""
    return next((MARKS[mark] for mark in MARKS if head.startswith(mark)), "")
