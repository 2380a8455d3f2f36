"""What a run will need grows with what is asked of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from mpipar.cryoem.symmetry import operators
from mpipar.programs.needs import needs
from tests.support.small_refinement import small

if TYPE_CHECKING:
    from pathlib import Path


def test_needs_are_said_for_rank_0_workers_disk_and_time(tmp_path: Path) -> None:
    made = small(tmp_path)
    for workers in (1, 7):
        memory, disk, time = needs(
            made.inputs, made.data.geometry, operators("c1"), made.settings, workers
        )
        assert re.fullmatch(
            rf"memory: about \d+ MB on rank 0, \d+ MB on each of {workers} workers?", memory
        )
        assert re.match(r"disk: about \d+ MB for the results", disk)
        assert re.match(r"time: about .* for each iteration over all orientations", time)


def test_the_memory_of_a_gpu_is_said_if_one_is_asked_for(tmp_path: Path) -> None:
    made = small(tmp_path)
    settings = replace(made.settings, gpu="auto")
    *_, device = needs(made.inputs, made.data.geometry, operators("c1"), settings, 2)
    assert re.match(r"GPU memory: about \d\.\d GB for each worker", device)


def test_workers_that_are_threads_share_one_process(tmp_path: Path) -> None:
    made = small(tmp_path)
    memory, _, _ = needs(
        made.inputs,
        made.data.geometry,
        operators("c1"),
        made.settings,
        4,
        threads_only=True,
    )
    assert re.fullmatch(r"memory: about \d+ MB", memory)
