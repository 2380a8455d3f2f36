"""Environment variables by which a launcher or a batch system describes a job to its processes.

One list, in two parts: variables of a rank (which rank is this process, where is its launcher) and
variables of the allocation (which hosts and slots has the job). A process that is started for one
task must see neither: MPI in it would take itself for a rank of the job, and an mpirun in it would
start ranks on all hosts of the job, where other tasks run. Such a process keeps what the user has
set (OMPI_MCA_*, PMIX_MCA_*, PRTE_MCA_*), what the job is called and what each task of the job is
given (SLURM_JOB_ID, SLURM_CPUS_PER_TASK, JOB_ID, ...).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "FAULT_TOLERANCE",
    "FAULT_TOLERANT_MPI4PY",
    "GRID_ENGINE_HOSTS",
    "LOCAL_RANKS",
    "RANK_UNDER_PMIX",
    "RELAUNCHED",
    "SESSION_BASE",
    "SIZE_AND_RANK",
    "SLOTS",
    "SLURM_JOB",
    "SLURM_STEP",
    "SLURM_TASKS",
    "is_of_allocation",
    "is_of_rank",
    "wants_fault_tolerance",
    "without_launcher",
]

# Variables that are read, by name.

SIZE_AND_RANK: Final = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)
"""Number of ranks and own rank, as MPI launchers say them."""
LOCAL_RANKS: Final = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
)
"""Own number among the ranks of the node, as launchers say it."""
SLURM_STEP: Final = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_ID")
"""Number of tasks, own task and number of the step, as srun says them."""
RANK_UNDER_PMIX: Final = "PMIX_RANK"
SLURM_JOB: Final = "SLURM_JOB_ID"
SLURM_TASKS: Final = "SLURM_NTASKS"
SLOTS: Final = ("NSLOTS", "PBS_NP", "LSB_DJOB_NUMPROC")
"""Number of slots, as batch systems other than SLURM say it."""
GRID_ENGINE_HOSTS: Final = "PE_HOSTFILE"
FAULT_TOLERANCE: Final = "OMPI_MCA_mpi_ft_enable"
"""Set for its ranks by `mpirun --with-ft ulfm`."""
RELAUNCHED: Final = "MPIPAR_RELAUNCHED"
"""Set by mpipar for the ranks of a launcher that mpipar itself has started; names a file."""
SESSION_BASE: Final = "PRTE_MCA_prte_local_tmpdir_base"
"""Where Open MPI's mpirun keeps its session folder, which is named by its process number.

An mpirun that was killed leaves that folder, and an mpirun that is given the same number later does
not start ("The PMIx server's listener thread failed to start"). So each gets a folder of its own
around it.
"""
FAULT_TOLERANT_MPI4PY: Final = {
    "MPI4PY_RC_FINALIZE": "0",
    "MPI4PY_RC_THREAD_LEVEL": "serialized",
}
"""Set by mpipar for itself in a rank of a job that tolerates faults."""

# Variables that are removed, by pattern.

_RANK: Final = (
    # Open MPI 4 and 5. Not the user's: settings, leave to run as root, choices for mpicc.
    r"OMPI_(?!MCA_|ALLOW_RUN_AS_ROOT|(CC|CXX|FC|F77|F90|(CPP|C|CXX|F|FC|LD)FLAGS|LIBS)$).*",
    r"OMPI_MCA_(PREFIXES|cpu_type|initial_wdir|num_procs|mpi_ft_enable|shmem_RUNTIME.*)",
    # The same of Open MPI 4, and of Flux for that.
    r"OMPI_MCA_(ess|ess_.*|orte_(?!default_hostfile).*|pmix|schizo)",
    r"OPAL_(PREFIX|USER_PARAMS_GIVEN)",
    # The libraries by which a rank finds its launcher: PMIx and PRRTE, PMI-1 and PMI-2.
    r"PMIX_(?!MCA_).*|PRTE_(?!MCA_).*|PMI2?_.*",
    # MPICH, Intel MPI, MVAPICH.
    r"HYDRA_(CONTROL_FD|PROXY_.*)|HYD[IT]_.*|MPIEXEC_.*|GFORTRAN_UNBUFFERED_PRECONNECTED",
    r"MPI_LOCAL(RANKID|NRANKS)|I_MPI_(INFO_.*|PIN_(INFO|MAPPING))",
    r"(MV2|MVP)_COMM_WORLD_.*|MPISPAWN_.*|MPIRUN_.*",
    # srun.
    r"SLURM_(STEP.*|PROCID|LOCALID|NODEID|GTIDS|TASK_PID|SRUN_COMM_.*|LAUNCH_NODE_IPADDR)",
    r"SLURM_(PMI.*|MPI_TYPE|CPU_BIND.*|MEM_BIND.*|DISTRIBUTION)",
    # Launchers of Cray (PALS, ALPS), of IBM (JSM, LSF) and of Flux.
    r"PALS_.*|ALPS_.*|JSM_.*|LSF_PM_.*|FLUX_(TASK|PMI)_.*|FLUX_KVS_NAMESPACE",
    # mpipar, and a library that it uses.
    rf"{RELAUNCHED}|KMP_DUPLICATE_LIB_OK",
)
_ALLOCATION: Final = (
    # SLURM. Open MPI looks for SLURM_JOBID, not for SLURM_JOB_ID, to see whether it is in a job.
    r"SLURM_(JOBID|NNODES|JOB_NUM_NODES|NTASKS.*|NPROCS|HOSTFILE|NODE_ALIASES|HET_SIZE|PACK_SIZE)",
    r"SLURM_((JOB|ARBITRARY)_)?NODELIST.*|SLURM_(TASKS_PER_NODE|JOB_CPUS_PER_NODE).*",
    # Grid Engine, PBS and Torque, LSF, ALPS, Flux.
    r"PE_HOSTFILE|NSLOTS|NHOSTS|NQUEUES",
    r"PBS_(NODEFILE|ENVIRONMENT|NP|NUM_NODES|NUM_PPN)",
    r"LSB_(HOSTS|MCPU_HOSTS|AFFINITY_HOSTFILE|MAX_NUM_PROCESSORS|DJOB_.*)",
    r"BASIL_RESERVATION_ID|BATCH_PARTITION_ID",
    r"FLUX_(URI|JOB_SIZE|JOB_NNODES)",
    # Lists of hosts that a site or an operator of containers gives to every mpirun of a job.
    r"(I_MPI_)?HYDRA_HOST_FILE|(OMPI|PRTE)_MCA_(orte|prte)_default_hostfile",
)


def _matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_RANK_NAMES: Final = _matcher(_RANK)
_ALLOCATION_NAMES: Final = _matcher(_ALLOCATION)


def is_of_rank(name: str) -> bool:
    """Whether a variable says which rank a process is, or where its launcher is."""
    return _RANK_NAMES.fullmatch(name) is not None


def is_of_allocation(name: str) -> bool:
    """Whether a variable says which hosts and slots the job has."""
    return _ALLOCATION_NAMES.fullmatch(name) is not None


def wants_fault_tolerance(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether these variables are of a rank in which Open MPI goes on when another rank dies."""
    return environ.get(FAULT_TOLERANCE, "").lower() in {"1", "true", "yes", "enabled"}


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that has one place in the job and is no rank of it."""
    own = FAULT_TOLERANT_MPI4PY if wants_fault_tolerance(environ) else {}
    return {
        name: value
        for name, value in environ.items()
        if not (name in own or is_of_rank(name) or is_of_allocation(name))
    }
