"""`mpipar submit`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.cli.parser import command_parser, parse_flags
from mpipar.cli.request import Request, Subcommand
from mpipar.errors import MissingInputError, UsageError, reason_of
from mpipar.formats.reading import text_of
from mpipar.options import read_settings_file, toml_values
from mpipar.settings import RefineSettings, RunSettings
from mpipar.submit_settings import SubmitSettings

if TYPE_CHECKING:
    from mpipar.options import Settings
    from mpipar.programs.submission.submit import RunCommand, SubmittedJob

__all__ = ["COMMAND"]

KINDS: Final[dict[str, type[Settings]]] = {"refine": RefineSettings, "run": RunSettings}
SITE: Final = "MPIPAR_SITE"


def run(request: Request) -> int:
    """Submit what follows the options, or do what an option asks for; return the exit code."""
    from mpipar.programs.submission import site, submit

    settings = _settings(request)
    if settings.write_site:
        _say(site.write(settings, _site_file()))
        return 0
    if settings.cancel is not None:
        _say(submit.cancel(settings.cancel))
        return 0
    commands = _commands(settings, request.rest)
    if settings.dry_run:
        sys.stdout.write(submit.scripts(settings, commands))
        return 0
    job = submit.submit(settings, commands)
    _describe(job)
    return _wait(job) if settings.wait else 0


def _site_file() -> Path:
    named = os.environ.get(SITE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "mpipar" / "site.toml"


def _settings(request: Request) -> SubmitSettings:
    """Return the settings: those of the site's file, and of the command line, which wins."""
    path, values = _site_file(), {}
    if path.is_file() or (SITE in os.environ and "write_site" not in request.flags):
        try:
            text = text_of(path, path.read_bytes())
        except OSError as error:
            raise MissingInputError(f"{path}: {reason_of(error)}") from error
        values = toml_values(text, SubmitSettings.command, f"site file {path}")
    return SubmitSettings.from_mapping({**values, **request.flags}, source=f"site file {path}")


def _commands(settings: SubmitSettings, words: list[str]) -> list[RunCommand]:
    if not words:
        raise UsageError("what is to be submitted? mpipar submit --ntasks 64 -- refine --input ...")
    if settings.array is None:
        return [_command(words)]
    try:
        text = text_of(settings.array, settings.array.read_bytes())
    except OSError as error:
        raise MissingInputError(f"--array {settings.array}: {reason_of(error)}") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise UsageError(f"--array {settings.array}: has no lines")
    return [_command([*words, *_split(line)]) for line in lines]


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"--array: {line!r}: {error}") from error


def _command(words: list[str]) -> RunCommand:
    """Return a command and what its words mean; wrong options are told now, not by the job."""
    from mpipar.programs.submission.submit import RunCommand

    name, *options = words
    if name not in KINDS:
        raise UsageError(f"`mpipar submit` takes {' or '.join(KINDS)}, not {name!r}")
    kind = KINDS[name]
    flags, file = parse_flags(command_parser(kind, ""), options)
    values = read_settings_file(file, name) if file else {}
    settings = kind.from_mapping({**values, **flags}, source=f"--settings {file}")
    return RunCommand(tuple(words), settings)


def _describe(job: SubmittedJob) -> None:
    from mpipar.programs.submission.scheduler_commands import how_to_watch

    names = [shlex.quote(os.path.relpath(folder)) for folder in job.folders]
    _say(f"{job.system} job {job.job}: {', '.join(names)}")
    _say(f"watch it: mpipar status {names[0]}   or: {how_to_watch(job.system, job.job)}")
    _say(f"its log:  {names[0]}/job/log.txt")


def _wait(job: SubmittedJob) -> int:
    from mpipar.programs.run_status import wait_for_end

    found = [wait_for_end(Path(os.path.relpath(folder)), _say) for folder in job.folders]
    return next((status["exit_code"] for status in found if status["exit_code"]), 0)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


COMMAND = Subcommand(SubmitSettings, run)
