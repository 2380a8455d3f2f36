"""One GPU: its arrays, by cupy, and what goes to it and comes back."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import node
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Accelerator:
    """A device and the module of its arrays.

    xp      cupy; a test gives a stand-in made of numpy, and lets the kernels be simulated
    name    of the device and of the libraries that decide about its bits
    memory  bytes that were free when it was opened
    number  of the device, among those that the process sees
    """

    xp: Any
    name: str
    memory: int
    number: int = 0

    @property
    def is_real(self) -> bool:
        """Whether it is a GPU: a test's device is not."""
        return hasattr(self.xp, "cuda")

    def active(self) -> AbstractContextManager[Any]:
        """Make it the calling thread's current device, for as long as the context lasts."""
        if not self.is_real:
            return nullcontext()
        device: AbstractContextManager[Any] = self.xp.cuda.Device(self.number)
        return device

    def to_device(self, array: NDArray[Any]) -> Any:
        """Return a copy on the device, in C order."""
        return self.xp.asarray(np.ascontiguousarray(array))

    def upload(self, array: NDArray[Any]) -> Any:
        """Return a copy on the device, made while the device computes something else."""
        if not self.is_real:
            return self.to_device(array)
        import cupyx

        staged = cupyx.empty_pinned(array.shape, array.dtype)
        staged[...] = array
        with self.xp.cuda.Stream(non_blocking=True) as stream:
            there = self.xp.empty(array.shape, array.dtype)
            there.set(staged, stream=stream)
        stream.synchronize()
        return there

    def to_host(self, array: Any) -> NDArray[Any]:
        """Return a copy in the host's memory; waits for what is being computed."""
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def coarse_product(self, left: Any, right: Any) -> Any:
        """Return the product of float32 matrices; their entries may be rounded to 11 bits (TF32).

        Only for the grid search, whose best candidates are scored again.
        """
        with _rounded_products() if self.is_real else nullcontext():
            return self.xp.matmul(left, right)


@contextmanager
def _rounded_products() -> Iterator[None]:
    """Let cupy's float32 products run on the units for TF32."""
    from cupy._core import _routines_linalg as products

    before = products.get_compute_type(np.float32)
    products.set_compute_type(np.float32, products.COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        products.set_compute_type(np.float32, before)


@cache
def device_count() -> int:
    """Return how many GPUs this process sees.

    raises  UnavailableError without cupy, numba's CUDA or any GPU
    """
    try:
        import cupy

        from mpipar.kernels.device import device_code  # noqa: F401 - whether numba has CUDA
    except ImportError as error:
        raise UnavailableError(
            f"--gpu needs cupy and numba-cuda ({error}): pip install 'mpipar[gpu]', or leave --gpu "
            "out"
        ) from error
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UnavailableError(f"--gpu: no GPU can be used on {node()}: {error}") from error
    if count == 0:
        raise UnavailableError(f"--gpu: there is no GPU on {node()}")
    return count


def open_accelerator(number: int) -> Accelerator:
    """Return the GPU of this number, from 0, among those that this process sees.

    raises  UnavailableError as `device_count`, or if there is no such GPU
    """
    count = device_count()
    import cupy

    if number >= count:
        raise UnavailableError(
            f"--gpu: there is no GPU {number} on {node()}, where this process sees {count}, "
            "counted from 0"
        )
    with cupy.cuda.Device(number):
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        free = int(cupy.cuda.runtime.memGetInfo()[0])
    versions = f"cupy {cupy.__version__}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}"
    name = f"{properties['name'].decode()}, {versions}, numba-cuda {_version('numba-cuda')}"
    return Accelerator(cupy, name, free, number)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
