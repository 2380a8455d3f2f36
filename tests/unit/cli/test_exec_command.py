"""Which words are mpipar's and which the script's."""

from __future__ import annotations

import pytest

from mpipar.cli.parser import split_rest
from mpipar.settings import ExecSettings, RefineSettings


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ("script.py --parallel=mpi -m", 0),
        ("--parallel=thread:2 script.py --parallel=x", 1),
        ("--parallel thread:2 script.py a", 2),
        ("-m package.module -v", 1),
        ("--module --parallel=serial package --help", 2),
        ("--help", 1),
        ("", 0),
    ],
)
def test_first_word_without_a_dash_is_the_script(words, own):
    words = words.split()
    assert split_rest(ExecSettings, words) == (words[:own], words[own:])


def test_script_whose_name_begins_with_a_dash():
    assert split_rest(ExecSettings, ["-m", "--", "-odd.py", "-x"]) == (["-m"], ["-odd.py", "-x"])


def test_other_commands_have_no_script():
    assert split_rest(RefineSettings, ["a", "--b"]) == (["a", "--b"], [])
