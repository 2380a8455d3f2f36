from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from mpipar.errors import OutputError
from mpipar.launch import prepare_process
from mpipar.launch.caches import use_scratch


@pytest.fixture
def environ(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.environ", os.environ.copy())
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    return os.environ


def test_kernels_are_cached_in_a_private_folder_of_the_node(environ, tmp_path):
    prepare_process()
    folder = Path(environ["NUMBA_CACHE_DIR"])
    assert folder.parent == tmp_path / f"mpipar-{os.getuid()}"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert environ["OMP_NUM_THREADS"] == "1"
    first = environ.pop("NUMBA_CACHE_DIR")
    prepare_process()
    assert environ["NUMBA_CACHE_DIR"] == first


def test_users_choice_wins(environ):
    environ["NUMBA_CACHE_DIR"] = "/elsewhere"
    environ["OMP_NUM_THREADS"] = "3"
    prepare_process()
    assert (environ["NUMBA_CACHE_DIR"], environ["OMP_NUM_THREADS"]) == ("/elsewhere", "3")


def test_folder_that_others_could_have_filled_is_not_used(environ, tmp_path):
    shared = tmp_path / f"mpipar-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    prepare_process()
    assert Path(environ["NUMBA_CACHE_DIR"]).parent == tmp_path
    assert not list(shared.iterdir())


def test_link_planted_under_the_name_is_not_followed(environ, tmp_path):
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / f"mpipar-{os.getuid()}").symlink_to(target)
    prepare_process()
    assert not list(target.iterdir())


def test_home_that_cannot_be_written_is_not_needed(environ, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    prepare_process()
    assert environ["MPLCONFIGDIR"] == str(tmp_path / f"mpipar-{os.getuid()}" / "matplotlib")


def test_scratch_folder_is_made_and_takes_temporary_files_and_kernels(environ, tmp_path):
    prepare_process()
    use_scratch(tmp_path / "Fast" / "disk")
    mine = tmp_path / "Fast" / "disk" / f"mpipar-{os.getuid()}"
    assert environ["TMPDIR"] == tempfile.gettempdir() == str(mine)
    assert Path(environ["NUMBA_CACHE_DIR"]).parent == mine
    assert Path(environ["NUMBA_CACHE_DIR"]).is_dir()
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700


def test_users_cache_of_kernels_is_kept_beside_a_scratch_folder(environ, tmp_path):
    environ["NUMBA_CACHE_DIR"] = "/elsewhere"
    use_scratch(tmp_path / "fast")
    assert environ["NUMBA_CACHE_DIR"] == "/elsewhere"


def test_scratch_folder_that_cannot_be_made_is_named(environ, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"scratch folder .*file.* cannot be made on"):
        use_scratch(tmp_path / "file" / "deeper")
    (tmp_path / "open" / f"mpipar-{os.getuid()}").mkdir(parents=True)
    (tmp_path / "open" / f"mpipar-{os.getuid()}").chmod(0o777)
    with pytest.raises(OutputError, match="not a folder of yours alone"):
        use_scratch(tmp_path / "open")
