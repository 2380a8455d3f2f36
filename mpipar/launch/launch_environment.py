"""What environment variables say of this process, before any MPI library is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar.runtime.process.launcher_variables import (
    RANK_UNDER_PMIX,
    SIZE_AND_RANK,
    SLOTS,
    SLURM_JOB,
    SLURM_STEP,
    SLURM_TASKS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LaunchEnvironment"]


@dataclass(frozen=True)
class LaunchEnvironment:
    """What started this process, how many were started with it, and what the job was given."""

    rank: int  # 0 if nothing says otherwise
    started: int | None  # processes started together with this one; None: not by a launcher
    tasks: int  # tasks that a SLURM allocation is for; 1 outside of one
    slots: int  # that another batch system gave to the job; the job script decides on their use
    evidence: str  # the variable that says the largest number, e.g. "PMI_SIZE=4"
    unsized: bool = False  # an MPI launcher started this process but does not say how many
    in_slurm: bool = False  # inside a SLURM allocation, whose nodes srun reaches

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> LaunchEnvironment:
        """Read the environment, by default that of this process."""
        env = os.environ if environ is None else environ
        rank, started, evidence = _launcher(env)
        tasks = _number(env, SLURM_TASKS) or 1
        slots, name = max(((_number(env, name) or 1, name) for name in SLOTS), key=lambda s: s[0])
        if started in (None, 1) and tasks > 1:
            evidence = f"{SLURM_TASKS}={tasks}"
        elif started in (None, 1) and slots > 1:
            evidence = f"{name}={slots}"
        unsized = started is None and RANK_UNDER_PMIX in env
        if unsized:
            rank = _number(env, RANK_UNDER_PMIX) or 0
        return cls(rank, started, tasks, slots, evidence, unsized, SLURM_JOB in env)

    @property
    def is_alone(self) -> bool:
        """Whether this process was started alone, as far as the variables say."""
        return self.started in (None, 1) and not self.unsized


def _launcher(env: Mapping[str, str]) -> tuple[int, int | None, str]:
    """Rank, number of processes, and the variable that says it; None and "" without a launcher."""
    # mpirun before srun: inside a SLURM job mpirun starts its daemons with srun, whose numbers then
    # count daemons.
    for size_name, rank_name in SIZE_AND_RANK:
        size = _number(env, size_name)
        if size is not None:
            return _number(env, rank_name) or 0, size, f"{size_name}={size}"
    # The batch shell itself has the own task's number too, but no step.
    size_name, rank_name, step_name = SLURM_STEP
    size = _number(env, size_name)
    if size is not None and step_name in env and rank_name in env:
        return _number(env, rank_name) or 0, size, f"{size_name}={size}"
    return 0, None, ""


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isdecimal() else None
