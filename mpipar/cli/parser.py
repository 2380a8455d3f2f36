"""Command-line parsers made from settings dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mpipar.errors import UsageError
from mpipar.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.options import Option, Settings

__all__ = ["command_parser", "main_parser", "parse_flags", "split_rest"]

DESCRIPTION = (
    "Cryo-EM refinement, and lists of commands, on shared computing clusters as one MPI job."
)
EPILOG = """\
`mpipar COMMAND --help` explains a command, with examples.
exit codes: 0 done, 64 wrong option, 65 and 66 bad or missing input, 69 something is not installed,
71 started in a way that cannot work, 73 and 74 cannot write, 75 temporary (run it again), 70 a bug,
or commands of `run` that failed, 130 ended by ^C. --parallel=TYPE (serial, thread:N, mpi, mpi:N) is
the same for every command that computes: docs/parallel.md
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError, with a hint at what was probably meant."""

    def error(self, message: str) -> NoReturn:
        unknown, words = "unrecognized arguments: ", message
        if message.startswith(unknown):
            words = f"unknown option {message.removeprefix(unknown)}"
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(words.split()[2].split("=")[0], flags, n=1)
            words += f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{words} (`{self.prog} --help` lists all options)")


class Count(argparse.Action):
    """A flag that counts: `-v`, `-vv`, `--verbose`, `--verbose 2`, `--verbose=-1`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        before = getattr(namespace, self.dest, 0)
        if values is None:
            value = before + 1
        elif values.strip("v") == "":
            value = before + 1 + len(values)
        else:
            value = values
        setattr(namespace, self.dest, value)


def main_parser(summaries: dict[str, str]) -> Parser:
    """Make the parser of `mpipar` itself, which only finds the command."""
    width = max(len(name) for name in summaries)
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in summaries.items())
    parser = Parser(
        prog="mpipar",
        usage="mpipar [--help] [--version] COMMAND ...",
        description=f"{DESCRIPTION}\n\ncommands:\n{lines}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mpipar {__version__}")
    return parser


def command_parser(kind: type[Settings], summary: str) -> Parser:
    """Make the parser of a command; values stay text, options that are not given are left out."""
    parser = Parser(
        prog=f"mpipar {kind.command}",
        usage=f"mpipar {kind.command} [options] {kind.rest}" if kind.rest else None,
        description=summary,
        epilog=kind.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in kind.options():
        explained = kind.option_of(name)
        if explained.positional:
            nargs = None if kind.default_of(name) is dataclasses.MISSING else "?"
            parser.add_argument(name, help=explained.help, metavar=explained.metavar, nargs=nargs)
            continue
        if explained.group not in groups:
            groups[explained.group] = parser.add_argument_group(explained.group)
        _add(groups[explained.group], kind, name, explained)
    if groups and not kind.rest:
        last = list(groups.values())[-1]
        last.add_argument("--settings", metavar="TOML", help="read options from a file; flags win")
    return parser


def split_rest(kind: type[Settings], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into the command's own and those of the script it runs, if it runs one.

    The script's words begin after `--`, or with the first that is no flag and no flag's value; `-`
    is no flag, but a script on stdin.
    """
    if not kind.rest:
        return list(words), []
    alone = {"-h", "--help"}  # flags that take no value
    for name, value in kind.options().items():
        if value is bool:
            alone |= {kind.flag(name), kind.option_of(name).short}
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in {"-", "--"}:
        at += 1 if words[at] in alone or "=" in words[at] else 2
    begin = at + 1 if words[at : at + 1] == ["--"] else at
    return list(words[:at]), list(words[begin:])


def parse_flags(parser: Parser, arguments: Sequence[str]) -> tuple[dict[str, Any], Path | None]:
    """Return the user's values, as text by option name, and the settings file."""
    values = vars(parser.parse_args(arguments))
    file = values.pop("settings", None)
    return values, None if file is None else Path(file)


def _add(
    group: argparse._ArgumentGroup, kind: type[Settings], name: str, explained: Option
) -> None:
    flags = [explained.short, kind.flag(name)] if explained.short else [kind.flag(name)]
    text = _help(explained, kind.default_of(name)).replace("%", "%%")
    if kind.options()[name] is bool:
        group.add_argument(*flags, dest=name, action="store_true", help=text)
    elif explained.count:
        group.add_argument(*flags, dest=name, action=Count, nargs="?", metavar="N", help=text)
    else:
        metavar = explained.metavar or explained.units.upper() or "N"
        group.add_argument(*flags, dest=name, metavar=metavar, help=text)


def _help(explained: Option, default: Any) -> str:
    """Help, units, bounds and default in one line."""
    facts = [explained.units] if explained.units else []
    if explained.minimum is not None and explained.minimum > 1:
        facts.append(f"at least {explained.minimum:g}")
    if explained.default_text.startswith("required"):
        facts.append(explained.default_text)
    elif explained.default_text:
        facts.append(f"default: {explained.default_text}")
    elif not isinstance(default, bool) and default not in (None, dataclasses.MISSING):
        facts.append(f"default: {default}")
    return f"{explained.help} ({', '.join(facts)})" if facts else explained.help
