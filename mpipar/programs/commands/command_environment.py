"""What a command finds in its environment: what its worker was started with, less the launcher.

A command that uses MPI itself, or calls mpirun, would take the launcher's variables for its own:
it would believe to be a rank of a world that it is not in, refuse to start another one, or start
its ranks on all nodes of the job, where other commands are running.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["inherited", "without_launcher"]

THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_LAUNCHERS: Final = re.compile(
    r"""
    OMPI_(?!MCA_|ALLOW_RUN_AS_ROOT).*       # Open MPI: of this rank and its job
    | OMPI_MCA_(PREFIXES|cpu_type|initial_wdir|num_procs|mpi_ft_enable|ess_.*|orte_.*)
    | OMPI_MCA_shmem_RUNTIME.*
    | OPAL_(PREFIX|USER_PARAMS_GIVEN)
    | PMIX_(?!MCA_).* | PRTE_(?!MCA_).*
    | (PMI|PMI2|HYDI|HYDT|MV2_COMM_WORLD|MPIEXEC)_.*     # MPICH and its kin
    | MPI_LOCAL(RANKID|NRANKS) | MPIRUN_.*
    | SLURM_(STEP.*|PROCID|LOCALID|NODEID|GTIDS|TASK_PID|SRUN_COMM_.*|LAUNCH_NODE_IPADDR|PMI.*)
    | SLURM_(MPI_TYPE|CPU_BIND.*|MEM_BIND.*|DISTRIBUTION)
    # the allocation: a command has one place in it, and an mpirun in a command would take it all
    | SLURM_(JOBID|(JOB_)?NODELIST|NNODES|JOB_NUM_NODES|NTASKS.*|NPROCS|TASKS_PER_NODE)
    | SLURM_JOB_CPUS_PER_NODE.*
    | PE_HOSTFILE | NSLOTS | NHOSTS | PBS_(NODEFILE|ENVIRONMENT|NP) | LSB_(HOSTS|MCPU_HOSTS|DJOB_.*)
    | PALS_.* | ALPS_.* | JSM_.* | FLUX_(TASK|PMI).*            # launchers of Cray and IBM
    | MPIPAR_RELAUNCHED | MPI4PY_RC_(FINALIZE|THREAD_LEVEL) | KMP_DUPLICATE_LIB_OK    # our own
    """,
    re.VERBOSE,
)


def inherited() -> dict[str, str]:
    """What a command has from its worker: the environment in which that was started.

    Not what mpipar and its libraries have added since, which is for them alone. But one command has
    one core if the user says nothing else, as the worker itself.
    """
    try:
        started = Path("/proc/self/environ").read_bytes()
    except OSError:
        started = b"\0".join(os.fsencode(f"{n}={v}") for n, v in os.environ.items())
    pairs = (item.partition(b"=") for item in started.split(b"\0") if b"=" in item)
    found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}
    return {**dict.fromkeys(THREADS, "1"), **without_launcher(found)}


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as if mpirun or srun had never been.

    Settings of the user's own stay (OMPI_MCA_*, PMIX_MCA_*), and what a batch job is called and how
    much each of its tasks has (SLURM_JOB_ID, SLURM_CPUS_PER_TASK, JOB_ID, ...).
    """
    return {name: value for name, value in environ.items() if not _LAUNCHERS.fullmatch(name)}
