"""`mpipar pack` and `mpipar unpack`."""

from __future__ import annotations

import sys
from typing import Final

from mpipar.cli.request import Request, Subcommand
from mpipar.errors import counted
from mpipar.folder_settings import PackSettings, UnpackSettings

__all__ = ["PACK", "UNPACK"]

MEGABYTE: Final = 1_000_000


def run_pack(request: Request) -> int:
    """Write a run into an archive, and print what is in it."""
    from mpipar.results.packing import pack

    settings = request.read(PackSettings)
    archive, files, size = pack(settings.path, settings.to)
    megabytes = size / MEGABYTE
    sys.stdout.write(f"{archive}: {settings.path}, {counted(files, 'file')}, {megabytes:.1f} MB\n")
    return 0


def run_unpack(request: Request) -> int:
    """Unpack an archive into a new folder, and print what `mpipar check` says of it."""
    from mpipar.results.packing import unpack

    settings = request.read(UnpackSettings)
    folder, problems = unpack(settings.path, settings.to)
    sys.stdout.write(f"{folder}: unpacked; every file is what was packed\n")
    for problem in problems:
        sys.stderr.write(f"note: the run was packed with this problem: {problem}\n")
    return 0


PACK = Subcommand(PackSettings, run_pack)
UNPACK = Subcommand(UnpackSettings, run_unpack)
