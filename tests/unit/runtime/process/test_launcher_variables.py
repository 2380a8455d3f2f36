"""What launchers and batch systems set, and what of that a process of its own may see."""

from __future__ import annotations

import pytest

from mpipar.runtime.process import launcher_variables
from mpipar.runtime.process.launcher_variables import (
    is_of_allocation,
    is_of_rank,
    without_launcher,
)

RANK = {
    "Open MPI 5": """
        OMPI_ARGV OMPI_COMMAND OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE
        OMPI_COMM_WORLD_NODE_RANK OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_FILE_LOCATION
        OMPI_LIBDIR_LOC OMPI_MCA_PREFIXES OMPI_MCA_cpu_type OMPI_MCA_initial_wdir
        OMPI_MCA_mpi_ft_enable OMPI_MCA_num_procs OMPI_NUM_APP_CTX OMPI_TOOL_NAME
        OMPI_UNIVERSE_SIZE OMPI_VERSION OMPI_WORLD_LOCAL_SIZE OMPI_WORLD_SIZE OPAL_PREFIX
        OPAL_USER_PARAMS_GIVEN
    """,
    "Open MPI 4": """
        OMPI_APP_CTX_NUM_PROCS OMPI_FIRST_RANKS OMPI_MCA_ess OMPI_MCA_ess_base_jobid
        OMPI_MCA_ess_base_vpid OMPI_MCA_orte_app_num OMPI_MCA_orte_bound_at_launch
        OMPI_MCA_orte_ess_node_rank OMPI_MCA_orte_ess_num_procs OMPI_MCA_orte_hnp_uri
        OMPI_MCA_orte_jobfam_session_dir OMPI_MCA_orte_launch OMPI_MCA_orte_local_daemon_uri
        OMPI_MCA_orte_num_nodes OMPI_MCA_orte_precondition_transports OMPI_MCA_orte_tmpdir_base
        OMPI_MCA_orte_top_session_dir OMPI_MCA_pmix OMPI_MCA_shmem_RUNTIME_QUERY_hint
    """,
    "PRRTE": "PRTE_LAUNCHED PRTE_PREFIX PRTE_SHARED_FS",
    "PMIx": """
        PMIX_BFROP_BUFFER_TYPE PMIX_DSTORE_21_BASE_PATH PMIX_DSTORE_ESH_BASE_PATH PMIX_GDS_MODULE
        PMIX_HOSTNAME PMIX_ID PMIX_NAMESPACE PMIX_PARAM_FILE_PASSED PMIX_PREFIX PMIX_PTL_MODULE
        PMIX_RANK PMIX_SECURITY_MODE PMIX_SERVER_TMPDIR PMIX_SERVER_URI2 PMIX_SERVER_URI21
        PMIX_SERVER_URI3 PMIX_SERVER_URI4 PMIX_SERVER_URI41 PMIX_SYSTEM_TMPDIR PMIX_VERSION
    """,
    "MPICH, Hydra": """
        GFORTRAN_UNBUFFERED_PRECONNECTED HYDI_CONTROL_FD HYDRA_CONTROL_FD HYDRA_PROXY_ID
        HYDRA_PROXY_PORT MPI_LOCALNRANKS MPI_LOCALRANKID PMI_APPNUM PMI_FD PMI_HOSTNAME PMI_ID
        PMI_KVSNAME PMI_PORT PMI_PROCESS_MAPPING PMI_RANK PMI_SIZE PMI_SPAWNED PMI2_JOBID PMI2_RANK
    """,
    "Intel MPI": """
        I_MPI_INFO_NUMA_NODE_MAP I_MPI_INFO_NUMA_NODE_NUM I_MPI_PIN_INFO I_MPI_PIN_MAPPING
        MPI_LOCALNRANKS MPI_LOCALRANKID PMI_FD PMI_RANK PMI_SIZE
    """,
    "MVAPICH": """
        MPIRUN_COMM_MULTIPLE MPIRUN_NTASKS MPIRUN_RANK MPIRUN_RSH_LAUNCH MPISPAWN_GLOBAL_NPROCS
        MPISPAWN_ID MPISPAWN_MPIRUN_HOST MPISPAWN_NNODES MV2_COMM_WORLD_LOCAL_RANK
        MV2_COMM_WORLD_LOCAL_SIZE MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE
        MVP_COMM_WORLD_LOCAL_RANK MVP_COMM_WORLD_RANK
    """,
    "srun": """
        SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE
        SLURM_DISTRIBUTION SLURM_GTIDS SLURM_LAUNCH_NODE_IPADDR SLURM_LOCALID SLURM_MEM_BIND
        SLURM_MEM_BIND_TYPE SLURM_MPI_TYPE SLURM_NODEID SLURM_PMI2_SRUN_PORT
        SLURM_PMIXP_ABORT_AGENT_PORT SLURM_PMIX_MAPPING_SERV SLURM_PMI_KVS_NO_DUP_KEYS SLURM_PROCID
        SLURM_SRUN_COMM_HOST SLURM_SRUN_COMM_PORT SLURM_STEPID SLURM_STEP_GPUS SLURM_STEP_ID
        SLURM_STEP_LAUNCHER_PORT SLURM_STEP_NODELIST SLURM_STEP_NUM_NODES SLURM_STEP_NUM_TASKS
        SLURM_STEP_RESV_PORTS SLURM_STEP_TASKS_PER_NODE SLURM_TASK_PID
    """,
    "Cray PALS": """
        PALS_APID PALS_APINFO PALS_DEPTH PALS_FD PALS_LOCAL_RANKID PALS_LOCAL_SIZE PALS_NODEID
        PALS_RANKID PALS_SPOOL_DIR PALS_STARTUP_BARRIER PMI_CONTROL_PORT PMI_JOBID PMI_LOCAL_RANK
        PMI_LOCAL_SIZE PMI_SHARED_SECRET PMI_UNIVERSE_SIZE
    """,
    "Cray ALPS": "ALPS_APP_DEPTH ALPS_APP_ID ALPS_APP_PE ALPS_LLI_STATUS_OFFSET PMI_NO_FORK",
    "JSM": """
        JSM_GPU_ASSIGNMENTS JSM_NAMESPACE_LOCAL_RANK JSM_NAMESPACE_LOCAL_SIZE JSM_NAMESPACE_RANK
        JSM_NAMESPACE_SIZE
    """,
    "LSF": "LSF_PM_TASKID",
    "Flux": """
        FLUX_KVS_NAMESPACE FLUX_PMI_LIBRARY_PATH FLUX_TASK_LOCAL_ID FLUX_TASK_RANK OMPI_MCA_schizo
        PMI_FD PMI_RANK PMI_SIZE PMI_SPAWNED
    """,
    "mpipar": "MPIPAR_RELAUNCHED KMP_DUPLICATE_LIB_OK",
}
ALLOCATION = {
    "SLURM": """
        SLURM_ARBITRARY_NODELIST SLURM_HET_SIZE SLURM_HOSTFILE SLURM_JOBID SLURM_JOB_CPUS_PER_NODE
        SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0 SLURM_JOB_NODELIST SLURM_JOB_NODELIST_HET_GROUP_1
        SLURM_JOB_NUM_NODES SLURM_NNODES SLURM_NODELIST SLURM_NODE_ALIASES SLURM_NPROCS
        SLURM_NTASKS SLURM_NTASKS_PER_CORE SLURM_NTASKS_PER_NODE SLURM_TASKS_PER_NODE
        SLURM_TASKS_PER_NODE_PACK_GROUP_0
    """,
    "Grid Engine": "NHOSTS NQUEUES NSLOTS PE_HOSTFILE",
    "PBS": "PBS_ENVIRONMENT PBS_NODEFILE PBS_NP PBS_NUM_NODES PBS_NUM_PPN",
    "LSF": """
        LSB_AFFINITY_HOSTFILE LSB_DJOB_HOSTFILE LSB_DJOB_NUMPROC LSB_DJOB_RANKFILE LSB_HOSTS
        LSB_MAX_NUM_PROCESSORS LSB_MCPU_HOSTS
    """,
    "ALPS": "BASIL_RESERVATION_ID BATCH_PARTITION_ID",
    "Flux": "FLUX_JOB_NNODES FLUX_JOB_SIZE FLUX_URI",
    "lists of hosts": """
        HYDRA_HOST_FILE I_MPI_HYDRA_HOST_FILE OMPI_MCA_orte_default_hostfile
        PRTE_MCA_prte_default_hostfile
    """,
}
KEPT = {
    "of the user": """
        HYDRA_IFACE I_MPI_FABRICS I_MPI_HYDRA_BOOTSTRAP I_MPI_PIN MPIPAR_PATIENCE
        MV2_ENABLE_AFFINITY MY_PMI_RANK OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM
        OMPI_CC OMPI_CFLAGS OMPI_MCA_btl OMPI_MCA_btl_tcp_if_include OMPI_MCA_coll_hcoll_enable
        OMPI_MCA_pml OMP_NUM_THREADS PATH PMIC PMIX_MCA_gds PRTE_MCA_plm_ssh_agent UCX_TLS
    """,
    "of the job and of each task": """
        FLUX_JOB_ID FLUX_JOB_TMPDIR JOB_ID LSB_JOBID PBS_JOBID SGE_ROOT SGE_TASK_ID
        SLURM_ARRAY_TASK_ID SLURM_CLUSTER_NAME SLURM_CPUS_ON_NODE SLURM_CPUS_PER_TASK
        SLURM_GPUS_PER_TASK SLURM_HET_JOB_ID SLURM_JOB_ID SLURM_JOB_NAME SLURM_MEM_PER_CPU
        SLURM_RESTART_COUNT SLURM_SUBMIT_DIR TMPDIR
    """,
}


