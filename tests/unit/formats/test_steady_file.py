"""A read that fails for a moment is tried again; one that goes on failing is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpipar.errors import InputError, MissingInputError
from mpipar.formats import steady_file
from mpipar.formats.reading import reading
from mpipar.formats.steady_file import SteadyFile, steadily

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEAD, BODY = b"head", bytes(range(100))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SteadyFile]:
    """A file of HEAD and BODY, for whose reads nobody waits."""
    monkeypatch.setattr(steady_file, "WAITS", (0.0, 0.0))
    path = tmp_path / "file"
    path.write_bytes(HEAD + BODY)
    opened = SteadyFile(path, HEAD)
    yield opened
    opened.close()


def body_of(file: SteadyFile) -> bytes:
    """All that is behind the head, read into two pieces of memory."""
    memory = bytearray(len(BODY))
    file.fill([memoryview(memory)[50:], memoryview(memory)[:50]], len(HEAD))
    return bytes(memory[50:] + memory[:50])


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, failures: Sequence[int | None], bytes_first: int = 0
) -> list[int]:
    """Let calls of os.`name` fail with these error numbers, None: not; then all work.

    bytes_first   what a read gives before the failures begin
    returns       a list to which each failed call adds its error number
    """
    really, left, seen = getattr(os, name), list(failures), list[int]()
    first = [bytes_first] if bytes_first else []

    def call(*args: object) -> object:
        if first:
            views = args[1]
            assert isinstance(views, list)
            return really(args[0], [views[0][: first.pop()]], args[2])
        number = left.pop(0) if left else None
        if number is None:
            return really(*args)
        seen.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, call)
    return seen


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", ["open", "preadv"])
def test_a_read_that_fails_for_a_moment_is_tried_again(
    file: SteadyFile, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    seen = failing(monkeypatch, name, [number, number], bytes_first=30 * (name == "preadv"))
    assert body_of(file) == BODY
    assert seen == [number, number]
    assert file.retries == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_that_goes_on_failing_names_file_and_byte(
    file: SteadyFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    seen = failing(monkeypatch, "preadv", [number] * 99, bytes_first=30)
    with pytest.raises(MissingInputError) as caught:
        body_of(file)
    said = str(caught.value)
    assert f"{file.path} can no longer be read at byte {len(HEAD) + 30} (tried 3 times" in said
    assert os.strerror(number) in said
    assert len(seen) == 3
    monkeypatch.undo()
    assert body_of(file) == BODY, "it can be read when the disk is back"


def test_a_file_that_vanishes_is_named(file: SteadyFile) -> None:
    file.path.unlink()
    with pytest.raises(MissingInputError, match=r"at byte 4 .*: No such file or directory"):
        body_of(file)


@pytest.mark.parametrize("left", [0, 2, 4, 60])
def test_a_file_that_shrinks_is_named(file: SteadyFile, left: int) -> None:
    os.truncate(file.path, left)
    at = max(left, len(HEAD))
    with pytest.raises(InputError, match=rf"became shorter while it was read: byte {at} is gone"):
        body_of(file)


def test_a_file_that_is_short_for_a_moment_is_read(
    file: SteadyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(file.path, 60)
    monkeypatch.setattr(
        "mpipar.formats.steady_file.time.sleep", lambda _: file.path.write_bytes(HEAD + BODY)
    )
    assert body_of(file) == BODY
    assert file.retries == 1


def test_a_file_that_became_another_one_is_not_tried_again(file: SteadyFile) -> None:
    file.path.write_bytes(b"h" * 104)
    with pytest.raises(InputError, match="has changed since it was checked"):
        body_of(file)
    assert file.retries == 0


def test_descriptors_are_closed(file: SteadyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path("/proc/self/fd")
    before = len(list(here.iterdir()))
    body_of(file)
    assert len(list(here.iterdir())) == before + 1
    failing(monkeypatch, "preadv", [errno.EIO] * 3)
    with pytest.raises(MissingInputError):
        body_of(file)
    assert len(list(here.iterdir())) == before
    body_of(file)
    file.close()
    file.close()
    assert len(list(here.iterdir())) == before


@pytest.mark.parametrize(
    ("number", "calls"), [(errno.EIO, 3), (errno.ESTALE, 3), (errno.ENOENT, 1), (errno.EACCES, 1)]
)
def test_opening_is_tried_again_where_that_can_help(
    file: SteadyFile, number: int, calls: int
) -> None:
    seen: list[int] = []

    def look(failures: int) -> str:
        with reading(file.path):
            seen.append(number)
            if len(seen) <= failures:
                raise OSError(number, os.strerror(number))
        return "found"

    with pytest.raises(MissingInputError):
        steadily(lambda: look(99))
    assert seen == [number] * calls
    seen.clear()
    if calls > 1:
        assert steadily(lambda: look(2)) == "found"
