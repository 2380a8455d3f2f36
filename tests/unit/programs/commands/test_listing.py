from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.errors import InputError, MissingInputError
from mpipar.programs.commands.listing import parse, read


def lines(data: bytes) -> list[tuple[int, str]]:
    return [(command.line, command.text) for command in parse(data, "c.txt")]


def test_comments_and_blanks_are_skipped_and_lines_counted():
    assert lines(b"# one\n\n a b \n\t# two\nc # d\n") == [(3, "a b"), (5, "c # d")]


def test_backslash_continues_a_line_as_in_a_shell():
    data = b"a \\\n  b \\\n# no comment here\nc\\\\\nd \\"
    assert lines(data) == [(1, "a \\\n  b \\\n# no comment here"), (4, "c\\\\"), (5, "d \\")]


def test_blank_that_a_backslash_protects_is_kept():
    assert lines(b"ls dir/a\\ \nls b ") == [(1, "ls dir/a\\ "), (2, "ls b")]


def test_file_of_an_editor_of_another_system():
    assert lines(b"\xef\xbb\xbfa\r\nb \\\r\nc\r\n") == [(1, "a"), (2, "b \\\nc")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_file_of_an_editor_that_saves_utf_16(encoding):
    data = "\ufeffecho 1\r\necho \xe9\r\n".encode(encoding)
    assert [command.text for command in parse(data, "c.txt")] == ["echo 1", "echo \xe9"]


def test_bytes_that_are_no_text_come_through():
    (command,) = parse(b"cat \xff\xfe.mrc", "c.txt")
    assert command.text.encode("utf-8", "surrogateescape") == b"cat \xff\xfe.mrc"


def test_key_depends_on_text_and_occurrence_only():
    before = parse(b"a\nb\na\n", "c.txt")
    after = parse(b"# moved\nnew\n\na\na\nb\n", "c.txt")
    keys = {command.key for command in before}
    assert len(keys) == 3
    assert keys < {command.key for command in after}
    assert [command.key in keys for command in after] == [False, True, True, True]


@given(st.lists(st.sampled_from([b"a", b"b", b"c d", b"# x", b""])))
def test_every_key_comes_once_whatever_is_in_the_file(rows):
    commands = parse(b"\n".join(rows), "c.txt")
    assert len({command.key for command in commands}) == len(commands)
    assert len(commands) == sum(row not in {b"# x", b""} for row in rows)
    assert all(rows[command.line - 1].decode() == command.text for command in commands)


def test_what_is_no_command_file_is_refused(tmp_path):
    path = tmp_path / "c.txt"
    with pytest.raises(MissingInputError, match=r"c\.txt: No such file"):
        read(path)
    path.write_bytes(b"# nothing\n")
    with pytest.raises(InputError, match="no command in it"):
        read(path)
    path.write_bytes(b"ok\nEL\0F")
    with pytest.raises(InputError, match="line 2: a zero byte"):
        read(path)


def test_a_compressed_file_and_a_link_to_nowhere_are_named(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes(gzip.compress(b"true\n"))
    with pytest.raises(InputError, match=r"c\.txt is compressed with gzip; .*: gunzip"):
        read(path)
    path.unlink()
    path.symlink_to("gone")
    with pytest.raises(MissingInputError, match=r"No such file .*\(it is a link to gone\)"):
        read(path)
    path.write_bytes("true\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"line 1: a zero byte; .* saved as UTF-8"):
        read(path)
