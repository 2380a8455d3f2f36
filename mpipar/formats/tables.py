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

from mpipar.errors import InputError, counted
from mpipar.formats.kinds import HEAD_BYTES, kind_of
from mpipar.formats.reading import UNDECODED, decoded, encoding_of, opened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


BLANKS: Final = " \t\r\n\v\f"  # a no-break space is a letter like any other, as for RELION
BLOCK: Final = re.compile(r"(?i)data_([^ \t\r\v\f]*)(?:[ \t\r\v\f]+(?=#|loop_(?:[ \t]|$))|$)")
LOOP: Final = re.compile(r"(?i)loop_(?:[ \t\r\v\f]+(?=[#_])|$)")
STOP: Final = re.compile(r"(?i)stop_(?:[ \t\r\v\f]+#.*)?")
FRAME: Final = re.compile(r"(?i)save_[^ \t\r\v\f]*")
IMAGE: Final = re.compile(r"\d+@")
LABEL: Final = re.compile(r"_([^ \t\r\v\f]+?)(?:#\d*)?")
TOKEN: Final = re.compile(
    r"""'(.*?)'(?=[ \t\r\v\f]|$)|"(.*?)"(?=[ \t\r\v\f]|$)|([^ \t\r\n\v\f]+)"""
)
WORD: Final = re.compile(r"[^ \t\r\n\v\f]+")
NEEDS_QUOTES: Final = re.compile(
    r"""(?i)[ \t\r\n\v\f]|\0(?:['"#_;]|(?:data_|save_|loop_|stop_|global_))"""
)
ENDS_QUOTE: Final = re.compile(r"""(['"])(?=[ \t\r\v\f])""")
LARGEST_INTEGER: Final = 2**31 - 1
FEWEST_ZEROS: Final = 16  # more than one zero byte in so many makes no text


def read_tables(path: Path, notes: list[str] | None = None) -> dict[str, pd.DataFrame]:
    """Read all blocks of a STAR file by name; every cell is the text of the file.

    notes    gets what a reader of the file may have meant otherwise
    raises   MissingInputError if there is no such file, InputError if it is not a STAR file,
             naming the line where it breaks the rules
    """
    parser = _TableParser(path)
    with opened(path) as file:
        head = file.peek(HEAD_BYTES)[:HEAD_BYTES]  # a pipe cannot be wound back
        _require_text(path, head)
        try:
            with decoded(file) as text:
                for number, line in enumerate(text, start=1):
                    parser.take(number, line.removeprefix("\ufeff"))
            parser.end()
        except InputError as error:
            raise _as_other_kind(path, head) or error from error
    if notes is not None:
        notes += parser.notes()
    tables = parser.tables()
    if not any(len(table.columns) for table in tables.values()):
        raise _as_other_kind(path, head) or InputError(
            f"{path} is not a STAR file: it has no 'data_' block with column labels"
        )
    return tables


def _require_text(path: Path, head: bytes) -> None:
    """Raise InputError for what is no text: it may be large, and may never end a line."""
    if head.count(0) * FEWEST_ZEROS <= len(head) or encoding_of(head):
        return
    if other := _as_other_kind(path, head):
        raise other
    start = head[:64]
    what = "it is no text, but has zero bytes"
    if any(start.strip(b"\0") and not any(start[place::2]) for place in (0, 1)):
        what = "it seems to be UTF-16 or UTF-32 without a byte-order mark; save it as UTF-8"
    raise InputError(f"{path} is not a STAR file: {what}")


def _as_other_kind(path: Path, head: bytes) -> InputError | None:
    """Return the error of a file that cannot be read because it is of another known kind."""
    suffix = "" if path.suffix.lower() == ".star" else path.suffix
    what = kind_of(head, suffix, list_wanted=True)
    return InputError(f"{path} is not a STAR file: {what}") if what else None


