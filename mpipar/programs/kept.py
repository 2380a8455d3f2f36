"""What a worker keeps of a stage's costly arrays: those of the folds that it worked on last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Key = TypeVar("Key")
Value = TypeVar("Value")

KEPT: Final = 2
"""How many of a kind: tasks of one fold come one after the other."""


def latest(
    kept: dict[Key, Value], key: Key, make: Callable[[], Value]
) -> tuple[Value, dict[Key, Value]]:
    """Return the value of a key, made if it is not kept, and what it has pushed out of `kept`.

    kept   in place: least recently used first
    """
    kept[key] = kept.pop(key) if key in kept else make()
    oldest = list(kept)[:-KEPT]
    return kept[key], {name: kept.pop(name) for name in oldest}
