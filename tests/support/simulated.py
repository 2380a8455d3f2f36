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


class DeviceArray(np.ndarray[Any, Any]):
    """An array of the stand-in for cupy: like cupy's, it refuses to be mixed with the host's."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **words: Any) -> Any:
        require_device(inputs, words)
        plain = [as_host(item) for item in inputs]
        if "out" in words:
            words["out"] = tuple(as_host(item) for item in words["out"])
        return as_device(getattr(ufunc, method)(*plain, **words))

    def __array_function__(self, function: Any, types: Any, args: Any, words: Any) -> Any:
        require_device(args, words)
        return as_device(super().__array_function__(function, types, args, words))

    def __setitem__(self, place: Any, value: Any) -> None:
        require_device((value,), {})
        super().__setitem__(place, value)

    def __bool__(self) -> bool:
        raise AssertionError("the host waits for the device")

    def get(self) -> NDArray[Any]:
        """Copy it to the host, noting that."""
        FETCHED.append(self.shape)
        return np.array(as_host(self))


def require_device(items: Any, words: dict[str, Any]) -> None:
    """Raise TypeError if an array of the host is among the arguments."""
    for item in (*items, *words.values()):
        if isinstance(item, tuple | list):
            require_device(item, {})
        elif isinstance(item, np.ndarray) and item.ndim and not isinstance(item, DeviceArray):
            raise TypeError("an array of the host among those of the device")


def as_host(item: Any) -> Any:
    """The same memory as an array of numpy."""
    return item.view(np.ndarray) if isinstance(item, DeviceArray) else item


def as_device(item: Any) -> Any:
    """The same memory as an array of the device."""
    if isinstance(item, np.ndarray) and not isinstance(item, DeviceArray):
        return item.view(DeviceArray)
    return item


class ArrayModule:
    """Numpy, or a module of it, in the place of cupy."""

    def __init__(self, module: Any = np) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name == "fft":
            return ArrayModule(found)

        def call(*args: Any, **words: Any) -> Any:
            if name != "asarray":
                require_device(args, words)
            return as_device(found(*args, **words))

        return call


FETCHED: list[tuple[int, ...]] = []
"""Shapes of the arrays that were copied to the host."""


def simulated_device() -> Accelerator:
    """A device whose arrays are numpy's."""
    FETCHED.clear()
    return Accelerator(ArrayModule(), "simulated", 1 << 40)


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of simulated threads is that many threads of Python: take few."""
    from mpipar.cryoem.device import device_alignment
    from mpipar.kernels.device import device_scores

    monkeypatch.setattr(device_scores, "PICKERS", 32)
    monkeypatch.setattr(device_alignment, "FEW_THREADS", 32)