@dataclass
class _TableBlock:
    """A data block being read: a loop of rows, or one value after each label."""

    name: str
    is_loop: bool = False
    labels: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)  # lines of comments that look like rows
    spread: list[int] = field(default_factory=list)  # lines where rows of several lines begin
    ended: bool = False  # by the word stop_

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
        self._text: list[str] | None = None  # lines of a value between two lines that begin with ;
        self._text_begin = 0
        self._waiting = ""  # a label whose value has not come yet
        self._waiting_line = 0
        self._begun: list[str] = []  # cells of a row that is not whole yet
        self._begun_line = 0
        self._may_go_on = False  # the row has a value of several lines, so it may have more lines

    def take(self, number: int, line: str) -> None:
        """Take one line."""
        if self._text is not None:
            self._take_text(number, line)
        elif "0" <= line[:1] <= "9" and self._take_plain(line):
            return
        elif line.startswith(";") and self.blocks:
            self._text, self._text_begin = [line[1:].rstrip("\r\n")], number
        elif words := line.strip(BLANKS):
            self._take_words(number, words)

    def _take_words(self, number: int, line: str) -> None:
        if line[0] == "#":
            self._comment(number, line)
        elif match := BLOCK.match(line):
            self._begin(number, match[1])
            self.take(number, line[match.end() :])
        elif not self.blocks:
            self._before_blocks(number, line)
        elif match := LOOP.match(line):
            self._loop(number)
            self.take(number, line[match.end() :])
        elif STOP.fullmatch(line):
            self._stop(number)
        elif line[0] == "_":
            self._label(number, line)
        else:
            self._row(number, tokens(line))

    def _take_plain(self, line: str) -> bool:
        """Take a line that is a whole row, as nearly all are; False for anything else."""
        block = self.blocks[-1] if self.blocks else None
        if block is None or not block.is_loop or block.ended or self._begun:
            return False
        cells = tokens(line)
        if len(cells) != len(block.labels):
            return False
        block.rows.append(cells)
        return True

    def end(self) -> None:
        """Raise InputError if something that was begun has no end."""
        if self._text is not None:
            raise self._broken_rule(self._text_begin, "a text after ; that is never ended by a ;")
        self._require_value()
        self._require_whole_row()

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return all tables by the names of their blocks; further loops of a block are numbered."""
        tables: dict[str, pd.DataFrame] = {}
        for block in self.blocks:
            before = sum(
                name == block.name or name.startswith(f"{block.name} (") for name in tables
            )
            tables[f"{block.name} ({before + 1})" if before else block.name] = block.table()
        return tables

    def notes(self) -> list[str]:
        """Return what a reader of the file may have meant otherwise."""
        spread = [
            f"rows of data_{block.name} go on in the next line (lines "
            f"{row_list(np.array(block.spread) - 1)}); RELION reads each line as a row"
            for block in self.blocks
            if block.spread
        ]
        return spread + [
            f"taken for comments in data_{block.name}: {counted(len(block.hidden), 'line')} "
            f"with # in front, though each has one value per column (lines "
            f"{row_list(np.array(block.hidden) - 1)}); if they are rows, quote the first value"
            for block in self.blocks
            if block.hidden
        ]

    def _take_text(self, number: int, line: str) -> None:
        assert self._text is not None
        if not line.startswith(";"):
            self._text.append(line.rstrip("\r\n"))
            return
        value, self._text = "\n".join(self._text), None
        if self._waiting:
            self._value(value)
            self.take(number, line[1:])
        else:
            self._may_go_on = True
            self._row(number, [value, *tokens(line[1:].strip(BLANKS))])

    def _comment(self, number: int, line: str) -> None:
        block = self.blocks[-1] if self.blocks else None
        if block and block.is_loop and 1 < len(block.labels) == len(tokens(line)):
            block.hidden.append(number)

    def _before_blocks(self, number: int, line: str) -> None:
        """Text before the first block has no meaning; labels and loops there have lost it."""
        if line[0] == "_" or LOOP.match(line):
            raise self._broken_rule(number, f"{tokens(line)[0]} before any line data_NAME")

    def _begin(self, number: int, name: str) -> None:
        self._require_value()
        self._require_whole_row()
        if any(block.name == name for block in self.blocks):
            raise self._broken_rule(number, f"a second block data_{name}")
        self.blocks.append(_TableBlock(name))

    def _loop(self, number: int) -> None:
        self._require_value()
        self._require_whole_row()
        block = self.blocks[-1]
        if block.is_loop and not block.rows:
            raise self._broken_rule(number, f"a second loop in data_{block.name}, before any row")
        if block.labels:
            block = _TableBlock(block.name)
            self.blocks.append(block)
        block.is_loop = True

    def _stop(self, number: int) -> None:
        self._require_value()
        self._require_whole_row()
        if not self.blocks[-1].rows or not self.blocks[-1].is_loop:
            raise self._broken_rule(number, "the word stop_, which ends a loop, below no row")
        self.blocks[-1].ended = True

    def _label(self, number: int, line: str) -> None:
        self._require_value()
        self._require_whole_row()
        block = self.blocks[-1]
        word, rest = [*line.split(None, 1), ""][:2]
        match = LABEL.fullmatch(word)
        label = match[1] if match else word[1:]
        if label in block.labels:
            raise self._broken_rule(number, f"the label {word} twice")
        if block.is_loop and block.rows:
            raise self._broken_rule(
                number, f"the label {word} below rows; a table begins with loop_ or data_NAME"
            )
        block.labels.append(label)
        if not block.is_loop:
            self._waiting, self._waiting_line = word, number
        if rest.startswith("_") and block.is_loop:
            self._label(number, rest)
        elif not block.is_loop and rest and rest[0] != "#":
            self._value(tokens(rest)[0])

    def _value(self, value: str) -> None:
        """Take the value of the label that waits for one."""
        block = self.blocks[-1]
        block.rows = [[*(block.rows[0] if block.rows else ()), value]]
        self._waiting = ""

    def _row(self, number: int, cells: list[str]) -> None:
        block, width = self.blocks[-1], len(self.blocks[-1].labels)
        if self._waiting:
            self._value(cells[0])
            return
        frame = len(cells) == 1 < width and not self._begun and FRAME.fullmatch(cells[0])
        if block.ended or not block.is_loop or frame:
            self._refuse_stray(number, cells)
        if not self._begun:
            self._begun_line = number
        cells = self._joined(cells)
        if len(cells) > width > 0 and cells[width].startswith("#"):
            cells = cells[:width]
        if len(cells) > width:
            raise self._wrong_width(number, len(cells))
        if len(cells) < width:
            self._begun = cells  # the row may go on in the next line
            return
        block.rows.append(cells)
        if self._begun and not self._may_go_on:
            block.spread.append(self._begun_line)
        self._begun, self._may_go_on = [], False

    def _joined(self, cells: list[str]) -> list[str]:
        """Return the cells of the row so far; values of a row may stand on several lines.

        A row that lacks a value must not swallow the next: that begins with an image, or has more
        values than are missing.
        """
        if not self._begun:
            return cells
        missing = len(self.blocks[-1].labels) - len(self._begun)
        whole = len(cells) <= missing or cells[missing].startswith("#")
        if not self._may_go_on and (IMAGE.match(cells[0]) or not whole):
            self._require_whole_row()
        return [*self._begun, *cells]

    def _refuse_stray(self, number: int, cells: list[str]) -> None:
        if FRAME.fullmatch(cells[0]):
            raise self._broken_rule(
                number, f"{cells[0]}: a save frame, which lists of particles do not have"
            )
        if self.blocks[-1].ended:
            raise self._broken_rule(number, "values below the word stop_, which ends a loop")
        raise self._wrong_width(number, len(cells))

    def _require_value(self) -> None:
        if self._waiting:
            raise self._broken_rule(self._waiting_line, f"no value after {self._waiting}")

    def _require_whole_row(self) -> None:
        if self._begun:
            raise self._wrong_width(self._begun_line, len(self._begun))

    def _wrong_width(self, number: int, found: int) -> InputError:
        name, width = self.blocks[-1].name, len(self.blocks[-1].labels)
        advice = "a value is missing, or the row is cut off"
        if found > width:
            advice = "a value with blanks needs quotes"
            if width > 1 and found % width == 0:
                advice = "each row needs a line of its own"
        return self._broken_rule(
            number, f"{counted(found, 'value')} for the {width} columns of data_{name}; {advice}"
        )

    def _broken_rule(self, number: int, what: str) -> InputError:
        return InputError(f"{self._path} is a damaged STAR file: line {number} has {what}")


def tokens(line: str) -> list[str]:
    """Split a line at blanks, keeping quoted parts whole."""
    if "'" not in line and '"' not in line:
        return WORD.findall(line)
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
    """Return a value as one token.

    What would be read as several values, as a comment, a label or a keyword needs quotes, which
    RELION reads from version 4 on; a value that no quotes can hold becomes a text of its own lines.
    """
    if value and not NEEDS_QUOTES.search(f"\0{value}"):
        return value
    inner = {match[1] for match in ENDS_QUOTE.finditer(value)}
    quote = next((quote for quote in ('"', "'") if quote not in inner), None)
    if quote is None or "\n" in value or "\r" in value:
        return f"\n;{value}\n;"
    return f"{quote}{value}{quote}"


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
            f"{column.iloc[row] or 'an empty text'}, which is not a finite number{more}; "
            "correct or remove it"
        )
    return values


def integers(table: pd.DataFrame, label: str, path: Path, kind: str) -> NDArray[np.int64]:
    """Return a column as whole numbers of at most 32 bits.

    kind     what a row is, for the message: 'particle' or 'optics group'
    raises   InputError naming the first row whose cell is anything else
    """
    values = numbers(table, label, path, kind)
    bad = np.flatnonzero((values != np.round(values)) | (np.abs(values) > LARGEST_INTEGER))
    if bad.size:
        row = int(bad[0])
        raise InputError(
            f"{path}: {kind} {row + 1} has {label} = {table[label].iloc[row]}, which is not a "
            f"whole number of at most {LARGEST_INTEGER} ({bad.size} such rows); correct it"
        )
    return values.astype(np.int64)


def other_capitals(table: pd.DataFrame, missing: Sequence[str]) -> str:
    """Return which missing labels a table has in other capitals, in brackets; '' if none."""
    wanted = {label.lower() for label in missing}
    found = [str(label) for label in table.columns if str(label).lower() in wanted]
    return f" (capitals count: {', '.join(found)})" if found else ""


def row_list(rows: NDArray[np.int64], most: int = 5) -> str:
    """Return row numbers counted from 1, shortened: '1, 2, 3 and 7 more'."""
    shown = ", ".join(str(row + 1) for row in itertools.islice(rows.tolist(), most))
    return shown if rows.size <= most else f"{shown} and {rows.size - most} more"
