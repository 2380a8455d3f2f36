"""Who gets which GPU, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from mpipar.cryoem.device.device_memory import device_bytes
from mpipar.cryoem.search_plan import Sampling, plan_search
from mpipar.errors import UnavailableError, UsageError
from mpipar.programs import checkpoints, dataset, devices
from mpipar.programs.devices import DeviceChoice
from mpipar.runtime.clusters.thread_cluster import open_pool
from mpipar.runtime.process.launcher_variables import LOCAL_RANKS
from mpipar.settings import RefineSettings
from mpipar.store.project import Project

without_cupy = pytest.mark.skipif(find_spec("cupy") is not None, reason="cupy is installed")


@pytest.mark.parametrize("text", ["all", "0,", "-1", "0;1", "auto,1"])
def test_other_words_are_refused_before_any_file_is_opened(tmp_path, text):
    with pytest.raises(UsageError, match="give auto, or the numbers of GPUs"):
        RefineSettings(input=tmp_path / "p.star", model=tmp_path / "m.mrc", gpu=text)


def test_numbers_and_auto():
    assert DeviceChoice.parse("auto").cards == ()
    assert DeviceChoice.parse("0,2").cards == (0, 2)


@without_cupy
def test_without_cupy_auto_goes_on_and_a_number_is_refused():
    with open_pool(2) as pool:
        choice, reason = devices.choose(pool, "auto", 1e9)
        assert choice is None
        assert "cupy" in reason
        with pytest.raises(UnavailableError, match=r"pip install 'mpipar\[gpu\]'"):
            devices.choose(pool, "0", 1e9)


@pytest.fixture
def cards(monkeypatch):
    """Four GPUs of this node, as numbers that `open_accelerator` is asked for."""
    asked = []
    from mpipar.cryoem.device import accelerator

    def open_one(number):
        asked.append(number)
        return accelerator.Accelerator(np, f"card {min(number, 2)}, libraries", 10**9, number)

    monkeypatch.setattr(accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(accelerator, "open_accelerator", open_one)
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    return asked


def test_workers_of_a_node_are_dealt_to_its_cards(cards, monkeypatch):
    for rank in range(6):
        monkeypatch.setenv("SLURM_LOCALID", str(rank))
        DeviceChoice(()).open()
        DeviceChoice((1, 3)).open()
    assert cards == [0, 1, 1, 3, 2, 1, 3, 3, 0, 1, 1, 3]


def test_too_little_memory_is_said_with_both_numbers(cards):
    with (
        open_pool(1) as pool,
        pytest.raises(
            UnavailableError, match=r"card 2 has 1\.0 GB free, and a worker needs about 3\.5 GB"
        ),
    ):
        devices.choose(pool, "2", 3.5e9)


def test_one_kind_of_card_is_chosen_and_two_are_refused(cards, monkeypatch):
    with open_pool(1) as pool:
        choice, found = devices.choose(pool, "1", 5e8)
    assert (choice, found) == (DeviceChoice((1,), 5e8, found), "card 1, libraries")
    assert choice.open().name == found
    with pytest.raises(
        UnavailableError, match=r"a worker has card 1.* where the others have card 2"
    ):
        DeviceChoice((1,), 5e8, "card 2, libraries").open()
    monkeypatch.setattr(devices, "_number_on_node", iter([0, 1]).__next__)
    with open_pool(2) as pool, pytest.raises(UnavailableError, match="different GPUs"):
        devices.choose(pool, "0,1", 5e8)


def test_blocks_for_a_card_are_large_and_hold_all_particles():
    half = np.tile(np.array([1, 2], np.int8), 10_000)
    blocks = dataset.blocks_of(half, on_devices=True)
    assert max(map(len, blocks)) <= 512
    assert min(map(len, blocks)) > 400
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.arange(20_000))
    few = dataset.blocks_of(half[:100], on_devices=True)
    assert [len(rows) for rows in few] == [50, 50]


def test_memory_grows_with_the_box_and_the_search():
    def need(box, orientations):
        plan = plan_search(
            Sampling(box, 0.7 * box, box // 2), box // 2, exhaustive=True, free_scale=True
        )
        return device_bytes(box, plan, box // 2, orientations, 512)

    assert 8e8 < need(64, 1000) < need(64, 15_000) < need(128, 15_000) < need(256, 15_000) < 2e10


def test_a_run_is_resumed_on_what_it_was_begun_on(tmp_path):
    with Project.create(tmp_path / "run", settings={}, kind="refine") as project:
        project.commit(0, {}, {"environment": checkpoints.environment("card, libraries")})
        assert checkpoints.changed_environment(project, "card, libraries") == []
        assert checkpoints.changed_environment(project, "other") == [
            "device was card, libraries, is other"
        ]
        with pytest.raises(UnavailableError, match="was begun on card, libraries, and now there"):
            checkpoints.changed_environment(project)


def test_nothing_of_a_gpu_is_loaded_unless_one_is_asked_for():
    code = (
        "import sys, mpipar.programs.refine; "
        "sys.exit(any(m.split('.')[0] == 'cupy' or m.startswith('numba.cuda.cudadrv') "
        "or 'kernels.device' in m for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
