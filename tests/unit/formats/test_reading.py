"""Opening what users name: any way of the system to say no is one message with the path."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mpipar.errors import InputError, MissingInputError
from mpipar.formats.reading import opened, opened_text, reading

PACKINGS = [
    pytest.param(gzip.compress, id="gzip"),
    pytest.param(bz2.compress, id="bzip2"),
    pytest.param(lzma.compress, id="xz"),
]
TEXT = "data_x\n_rlnA caf\xe9\n"


@pytest.mark.parametrize("pack", [pytest.param(bytes, id="plain"), *PACKINGS])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_a_text_is_read_whatever_its_mark_and_compression(
    tmp_path: Path, pack: Any, encoding: str
) -> None:
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    (tmp_path / "a").write_bytes(pack((mark + TEXT).encode(encoding)))
    with opened_text(tmp_path / "a") as file:
        assert file.read() == TEXT


@pytest.mark.parametrize("pack", [pytest.param(bytes, id="plain"), *PACKINGS])
def test_a_pipe_is_read(tmp_path: Path, pack: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    data = pack(("\ufeff" + TEXT).encode("utf-16-le"))
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    with opened_text(tmp_path / "pipe") as file:
        assert file.read() == TEXT
    writer.join()


def test_bytes_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xe9")
    with opened_text(tmp_path / "a") as file:
        assert file.read().encode("utf-8", "surrogateescape") == b"caf\xe9"


@pytest.mark.parametrize("pack", PACKINGS)
def test_damaged_compression_is_named(tmp_path: Path, pack: Any) -> None:
    packed = pack(os.urandom(9000))
    for damaged in (packed[:4000], packed[:4000] + b"\0" * 200 + packed[4200:]):
        (tmp_path / "a").write_bytes(damaged)
        wanted = pytest.raises((InputError, MissingInputError), match=r"(damaged|cannot be read)")
        with wanted, opened(tmp_path / "a") as file:
            file.read()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\x28\xb5\x2f\xfd", "with zstd; .* first: unzstd"),
        (b"PK\3\4", "with zip; .*: unzip"),
        (b"\x1f\x9d\x90", "with compress; .*: uncompress"),
        (b"\x04\x22\x4d\x18", "with lz4; .*: unlz4"),
        (b"7z\xbc\xaf\x27\x1c", "with 7-Zip; .*: 7z x"),
        (b"\x5d\0\0\x80\0", "with lzma; .*: unlzma"),
    ],
)
def test_a_compression_that_cannot_be_read_is_named(
    tmp_path: Path, head: bytes, message: str
) -> None:
    (tmp_path / "a").write_bytes(head + bytes(100))
    with pytest.raises(InputError, match=message), opened(tmp_path / "a"):
        pass


@pytest.mark.parametrize("pack", PACKINGS)
def test_a_file_that_is_compressed_twice_is_named(tmp_path: Path, pack: Any) -> None:
    (tmp_path / "a").write_bytes(pack(gzip.compress(b"data_x\n")))
    with pytest.raises(InputError, match="twice, with gzip and"), opened(tmp_path / "a"):
        pass


def test_a_link_to_nowhere_says_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("c/d")
    with (
        pytest.raises(MissingInputError, match="a is a link to b, which does not exist"),
        opened(tmp_path / "a"),
    ):
        pass


def test_names_that_the_system_refuses_are_named(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    for name, message in (
        ("circle", "symbolic links"),
        ("x" * 300, "shorter name"),
        ("a\0b", "cannot be the name of a file"),
        ("\ud800", "cannot be the name of a file"),
        ("", "it is a folder, not a file"),
        ("none", "does not exist"),
        ("file/inside", "does not exist"),
    ):
        with pytest.raises(MissingInputError, match=message), opened(tmp_path / name):
            pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, 9999])
def test_any_error_of_the_system_is_one_message(number: int) -> None:
    with pytest.raises(MissingInputError, match="/a/b cannot be read: "), reading(Path("/a/b")):
        raise OSError(number, os.strerror(number))


def test_half_a_letter_of_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffab".encode("utf-16-le") + b"\0")
    with pytest.raises(InputError, match="not a text file"), opened_text(tmp_path / "a") as file:
        file.read()
