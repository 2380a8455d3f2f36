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
from typing import TYPE_CHECKING

from mpipar.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Command", "Key", "parse", "read"]

Key = tuple[str, int]
"""Hash of a command's text, and which of the equal ones it is, counted from 0."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Its key stays the same when lines are added, removed or moved around it."""

    line: int  # where it begins in the file, counted from 1
    text: str
    key: Key


def read(path: Path) -> tuple[list[Command], bytes]:
    """The commands of a file, and the file itself.

    raises   MissingInputError if it cannot be read, InputError if there is no command in it
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from error
    commands = parse(data, str(path))
    if not commands:
        raise InputError(f"{path}: there is no command in it; write one shell command per line")
    return commands, data


def parse(data: bytes, name: str) -> list[Command]:
    """The commands in the bytes of a file; `name` is for errors."""
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{name}, line {line}: a zero byte; this is not a file of shell commands")
    # what is no UTF-8 (file names may be anything) comes back as the same bytes
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
        while _goes_on(rows[number - 1]) and number < len(rows):
            command += "\n" + rows[number]
            number += 1
        command = _bare(command)
        key = hashlib.sha256(command.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        commands.append(Command(begin + 1, command, (key, seen[key])))
        seen[key] += 1
    return commands


def _bare(text: str) -> str:
    """Without blanks around it, except a last one that a backslash protects."""
    bare = text.strip()
    return text.lstrip() if bare.endswith("\\") else bare


def _goes_on(row: str) -> bool:
    """Whether an odd number of backslashes ends the row: an even one is backslashes, quoted."""
    return (len(row) - len(row.rstrip("\\"))) % 2 == 1
