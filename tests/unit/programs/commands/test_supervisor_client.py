"""Real processes: how commands end, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mpipar.programs.commands.command_environment import inherited
from mpipar.programs.commands.supervisor_client import CommandOrder, SupervisorClient
from mpipar.runtime.process.launcher_variables import without_launcher

ROOT = Path(__file__).parents[4]
SOON = 10.0


@pytest.fixture
def supervisor():
    made = SupervisorClient()
    yield made
    made.close()


def order(command, *, timeout=None, grace=0.2, output_limit=100_000, cwd="/", **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    return CommandOrder(command, str(cwd), environment, timeout, grace, output_limit)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids: int) -> None:
    until = time.monotonic() + SOON
    while any(map(is_alive, pids)):
        assert time.monotonic() < until, f"{pids} live on"
        time.sleep(0.01)


def wait_for_pids(path: Path, count: int) -> list[int]:
    """The process numbers that a command writes to a file, one a line."""
    until = time.monotonic() + SOON
    while True:
        with suppress(OSError, ValueError):
            pids = [int(line) for line in path.read_text().splitlines()]
            if len(pids) == count:
                return pids
        assert time.monotonic() < until
        time.sleep(0.01)


def test_output_and_exit_code_of_one_command_after_the_other(supervisor, tmp_path):
    first = supervisor.run(order("echo $NAME; echo err >&2; pwd; exit 3", cwd=tmp_path, NAME="n"))
    assert (first.code, first.signal, first.timed_out, first.left_behind) == (3, None, False, 0)
    assert (first.head + first.tail).decode() == f"n\nerr\n{tmp_path}\n"
    second = supervisor.run(order("read line; echo $?"))  # there is no input
    assert (second.code, second.head) == (0, b"1\n")


def test_signal_is_told(supervisor):
    ended = supervisor.run(order("kill -SEGV $$"))
    assert (ended.code, ended.signal) == (None, signal.SIGSEGV)


def test_command_meets_the_signals_as_a_shell_would(supervisor):
    ended = supervisor.run(order("grep -E '^Sig(Blk|Ign)' /proc/self/status; yes | head -1"))
    assert ended.head.replace(b"\t", b" ").split(b"\n")[:2] == [
        b"SigBlk: 0000000000000000",
        b"SigIgn: 0000000000000000",
    ]
    assert ended.code == 0


@pytest.mark.parametrize("size", [0, 10, 99, 100, 101, 70_000, 1_000_000])
def test_head_and_tail_of_the_output_are_kept(supervisor, size):
    said = supervisor.run(
        order(f"head -c {size} /dev/zero | tr '\\0' x; printf THE_END", output_limit=100)
    )
    whole = b"x" * size + b"THE_END"
    assert len(said.head + said.tail) == min(100, len(whole))
    assert said.dropped == max(0, len(whole) - 100)
    assert (said.head, said.tail) == (whole[:50], whole[max(50, len(whole) - 50) :])


def test_time_out_ends_the_whole_group_politely(supervisor, tmp_path):
    pids = tmp_path / "pids"
    command = f"trap 'echo bye; exit 0' TERM; sleep 50 & echo $! >{pids}; echo $$ >>{pids}; wait"
    ended = supervisor.run(order(command, timeout=0.3, grace=5))
    assert (ended.timed_out, ended.head) == (True, b"bye\n")
    assert 0.3 <= ended.seconds < 3
    wait_until_gone(*wait_for_pids(pids, 2))


def test_time_out_ends_what_ignores_sigterm_and_what_leaves_the_group(supervisor, tmp_path):
    pids = tmp_path / "pids"
    escape = f"setsid sh -c 'trap : TERM; echo $$ >>{pids}; while :; do sleep 1; done'"
    command = f"trap '' TERM; {escape} & {escape} & echo $$ >>{pids}; while :; do sleep 1; done"
    ended = supervisor.run(order(command, timeout=0.5, grace=0.2))
    assert (ended.timed_out, ended.signal, ended.unkillable) == (True, signal.SIGKILL, False)
    wait_until_gone(*wait_for_pids(pids, 3))


def test_what_a_command_leaves_behind_is_ended(supervisor, tmp_path):
    pids = tmp_path / "pids"
    command = f"setsid sleep 50 & echo $! >{pids}; (sleep 50 & echo $! >>{pids}); echo done"
    ended = supervisor.run(order(command, timeout=30))
    assert (ended.code, ended.left_behind, ended.head) == (0, 2, b"done\n")
    wait_until_gone(*wait_for_pids(pids, 2))


@pytest.mark.parametrize("cwd", ["/none", "/etc/passwd"])
def test_folder_that_is_not_there_is_said(supervisor, cwd):
    ended = supervisor.run(order("true", cwd=cwd))
    assert ended.code == 126
    assert b"the command cannot be started" in ended.head
    assert cwd.encode() in ended.head


def test_bytes_that_are_no_text_reach_the_command(supervisor):
    text = b"printf '\xff\xfe'".decode("utf-8", "surrogateescape")
    assert supervisor.run(order(text)).head == b"\xff\xfe"


@pytest.mark.parametrize("size", [(1 << 17) - 20, 1 << 17, 1 << 20])
def test_command_may_be_longer_than_an_argument_of_a_program(supervisor, size):
    end = supervisor.run(order(f"true {'x' * size}\necho $0 $#; exit 3"))
    assert (end.code, end.head) == (3, b"/bin/bash 0\n")


def test_command_that_kills_its_supervisor_is_seen_and_the_next_has_another(supervisor, tmp_path):
    pids = tmp_path / "pids"
    command = f"sleep 50 & echo $! >{pids}; echo $$ >>{pids}; kill -9 $PPID; sleep 50"
    ended = supervisor.run(order(command))
    assert (ended.supervisor_died, ended.code, ended.signal) == (True, None, None)
    wait_until_gone(*wait_for_pids(pids, 2))
    assert supervisor.run(order("echo again")).head == b"again\n"


def test_command_waits_until_its_worker_knows_its_process_group(tmp_path):
    """Else one that kills its supervisor at once leaves children that nobody can end."""
    program = (
        "import os, time\n"
        "from mpipar.programs.commands.supervisor_main import RunningCommand\n"
        f"command = RunningCommand({order(f'echo here >{tmp_path}/said').__dict__} | "
        "{'shell': '/bin/sh'})\n"
        "time.sleep(0.3)\n"
        f"print(os.listdir({str(tmp_path)!r}))\n"
        "command.start()\n"
        "os.waitpid(command.pid, 0)\n"
        f"print(os.listdir({str(tmp_path)!r}))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert ended.stdout == "[]\n['said']\n"


def test_command_does_not_outlive_its_worker(tmp_path):
    """Kill -9 of the worker: the command ends, also what of it is deaf, or has left the group."""
    pids = tmp_path / "pids"
    deaf = f"trap : TERM; echo $$ >>{pids}; while :; do sleep 1; done"
    command = f'setsid sh -c \\"{deaf.replace("$", chr(92) + "$")}\\" & {deaf}'
    program = (
        "from mpipar.programs.commands.supervisor_client import *\n"
        f'SupervisorClient().run(CommandOrder("{command}", "/", '
        '{"PATH": "/bin:/usr/bin"}, None, 9, 9))'
    )
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        found = wait_for_pids(pids, 2)
    finally:
        worker.kill()
        worker.wait()
    wait_until_gone(*found)


def test_command_ends_when_worker_and_supervisor_are_killed_at_once(tmp_path):
    pids = tmp_path / "pids"
    program = (
        "from mpipar.programs.commands.supervisor_client import *\n"
        f'shell = "echo $PPID >>{pids}; echo $$ >>{pids}; exec sleep 50"\n'
        'SupervisorClient().run(CommandOrder(shell, "/", {"PATH": "/bin:/usr/bin"}, None, 9, 9))'
    )
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        found = wait_for_pids(pids, 2)
        worker.send_signal(signal.SIGSTOP)  # so that it can do nothing when its supervisor dies
        os.kill(found[0], signal.SIGKILL)
        wait_until_gone(*found)
    finally:
        worker.kill()
        worker.wait()


def test_signals_for_the_job_leave_the_supervisor_alone(supervisor):
    supervisor.run(order("true"))
    assert supervisor._process is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        supervisor._process.send_signal(number)
    assert supervisor.run(order("echo here")).head == b"here\n"


def test_supervisor_leaves_when_it_is_let_go():
    made = SupervisorClient()
    made.run(order("true"))
    assert made._process is not None
    process = made._process
    del made
    wait_until_gone(process.pid)


def test_launchers_are_taken_out_of_the_environment_and_settings_stay():
    launcher = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_MCA_mpi_ft_enable": "1",
        "OPAL_PREFIX": "/x",
        "PMIX_RANK": "1",
        "PMI_FD": "9",
        "HYDI_CONTROL_FD": "8",
        "MPI_LOCALRANKID": "0",
        "PRTE_LAUNCHED": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "1",
        "SLURM_JOBID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "64",
        "SLURM_NTASKS_PER_NODE": "32",
        "PE_HOSTFILE": "/x",
        "MPI4PY_RC_FINALIZE": "0",
        "MPIPAR_RELAUNCHED": "1",
    }
    kept = {
        "OMPI_MCA_btl": "tcp,self",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "PMIX_MCA_gds": "hash",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "4",
        "MPIPAR_PATIENCE": "3",
        "PATH": "/bin",
    }
    assert without_launcher({**launcher, **kept}) == kept


def test_command_has_one_thread_unless_the_user_says_otherwise(tmp_path):
    program = (
        "import os; os.environ['ADDED'] = '1'; os.environ['PATH'] = 'changed'\n"
        "from mpipar.programs.commands.command_environment import inherited\n"
        "found = inherited()\n"
        "print(found['OMP_NUM_THREADS'], found['MKL_NUM_THREADS'], found['PATH'], 'ADDED' in found)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={"OMP_NUM_THREADS": "3", "PATH": "/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said == "3 1 /bin False\n"
    assert inherited().keys() >= {"PATH"}
