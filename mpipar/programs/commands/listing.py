r"""The command file: one shell command per line.

# a comment; blank lines are skipped
relion_image_handler --i 1.mrc --o 1_ds.mrc --angpix 2
e2proc2d.py long.hdf out.hdf \
    --process filter.lowpass.gauss          a backslash continues a line, as in a shell
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mpipar.errors import InputError, MissingInputError
from mpipar.formats.reading import compression_of, encoding_of, link_to_nowhere, text_of

__all__ = ["Command", "Key", "parse", "read"]

Key = tuple[str, int]
"""Hash of a command's text, and its number among commands of the same text, counted from 0."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the file. The key stays the same when other lines come, go or move."""

    line: int  # the first line of the command, counted from 1
    text: str
    key: Key


def read(path: Path) -> tuple[list[Command], bytes]:
    """Return the commands of a file, and the file's bytes.

    raises   MissingInputError if the file cannot be read, InputError if it has no command
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        target = link_to_nowhere(path)
        leads = f" (it is a link to {target})" if target else ""
        raise MissingInputError(
            f"{path}: {error.strerror}{leads}; name a file with one shell command per line"
        ) from error
    commands = parse(data, str(path))
    if not commands:
        raise InputError(f"{path}: there is no command in it; write one shell command per line")
    return commands, data


def parse(data: bytes, name: str) -> list[Command]:
    """Return the commands in the bytes of a file; `name` is the file's, for errors."""
    if found := compression_of(data):
        raise InputError(f"{name} is compressed with {found[0]}; decompress it first: {found[1]}")
    if encoding_of(data) in {"utf-16", "utf-32"}:
        data = text_of(Path(name), data).encode("utf-8", "surrogatepass")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise InputError(
            f"{name}, line {line}: a zero byte; this is not a file of shell commands (a text in "
            "UTF-16 without a byte-order mark must be saved as UTF-8)"
        )
    # bytes that are not UTF-8 (a file name may hold any) come back unchanged
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    rows = [row.removesuffix("\r") for row in text.split("\n")]
    seen: Counter[str] = Counter()
    commands = []
    number = 0
    while number < len(rows):
        begin = number
        command = rows[number]
        number += 1
        if not command.strip() or command.lstrip().startswith("#"):
            continue
        while _is_continued(rows[number - 1]) and number < len(rows):
            command += "\n" + rows[number]
            number += 1
        command = _stripped(command)
        key = hashlib.sha256(command.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        commands.append(Command(begin + 1, command, (key, seen[key])))
        seen[key] += 1
    return commands


def _stripped(text: str) -> str:
    """Strip the blanks around a command, but keep a last one that a backslash protects."""
    stripped = text.strip()
    return text.lstrip() if stripped.endswith("\\") else stripped


def _is_continued(row: str) -> bool:
    """Whether a command goes on in the next row: an odd number of backslashes ends this one.

    Backslashes in pairs are quoted backslashes.
    """
    return (len(row) - len(row.rstrip("\\"))) % 2 == 1
