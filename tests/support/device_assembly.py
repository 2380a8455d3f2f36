"""Compiles each kernel for a GPU that is not there: python -m tests.support.device_assembly 9.0."""

from __future__ import annotations

import sys
from typing import Any

import numba
from numba import cuda, types
from numba.cuda import dispatcher

from mpipar.kernels.device import (
    device_climb,
    device_drawn_poses,
    device_insertion,
    device_pose_weights,
    device_scores,
    device_slices,
)
from mpipar.kernels.poses import OPTIONS


def array(kind: Any, dimensions: int) -> Any:
    """The type of an array in C order."""
    return types.Array(kind, dimensions, "C")


f32, f64, i16, i32, i64 = types.float32, types.float64, types.int16, types.int32, types.int64
pair = types.UniTuple(i64, 2)
KERNELS: list[tuple[Any, tuple[Any, ...]]] = [
    (
        device_slices.extract_slices,
        (array(f32, 1), pair, array(f32, 3), array(f32, 2), array(f32, 3)),
    ),
    (
        device_insertion.insert_slices,
        (array(f32, 3), array(f64, 3), array(f32, 2), types.UniTuple(f64, 2), pair, array(i64, 1)),
    ),
    (
        device_scores.shift_images,
        (array(f32, 3), array(f64, 2), array(f64, 2), array(f32, 2), i64, array(f32, 4)),
    ),
    (
        device_scores.best_over_shifts,
        (array(f32, 3), array(f32, 2), types.boolean, array(f32, 2), array(i16, 2)),
    ),
    (device_scores.pick_distinct, (array(f32, 2), array(f32, 3), f64, array(i32, 2))),
    (
        device_scores.keep_best,
        (array(f64, 4), array(f64, 3), array(f64, 2), types.UniTuple(f64, 3), array(i32, 2)),
    ),
    (device_scores.best_of_starts, (array(f64, 2), array(i32, 1))),
    (
        device_climb.climb,
        (
            types.Tuple([array(f32, 1), i64, i64]), array(f32, 2), array(f32, 3), array(i32, 1),
            OPTIONS, i64, types.Tuple([array(f64, 3), array(f64, 2)]), array(f64, 1), array(f64, 3),
        ),
    ),
    (
        device_pose_weights.move_images,
        (
            array(f32, 3), array(f64, 2), array(f64, 2), array(f32, 2), i64, array(f32, 2),
            array(f32, 2),
        ),
    ),
    (
        device_pose_weights.log_likelihoods,
        (array(f32, 3), array(f32, 3), array(f32, 2), array(f32, 1), types.boolean, array(f32, 2)),
    ),
    (
        device_pose_weights.exponentiate,
        (array(f32, 3), array(f32, 3), array(f32, 1), array(f32, 3)),
    ),
    (device_pose_weights.halve, (array(f32, 3), array(f32, 3), array(f64, 1))),
    (device_pose_weights.add_whole, (array(f32, 3), types.UniTuple(f64, 2), array(i64, 3))),
    (
        device_pose_weights.insert_whole,
        (array(i64, 3), array(f64, 3), array(f32, 2), i64, pair, array(i64, 1)),
    ),
    (
        device_drawn_poses.spread_factors,
        (array(f64, 3), f64, types.UniTuple(f64, 2), f64, array(f64, 3), array(f64, 2)),
    ),
    (
        device_drawn_poses.draw_poses,
        (
            types.Tuple([array(f64, 4), array(f64, 3), array(f64, 4)]), array(i32, 2),
            array(types.boolean, 1), array(f64, 2), array(f64, 5), array(f64, 4), array(f64, 3),
        ),
    ),
    (
        device_drawn_poses.score_poses,
        (
            types.Tuple([array(f32, 1), i64, i64]), array(f32, 2), array(f32, 3), array(i32, 1),
            OPTIONS, i64, types.Tuple([array(f64, 3), array(f64, 2)]), array(f64, 1),
        ),
    ),
]  # fmt: skip


def main() -> None:
    """Print the name of each kernel that compiles."""
    capability = tuple(map(int, sys.argv[1].split(".")))
    card = type("Card", (), {"compute_capability": capability})()
    dispatcher.get_current_device = lambda: card  # device functions ask for it
    for kernel, signature in KERNELS:
        text, _ = cuda.compile_ptx(kernel.py_func, numba.void(*signature), cc=capability)
        assert f".target sm_{capability[0]}{capability[1]}" in text
        print(kernel.py_func.__name__)


if __name__ == "__main__":
    main()
