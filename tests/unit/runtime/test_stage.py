from __future__ import annotations

import numpy as np
import pytest

from mpipar.errors import InputError, TaskFailedError
from mpipar.runtime.stage import GivenUpTask, Stage, frozen


class Plain(Stage):
    def run(self, task, block, state):
        return None


class Summing(Plain):
    def partial(self, state):
        return {}


def test_stage_has_sums_if_it_says_how():
    assert not Plain().has_sums
    assert Summing().has_sums


def test_stage_without_start_has_no_state_and_no_partial():
    assert Plain().start({}) is None
    assert Plain().partial(None) is None


@pytest.mark.parametrize("view", ["forward", "strided", "fortran", "memmap", "scalar"])
def test_frozen_arrays_are_plain_c_ordered_and_read_only(view, tmp_path):
    grid = np.arange(30.0).reshape(5, 6)
    np.save(tmp_path / "grid.npy", grid)
    value = {
        "forward": lambda: grid,
        "strided": lambda: grid[::2, 1:],
        "fortran": lambda: np.asfortranarray(grid),
        "memmap": lambda: np.load(tmp_path / "grid.npy", mmap_mode="r"),
        "scalar": lambda: np.array(3.0),
    }[view]()
    found = frozen({"x": value})["x"]
    assert type(found) is np.ndarray
    assert (found.shape, found.flags.c_contiguous, found.flags.writeable) == (
        value.shape,
        True,
        False,
    )
    assert np.array_equal(found, value)
    assert grid.flags.writeable


def test_other_values_are_left_alone():
    values = {"text": "x", "number": 3, "list": [1]}
    assert frozen(values) == values


def test_what_a_task_says_of_the_input_is_the_error_of_the_run():
    said = GivenUpTask(
        3, "InputError", "particle 5 has pixels that are NaN", "Traceback ...", (1, 2)
    )
    error = said.as_error()
    assert type(error) is InputError
    assert str(error) == "particle 5 has pixels that are NaN"
    error = GivenUpTask(3, "ValueError", "no", "Traceback ...", (1, 2)).as_error()
    assert type(error) is TaskFailedError
    assert "task 3 failed 2 times, on ranks 1, 2: ValueError: no\nTraceback ..." in str(error)
