from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest

from mpipar import __version__
from mpipar.cli.main import main
from mpipar.errors import InputError, ProtocolError

WORDS = ["refine", "--input", "p.star", "--model", "m.mrc"]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher's variables, whatever the tests themselves were started by."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_NTASKS", "NSLOTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)


@pytest.fixture
def program(monkeypatch):
    """Stands in for programs.refine; `program.act` is what it does."""
    module: Any = ModuleType("mpipar.programs.refine")
    module.calls = []

    def run(settings, open_pool, view):
        module.calls.append(settings)
        module.act(settings, open_pool, view)

    module.run = run
    module.act = lambda settings, open_pool, view: view.say("ran")
    monkeypatch.setitem(sys.modules, "mpipar.programs.refine", module)
    monkeypatch.setattr("mpipar.programs.refine", module, raising=False)
    return module


def test_help_lists_every_command_with_one_line(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for line in (
        "  refine  Refine particle poses",
        "  run     Run a list",
        "  check   Check that",
        "  unlock  Declare",
    ):
        assert line in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mpipar {__version__}\n"


def test_no_word_at_all_shows_the_help(capsys):
    assert main([]) == 64
    assert "commands:" in capsys.readouterr().out


def test_help_of_a_command_has_units_defaults_and_examples(capsys):
    assert main(["refine", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--targetres A" in out
    assert "(A, default: from the model)" in out
    assert "iterations at most (default: 40)" in out
    assert "mpirun -n 64 python -m mpipar refine" in out
    assert "--settings TOML" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["refin"], "unknown command 'refin'; the commands are refine, "),
        (["refien"], "unlock; did you mean refine?"),
        (["Run"], "unlock; did you mean run?"),
        (["plott"], "check, export, pack, unpack, prune, unlock\n"),
        (["--nonsense"], "unknown option --nonsense"),
        ([*WORDS, "--low-pass", "20"], "unknown option --low-pass 20; did you mean --lowpass?"),
        ([*WORDS, "--iter"], "argument --iter: expected one argument"),
        ([*WORDS, "--iter", "0"], "--iter 0: must be at least 1"),
        (["refine"], "--input is required (or --resume"),
        (["run"], "a file of commands is required (or --resume"),
        (["run", "c.txt", "--timeout", "1 week"], "--timeout 1 week: must be a time such as 90"),
        (["run", "c.txt", "--on-error", "ask"], "--on-error ask: must be one of continue, stop"),
        (["check"], "the following arguments are required: FOLDER"),
        ([*WORDS, "--parallel=dc:host"], "there is no dc type"),
    ],
)
def test_wrong_words_are_one_line_and_exit_64(capsys, program, words, said):
    assert main(words) == 64
    err = capsys.readouterr().err
    assert err.startswith("mpipar: ")
    assert said in err
    assert "Traceback" not in err
    assert program.calls == []


def test_flags_reach_the_program_as_settings(capsys, program):
    words = [*WORDS, "--sym=d7", "--iter", "3", "-vv", "--resume", "--parallel=thread:2"]
    assert main(words) == 0
    (settings,) = program.calls
    assert (settings.sym, settings.iter, settings.verbose, settings.resume) == ("d7", 3, 2, True)
    assert capsys.readouterr().out == "1 process, 2 worker threads\nran\n"


@pytest.mark.parametrize(
    ("words", "verbose"),
    [([], 0), (["-v"], 1), (["-v", "-v"], 2), (["--verbose", "2"], 2), (["--verbose=-1"], -1)],
)
def test_verbose_in_all_its_spellings(program, words, verbose):
    assert main([*WORDS, *words]) == 0
    assert program.calls[0].verbose == verbose


def test_flags_win_over_the_settings_file(program, tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('[refine]\nsym = "d2"\niter = 4\n')
    assert main([*WORDS, "--settings", str(file), "--iter", "5"]) == 0
    assert (program.calls[0].sym, program.calls[0].iter) == ("d2", 5)


def test_settings_file_with_an_unknown_name(capsys, program, tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("simmetry = 1")
    assert main([*WORDS, "--settings", str(file)]) == 64
    assert f"--settings {file}: `refine` has no option 'simmetry'" in capsys.readouterr().err


def test_missing_settings_file(capsys, program):
    assert main([*WORDS, "--settings", "none.toml"]) == 66
    assert "--settings none.toml: No such file" in capsys.readouterr().err


def test_error_of_the_program_is_one_line_with_its_code(capsys, program):
    def act(settings, open_pool, view):
        raise InputError("p.star: no particles")

    program.act = act
    assert main(WORDS) == 65
    assert capsys.readouterr().err == "mpipar: p.star: no particles\n"


def test_bug_shows_its_traceback(capsys, program):
    def act(settings, open_pool, view):
        raise ZeroDivisionError("oops")

    program.act = act
    assert main(WORDS) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in err
    assert "this is a bug in mpipar" in err


def test_broken_protocol_is_called_a_bug(capsys, program):
    def act(settings, open_pool, view):
        raise ProtocolError("task 3 was DONE twice")

    program.act = act
    assert main(WORDS) == 70
    assert "this is a bug in mpipar" in capsys.readouterr().err


def test_interrupt(capsys, program):
    def act(settings, open_pool, view):
        raise KeyboardInterrupt

    program.act = act
    assert main(WORDS) == 130
    assert "mpipar: interrupted" in capsys.readouterr().err


def test_room_for_more_processes_is_not_ignored(capsys, program, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert main(WORDS) == 71
    assert "SLURM_NTASKS=8" in capsys.readouterr().err
    assert program.calls == []


@pytest.mark.parametrize("command", ["check", "unlock"])
def test_folder_that_is_none(capsys, command, tmp_path):
    assert main([command, str(tmp_path / "none")]) == 66
    assert "no such project folder" in capsys.readouterr().err


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    assert main(["check", "none"]) == 0
    assert main(["--nonsense"]) == 0
    assert main([*WORDS, "--parallel=serial"]) == 0
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_cannot_show_are_printed_all_the_same(
    program, monkeypatch, encoding
):
    program.act = lambda settings, open_pool, view: view.say("caf\udce9 \u3000")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(WORDS) == 0
    out.flush()
    assert rb"caf\udce9" in out.buffer.getvalue()
