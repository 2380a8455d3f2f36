from __future__ import annotations

import pytest

from mpipar.launch import LaunchEnvironment

BATCH_SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(
    ("env", "rank", "started", "evidence"),
    [
        ({}, 0, None, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, 3, 4, "OMPI_COMM_WORLD_SIZE"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, 1, 2, "PMI_SIZE"),
        ({**BATCH_SHELL, **STEP}, 2, 4, "SLURM_STEP_NUM_TASKS"),
        (BATCH_SHELL, 0, None, "SLURM_NTASKS"),
        ({"NSLOTS": "8"}, 0, None, "NSLOTS"),
        ({"NSLOTS": "1"}, 0, None, ""),
        ({"NSLOTS": "many"}, 0, None, ""),
    ],
)
def test_launchers_are_recognised(env, rank, started, evidence):
    around = LaunchEnvironment.read(env)
    assert (around.rank, around.started, around.evidence.split("=")[0]) == (rank, started, evidence)


def test_mpirun_inside_a_slurm_step_is_believed_before_slurm():
    env = {**BATCH_SHELL, **STEP, "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
    around = LaunchEnvironment.read(env)
    assert (around.rank, around.started) == (5, 8)


@pytest.mark.parametrize(
    ("env", "alone"),
    [
        ({}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, False),
        ({"PMIX_RANK": "1"}, False),
        (BATCH_SHELL, True),
    ],
)
def test_alone_means_that_nothing_speaks_of_others(env, alone):
    assert LaunchEnvironment.read(env).is_alone is alone