def names(table):
    return [pytest.param(name, id=f"{of}: {name}") for of in table for name in table[of].split()]


@pytest.mark.parametrize("name", names(RANK))
def test_variables_of_a_rank(name):
    assert is_of_rank(name)
    assert not is_of_allocation(name)
    assert without_launcher({name: "1"}) == {}


@pytest.mark.parametrize("name", names(ALLOCATION))
def test_variables_of_the_allocation(name):
    assert is_of_allocation(name)
    assert not is_of_rank(name)
    assert without_launcher({name: "1"}) == {}


@pytest.mark.parametrize("name", names(KEPT))
def test_variables_that_a_process_of_its_own_keeps(name):
    assert not is_of_rank(name)
    assert not is_of_allocation(name)
    assert without_launcher({name: "1"}) == {name: "1"}


def test_variables_by_which_a_launcher_is_recognised_are_in_the_list():
    of_rank = {
        *sum(launcher_variables.SIZE_AND_RANK, ()),
        *launcher_variables.SLURM_STEP,
        launcher_variables.RANK_UNDER_PMIX,
        launcher_variables.FAULT_TOLERANCE,
        launcher_variables.RELAUNCHED,
    }
    of_allocation = {
        *launcher_variables.SLOTS,
        launcher_variables.SLURM_TASKS,
        launcher_variables.GRID_ENGINE_HOSTS,
    }
    assert all(map(is_of_rank, of_rank))
    assert all(map(is_of_allocation, of_allocation))
    assert without_launcher({launcher_variables.SLURM_JOB: "7"})


def test_what_mpipar_chose_for_mpi4py_is_taken_away_and_what_the_user_chose_stays():
    chosen = launcher_variables.FAULT_TOLERANT_MPI4PY
    assert without_launcher(chosen) == chosen
    assert without_launcher({**chosen, "OMPI_MCA_mpi_ft_enable": "1"}) == {}


def test_what_tells_a_rank_is_taken_away_and_what_configures_an_mpi_stays():
    away = {
        "OMPI_COMM_WORLD_RANK", "OMPI_MCA_mpi_ft_enable", "PMIX_RANK", "PMIX_SERVER_URI2",
        "PMI_FD", "PRTE_LAUNCHED", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "HYDI_CONTROL_FD",
        "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_NTASKS", "MPI4PY_RC_FINALIZE",
    }  # fmt: skip
    stay = {
        "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_pml", "OMPI_MCA_btl", "SLURM_JOB_ID",
        "SLURM_CPUS_PER_TASK", "PATH", "MPIPAR_PATIENCE", "PMIC", "MY_PMI_RANK",
    }  # fmt: skip
    assert without_launcher(dict.fromkeys(away | stay, "1")).keys() == stay
