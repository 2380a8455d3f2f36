"""STAR files as tables of text, read and written.

Every cell stays the text of the file, so that columns which mpipar does not know are written back
unchanged.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from mpipar.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


BLOCK: Final = re.compile(r"data_\S*(\s+#.*)?")
TOKEN: Final = re.compile(r"""'(.*?)'(?=\s|$)|"(.*?)"(?=\s|$)|(\S+)""")
NEEDS_QUOTES: Final = re.compile(r"""\s|\0['"]""")
UNDECODED: Final = "surrogateescape"  # names in any encoding come back byte for byte


def read_tables(path: Path) -> dict[str, pd.DataFrame]:
    """Read all blocks of a STAR file by name; every cell is the text of the file.

    raises   MissingInputError if there is no such file, InputError if it is not a STAR file,
             naming the line where it breaks the rules
    """
    parser = _TableParser(path)
    try:
        with path.open(encoding="utf-8", errors=UNDECODED) as file:
            for number, line in enumerate(file, start=1):
                parser.take(number, line.strip())
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {error.strerror or error}") from error
    tables = {block.name: block.table() for block in parser.blocks}
    if not any(len(table.columns) for table in tables.values()):
        raise InputError(f"{path} is not a STAR file: it has no 'data_' block with column labels")
    return tables


@dataclass
class _TableBlock:
    """A data block being read: a loop of rows, or one value after each label."""

    name: str
    is_loop: bool = False
    labels: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.labels)
        table: pd.DataFrame = pd.DataFrame(
            dict(zip(self.labels, columns, strict=True)), dtype=object
        )
        return table


class _TableParser:
    """Parses a STAR file line by line.

    The starfile package is not used: it cuts or changes names with '#' or an apostrophe, which
    RELION accepts, fills up rows that are too short, and gives no line numbers.
    """

    def __init__(self, path: Path) -> None:
        self.blocks: list[_TableBlock] = []
        self._path = path

    def take(self, number: int, line: str) -> None:
        """Take one line without the blanks around it."""
        if not line or line[0] == "#":
            return
        if line.startswith("data_") and BLOCK.fullmatch(line):
            self._begin(number, line.split(maxsplit=1)[0][5:])
        elif not self.blocks:
            return  # text before the first block has no meaning
        elif line == "loop_":
            self._loop(number)
        elif line[0] == "_":
            self._label(number, line)
        else:
            self._row(number, line)

    def _begin(self, number: int, name: str) -> None:
        if any(block.name == name for block in self.blocks):
            raise self._broken_rule(number, f"a second block data_{name}")
        self.blocks.append(_TableBlock(name))

    def _loop(self, number: int) -> None:
        block = self.blocks[-1]
        if block.labels or block.is_loop:
            raise self._broken_rule(number, f"a second loop in data_{block.name}")
        block.is_loop = True

    def _label(self, number: int, line: str) -> None:
        block = self.blocks[-1]
        label, *values = tokens(line)
        if label[1:] in block.labels or (block.is_loop and block.rows):
            raise self._broken_rule(number, f"the label {label} twice or below rows")
        if not block.is_loop:
            if not values:
                raise self._broken_rule(number, f"no value after {label}")
            block.rows = [[*(block.rows[0] if block.rows else ()), values[0]]]
        block.labels.append(label[1:])

    def _row(self, number: int, line: str) -> None:
        block = self.blocks[-1]
        cells, width = tokens(line), len(block.labels)
        if len(cells) > width > 0 and cells[width].startswith("#"):
            cells = cells[:width]
        if len(cells) != width or not block.is_loop:
            raise self._broken_rule(
                number, f"{len(cells)} values for the {width} columns of data_{block.name}"
            )
        block.rows.append(cells)

    def _broken_rule(self, number: int, what: str) -> InputError:
        return InputError(f"{self._path} is a damaged STAR file: line {number} has {what}")


def tokens(line: str) -> list[str]:
    """Split a line at blanks, keeping quoted parts whole."""
    if "'" not in line and '"' not in line:
        return line.split()
    return [match[match.lastindex or 0] for match in TOKEN.finditer(line)]


def write_tables(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables of text as RELION does: loops, spaces between cells, and no date."""
    with path.open("w", encoding="utf-8", errors=UNDECODED, newline="\n") as file:
        for name, table in tables.items():
            file.write(f"\n# version 30001\n\ndata_{name}\n\nloop_\n")
            for number, label in enumerate(table.columns, start=1):
                file.write(f"_{label} #{number}\n")
            cells = [_cells(table[label].tolist()) for label in table.columns]
            file.writelines(" ".join(row) + "\n" for row in zip(*cells, strict=True))
            file.write("\n")


def _cells(values: list[str]) -> list[str]:
    """Return a column as STAR tokens; one search finds out that none needs quotes."""
    if all(values) and not NEEDS_QUOTES.search("\0" + "\0".join(values)):
        return values
    return [_cell(value) for value in values]


def _cell(value: str) -> str:
    """Return a value as one token; blanks need quotes, which RELION reads from version 4 on."""
    if value and not NEEDS_QUOTES.search(f"\0{value}"):
        return value
    return f"'{value}'" if '"' in value else f'"{value}"'


def format_numbers(values: NDArray[np.floating[Any]], decimals: int = 6) -> list[str]:
    """Return numbers as text with fixed decimals; -0 becomes 0."""
    rounded = np.round(np.asarray(values, dtype=np.float64), decimals) + 0.0
    return [f"{value:.{decimals}f}" for value in rounded.tolist()]


def numbers(table: pd.DataFrame, label: str, path: Path, kind: str) -> NDArray[np.float64]:
    """Return a column as float64.

    kind     what a row is, for the message: 'particle' or 'optics group'
    raises   InputError naming the first row whose cell is not a finite number
    """
    column: pd.Series[Any] = table[label]
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        row = int(bad[0])
        more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        raise InputError(
            f"{path}: {kind} {row + 1} (row {row + 1} of its table) has {label} = "
            f"{column.iloc[row]}, which is not a finite number{more}; "
            "correct or remove it"
        )
    return values


def row_list(rows: NDArray[np.int64], most: int = 5) -> str:
    """Return row numbers counted from 1, shortened: '1, 2, 3 and 7 more'."""
    shown = ", ".join(str(row + 1) for row in itertools.islice(rows.tolist(), most))
    return shown if rows.size <= most else f"{shown} and {rows.size - most} more"
