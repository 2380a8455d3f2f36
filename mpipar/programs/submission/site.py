"""A site's file: what its users would else give to each `mpipar submit`."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from mpipar.errors import OutputError, reason_of
from mpipar.options import toml_text
from mpipar.programs.submission.scheduler_commands import system_here
from mpipar.submit_settings import RESOURCES, SITE

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.submit_settings import SubmitSettings

__all__ = ["write"]

SECONDS = 10.0  # to wait for an answer


def write(settings: SubmitSettings, path: Path) -> str:
    """Write a first site file, from what was given and what is found here; return what was done.

    raises   OutputError if there is one already, or it cannot be written; UnavailableError
    """
    system = system_here(settings.scheduler)
    found: dict[str, Any] = {"scheduler": system, **_found(system)}
    lines = [
        "# What `mpipar submit` asks for unless told otherwise (docs/clusters.md).",
        "[submit]",
    ]
    for name in settings.options():
        explained = settings.option_of(name)
        if explained.group not in (RESOURCES, SITE):
            continue
        value = getattr(settings, name) if name in settings.given else found.get(name)
        lines.append(f"# {explained.help}")
        lines.append(f"# {name} =" if value is None else f"{name} = {toml_text(value)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError as error:
        raise OutputError(f"{path}: is there already; edit it, or move it away") from error
    except OSError as error:
        raise OutputError(f"{path}: {reason_of(error)}") from error
    return f"{path}: written; look through it"


def _found(system: str) -> dict[str, str]:
    """Return the default partition, or the only parallel environment."""
    if system == "slurm":
        default = re.search(r"^(\S+)\*$", _said("sinfo", "-h", "-o", "%P"), re.MULTILINE)
        return {"partition": default[1]} if default else {}
    names = _said("qconf", "-spl").split()
    return {"parallel_environment": names[0]} if len(names) == 1 else {}


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
