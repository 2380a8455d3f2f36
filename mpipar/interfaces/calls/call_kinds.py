"""Which functions are pickled by their name, and which calls are of one kind."""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PICKLED_BY_NAME", "kind_of"]

PICKLED_BY_NAME: Final = (types.FunctionType, types.BuiltinFunctionType, type)


def kind_of(function: Callable[..., Any]) -> Any:
    """Return what calls that take about as long have in common: their function, or its type."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        function = function.__func__
    return function if type(function) in PICKLED_BY_NAME else type(function)
