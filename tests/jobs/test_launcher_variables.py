"""What a task or a command sees of the launcher and of the allocation, under a real mpirun."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mpipar.runtime.process.launcher_variables import without_launcher
from tests.support.installed import MPIRUN, mpirun
from tests.support.jobs import PATIENCE, environment, run

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
OF_THE_SHELL = {"LD_LIBRARY_PATH", "OLDPWD", "PATH", "PWD", "SHLVL", "_"}
SETTINGS = {"OMPI_MCA_btl": "self,sm,tcp", "PMIX_MCA_gds": "hash", "OMPI_CC": "cc"}
FOUR_NODES = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOBID": "7",
    "SLURM_JOB_NODELIST": "node[1-4]",
    "SLURM_NODELIST": "node[1-4]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_TASKS_PER_NODE": "1(x4)",
}
"""The mpirun of Open MPI would start a daemon on each of these nodes, which do not exist."""

SCRIPT = """
import os, subprocess, sys
from mpipar import Executor

RANKS = (
    "from mpi4py import MPI; world = MPI.COMM_WORLD\\n"
    "total, hosts = world.allreduce(1), world.allgather(MPI.Get_processor_name())\\n"
    "if world.rank == 0: print(total, len(set(hosts)))"
)

def nested(mpirun):
    command = [mpirun, "--oversubscribe", "-n", "2", sys.executable, "-c", RANKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    seen = sorted(name for name in os.environ if name.startswith("SLURM_"))
    return done.returncode, done.stdout, done.stderr, seen

def crash(mpirun):
    ranks = 'if [ $OMPI_COMM_WORLD_RANK = 1 ]; then kill -9 $$; else sleep 300; fi'
    command = [mpirun, "--oversubscribe", "-n", "2", "sh", "-c", ranks]
    return subprocess.run(command, capture_output=True, timeout=40).returncode

if __name__ == "__main__":
    parallel = sys.argv[2] if len(sys.argv) > 2 else None
    with Executor(parallel=parallel, isolate=True) as executor:
        code, said, complaints, seen = executor.submit(nested, sys.argv[1]).result()
        print(code, said.split(), seen, executor.submit(crash, sys.argv[1]).result())
        sys.stderr.write(complaints)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def clean_environment():
    return without_launcher({**environment(), **SETTINGS})


@pytest.mark.parametrize("options", [[], ["--with-ft", "ulfm"]], ids=["plain", "tolerant"])
def test_all_that_mpirun_adds_is_taken_away_and_settings_stay(options):
    before = clean_environment()
    done = subprocess.run(
        [*mpirun(), *options, "-n", "1", sys.executable, "-c", SHOW],
        env=before,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    rank = json.loads(done.stdout)
    assert "OMPI_COMM_WORLD_RANK" in rank or "PMI_RANK" in rank
    left = without_launcher(rank)
    assert {name: left.get(name) for name in SETTINGS} == SETTINGS
    differing = {name for name in before.keys() | left if before.get(name) != left.get(name)}
    assert differing <= OF_THE_SHELL


def test_mpirun_in_an_isolated_task_of_a_job_starts_a_world_of_its_own(script):
    faked = [f"{name}={value}" for name, value in FOUR_NODES.items()]
    execute = [sys.executable, "-m", "mpipar", "exec", "--isolate", script, MPIRUN]
    done = run(line=[*mpirun(), "-n", 2, "env", *faked, *execute])
    assert done.stdout.splitlines()[-1] == "0 ['2', '1'] ['SLURM_JOB_ID'] 137", done
    assert done.returncode == 0


def test_mpirun_in_an_isolated_task_of_threads_does_not_take_the_allocation(script):
    done = run(line=[sys.executable, script, MPIRUN, "thread:1"], env=FOUR_NODES)
    assert done.stdout == "0 ['2', '1'] ['SLURM_JOB_ID'] 137\n", done
