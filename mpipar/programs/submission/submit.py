"""`mpipar submit` from settings to a job in the queue: folders, scripts, the scheduler's answer."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.errors import InputError, MissingInputError, UsageError
from mpipar.programs.run_folder import newest_run
from mpipar.programs.submission.job_script import JobRun, array_script, run_script
from mpipar.programs.submission.scheduler_commands import cancel_job, submit_script, system_here
from mpipar.store import RunState, standing_of
from mpipar.store.batch_system import cluster_of
from mpipar.store.epoch import BatchJob, used_epochs
from mpipar.store.folder import next_free, require_free
from mpipar.store.schema import JOB
from mpipar.store.submission import SCRIPT, Submission, read_submission, record_submission

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.options import Settings
    from mpipar.submit_settings import SubmitSettings

__all__ = ["RunCommand", "SubmittedJob", "cancel", "scripts", "submit"]

FILES: Final = ("input", "model", "mask", "commands")  # options that name a file to be read
ARRAY_SCRIPT: Final = "array.sh"
GOES_ON: Final = (RunState.RUNNING, RunState.QUEUED)


@dataclass(frozen=True)
class RunCommand:
    """A command of mpipar that computes, as it was given: its words, and what they mean."""

    words: tuple[str, ...]  # `refine`, options
    settings: Settings


@dataclass(frozen=True)
class SubmittedJob:
    """What the scheduler has taken."""

    system: str
    job: str
    folders: tuple[Path, ...]  # of the runs, absolute


def scripts(settings: SubmitSettings, commands: Sequence[RunCommand]) -> str:
    """Return what would be submitted, as text; nothing is made."""
    system = _checked(settings, commands)
    runs = [_run(command, _planned(command)) for command in commands]
    texts = [run_script(system, settings, run, sys.executable) for run in runs]
    if settings.array is not None:
        texts.insert(0, array_script(system, settings, runs))
    return "\n".join(texts)


def submit(settings: SubmitSettings, commands: Sequence[RunCommand]) -> SubmittedJob:
    """Make the runs' folders with their scripts, and submit them as one job.

    If the scheduler refuses it, nothing is left. Raises MpiparError.
    """
    system = _checked(settings, commands)
    after = None if settings.after is None else _job_to_wait_for(settings.after, system)
    cluster, made, runs = cluster_of(system), list[Path](), list[JobRun]()
    try:
        for command in commands:
            runs.append(_run(command, _folder(command, made)))
            _write_script(run_script(system, settings, runs[-1], sys.executable), runs[-1], SCRIPT)
        main = SCRIPT
        if settings.array is not None:
            main = ARRAY_SCRIPT
            _write_script(array_script(system, settings, runs), runs[0], main)
        job = submit_script(system, runs[0].folder / JOB / main, after)
    except BaseException:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    mark = {"slurm": "_", "sge": "."}[system]
    for number, (run, command) in enumerate(zip(runs, commands, strict=True), start=1):
        own = job if settings.array is None else f"{job}{mark}{number}"
        batch = BatchJob(system, cluster, own, 0)
        record_submission(run.folder, Submission(batch, command.settings.command, time.time()))
    return SubmittedJob(system, job, tuple(run.folder for run in runs))


def cancel(folder: Path) -> str:
    """End the job of a run for good; return what was done.

    raises   MissingInputError if no job of the run is known; UnavailableError
    """
    submitted, claim = read_submission(folder), None
    if used_epochs(folder):
        claim = standing_of(folder, ask=False).claim
    batch = claim.batch if claim and claim.batch else None
    job = submitted.job if submitted else batch
    if job is None:
        raise MissingInputError(f"{folder}: no batch job of a run is known there")
    cancel_job(job.system, job.job)
    return f"{folder}: {job.system} job {job.job} is told to end; `mpipar status {folder}` tells"


def _checked(settings: SubmitSettings, commands: Sequence[RunCommand]) -> str:
    """Return the scheduler's name; refuse what could only fail when the job starts."""
    if settings.ntasks is None:
        raise UsageError("--ntasks is required: how many MPI ranks, the master included")
    for command in commands:
        for name in FILES:
            path = getattr(command.settings, name, None)
            if path is not None and not path.is_file():
                raise MissingInputError(f"{command.settings.flag(name)} {path}: there is no file")
        if getattr(command.settings, "parallel", None) is not None:
            raise UsageError("--parallel: leave it out; it follows from --ntasks")
        if getattr(command.settings, "check", False):
            raise UsageError("--check: run it here, without `mpipar submit`")
    return system_here(settings.scheduler)


def _job_to_wait_for(after: str, system: str) -> str:
    """Return a job's number: that of the run in a folder, or what was given."""
    submitted = read_submission(Path(after)) if Path(after).is_dir() else None
    if submitted is not None:
        job = submitted.job.job
        return job if system == "slurm" else job.partition(".")[0]  # a hold names whole jobs
    if not after[:1].isdigit():
        raise MissingInputError(
            f"--after {after}: is neither a job's number nor the folder of a submitted run"
        )
    return after


def _planned(command: RunCommand) -> Path:
    """Return the run's folder, or a name in the place of the next free one."""
    path = _named(command)
    return (path or Path(f"{command.settings.command}_NN")).absolute()


def _named(command: RunCommand) -> Path | None:
    path: Path | None = getattr(command.settings, "path", None)
    if path is None and getattr(command.settings, "resume", False):
        return newest_run(command.settings.command)
    return path


def _folder(command: RunCommand, made: list[Path]) -> Path:
    """Return the run's folder, which is there then. A new one is added to `made`."""
    path, kind = _named(command), command.settings.command
    if path is None:
        path = next_free(Path.cwd(), kind)
        made.append(path)
    elif not path.exists():
        require_free(path)
        path.mkdir(parents=True)
        made.append(path)
    elif read_submission(path) is not None or used_epochs(path):
        _require_at_rest(path, resumes=getattr(command.settings, "resume", False))
    else:
        require_free(path)
    (path / JOB).mkdir(exist_ok=True)
    return path.absolute()


def _require_at_rest(path: Path, *, resumes: bool) -> None:
    standing = standing_of(path)
    if standing.state in GOES_ON:
        raise UsageError(f"{path}: is {standing.state.value} already: {standing.reason}")
    if used_epochs(path) and not resumes:
        raise UsageError(f"{path}: holds a run; add --resume to go on with it, or name another")


def _run(command: RunCommand, folder: Path) -> JobRun:
    if any(mark in str(folder) for mark in '\n"'):
        raise InputError(f"{folder}: no scheduler can be told a folder with such a name")
    words = (*command.words, "--path", str(folder))
    threads = getattr(command.settings, "threads", 1)
    return JobRun(folder, words, Path.cwd(), threads)


def _write_script(text: str, run: JobRun, name: str) -> None:
    path = run.folder / JOB / name
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    path.chmod(0o755)
