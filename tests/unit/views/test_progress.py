from __future__ import annotations

import io

import pytest

from mpipar.views.progress import LiveView, PlainView, QuietView, duration, open_view, span


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run(view, clock, seconds, total=1000):
    for done in range(total + 1):
        view.progress("iteration 3: align", done, total, stolen=4, resolution=None)
        clock.now += seconds / total


def test_log_has_whole_lines_and_few_of_them(clock):
    stream = io.StringIO()
    run(PlainView(stream, clock), clock, seconds=400)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert 4 <= len(lines) <= 7
    assert lines[0].endswith("stolen 4")
    assert "iteration 3: align  " in lines[0]


def test_short_work_leaves_no_line_in_a_log(clock):
    stream = io.StringIO()
    run(PlainView(stream, clock), clock, seconds=9)
    assert stream.getvalue() == ""


def test_time_left_follows_from_what_was_done(clock):
    stream = io.StringIO()
    view = PlainView(stream, clock)
    view.progress("align", 0, 100)
    clock.now += 60
    view.progress("align", 25, 100)
    assert "25/100 (25%)  3 min 00 s left" in stream.getvalue()


def test_rest_of_the_run_is_a_range_that_includes_this_work(clock):
    stream = io.StringIO()
    view = PlainView(stream, clock)
    view.progress("align", 0, 100, (600.0, 3600.0))
    clock.now += 60
    view.progress("align", 25, 100, (600.0, 3600.0))
    assert "3 min 00 s left  the run: about 13 to 63 min" in stream.getvalue()


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (0, 20, "about 1 to 20 s"),
        (70, 110, "about 70 to 110 s"),
        (100, 130, "about 2 min"),
        (3000, 9000, "about 1 to 2 h"),
    ],
)
def test_ranges_are_rounded_for_people(least, most, text):
    assert span(least, most) == text


def test_record_gets_the_lines_that_stay(clock):
    lines: list[str] = []
    for view in (PlainView(io.StringIO(), clock), QuietView(clock)):
        view.record = lines.append
        view.say("hello")
        run(view, clock, seconds=400)
    assert lines == ["hello", "hello"]


def test_new_label_starts_a_new_clock(clock):
    stream = io.StringIO()
    view = PlainView(stream, clock)
    view.progress("align", 50, 100)
    clock.now += 1000
    view.progress("iteration 2", 0, 100)
    clock.now += 60
    view.progress("iteration 2", 50, 100)
    assert "1 min 00 s left" in stream.getvalue()


def test_table_has_one_head_and_aligned_columns():
    stream = io.StringIO()
    view = PlainView(stream)
    view.iteration({"iteration": 1, "resolution A": 25.0, "note": None})
    view.iteration({"iteration": 2, "resolution A": 9.125, "note": "ab"})
    assert stream.getvalue().splitlines() == [
        " iteration  resolution A        note",
        "         1         25.00           -",
        "         2          9.12          ab",
    ]


def test_every_line_is_written_at_once():
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    PlainView(stream).say("hello")
    assert stream.flushed == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_gets_a_live_line_and_keeps_what_is_said(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with open_view(0, stream) as view:
        assert isinstance(view, LiveView)
        view.phase("reading")
        view.progress("align", 1, 2, stolen=3)
        view.say("a [bracket] stays")
        view.progress("align", 2, 2, stolen=5)
    assert "a [bracket] stays" in stream.getvalue()
    assert "reading ..." in stream.getvalue()
    assert "] align  2/2 (100%)  stolen 5" in stream.getvalue()


def test_view_suits_the_stream():
    with open_view(0, io.StringIO()) as view:
        assert isinstance(view, PlainView)
    stream = Terminal()
    with open_view(-1, stream) as view:
        assert isinstance(view, QuietView)
        view.say("nothing")
        view.progress("align", 1, 0)
        view.iteration({"n": 1})
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
