"""Functions and classes of the user's main program as bytes, where a worker has none of that name.

The standard library pickles them by name only. Here those of `__main__` that no name leads to, such
as lambdas, are pickled by value; those that a name leads to only in the user's process are sent by
`MainDefinitions`. What a function of another module contains is pickled as ever: it is imported.
"""

from __future__ import annotations

import functools
import io
import sys
import types
from collections import ChainMap
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final

import cloudpickle
import numpy as np

from mpipar.runtime.wire.codec import reduce_array

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ByValuePickler", "names_in", "reduce_writable_array"]

MAIN: Final = "__main__"
ATTRIBUTES: Final = (
    "__defaults__",
    "__kwdefaults__",
    "__annotations__",
    "__doc__",
    "__module__",
    "__qualname__",
    "__type_params__",
)


def reduce_writable_array(array: Any) -> Any:
    """Pickle an array so that what is read back can be written to, as after any other pickling.

    A read-only array is copied first: an array over a read-only buffer would be read-only.
    """
    flags = array.flags
    if flags.forc and not flags.writeable and not array.dtype.hasobject:
        array = array.copy(order="K")  # of any other a copy is made anyway
    return reduce_array(array)


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # it ships no types
    """A pickler of functions and classes that no name in `__main__` leads to."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {np.ndarray: reduce_writable_array}, cloudpickle.Pickler.dispatch_table
    )

    def __init__(self, file: Any, *, defining: str = "", **options: Any) -> None:
        """`defining` is the name in `__main__` that no worker has yet, and whose object this is."""
        super().__init__(file, 5, **options)
        self._defining = defining
        self.named: dict[str, None] = {}  # names in `__main__` that the pickle needs
        self.enclosed: list[Any] = []  # functions and classes within the pickle

    def reducer_override(self, thing: Any) -> Any:
        name = _name_in_main(thing)
        if name is None:  # cloudpickle knows types that have no name in `builtins`, such as code's
            is_builtin = isinstance(thing, type) and thing.__module__ == "builtins"
            is_inside = bool(self.enclosed) and isinstance(thing, types.FunctionType)
            return super().reducer_override(thing) if is_builtin or is_inside else NotImplemented
        first = name.partition(".")[0]
        if first != self._defining and _leads_to(name, thing):
            self.named[first] = None
            return NotImplemented
        if isinstance(thing, type):
            self.enclosed.append(thing)
            return super().reducer_override(thing)
        if isinstance(thing, types.FunctionType) and _module_of(thing) is not None:
            self.enclosed.append(thing)
            return _reduce_function(thing)
        if isinstance(thing, functools._lru_cache_wrapper):
            parameters = thing.cache_parameters()
            return _cached, (thing.__wrapped__, parameters["maxsize"], parameters["typed"])
        return NotImplemented


class _Recorder(ByValuePickler):
    """Finds names only: memory of arrays is left out."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {np.ndarray: lambda array: (int, (array.size,))}, ByValuePickler.dispatch_table
    )


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def names_in(thing: Any) -> tuple[list[str], list[Any]]:
    """Return the names in `__main__` that pickles of an object need, and functions within them."""
    name = _name_in_main(thing) if type(thing) is types.FunctionType else None
    if name is not None and _leads_to(name, thing):  # what most calls are
        return [name.partition(".")[0]], []
    recorder = _Recorder(_Nowhere(), buffer_callback=lambda buffer: False)
    with suppress(Exception):  # the call itself says so
        recorder.dump(thing)
    return list(recorder.named), recorder.enclosed


def _name_in_main(thing: Any) -> str | None:
    """Return the name of a function or class of `__main__`; None for any other object."""
    try:
        name = thing.__qualname__ if thing.__module__ == MAIN else None
    except Exception:
        return None
    return name if isinstance(name, str) else None


def _leads_to(name: str, thing: Any) -> bool:
    found: Any = sys.modules[MAIN]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is thing


def _module_of(function: types.FunctionType) -> str | None:
    """Return the name of the module whose names a function uses; None if that is not imported."""
    name = function.__globals__.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if function.__globals__ is sys.modules[MAIN].__dict__:
        return MAIN
    return name if module is not None and module.__dict__ is function.__globals__ else None


def _cached(function: Any, most: int | None, typed: bool) -> Any:
    return functools.lru_cache(most, typed)(function)


def _reduce_function(function: types.FunctionType) -> tuple[Any, ...]:
    code, cells = function.__code__, function.__closure__
    new = code, code.co_filename, _module_of(function), function.__name__
    attributes = {
        name: getattr(function, name) for name in ATTRIBUTES if getattr(function, name, None)
    }
    contents = [_contents(cell) for cell in cells or ()]
    state = attributes, function.__dict__, contents
    return _new_function, new, state, None, None, _complete_function


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # a name that is bound later
        return ()


def _new_function(code: types.CodeType, file: str, module: str, name: str) -> types.FunctionType:
    where = sys.modules[MAIN] if module == MAIN else import_module(module)
    closure = tuple(types.CellType() for _ in code.co_freevars)
    return types.FunctionType(_of_file(code, file), where.__dict__, name, None, closure)


def _of_file(code: types.CodeType, file: str) -> types.CodeType:
    """Return code as that of a file, which tracebacks show: cloudpickle leaves that out."""
    constants = tuple(
        _of_file(each, file) if isinstance(each, types.CodeType) else each
        for each in code.co_consts
    )
    return code.replace(co_filename=file, co_consts=constants)


def _complete_function(
    function: types.FunctionType,
    state: tuple[Mapping[str, Any], dict[str, Any], list[tuple[Any, ...]]],
) -> None:
    attributes, others, contents = state
    for name, value in attributes.items():
        setattr(function, name, value)
    function.__dict__.update(others)
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            cell.cell_contents = content[0]
