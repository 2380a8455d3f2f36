"""The options of `mpipar submit`, which are also the fields of a site's file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mpipar.errors import UsageError
from mpipar.options import Settings, option, seconds_of

__all__ = ["SubmitSettings"]

WHAT, RESOURCES, SITE = "what to do", "what the job asks for", "what is usual at this site"
CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")  # 2-12:00:00
FEWEST_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class SubmitSettings(Settings):
    """Submit a run to SLURM or Grid Engine; it queues itself again until it is done."""

    command: ClassVar[str] = "submit"
    rest: ClassVar[str] = "-- COMMAND [option ...]"
    epilog: ClassVar[str] = """\
COMMAND is refine or run, with its options but for --parallel. The run's folder is made at once;
script and log are in its folder job/. Options that are the same for all your jobs belong into the
site's file, MPIPAR_SITE or ~/.config/mpipar/site.toml, which --write-site makes (docs/clusters.md).

examples:
  mpipar submit --nodes 2 --ntasks 64 --time 12h -- refine --input p.star --model init.mrc --sym d7
  mpipar submit --ntasks 64 --dry-run -- run commands.txt       # print the script, submit nothing
  mpipar submit --ntasks 64 --after refine_01 -- run after.txt  # when that run is done
  mpipar submit --ntasks 64 --array runs.txt -- refine --input p.star --model init.mrc
  mpipar submit --ntasks 64 -- refine --resume --path refine_01
  mpipar submit --cancel refine_01
"""

    dry_run: bool = option(False, help="print the script, write and submit nothing", group=WHAT)
    wait: bool = option(
        False, help="wait until the run is over; the exit code is the run's", group=WHAT
    )
    after: str | None = option(
        None,
        help="start when this job, or the run in this folder, is done",
        default_text="as soon as possible",
        metavar="JOB",
        group=WHAT,
    )
    array: Path | None = option(
        None,
        help="one run for each line of a file: options that are added to those of COMMAND",
        default_text="one run",
        metavar="FILE",
        group=WHAT,
    )
    cancel: Path | None = option(
        None,
        help="end the job of the run in this folder, for good",
        default_text="no job",
        metavar="FOLDER",
        group=WHAT,
    )
    write_site: bool = option(
        False, help="write a first site file from the options given and what is found", group=WHAT
    )
    nodes: int | None = option(
        None, help="nodes", default_text="as many as it takes", minimum=1, group=RESOURCES
    )
    ntasks: int | None = option(
        None, help="MPI ranks; the first one is the master", minimum=1, group=RESOURCES
    )
    time: str | None = option(
        None,
        help="time limit: 4h, 90m, 2d or 12:00:00; a run that is not done then is queued again",
        default_text="the site's",
        metavar="TIME",
        group=RESOURCES,
    )
    memory: str | None = option(
        None,
        help="memory of each rank, such as 4G (`refine --check` says how much that is)",
        default_text="the site's",
        metavar="SIZE",
        group=RESOURCES,
    )
    scheduler: str | None = option(
        None,
        help="slurm or sge",
        default_text="what is installed",
        choices=("slurm", "sge"),
        metavar="NAME",
        group=SITE,
    )
    partition: str | None = option(
        None, help="partition, or queue", default_text="the site's", metavar="NAME", group=SITE
    )
    account: str | None = option(
        None, help="account, or project", default_text="yours", metavar="NAME", group=SITE
    )
    parallel_environment: str = option(
        "mpi", help="of Grid Engine, for MPI jobs", metavar="NAME", group=SITE
    )
    directives: str | None = option(
        None,
        help="more options for the scheduler, one a line or with ; between them",
        default_text="none",
        metavar="LINES",
        group=SITE,
    )
    setup: str | None = option(
        None,
        help="shell commands before the run, such as module load openmpi",
        default_text="none",
        metavar="LINES",
        group=SITE,
    )
    max_restarts: int = option(
        10, help="how often a job may queue itself again", minimum=0, group=SITE
    )

    def check_together(self) -> None:
        if self.time is not None and self.seconds is not None and self.seconds < FEWEST_SECONDS:
            raise UsageError(f"--time {self.time}: a job needs at least a minute")
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise UsageError(f"--memory {self.memory}: must be a size such as 4G or 500M")
        for name in ("after", "partition", "account", "parallel_environment"):
            value = getattr(self, name)
            if value is not None and (re.search(r"\s", value) or value.startswith("-")):
                raise UsageError(f"{self.flag(name)} {value!r}: is not the name of one")

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds; None: the site's."""
        if self.time is None:
            return None
        clock = CLOCK.fullmatch(self.time)
        if clock is None:
            return math.ceil(seconds_of("--time", self.time))
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
