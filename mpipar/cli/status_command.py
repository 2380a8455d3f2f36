"""`mpipar status`."""

from __future__ import annotations

import json
import sys

from mpipar.cli.request import Request, Subcommand
from mpipar.folder_settings import StatusSettings

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Print how a run or all runs of a folder stand; return the exit code."""
    from mpipar.programs.run_status import SCHEMA, run_status, runs_in, wait_for_end
    from mpipar.views.status_text import status_lines, status_table

    settings = request.read(StatusSettings)
    folders = runs_in(settings.path)
    if settings.wait:
        found = [wait_for_end(folder, _tell) for folder in folders]
    else:
        found = [run_status(folder) for folder in folders]
    if settings.json:
        sys.stdout.write(json.dumps({"schema": SCHEMA, "runs": found}, indent=2) + "\n")
    else:
        lines = status_lines(found[0]) if folders == [settings.path] else status_table(found)
        sys.stdout.write("\n".join(lines) + "\n")
    codes = [status["exit_code"] for status in found if status["exit_code"]]
    return codes[0] if settings.wait and codes else 0


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


COMMAND = Subcommand(StatusSettings, run)
