"""Running a user's script as Python would: as `__main__`, with its own arguments and exit code."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
import types
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import InputError, MissingInputError, MpiparError, StoppedError
from mpipar.interfaces.calls.user_main import program_begins
from mpipar.runtime.process.exits import exit_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec

__all__ = ["MainProgram", "file_program", "module_program", "run_program"]

INTERRUPTED: Final = 130


class MainProgram:
    """Code that is to run as `__main__`, and what Python sets for it."""

    def __init__(
        self, code: types.CodeType, file: str | None, folder: str, name: str = "", **names: Any
    ) -> None:
        """`names` are names that the module has from the beginning, besides those of Python."""
        self.code = code
        self.file = file  # None: it is no file
        self.name = name or file or "-"  # sys.argv[0]
        self.folder = folder  # sys.path[0]
        self.names = names
        self.source: bytes | None = None  # of a script


def file_program(name: str) -> MainProgram:
    """Return the program in a file; "-": on stdin. Raises MissingInputError, InputError."""
    path = Path(name)
    try:
        source = path.read_bytes() if name != "-" else sys.stdin.buffer.read()
    except OSError as error:
        raise MissingInputError(
            f"the script {name} cannot be read: {error.strerror}; give its path as seen from the "
            "current folder"
        ) from error
    file = str(path.absolute()) if name != "-" else "<stdin>"
    try:
        # `dont_inherit`: without it the script would have the future statements of this module
        code = compile(source, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        text = "".join(traceback.format_exception_only(error)).rstrip()
        raise InputError(f"{name} is not a Python script:\n{text}") from None
    if name == "-":
        return MainProgram(code, file, "", name)
    loader = SourceFileLoader("__main__", file)
    program = MainProgram(code, file, str(path.resolve().parent), name, __loader__=loader)
    program.source = source
    return program


def module_program(name: str) -> MainProgram:
    """Return the program that `python -m name` would run. Raises MissingInputError."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        spec = _spec(name)
        code = spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
    except ImportError as error:
        raise MissingInputError(f"-m {name}: {error}") from error
    finally:
        del sys.path[0]
    if spec is None or code is None:
        raise MissingInputError(f"-m {name}: there is no module of that name to run")
    file = spec.origin or name
    return MainProgram(code, file, str(Path.cwd()), __spec__=spec, __package__=spec.parent)


def _spec(name: str) -> ModuleSpec | None:
    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        return find_spec(f"{name}.__main__")
    return spec


def run_program(
    program: MainProgram, arguments: Sequence[str], interrupted: Callable[[], None]
) -> int:
    """Run a program to its end, functions registered with atexit included; return its exit code.

    interrupted   called after ^C or a signal like it, before anything is waited for
    """
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, **program.names)
    if program.file is not None:
        main.__file__ = program.file
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main  # as multiprocessing has it
    sys.argv[:] = [program.name, *arguments]
    sys.path[0] = program.folder
    program_begins(program.file, program.source)
    process = os.getpid()
    code = _run_code(program.code, main.__dict__)
    if os.getpid() != process:  # a process that the script has forked; the job is not its to end
        exit_now(code)
    if code in {INTERRUPTED, StoppedError.exit_code}:
        interrupted()
    # Python's own end, which joins the threads that are no daemons; before that it runs what pools
    # of threads and processes have registered, or their threads would wait for work for ever.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code


def _run_code(code: types.CodeType, names: dict[str, Any]) -> int:
    """Run code; show its exception as Python would, and return the exit code that Python would."""
    try:
        exec(code, names)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except StoppedError as error:
        sys.stderr.write(f"mpipar: {error}\n")
        return error.exit_code
    except BaseException as error:
        sys.stdout.flush()
        trace = error.__traceback__
        error.__traceback__ = trace and trace.tb_next  # without the first line: that of `exec` here
        sys.excepthook(type(error), error, error.__traceback__)
        for found in (error, error.__cause__):
            if isinstance(found, MpiparError):  # no worker is left, for example
                return found.exit_code
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0
