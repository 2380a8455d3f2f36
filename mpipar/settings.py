"""A frozen dataclass per command: the whole interface of that command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mpipar.errors import UsageError
from mpipar.options import Settings, option, seconds_of

__all__ = ["ExecSettings", "ImportSettings", "RefineSettings", "RunSettings"]

FILES, TRIES = "files and folders", "when a command fails"
INPUT, SAMPLE, SEARCH, RUNNING = "input and output", "the particle", "the refinement", "how it runs"


def _parallel(default: str, **words: Any) -> Any:
    """Declare --parallel; `default` is what applies outside of mpirun and srun."""
    return option(
        None,
        help="serial, thread:N[:scratch], mpi, or mpi:N[:scratch] (N ranks including the master; "
        "starts mpirun or srun itself); scratch: a folder on each node's disk",
        default_text=f"mpi under mpirun or srun, else {default}",
        metavar="TYPE",
        **words,
    )


def _verbose() -> Any:
    return option(
        0,
        help="say more; -1: say nothing but errors",
        short="-v",
        count=True,
        minimum=-1,
        group=RUNNING,
        changeable=True,
    )


def _replace_lost(**words: Any) -> Any:
    return option(
        False,
        help="start a new worker in the place of a lost one (Open MPI >= 5; see docs/faults.md)",
        changeable=True,
        **words,
    )


@dataclass(frozen=True, kw_only=True)
class RefineSettings(Settings):
    """Refine particle poses and reconstruct the volume, starting from an initial model."""

    command: ClassVar[str] = "refine"
    epilog: ClassVar[str] = """\
examples:
  # 64 MPI ranks: one master that reads all files, 63 workers
  mpirun -n 64 python -m mpipar refine --input particles.star --model init.mrc --sym c1

  # a workstation without MPI: four workers in one process; --check: say first what would be done
  python -m mpipar refine --input p.star --model init.mrc --sym d7 --parallel=thread:4 --check

  # go on where the newest refine_NN, or a named one, stopped (time limit, kill, power cut)
  mpirun -n 64 python -m mpipar refine --resume
  mpirun -n 64 python -m mpipar refine --resume --path refine_01

  # a pixel size known better than the STAR file does, and an end at 4 A
  mpirun -n 16 python -m mpipar refine --input p.star --model init.mrc --apix 1.06 --targetres 4

  # a batch job, which queues itself again until it is done (or by hand: slurm/refine.sbatch)
  mpipar submit --ntasks 64 -- refine --input p.star --model init.mrc

