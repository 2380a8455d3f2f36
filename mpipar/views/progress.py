"""Progress of a run: a live line on a terminal, plain lines in a batch log, or nothing."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.live import Live

__all__ = ["View", "duration", "open_view"]

LINE_EVERY: Final = 10.0  # seconds between progress lines in a log, at least
LINE_AT_LATEST: Final = 60.0  # seconds after which there is a line even if little was done
LINE_STEP: Final = 0.25  # share of the work after which there is a line
WIDTHS: Final = 10  # columns of a number in the table of iterations

UNITS: Final = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))

Fact = str | int | float | None


class View(ABC):
    """Shows users what a program does. No text and no number makes a call raise."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._label = ""
        self._began = clock()
        self._done = 0
        self._columns: tuple[str, ...] = ()
        self.record: Callable[[str], None] = _nowhere  # gets every line that stays, too

    def say(self, text: str) -> None:
        """Show a line of text, which stays."""
        self.record(text)
        self._say(text)

    @abstractmethod
    def _say(self, text: str) -> None:
        """Show a line of text, which stays."""

    @abstractmethod
    def _show(self, line: str, share: float) -> None:
        """Show a line of progress; `share` is what is done, 0 to 1."""

    def phase(self, name: str) -> None:
        """Begin a new phase; the progress of the phase before is over."""
        self._start(name)

    def progress(
        self,
        label: str,
        done: int,
        total: int,
        after: tuple[float, float] | None = None,
        **facts: Fact,
    ) -> None:
        """Show that `done` of `total` are done; may be called at any rate.

        label    what is being done, e.g. "iteration 3: align"
        after    seconds that the run goes on after that, at least and at most; None: not known
        facts    shown after that, in this order; e.g. resolution="8.1 A", stolen=4; not if None
        """
        if label != self._label or done < self._done:
            self._start(label)
        self._done = done
        share = done / total if total else 1.0
        words = [label, f"{done}/{total} ({share:.0%})"]
        if 0 < done < total:
            left = (self._clock() - self._began) * (total - done) / done
            words.append(f"{duration(left)} left")
            if after is not None:
                words.append(f"the run: {span(left + after[0], left + after[1])}")
        words += [
            f"{name.replace('_', ' ')} {value}"
            for name, value in facts.items()
            if value is not None
        ]
        self._show("  ".join(words), share)

    def iteration(self, row: Mapping[str, Fact]) -> None:
        """Show a row of the table of iterations, with a header if the columns are new."""
        widths = [max(len(name), WIDTHS) for name in row]
        if tuple(row) != self._columns:
            self._columns = tuple(row)
            names = zip(row, widths, strict=True)
            self.say("  ".join(f"{name:>{width}}" for name, width in names))
        values = zip(row.values(), widths, strict=True)
        self.say("  ".join(f"{_text(value):>{width}}" for value, width in values))

    def close(self) -> None:
        """End the display; called also after an error."""
        self._start("")

    def _start(self, label: str) -> None:
        self._label, self._began, self._done = label, self._clock(), 0


class QuietView(View):
    """Shows nothing."""

    def _say(self, text: str) -> None:
        del text

    def _show(self, line: str, share: float) -> None:
        del line, share


class PlainView(View):
    """For batch logs: whole lines, few of progress, each written at once."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._line_at = self._began
        self._line_share = 0.0

    def _say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _start(self, label: str) -> None:
        super()._start(label)
        self._line_at, self._line_share = self._began, 0.0

    def _show(self, line: str, share: float) -> None:
        waited = self._clock() - self._line_at
        advanced = share - self._line_share >= LINE_STEP
        if waited >= LINE_AT_LATEST or (waited >= LINE_EVERY and advanced):
            self._say(f"{time.strftime('%H:%M:%S')}  {line}")
            self._line_at, self._line_share = self._clock(), share


class LiveView(View):
    """For terminals: a line of progress that changes, under the lines that stay."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._live: Live | None = None

    def _say(self, text: str) -> None:
        self._console.print(text)

    def phase(self, name: str) -> None:
        super().phase(name)
        if name:
            self._update(f"{name} ...")

    def _start(self, label: str) -> None:
        super()._start(label)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, line: str, share: float) -> None:
        self._update(f"{_bar(share)} {line}")

    def _update(self, line: str) -> None:
        from rich.text import Text

        if self._live is None:
            self._live = self._open_live()
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def _open_live(self) -> Live:
        from rich.live import Live

        live = Live(console=self._console, transient=True, refresh_per_second=4)
        live.start()
        return live


@contextmanager
def open_view(verbose: int, stream: TextIO | None = None) -> Iterator[View]:
    """Open the view for a terminal or a log, as `stream` is one; silent if `verbose` < 0.

    stream   None: standard output
    """
    stream = sys.stdout if stream is None else stream
    view: View
    if verbose < 0:
        view = QuietView()
    else:
        view = LiveView(stream) if _is_terminal(stream) else PlainView(stream)
    try:
        yield view
    finally:
        view.close()


def _is_terminal(stream: TextIO) -> bool:
    """Whether the output goes to a terminal.

    Open MPI gives rank 0 a terminal of its own, so under mpirun the output of mpirun counts.
    """
    if not stream.isatty():
        return False
    if "OMPI_COMM_WORLD_RANK" not in os.environ:
        return True
    try:
        outside = str(Path(f"/proc/{os.getppid()}/fd/1").readlink())
    except OSError:
        return False
    return outside.startswith(("/dev/pts/", "/dev/tty"))


def duration(seconds: float) -> str:
    """Return seconds as text: `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004 - seconds in an hour
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def span(least: float, most: float) -> str:
    """Return a range of seconds as text, rounded for people: `about 3 to 8 min`."""
    size, unit = next(((size, unit) for size, unit in UNITS if most >= 2 * size), UNITS[-1])
    low, high = max(1, round(least / size)), max(1, round(most / size))
    return f"about {low} to {high} {unit}" if low < high else f"about {high} {unit}"


def _nowhere(text: str) -> None:
    """Keep no record."""
    del text


def _text(value: Fact) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _bar(share: float, width: int = 10) -> str:
    full = round(min(max(share, 0.0), 1.0) * width)
    return f"[{'#' * full}{'.' * (width - full)}]"
