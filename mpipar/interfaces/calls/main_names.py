"""Which names a worker's `__main__` has, once the module level of the user's script was run there.

It lacks what the script binds below `if __name__ == "__main__":`, what functions bind with `global`
in the user's process, and all of a program that is no file: one on stdin, or in a notebook.
"""

from __future__ import annotations

import ast
import dis
import inspect
import types
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["MainNames", "global_names"]

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class MainNames:
    """What a worker's main module has, as far as the script's text says."""

    bound: frozenset[str] = NONE  # at the module level
    rebound: frozenset[str] = NONE  # by what runs in the user's process only, or in functions
    functions: frozenset[tuple[str, int]] = frozenset()  # name and first line, at the module level

    @classmethod
    def of(cls, source: bytes | str | None) -> MainNames:
        """Read a script; None: there is no text, and a worker has nothing."""
        if source is None:
            return cls()
        try:
            everywhere = ast.parse(source)
            guarded = _Guards()
            on_workers = guarded.visit(ast.parse(source))
            below = ast.Module(guarded.bodies, [])
            codes = [_compiled(part) for part in (everywhere, on_workers, below)]
        except (SyntaxError, ValueError, RecursionError):  # a cell with magic words
            return cls()
        every, module, lower = codes
        functions = {(code.co_name, code.co_firstlineno) for code in _of_module_level(module)}
        rebound = {*_bound(lower), *_bound_in_functions(every)}
        return cls(frozenset(_bound(module)), frozenset(rebound), frozenset(functions))

    def has(self, name: str, value: Any) -> bool:
        """Whether a worker has the value of this name, or one that equals it."""
        if name not in self.bound:
            return False
        code = getattr(value, "__code__", None)
        if name in self.rebound:
            return code is not None and (code.co_name, code.co_firstlineno) in self.functions
        return True


def global_names(thing: Any) -> Iterable[str]:
    """Return the global names that a function or class uses, with all that it is made of."""
    if type(thing) is types.FunctionType and not thing.__closure__ and not thing.__dict__:
        return _names_of_code(thing.__code__)
    names, seen, todo = set[str](), set[int](), [thing]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, types.FunctionType):
            names |= _names_of_code(part.__code__)
            todo += [cell.cell_contents for cell in part.__closure__ or () if _is_full(cell)]
        todo += _parts(part)
    return names


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, property):
        yield from (thing.fget, thing.fset, thing.fdel)
    elif isinstance(thing, staticmethod | classmethod | types.MethodType):
        yield thing.__func__
    elif isinstance(thing, partial):
        yield thing.func
    elif isinstance(thing, type) and thing.__module__ == "__main__":
        yield from (*thing.__bases__, *vars(thing).values())
    if getattr(thing, "__module__", None) == "__main__" and hasattr(thing, "__wrapped__"):
        yield thing.__wrapped__


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not yet bound
        return False


@cache
def _names_of_code(code: types.CodeType) -> frozenset[str]:
    names = {
        str(step.argval)
        for step in dis.get_instructions(code)
        if "GLOBAL" in step.opname or step.opname == "LOAD_NAME"
    }
    return frozenset(names).union(*(_names_of_code(inner) for inner in _inner(code)))


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    return (value for value in code.co_consts if isinstance(value, types.CodeType))


def _compiled(module: ast.Module) -> types.CodeType:
    return compile(ast.fix_missing_locations(module), "<script>", "exec", dont_inherit=True)


def _of_module_level(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the functions and classes that a module makes when it is run."""
    for inner in _inner(code):
        yield inner
        if not inner.co_flags & inspect.CO_OPTIMIZED:
            yield from _of_module_level(inner)


def _bound(code: types.CodeType, *operations: str) -> Iterator[str]:
    """Yield the names that code binds; by default that of a module, where both mean the same."""
    operations = operations or ("STORE_NAME", "STORE_GLOBAL")
    return (str(step.argval) for step in dis.get_instructions(code) if step.opname in operations)


def _bound_in_functions(code: types.CodeType) -> Iterator[str]:
    for inner in _inner(code):
        yield from _bound(inner, "STORE_GLOBAL")
        yield from _bound_in_functions(inner)


class _Guards(ast.NodeTransformer):
    """Takes out of a module what is run only if it is the main one."""

    def __init__(self) -> None:
        self.bodies: list[ast.stmt] = []

    def visit_If(self, node: ast.If) -> Any:
        guards = _guards(node.test)
        if guards is None:
            return self.generic_visit(node)
        self.bodies += node.body if guards else node.orelse
        others = node.orelse if guards else node.body
        kept = ast.Module(others, [])
        self.generic_visit(kept)
        return kept.body or ast.Pass()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return node


def _guards(test: ast.expr) -> bool | None:
    """Whether a test is true only in a main module (False: in any other); None if neither."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return True if any(_guards(part) for part in test.values) else None
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    sides: Iterable[ast.expr] = (test.left, test.comparators[0])
    names = {side.id for side in sides if isinstance(side, ast.Name)}
    texts = {side.value for side in sides if isinstance(side, ast.Constant)}
    if names != {"__name__"} or texts != {"__main__"}:
        return None
    if isinstance(test.ops[0], ast.Eq):
        return True
    return False if isinstance(test.ops[0], ast.NotEq) else None
