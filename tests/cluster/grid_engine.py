"""Scripts of jobs/sge/, started as Grid Engine starts them, on this host alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cluster.slurm import plain_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parents[2]
AGAIN: Final = 99  # the exit code that queues a job again


def start_script(
    script: str, folder: Path, log: Path, scratch: Path, settings: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a script in a folder, on two slots of this host; its output is added to the log."""
    hosts = scratch / "pe_hostfile"
    hosts.write_text("localhost 2 all.q@localhost UNDEFINED\n")
    engine = {"JOB_ID": "7", "NSLOTS": "2", "NHOSTS": "1", "PE_HOSTFILE": str(hosts)}
    engine |= {"TMPDIR": str(scratch), "SGE_ROOT": str(scratch), "SGE_TASK_ID": "undefined"}
    engine |= {"VENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    with log.open("a") as stream:
        return subprocess.Popen(
            ["bash", ROOT / "jobs" / "sge" / script],
            cwd=folder,
            env={**plain_environment(), **engine, **settings},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )


def launcher_of(script: int) -> int | None:
    """The script's child that starts MPI."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == script and command.startswith(b"timeout"):
                return int(folder.name)
    return None