^C, SIGTERM and SIGUSR1 end a run within seconds, so that --resume can go on; exit code 130 or 75.
"""

    input: Path | None = option(
        None,
        help="particles: RELION STAR file (3.0 or 3.1), its MRC stacks found as RELION finds them",
        default_text="required unless --resume",
        metavar="STAR",
        group=INPUT,
    )
    model: Path | None = option(
        None,
        help="initial model; only its low-resolution shape is used",
        default_text="required unless --resume",
        metavar="MRC",
        group=INPUT,
    )
    path: Path | None = option(
        None,
        help="folder for the results",
        default_text="the next free refine_NN; with --resume the newest",
        metavar="FOLDER",
        group=INPUT,
        changeable=True,
    )
    resume: bool = option(
        False,
        help="go on with an earlier run, with its settings, from its last finished iteration",
        group=INPUT,
        changeable=True,
    )
    check: bool = option(
        False,
        help="read and check all input, say what would be done, write nothing",
        group=INPUT,
        changeable=True,
    )
    sym: str = option("c1", help="symmetry: cN, dN, t, o or i", metavar="GROUP", group=SAMPLE)
    diameter: float | None = option(
        None,
        help="diameter of the particle; outside it there is only solvent",
        units="A",
        default_text="from the model",
        minimum=1,
        group=SAMPLE,
    )
    apix: float | None = option(
        None,
        help="pixel size of the images",
        units="A",
        default_text="from the STAR file",
        minimum=0.01,
        group=SAMPLE,
    )
    contrast: str = option(
        "auto",
        help="of the images: as-is (bright particles), invert (dark ones), auto (the model tells)",
        choices=("auto", "as-is", "invert"),
        metavar="HOW",
        group=SAMPLE,
    )
    mask: Path | None = option(
        None,
        help="mask for the FSC and the reference, 0 to 1",
        default_text="made from the map, anew in each iteration",
        metavar="MRC",
        group=SAMPLE,
    )
    iter: int = option(
        40, help="iterations at most", minimum=1, metavar="N", group=SEARCH, changeable=True
    )
    keep: str = option(
        "20",
        help="iterations that stay in the store: the last N and every tenth, or all",
        metavar="N",
        group=SEARCH,
        changeable=True,
    )
    targetres: float | None = option(
        None,
        help="stop when this resolution is reached; finer data are not used",
        units="A",
        default_text="as far as the data go",
        minimum=0.1,
        group=SEARCH,
        changeable=True,
    )
    lowpass: float | None = option(
        None,
        help="low-pass of the initial model",
        units="A",
        default_text="from the size of the particle and what the model supports",
        minimum=0.1,
        group=SEARCH,
    )
    seed: int = option(
        0, help="of the random half sets; same seed, same bits", minimum=0, group=SEARCH
    )
    parallel: str | None = _parallel("serial", group=RUNNING, changeable=True)
    threads: int = option(
        1,
        help="compute threads of each worker",
        minimum=1,
        metavar="N",
        group=RUNNING,
        changeable=True,
    )
    gpu: str | None = option(
        None,
        help="align on GPUs: auto (all there are, or the processors if there are none) or numbers, "
        "as in 0,1; workers of a node are dealt to them in turn",
        default_text="the processors",
        metavar="WHICH",
        group=RUNNING,
    )
    cache: int = option(
        4096,
        help="memory for particle images on each worker",
        units="MB",
        minimum=1,
        metavar="MB",
        group=RUNNING,
        changeable=True,
    )
    replace_lost: bool = _replace_lost(group=RUNNING)
    verbose: int = _verbose()

    def check_together(self) -> None:
        for name in ("input", "model"):
            if getattr(self, name) is None and not self.resume:
                raise UsageError(f"{self.flag(name)} is required (or --resume to go on with a run)")
        if not re.fullmatch(r"all|0*[1-9]\d*", self.keep):
            raise UsageError(f"--keep {self.keep}: must be all, or a number of iterations, from 1")
        if self.gpu is not None and not re.fullmatch(r"auto|\d+(,\d+)*", self.gpu):
            raise UsageError(
                f"--gpu={self.gpu}: give auto, or the numbers of GPUs, counted from 0: --gpu 0,1"
            )


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Run a list of shell commands over all workers, one line of a file each."""

    command: ClassVar[str] = "run"
    epilog: ClassVar[str] = """\
The file has one shell command per line; # begins a comment line, a backslash at the end continues a
line. Each command runs in /bin/bash (or /bin/sh) on the next free worker; lines share nothing.
Exit code 0: all done. 70: some failed. 75: cut off, --resume goes on.

examples:
  # 64 ranks: one master that writes all logs, 63 workers with one command each at a time
  mpirun -n 64 python -m mpipar run commands.txt

  # a workstation without MPI: 8 commands at a time, 10 minutes each at most, no second try
  python -m mpipar run commands.txt --parallel=thread:8 --timeout 10m --retries 0

  # go on where the newest run_NN, or a named one, stopped; lines may have been added or changed
  mpirun -n 64 python -m mpipar run commands.txt --resume
  mpirun -n 64 python -m mpipar run --resume --path run_01

  # a batch job, which queues itself again until all is done (or by hand: slurm/run.sbatch)
  mpipar submit --ntasks 64 -- run commands.txt
"""

    commands: Path | None = option(
        None,
        help="file of commands; with --resume by default that of the earlier run",
        metavar="FILE",
        positional=True,
        changeable=True,
    )
    path: Path | None = option(
        None,
        help="folder for logs, table and journal",
        default_text="the next free run_NN; with --resume the newest",
        metavar="FOLDER",
        group=FILES,
        changeable=True,
    )
    resume: bool = option(
        False,
        help="go on with an earlier run: skip the commands that are done, known by their text",
        group=FILES,
        changeable=True,
    )
    check: bool = option(
        False, help="say what would be run, run and write nothing", group=FILES, changeable=True
    )
    cwd: Path | None = option(
        None,
        help="working folder of the commands",
        default_text="where mpipar is started",
        metavar="FOLDER",
        group=FILES,
        changeable=True,
    )
    output: float = option(
        4.0,
        help="output of one command that is kept: the first and the last half of so much",
        units="MB",
        minimum=0.001,
        metavar="MB",
        group=FILES,
        changeable=True,
    )
    retries: int = option(
        2,
        help="how often a command that fails is tried again, on another worker if there is one",
        minimum=0,
        metavar="N",
        group=TRIES,
        changeable=True,
    )
    timeout: str | None = option(
        None,
        help="how long one command may take: 90, 90s, 10m, 2h or 1d; then it is ended and failed",
        default_text="as long as it wants",
        metavar="TIME",
        group=TRIES,
        changeable=True,
    )
    on_error: str = option(
        "continue",
        help="what to do when a command has failed on its last try: continue with the others, or "
        "stop: let running commands finish, and start no other",
        choices=("continue", "stop"),
        metavar="WHAT",
        group=TRIES,
        changeable=True,
    )
    parallel: str | None = _parallel("serial", group=RUNNING, changeable=True)
    per_worker: int = option(
        1,
        help="commands at a time on each worker",
        minimum=1,
        metavar="N",
        group=RUNNING,
        changeable=True,
    )
    replace_lost: bool = _replace_lost(group=RUNNING)
    verbose: int = _verbose()

    def check_together(self) -> None:
        if self.commands is None and not self.resume:
            raise UsageError("a file of commands is required (or --resume to go on with a run)")
        if self.timeout is not None:
            seconds_of(self.flag("timeout"), self.timeout)

    @property
    def seconds(self) -> float | None:
        """How long one command may take; None: no limit."""
        return None if self.timeout is None else seconds_of(self.flag("timeout"), self.timeout)

    @property
    def tries(self) -> int:
        """How often a command is tried in one run, at most."""
        return self.retries + 1


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Settings):
    """Copy particles into a folder that needs nothing else, with checksums, for `mpipar refine`."""

    command: ClassVar[str] = "import"
    epilog: ClassVar[str] = """\
The folder gets particles.star, the images in the order of the list, and checksums.txt, which
`sha256sum -c checksums.txt` compares. It is whole or not there; after an interruption the same
command goes on. float16 halves the size, and keeps three digits of each grey value.

examples:
  python -m mpipar import particles.star --to set_a
  python -m mpipar import particles.star --to set_a --type float16
  python -m mpipar refine --input set_a/particles.star --model init.mrc
"""

    path: Path = option(help="particles: RELION STAR file", metavar="STAR", positional=True)
    to: Path = option(help="new folder", default_text="required", metavar="FOLDER")
    type: str = option(
        "float32",
        help="of the images' numbers: float32 or float16",
        choices=("float32", "float16"),
        metavar="TYPE",
    )


