"""The device of tests without a GPU: arrays of numpy, kernels run by numba's CUDA simulator."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.cryoem.device.accelerator import Accelerator

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

only_simulated = pytest.mark.skipif(
    not SIMULATED, reason="runs in a process of its own: tests/unit/kernels/test_device.py"
)


class CountedTransfers(Accelerator):
    """An accelerator that notes what is copied to the host."""

    def to_host(self, array: Any) -> NDArray[Any]:
        FETCHED.append(array.shape)
        return super().to_host(array)


FETCHED: list[tuple[int, ...]] = []


def simulated_device() -> CountedTransfers:
    """A device whose arrays are numpy's."""
    FETCHED.clear()
    return CountedTransfers(np, "simulated", 1 << 40)


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of simulated threads is that many threads of Python: take few."""
    from mpipar.cryoem.device import device_alignment
    from mpipar.kernels.device import device_scores

    monkeypatch.setattr(device_scores, "PICKERS", 32)
    monkeypatch.setattr(device_alignment, "FEW_THREADS", 32)
