"""A real SLURM of several nodes on this host, in one folder, taken down without a trace.

    munged + slurmctld + one slurmd per node (slurmd -N) --- sbatch, squeue ... by SLURM_CONF

Needs no root: jobs then run as the user who started it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
PACKAGES: Final = "slurm-wlm munge libpmix-dev"
SYSTEM_FOLDERS: Final = "/usr/sbin:/sbin"  # not on everybody's PATH
LAUNCHERS: Final = ("OMPI_", "PMI", "PRTE_", "SLURM", "NSLOTS", "MPIPAR_")

ENDS: Final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

CONFIGURATION: Final = """\
ClusterName=mpipar
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={state}/controller
SlurmctldPidFile={state}/slurmctld.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdSpoolDir={state}/spool.%n
SlurmdPidFile={state}/slurmd.%n.pid
SlurmdLogFile={state}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000,requeue_delay=1
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=60
InactiveLimit=0
KillWait=5
CompleteWait=0
MinJobAge=300
JobRequeue=1
PropagateResourceLimits=NONE
"""
# A requeued job starts when its credential has expired: cred_expire=5 instead of two minutes.

NODE: Final = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000"
)


def plain_environment() -> dict[str, str]:
    """This environment without what MPI launchers and batch systems have put into it."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith(LAUNCHERS)}
    kept["PATH"] = f"{kept['PATH']}:{SYSTEM_FOLDERS}"
    if os.geteuid() == 0:
        kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return kept


def missing_programs() -> list[str]:
    """What of SLURM is not installed."""
    path = plain_environment()["PATH"]
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def wait_for(condition: Callable[[], Any], seconds: float, story: Callable[[], str]) -> Any:
    """Ask until the answer is true, and return it; fail with the story when time is over."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"nothing after {seconds:g} s\n{story()}")
        time.sleep(0.1)
    return answer


class Slurm:
    """A running cluster; use it in a `with`."""

    def __init__(self, state: Path, nodes: int) -> None:
        self.state = state  # short: sockets are made in it
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = plain_environment() | {"SLURM_CONF": str(state / "slurm.conf")}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._configure()
            self._start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        for name in ("controller", "log", "munge"):
            (self.state / name).mkdir(parents=True)
        self.state.chmod(0o755)
        (self.state / "munge").chmod(0o755)
        key = self.state / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        host = socket.gethostname().split(".")[0]
        ports = free_ports(len(self.nodes) + 1)
        words = {"state": self.state, "user": getuser(), "host": host, "port": ports.pop()}
        lines = [CONFIGURATION.format_map(words)]
        lines += [NODE.format(name=name, host=host, port=ports.pop()) for name in self.nodes]
        lines.append(f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES DefaultTime=5")
        text = "\n".join(lines) + "\n"
        (self.state / "slurm.conf").write_text(text)
        for name in self.nodes:  # one folder each: PMIx servers of one host would collide
            folder = self.state / f"conf.{name}"
            (folder / "pmix").mkdir(parents=True)
            (self.state / f"spool.{name}").mkdir()
            (folder / "slurm.conf").write_text(text)
            (folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={folder}/pmix\n")

    def _start(self) -> None:
        munge = self.state / "munge"
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        places["seed-file"] = "seed"
        options = [f"--{option}={munge / name}" for option, name in places.items()]
        self.run("munged", *options, "--force", "--num-threads=1")
        self.run("slurmctld")
        for name in self.nodes:
            conf = str(self.state / f"conf.{name}" / "slurm.conf")
            self.run("slurmd", "-N", name, "-f", conf, SLURM_CONF=conf)
        wait_for(self._is_up, 30, self.story)

    def _is_up(self) -> bool:
        said = self.run("sinfo", "--noheader", "--states=idle", "--format=%D", check=False)
        return said.strip() == str(len(self.nodes))

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a client or daemon; its output."""
        done = subprocess.run(
            command,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
        return done.stdout

    def submit(self, script: Path, folder: Path, *options: str, **environment: str) -> Job:
        """Submit a script from a folder."""
        words = ("--parsable", f"--chdir={folder}", *options, str(script))
        said = self.run("sbatch", *words, check=True, **environment)
        number = said.strip().splitlines()[-1]
        return Job(self, number, folder / f"{script.stem}-{number}.log")

    def story(self) -> str:
        """What the daemons say, for a failure."""
        said = [self.run("squeue", "--long", check=False), self.run("sinfo", "-N", check=False)]
        logs = sorted((self.state / "log").glob("*.log"))
        said += [f"--- {log.name}\n{_tail(log, 15)}" for log in logs]
        return "\n".join(said)

    def stop(self) -> None:
        """End all jobs and daemons, by force those that do not leave, and remove the folder."""
        if (self.state / "slurmctld.pid").exists():
            self.run("scancel", "--full", f"--user={getuser()}", check=False)
        for gentle in (True, False):
            end = time.monotonic() + 5
            while (left := self._processes()) and time.monotonic() < end:
                for process in left:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGTERM if gentle else signal.SIGKILL)
                time.sleep(0.2)
        shutil.rmtree(self.state, ignore_errors=True)

    def _processes(self) -> list[int]:
        """Daemons and whatever their jobs have started: the folder is in their environment."""
        mark = os.fsencode(self.state)
        return [pid for pid, text in _environments() if mark in text and pid != os.getpid()]


class Job:
    """A submitted batch job."""

    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self.slurm = slurm
        self.number = number
        self.log = log

    def __getitem__(self, name: str) -> str:
        """A field of `scontrol show job`."""
        said = self.slurm.run("scontrol", "show", "job", "-o", self.number)
        return dict(word.partition("=")[::2] for word in said.split())[name]

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for_pattern(self, pattern: re.Pattern[str], seconds: float = 60) -> None:
        """Wait until a line of the log has it."""
        wait_for(lambda: pattern.search(self.said()) or self._is_over(), seconds, self.story)
        assert pattern.search(self.said()), self.story()

    def wait(self, seconds: float = 90) -> str:
        """Wait for the end; the state."""
        wait_for(self._is_over, seconds, self.story)
        return self["JobState"]

    def _is_over(self) -> bool:
        return self["JobState"] in ENDS

    def processes(self, word: str) -> list[int]:
        """This job's processes whose command line has a word."""
        number = b"SLURM_JOB_ID=" + self.number.encode()
        conf = b"SLURM_CONF=" + os.fsencode(self.slurm.state)
        return [
            pid
            for pid, text in _environments()
            if number in text.split(b"\0") and conf in text and word.encode() in _command(pid)
        ]

    def nodes(self, word: str) -> set[str]:
        """The nodes of those processes."""
        environments = dict(_environments())
        found = [environments.get(pid, b"").split(b"\0") for pid in self.processes(word)]
        mark = b"SLURMD_NODENAME="
        return {v.removeprefix(mark).decode() for e in found for v in e if v.startswith(mark)}

    def story(self) -> str:
        """Log, job and daemons, for a failure."""
        job = self.slurm.run("scontrol", "show", "job", self.number, check=False)
        return f"--- log\n{self.said()}\n--- job\n{job}\n{self.slurm.story()}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _environments() -> Iterator[tuple[int, bytes]]:
    """Process number, and command line with environment, of all processes that we may look at."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                text = (folder / "environ").read_bytes()
                yield int(folder.name), (folder / "cmdline").read_bytes() + b"\0" + text


def _command(process: int) -> bytes:
    with suppress(OSError):
        return (Path("/proc") / str(process) / "cmdline").read_bytes()
    return b""


def _tail(log: Path, count: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
