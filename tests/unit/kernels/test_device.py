"""Kernels for a GPU, without one: simulated, and compiled to its assembly language."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.jobs import patience

ROOT = Path(__file__).parents[3]
LIMIT = 300.0  # seconds; the simulator is slow
FOLDERS = ["tests/unit/kernels/device", "tests/unit/cryoem/device"]


def test_kernels_and_alignment_on_a_simulated_gpu(pytestconfig):
    """The simulator is chosen when numba is imported, so a process of its own runs these tests."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    for name in ("COVERAGE_PROCESS_START", "NUMBA_DISABLE_JIT"):
        environment.pop(name, None)
    warnings = [f"-W{rule}" for rule in pytestconfig.getoption("pythonwarnings") or []]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, *FOLDERS]
    with patience(LIMIT):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_kernels_compile_for_gpus(capability):
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.device_assembly", capability]
    with patience(LIMIT):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [
        "extract_slices", "insert_slices", "shift_images", "best_over_shifts", "pick_distinct",
        "keep_best", "best_of_starts", "climb", "move_images", "log_likelihoods", "exponentiate",
        "halve", "add_whole", "insert_whole", "spread_factors", "draw_poses", "score_poses",
    ]  # fmt: skip