@dataclass(frozen=True, kw_only=True)
class ExecSettings(Settings):
    """Run a Python script whose mpipar.Executor (or mpipar.imp) uses all workers of the job."""

    command: ClassVar[str] = "exec"
    rest: ClassVar[str] = "SCRIPT [ARGUMENT ...]"
    epilog: ClassVar[str] = """\
Rank 0 runs the script, as `python SCRIPT ARGUMENT ...` would; the other ranks do what its executors
and contexts ask for. The exit code is the script's. What a script does is best kept below
`if __name__ == "__main__":`, because workers read the script for its functions.

examples:
  # 64 MPI ranks: the script on one, its calls on 63
  mpirun -n 64 python -m mpipar exec script.py data.npy --steps 100

  # a workstation: four processes, no MPI; or as many as an executor asks for
  python -m mpipar exec --parallel=thread:4 script.py
  python script.py
  python -m mpipar exec --parallel=thread:4 - <script.py

  # start mpirun from here, with 8 ranks; run a module instead of a file
  python -m mpipar exec --parallel=mpi:8 -m package.module --option

script.py:
  from mpipar import Executor

  def square(x):
      return x * x

  if __name__ == "__main__":
      with Executor() as executor:
          print(sum(executor.map(square, range(1000))))
"""

    parallel: str | None = _parallel("what the script asks for")
    module: bool = option(
        False, help="SCRIPT is the name of a module, as for python -m", short="-m"
    )
    isolate: bool = option(
        False,
        help="run calls in supervised child processes, so that a crash costs one try and no rank; "
        "thread:N does that anyway",
    )
    replace_lost: bool = _replace_lost()
