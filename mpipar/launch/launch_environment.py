"""What the environment says about this process, before any MPI library is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LaunchEnvironment"]

# Set for each process by what started it. Order matters: mpirun inside a SLURM job starts its
# daemons with srun, so SLURM's numbers then count daemons.
STARTED: Final = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)
# Places that a batch system gave to the job; how they are used is the job script's matter.
SLOTS: Final = ("NSLOTS", "PBS_NP", "LSB_DJOB_NUMPROC")


@dataclass(frozen=True)
class LaunchEnvironment:
    """What started this process, and how much of what it was given."""

    rank: int  # 0 if nothing says otherwise
    started: int | None  # processes started together with this one; None: not by a launcher
    tasks: int  # tasks that a SLURM allocation is for; 1 outside of one
    slots: int  # places that another batch system gave
    evidence: str  # the variable that says the largest number, e.g. "PMI_SIZE=4"
    unsized: bool = False  # an MPI launcher started this process but does not say how many
    in_slurm: bool = False  # inside a SLURM allocation, whose nodes srun reaches

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> LaunchEnvironment:
        """Read the environment, by default that of this process."""
        env = os.environ if environ is None else environ
        rank, started, evidence = _launcher(env)
        tasks = _number(env, "SLURM_NTASKS") or 1
        slots, name = max(((_number(env, name) or 1, name) for name in SLOTS), key=lambda s: s[0])
        if started in (None, 1) and tasks > 1:
            evidence = f"SLURM_NTASKS={tasks}"
        elif started in (None, 1) and slots > 1:
            evidence = f"{name}={slots}"
        unsized = started is None and "PMIX_RANK" in env
        if unsized:
            rank = _number(env, "PMIX_RANK") or 0
        return cls(rank, started, tasks, slots, evidence, unsized, "SLURM_JOB_ID" in env)

    @property
    def is_alone(self) -> bool:
        """Whether nothing says that other processes were started together with this one."""
        return self.started in (None, 1) and not self.unsized


def _launcher(env: Mapping[str, str]) -> tuple[int, int | None, str]:
    """Rank, number of processes and the variable that says so; number None without a launcher."""
    for size_name, rank_name in STARTED:
        size = _number(env, size_name)
        if size is not None:
            return _number(env, rank_name) or 0, size, f"{size_name}={size}"
    # srun. The batch shell itself has SLURM_PROCID too, but no step number.
    size = _number(env, "SLURM_STEP_NUM_TASKS")
    if size is not None and "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        return _number(env, "SLURM_PROCID") or 0, size, f"SLURM_STEP_NUM_TASKS={size}"
    return 0, None, ""


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isdecimal() else None
