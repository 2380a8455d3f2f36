"""The schedulers' commands: which one is here, submit a script, end a job."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from mpipar.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cancel_job", "how_to_watch", "submit_script", "system_here"]

SUBMIT: Final = {"slurm": ("sbatch", "--parsable"), "sge": ("qsub", "-terse")}
CANCEL: Final = {"slurm": "scancel", "sge": "qdel"}
WATCH: Final = {"slurm": "squeue --job", "sge": "qstat -j"}
NAMES: Final = {"slurm": "SLURM", "sge": "Grid Engine"}
SECONDS: Final = 120.0  # to wait for an answer


def system_here(wanted: str | None) -> str:
    """Return "slurm" or "sge": what is wanted, or what is installed.

    raises   UnavailableError if neither is wanted nor installed
    """
    found = [name for name, (program, _) in SUBMIT.items() if shutil.which(program)]
    if wanted is None and not found:
        raise UnavailableError(
            "neither sbatch (SLURM) nor qsub (Grid Engine) is on PATH: submit from a login node, "
            "or name the scheduler (--scheduler slurm --dry-run) and copy the script there"
        )
    return wanted or found[0]


def submit_script(system: str, script: Path, after: str | None) -> str:
    """Submit a script, to start when another job is done; return the job's id.

    raises   UnavailableError with what the scheduler says
    """
    waiting = {"slurm": [f"--dependency=afterok:{after}"], "sge": ["-hold_jid", str(after)]}
    words = [*SUBMIT[system], *(waiting[system] if after else []), str(script)]
    said = _answer(system, words, cwd=script.parent)
    found = re.match(r"\d+", said.strip().splitlines()[-1] if said.strip() else "")
    if found is None:
        raise UnavailableError(f"{words[0]} has not said the number of the job: {said.strip()}")
    return found[0]


def cancel_job(system: str, job: str) -> None:
    """End a job for good. Raises UnavailableError with what the scheduler says."""
    _answer(system, [CANCEL[system], job])


def how_to_watch(system: str, job: str) -> str:
    """Return the scheduler's own command that shows a job."""
    return f"{WATCH[system]} {job}"


def _answer(system: str, words: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{words[0]} is not on PATH: this host cannot talk to {NAMES[system]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{words[0]} has not answered within {SECONDS:.0f} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise UnavailableError(f"{' '.join(words)}: {said or f'exit code {done.returncode}'}")
    return done.stdout
