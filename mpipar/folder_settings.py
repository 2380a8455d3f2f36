"""A frozen dataclass per command that looks at, checks or moves a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mpipar.options import Settings, option

__all__ = [
    "CheckSettings",
    "ExportSettings",
    "PackSettings",
    "PruneSettings",
    "StatusSettings",
    "UnlockSettings",
    "UnpackSettings",
]


@dataclass(frozen=True, kw_only=True)
class CheckSettings(Settings):
    """Check that a run's folder is whole: every sealed file, the journal, the last commit."""

    command: ClassVar[str] = "check"
    epilog: ClassVar[str] = """\
Without --repair it reads only, and may be used at any time, on any host, while a run is writing.
Exit code 0: sound. 65: problems found, one line each.

example:
  python -m mpipar check refine_01
"""

    path: Path = option(help="folder of the run", metavar="FOLDER", positional=True)
    repair: bool = option(
        False, help="bring back what can be read of a damaged run; no damaged file is touched"
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Write maps, particles and FSC of any iteration of a refinement for other programs."""

    command: ClassVar[str] = "export"
    epilog: ClassVar[str] = """\
Writes map.mrc, half1.mrc, half2.mrc, mask.mrc, particles.star (RELION), particles.csv, fsc.csv,
fsc.xml (EMDB), iterations.csv and provenance.json into a new folder, whole or not at all. It only
reads the run, on any host, while it goes on or after it. Maps before signal was found are marked.

examples:
  python -m mpipar export refine_01
  python -m mpipar export refine_01 --iteration 3 --to third
"""

    path: Path = option(help="folder of the run", metavar="FOLDER", positional=True)
    iteration: int | None = option(
        None, help="number of the iteration", default_text="the latest", minimum=1, metavar="N"
    )
    to: Path | None = option(
        None,
        help="new folder",
        default_text="such as refine_01_iteration_003, here",
        metavar="FOLDER",
    )


@dataclass(frozen=True, kw_only=True)
class PackSettings(Settings):
    """Write a whole run into one file, which `mpipar unpack` checks in another place."""

    command: ClassVar[str] = "pack"
    epilog: ClassVar[str] = """\
Packs the run as it is at one moment; it may go on meanwhile, and is only read. The archive is a tar
file with the sha256 of each file, whole or not there. Particle images are not part of a run.

examples:
  python -m mpipar pack refine_01
  python -m mpipar pack refine_01 --to /archive/groel.tar.gz
"""

    path: Path = option(help="folder of the run", metavar="FOLDER", positional=True)
    to: Path | None = option(
        None,
        help="the archive; .gz, .bz2 and .xz compress",
        default_text="such as refine_01.tar, here",
        metavar="FILE",
    )


@dataclass(frozen=True, kw_only=True)
class UnpackSettings(Settings):
    """Unpack a run that `mpipar pack` has written, and compare every checksum."""

    command: ClassVar[str] = "unpack"
    epilog: ClassVar[str] = """\
The new folder is whole or not there. Exit code 65: the archive was cut off or changed on its way.

example:
  python -m mpipar unpack refine_01.tar --to /data/refine_01
"""

    path: Path = option(help="the archive", metavar="FILE", positional=True)
    to: Path | None = option(
        None,
        help="new folder",
        default_text="of the run's own name, here",
        metavar="FOLDER",
    )


@dataclass(frozen=True, kw_only=True)
class PruneSettings(Settings):
    """Give up iterations of a refinement for good, and free their space."""

    command: ClassVar[str] = "prune"
    epilog: ClassVar[str] = """\
The start and the latest iteration always stay, so that --resume goes on as before; so does the
history of all iterations. Nobody may be writing to the run (exit code 75). What others have open
they can read on.

examples:
  python -m mpipar prune refine_01 --keep 3
  python -m mpipar prune refine_01 --keep 3 --keep-every 10
"""

    path: Path = option(help="folder of the run", metavar="FOLDER", positional=True)
    keep: int = option(
        help="how many of the last iterations stay", default_text="required", minimum=1
    )
    keep_every: int | None = option(
        None, help="multiples of N stay too", default_text="no others", minimum=1, metavar="N"
    )


@dataclass(frozen=True, kw_only=True)
class StatusSettings(Settings):
    """Show how a run stands and how far it is, or a table of all runs in a folder."""

    command: ClassVar[str] = "status"
    epilog: ClassVar[str] = """\
Reads only, and may be used at any time, on any host that sees the folder, while a run is writing.
Exit code 0, however the run stands; with --wait that of the run: 0 done, 75 it can be resumed.

examples:
  python -m mpipar status refine_01
  python -m mpipar status                     # all runs in this folder
  python -m mpipar status refine_01 --json    # for scripts: docs/status.md
  python -m mpipar status refine_01 --wait && relion_postprocess ...
"""

    path: Path = option(
        Path(),
        help="folder of a run, or one with runs in it; by default the current one",
        metavar="FOLDER",
        positional=True,
    )
    json: bool = option(False, help="print JSON (docs/status.md)")
    wait: bool = option(False, help="wait until the run, or all of them, are over")


@dataclass(frozen=True, kw_only=True)
class UnlockSettings(Settings):
    """Declare the writer of a run's folder dead, when mpipar cannot know it by itself."""

    command: ClassVar[str] = "unlock"
    epilog: ClassVar[str] = """\
Only needed when a run refuses to resume because its last writer may still live on another host.
Make sure first that it does not; if it lives after all, nothing more that it writes will count.

example:
  python -m mpipar unlock refine_01
"""

    path: Path = option(help="folder of the run", metavar="FOLDER", positional=True)
    force: bool = option(False, help="even though its last writer is seen to live on this machine")
