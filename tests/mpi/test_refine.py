"""A refinement on real ranks: rank 0 runs the program, the others serve it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.errors import InputError, MpiparError
from mpipar.programs import refine
from mpipar.programs.stages import AlignStage
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.clusters.mpi_cluster import MpiTransport
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.pool import Pool
from mpipar.settings import RefineSettings
from mpipar.views.progress import QuietView
from tests.support import refine_input, refine_runs
from tests.support.blocks import write_mrc
from tests.support.ranks import assert_on_all_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.mpi(min_size=2)
COUNT = 64


def on_ranks(world: Any, program: Callable[[Any], bool]) -> None:
    """Run `program(open_pool)` on rank 0 while the others serve; its verdict holds on all."""
    transport = MpiTransport(world)
    if world.rank:
        departure = worker_loop.serve(transport)
        assert_on_all_ranks(world, departure.code == 0, f"{departure}")
        return
    pools: list[Pool] = []

    def open_pool(threads: int, cache_bytes: int) -> Pool:
        pools.append(Pool(transport, threads=threads, cache_bytes=cache_bytes, vendor="MPI"))
        return pools[0]

    verdict, said = False, ""
    try:
        verdict = program(open_pool)
    except Exception as error:  # the others must hear of it
        said = repr(error)
    finally:
        for pool in pools or [open_pool(1, 1)]:
            pool.close()
    assert_on_all_ranks(world, verdict, said)


def settings_of(made: refine_input.Input, path: Path) -> RefineSettings:
    return RefineSettings(input=made.star, model=made.model, path=path, iter=2)


def in_this_process(made: refine_input.Input, path: Path) -> dict[str, str]:
    """Refine without MPI; the digests of the results."""

    def open_pool(threads: int, cache_bytes: int) -> Pool:
        return thread_cluster.open_pool(1, threads=threads, cache_bytes=cache_bytes)

    refine.run(settings_of(made, path), open_pool, QuietView())
    return refine_runs.digests(path)


def fail_at_first(monkeypatch: pytest.MonkeyPatch) -> set[float]:
    """Let some tasks fail when this rank tries them for the first time; which have failed."""
    really, failed = AlignStage._insert, set[float]()

    def insert(self: AlignStage, state: Any, rows: Any, images: Any, ctf: Any, found: Any) -> None:
        which = float(ctf.sum())  # tells blocks apart
        if int(which * 1e4) % 2 == 0 and which not in failed:
            failed.add(which)
            raise MemoryError("not enough, this time")
        really(self, state, rows, images, ctf, found)

    monkeypatch.setattr(AlignStage, "_insert", insert)
    return failed


@pytest.mark.parametrize("failing", [False, True])
def test_bits_are_those_of_one_process(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """Also when tasks fail and are tried again: exactly once, work survives."""

    def program(open_pool: Any) -> bool:
        made = refine_input.make_input(tmp_path / "input", count=COUNT)
        expected = in_this_process(made, tmp_path / "alone")
        refine.run(settings_of(made, tmp_path / "run"), open_pool, QuietView())
        return refine_runs.digests(tmp_path / "run") == expected

    # a task is tried three times, so no more than two ranks may fail it
    failed = fail_at_first(monkeypatch) if failing and world.rank in (1, 2) else set()
    on_ranks(world, program)
    assert_on_all_ranks(world, bool(world.allreduce(len(failed))) == failing)


def test_an_image_that_turns_out_bad_ends_the_run_and_frees_all_ranks(
    world: Any, tmp_path: Path
) -> None:
    def program(open_pool: Any) -> bool:
        made = refine_input.make_input(tmp_path / "input", count=COUNT)
        images = refine_input.demo_images(COUNT)
        late = refine_input.not_read_first(COUNT)
        images[late, 5, 7] = np.nan
        write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)
        try:
            refine.run(settings_of(made, tmp_path / "run"), open_pool, QuietView())
        except InputError as error:
            return f"particle {late + 1} of" in str(error) and not (tmp_path / "run").exists()
        except MpiparError as error:
            sys.stderr.write(f"{error}\n")
        return False

    on_ranks(world, program)
