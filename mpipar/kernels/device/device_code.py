"""Compilation for a GPU: device functions from the processor's, and the launch of a kernel.

Nothing here needs a GPU to be imported. With NUMBA_ENABLE_CUDASIM=1 numba runs kernels as Python
threads on arrays of numpy, which is how they are tested without one.
"""

from __future__ import annotations

import types
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import config, cuda

if TYPE_CHECKING:
    from collections.abc import Callable

vars(np).setdefault("row_stack", np.vstack)  # numba-cuda 0.30 wants it, numpy 2.5 has it not

SIMULATED = bool(config.ENABLE_CUDASIM)
config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # the last block of images may be small


def device_kernel(function: Callable[..., Any]) -> Any:
    """Return a kernel, compiled for the arguments' types at its first launch.

    What was compiled is kept in numba's cache, as that of the processor's kernels is.
    """
    return cuda.jit(cache=True)(function)


@cache
def on_device(function: Callable[..., Any]) -> Any:
    """Return the device function made from the text of a compiled function of numbers.

    What it calls, and is compiled for the processor, is made a device function as well.
    """
    plain = getattr(function, "py_func", function)
    names = {
        name: on_device(plain.__globals__[name])
        for name in plain.__code__.co_names
        if hasattr(plain.__globals__.get(name), "py_func")
    }
    text = types.FunctionType(
        plain.__code__, {**plain.__globals__, **names}, plain.__name__, None, plain.__closure__
    )
    return cuda.jit(device=True)(text)


def launch(
    kernel: Any, blocks: int, threads: int, arguments: tuple[Any, ...], shared: int = 0
) -> None:
    """Start a kernel on the default stream; do nothing if there is nothing to do.

    blocks, threads  how many blocks, and threads in each
    arguments        numbers, tuples of numbers, and arrays on the device
    shared           bytes of dynamic shared memory of each block
    """
    if blocks == 0:
        return
    kernel[blocks, threads, 0, shared](*(_argument(value) for value in arguments))


def _argument(value: Any) -> Any:
    """Return arrays as numba wants them, without waiting for what is still being computed."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_argument(item) for item in value)
    if SIMULATED or not hasattr(value, "__cuda_array_interface__"):
        return value
    return cuda.as_cuda_array(value, sync=False)


def blocks_for(threads_wanted: int, threads: int) -> int:
    """Return how many blocks of some threads are enough."""
    return -(-threads_wanted // threads)
