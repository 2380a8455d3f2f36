"""Maps in the run's folder while the run goes on: whole, marked, and cheap."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest

from mpipar.errors import StoreError
from mpipar.programs import exports, map_files
from mpipar.programs.iteration import Maps
from mpipar.programs.map_files import MapFiles, preliminary
from mpipar.store import check
from mpipar.store.project import Project
from mpipar.views import plots
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAPS = ("map.mrc", "half1.mrc", "half2.mrc")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[Small, Maps, Project]]:
    run = small(tmp_path / "input")
    halves = np.random.default_rng(0).normal(size=(2, 16, 16, 16)).astype(np.float32)
    curve = np.linspace(1.0, -0.2, 9)
    maps = Maps(halves, run.data.sphere, halves.sum(axis=0), curve, curve, curve)
    with Project.create(tmp_path / "run", settings={}, kind="refine") as project:
        yield run, maps, project


def write(files: MapFiles, made: tuple[Small, Maps, Project], iteration: int, **changes) -> None:
    run, maps, project = made
    maps = dataclasses.replace(maps, **changes)
    files.write(project, run.inputs, run.data, maps, iteration)


def labels(project: Project) -> set[str]:
    found = set()
    for name in MAPS:
        with mrcfile.open(project.path / name) as mrc:
            found.add(mrc.get_labels()[0])
    return found


def test_maps_say_of_which_iteration_they_are_and_that_others_follow(made):
    _, maps, project = made
    files = MapFiles()
    for iteration in (1, 2):
        write(files, made, iteration, combined=maps.combined * iteration)
        assert labels(project) == {f"iteration {iteration}, not finished"}
        first, second = (project.path / "fsc.txt").read_text().splitlines()[:2]
        assert (first, second) == (
            f"# iteration {iteration}, not finished",
            "# FSC of the half maps",
        )
        np.testing.assert_array_equal(
            mrcfile.read(project.path / "map.mrc"), maps.combined * iteration * made[0].data.sphere
        )
    assert check(project.path) == []


def test_maps_before_signal_was_found_claim_nothing(made):
    _, maps, project = made
    write(MapFiles(), made, 40, mark=preliminary(maps).mark)
    assert labels(project) == {f"iteration 40, not finished: {map_files.PRELIMINARY}"}
    text = (project.path / "fsc.txt").read_text()
    assert map_files.PRELIMINARY in text
    assert "resolution at" not in text


def test_picture_is_drawn_only_if_iterations_take_long(made, monkeypatch):
    clock, drawn = [0.0], []

    def draw(*_, **__):
        drawn.append(clock[0])
        clock[0] += 3.0  # it takes that long

    monkeypatch.setattr(exports, "write_picture", draw)
    files = MapFiles(lambda: clock[0])
    for now in (20.0, 40.0, 130.0, 150.0):  # a picture of 1 s, then of 3 s, is dear or not
        clock[0] = now
        write(files, made, 1)
    assert drawn == [40.0, 150.0]


def test_picture_says_that_others_follow(made, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "picture", lambda *_, title: titles.append(title))
    run, maps, project = made
    with contextlib.suppress(StoreError):  # nothing was drawn
        exports.write_picture(
            project, run.inputs, run.data, maps, unfinished="iteration 3, not finished"
        )
    assert titles == ["iteration 3, not finished: 40 particles"]
