"""Numba loops: arrays in, arrays changed in place; no checks, no Python objects.

Only `mpipar.cryoem` calls them.
"""

from mpipar.kernels.jit import one_compiler_per_node

with one_compiler_per_node():
    from mpipar.kernels import insertion, pose_weights, poses, scores, slices, volume_passes

__all__ = ["insertion", "pose_weights", "poses", "scores", "slices", "volume_passes"]
