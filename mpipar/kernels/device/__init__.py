"""Kernels for NVIDIA GPUs, the twins of those beside them; imported only when a GPU is asked for.

Their arithmetic is that of `mpipar.kernels`: the functions of numbers there are compiled once more
(`device_code.on_device`). Sums have a fixed order, or are integers, so that bits repeat.
"""
