"""Options of a command as fields of a frozen dataclass.

Flags, TOML keys, help texts, bounds, and what is saved with a run all follow from these fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from mpipar.errors import InputError, MissingInputError, UsageError
from mpipar.formats.reading import text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = [
    "Option",
    "Settings",
    "option",
    "read_settings_file",
    "seconds_of",
    "toml_text",
    "toml_values",
]


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a settings dataclass declares of a field besides its type and default."""

    help: str
    units: str = ""
    default_text: str = ""  # shown in --help in the place of a default of None
    minimum: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str = ""
    group: str = "options"
    short: str = ""  # a one-letter flag, e.g. "-v"
    count: bool = False  # each flag without a value adds 1
    positional: bool = False
    changeable: bool = False  # may differ when a run is resumed


def option(default: Any = dataclasses.MISSING, **words: Any) -> Any:
    """Declare a field of a settings dataclass; without a default it is required.

    words   the fields of `Option`
    """
    return field(default=default, metadata={"option": Option(**words)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Values checked against the types and bounds of their options; UsageError if one is wrong."""

    command: ClassVar[str]
    epilog: ClassVar[str] = ""
    rest: ClassVar[str] = ""  # usage text of what follows the options and is passed on unread

    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)  # set by the user

    def __post_init__(self) -> None:
        for name, kind in self.options().items():
            checked = _check(self.flag(name), getattr(self, name), kind, self.option_of(name))
            object.__setattr__(self, name, checked)
        self.check_together()

    def check_together(self) -> None:
        """Rules that involve several options. Raises UsageError."""

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return name and type of every option, in the order of declaration."""
        hints = get_type_hints(cls)
        return {f.name: hints[f.name] for f in dataclasses.fields(cls) if "option" in f.metadata}

    @classmethod
    def option_of(cls, name: str) -> Option:
        """Return the declaration of a field."""
        found: Option = cls.__dataclass_fields__[name].metadata["option"]
        return found

    @classmethod
    def default_of(cls, name: str) -> Any:
        """Return the default of an option; dataclasses.MISSING if it is required."""
        return cls.__dataclass_fields__[name].default

    @classmethod
    def flag(cls, name: str) -> str:
        """Return the option as it is written on the command line."""
        return name if cls.option_of(name).positional else "--" + name.replace("_", "-")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "settings") -> Self:
        """Make settings from plain values, e.g. of a TOML file; UsageError for unknown names."""
        for name in values:
            if name not in cls.options():
                near = difflib.get_close_matches(name, cls.options(), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"{source}: `{cls.command}` has no option {name!r}{hint}")
        for name in cls.options():
            if cls.default_of(name) is dataclasses.MISSING and name not in values:
                raise UsageError(f"{cls.flag(name)} is required")
        return cls(given=frozenset(values), **values)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values (str, int, float, bool) of all options but those that are None.

        Paths are absolute, so that a saved run can be resumed from any folder.
        """
        values = {name: getattr(self, name) for name in self.options()}
        return {name: _plain(value) for name, value in values.items() if value is not None}

    def to_toml(self) -> str:
        """Return the text of a TOML file for `--settings`, with the help texts as comments."""
        lines = [f"[{self.command}]"]
        for name, value in self.to_mapping().items():
            explained = self.option_of(name)
            units = f", {explained.units}" if explained.units else ""
            lines += [f"# {explained.help}{units}", f"{name} = {toml_text(value)}"]
        return "\n".join(lines) + "\n"

    def resumed_from(self, saved: Mapping[str, Any], *, where: str) -> Self:
        """Return an earlier run's settings, with the user's new values of options that may change.

        saved    what `to_mapping` gave for that run
        where    names that run in the error
        raises   UsageError if the user now gives another value to an option that must not change
        """
        before = self.from_mapping({k: v for k, v in saved.items() if k in self.options()})
        values = {name: getattr(before, name) for name in self.options()}
        for name in self.given:
            now, then = getattr(self, name), values[name]
            if not self.option_of(name).changeable and _plain(now) != _plain(then):
                raise UsageError(
                    f"{self.flag(name)} {now}: {where} was started with {self.flag(name)} {then}, "
                    "and a resumed run keeps its settings; leave the option out, or start a new run"
                )
            values[name] = now
        return dataclasses.replace(before, given=self.given, **values)


def seconds_of(flag: str, text: str) -> float:
    """Return the seconds of a time such as 90, 90s, 10m, 1.5h, 2d or 1h30m. Raises UsageError."""
    parts = re.findall(r"(\d+\.?\d*|\.\d+)([smhd]?)", text)
    units = [unit for _, unit in parts]
    whole = "".join(number + unit for number, unit in parts) == text
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not whole or seconds <= 0 or ("" in units and len(parts) > 1):
        raise UsageError(f"{flag} {text}: must be a time such as 90, 90s, 10m, 1.5h, 2d or 1h30m")
    return seconds


def read_settings_file(path: Path, command: str) -> dict[str, Any]:
    """Read values for one command from a TOML file: the top level, then the table [command]."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInputError(f"--settings {path}: {error.strerror}") from error
    return toml_values(text_of(path, data), command, f"--settings {path}")


def toml_values(text: str, command: str, source: str) -> dict[str, Any]:
    """Return values for one command from TOML text; tables of other commands are skipped."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"{source} is not valid TOML: {error}; it has lines such as key = 1"
        ) from error
    values = {name: value for name, value in document.items() if not isinstance(value, dict)}
    return {**values, **document.get(command, {})}


def _check(flag: str, value: Any, kind: Any, rules: Option) -> Any:
    """Return the value in its declared type; UsageError if it is out of bounds."""
    if value is None and type(None) in get_args(kind):
        return None
    value = _convert(flag, value, _plain_type(kind))
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{flag} {value}: must be a finite number")
    if rules.minimum is not None and value < rules.minimum:
        units = f" {rules.units}" if rules.units else ""
        raise UsageError(f"{flag} {value}: must be at least {rules.minimum:g}{units}")
    if rules.choices and value not in rules.choices:
        raise UsageError(f"{flag} {value}: must be one of {', '.join(rules.choices)}")
    return value


def _plain_type(kind: Any) -> type:
    """`int` for `int` and for `int | None`."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    plain: type = kind
    return plain


def _convert(flag: str, value: Any, kind: type) -> Any:
    """Convert text from the command line, or a value from TOML or Python, to `kind`."""
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise UsageError(f"{flag} {value!r}: must be {_KINDS[kind]}")
        return value
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise UsageError(f"{flag} {value!r}: must be {_KINDS[kind]}")
    if kind in (str, Path) and (value == "" or not isinstance(value, str | Path)):
        raise UsageError(f"{flag} {value!r}: must be {_KINDS[kind]}")
    if kind is Path and "\0" in str(value):
        raise UsageError(f"{flag} {str(value)!r}: must be a path, which has no zero bytes")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{flag} {value!r}: must be {_KINDS[kind]}") from None


_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def _plain(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value


def toml_text(value: str | float | bool) -> str:
    """Return a plain value as TOML has it."""
    # A JSON string is a TOML basic string, except that TOML wants DEL escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
