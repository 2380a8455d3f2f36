"""`mpipar status`: what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest

from mpipar.cli.main import main
from mpipar.store import Project


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, verdict in (("run_01", "done"), ("run_02", "failed")):
        with Project.create(tmp_path / name, settings={}, kind="run") as project:
            project.verdict(verdict, "CommandsFailedError: 1 of 2 commands failed")
    return tmp_path


def test_one_run(folder, capsys):
    assert main(["status", "run_02"]) == 0
    assert capsys.readouterr().out.startswith("run_02: failed\n  the latest run has ended: failed")


def test_all_runs_of_a_folder(folder, capsys):
    assert main(["status"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "doing"]
    assert [row.split()[:2] for row in rows] == [["run_01", "done"], ["run_02", "failed"]]


@pytest.mark.parametrize(("words", "names"), [(["run_01"], ["run_01"]), ([], ["run_01", "run_02"])])
def test_json(folder, capsys, words, names):
    assert main(["status", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert [run["folder"] for run in found["runs"]] == [str(folder / name) for name in names]


@pytest.mark.parametrize(("words", "code"), [(["run_01"], 0), (["run_02"], 70), ([], 70)])
def test_waiting_gives_the_exit_code_of_the_run(folder, capsys, words, code):
    assert main(["status", *words, "--wait"]) == code
    assert f"{words[0] if words else 'run_01'}: " in capsys.readouterr().err


def test_no_run(folder, capsys):
    assert main(["status", "run_03"]) == 66
    assert capsys.readouterr().err == "mpipar: run_03: there is no such folder\n"
