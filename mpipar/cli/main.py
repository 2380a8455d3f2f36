"""`mpipar COMMAND ...`: find the command and run it; under mpirun every rank does."""

from __future__ import annotations

import difflib
import sys
from contextlib import redirect_stdout
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Final

from mpipar.cli import (
    check_command,
    exec_command,
    export_command,
    import_command,
    pack_commands,
    prune_command,
    refine_command,
    run_command,
    status_command,
    submit_command,
    unlock_command,
)
from mpipar.cli.outcome import attempt
from mpipar.cli.parser import command_parser, main_parser, parse_flags, split_rest
from mpipar.cli.request import Request
from mpipar.errors import UsageError
from mpipar.launch import LaunchEnvironment, prepare_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.cli.request import Subcommand

__all__ = ["main"]

COMMANDS: Final[dict[str, Subcommand]] = {
    "refine": refine_command.COMMAND,
    "run": run_command.COMMAND,
    "exec": exec_command.COMMAND,
    "import": import_command.COMMAND,
    "submit": submit_command.COMMAND,
    "status": status_command.COMMAND,
    "check": check_command.COMMAND,
    "export": export_command.COMMAND,
    "pack": pack_commands.PACK,
    "unpack": pack_commands.UNPACK,
    "prune": prune_command.COMMAND,
    "unlock": unlock_command.COMMAND,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run mpipar and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    prepare_process()
    environment = LaunchEnvironment.read()
    return attempt(lambda: _run(words, environment), environment.rank)


def _run(words: list[str], environment: LaunchEnvironment) -> int:
    """Parse on every rank, so that all agree on a wrong option; then run the command."""
    name = words[0] if words else ""
    try:
        with redirect_stdout(sys.stdout if environment.rank == 0 else StringIO()):
            if name not in COMMANDS:
                return _no_command(words)
            command = COMMANDS[name]
            if command is not exec_command.COMMAND:  # a script's output is its own
                _print_any_name()
            own, rest = split_rest(command.settings, words[1:])
            flags, file = parse_flags(command_parser(command.settings, _summary(command)), own)
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    if environment.rank > 0 and not command.is_parallel:
        return 0
    return command.run(Request(command.settings, flags, file, words, environment, rest))


def _print_any_name() -> None:
    """Let output hold names that the terminal's encoding lacks, or that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _no_command(words: list[str]) -> int:
    parser = main_parser({name: _summary(command) for name, command in COMMANDS.items()})
    if not words:
        parser.print_help()
        return UsageError.exit_code
    if not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0].lower(), COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"unknown command {words[0]!r}; the commands are {', '.join(COMMANDS)}{hint}"
        )
    parser.parse_args(words)
    raise UsageError("no command given")


def _summary(command: Subcommand) -> str:
    """Return the first line of the settings' docstring."""
    return (command.settings.__doc__ or "").splitlines()[0]
