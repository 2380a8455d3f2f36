"""How definitions travel: small ones with the calls that need them, large ones as blocks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from mpipar.interfaces.calls.definitions import MainDefinitions, as_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.interfaces.calls.definitions import Definition
    from mpipar.interfaces.calls.user_main import UserMain

__all__ = ["DefinitionBlocks"]

LARGE: Final = 1 << 16  # bytes


class DefinitionBlocks:
    """The definitions that calls of one stream need. A block reaches each worker only once."""

    def __init__(self, main: UserMain) -> None:
        self.definitions = MainDefinitions(main)
        self._lock = threading.Lock()
        self._blocks: dict[int, tuple[int, Mapping[str, NDArray[Any]]]] = {}  # queue and block
        self._newest: dict[int, tuple[tuple[int, ...], int]] = {}  # by queue: versions and block

    def pack(
        self, queue: int, names: Iterable[str], number: int, in_use: Mapping[int, int | None]
    ) -> tuple[Sequence[Definition], int | None]:
        """Return the definitions to send with calls, and the block in which there are more.

        names    that the calls need
        number   of a block, if a new one has to be made
        in_use   by task under way: its block, which must be kept
        """
        found = self.definitions.needed(names)
        if sum(each.size for each in found) < LARGE:
            return found, None
        versions = tuple(each.version for each in found)
        with self._lock:
            newest = self._newest.get(queue)
            if newest is not None and newest[0] == versions:
                return (), newest[1]
            kept = set(in_use.values())
            for old, (owner, _) in list(self._blocks.items()):
                if owner == queue and old not in kept:
                    del self._blocks[old]
            self._blocks[number] = queue, as_block(found)
            self._newest[queue] = versions, number
            return (), number

    def read(self, number: int) -> tuple[int, Mapping[str, NDArray[Any]]]:
        """Return the queue and content of a block; -1 and nothing if it is released."""
        with self._lock:
            return self._blocks.get(number, (-1, {}))

    def release(self, queue: int) -> None:
        """Forget the blocks of a queue."""
        with self._lock:
            self._newest.pop(queue, None)
            for number, (owner, _) in list(self._blocks.items()):
                if owner == queue:
                    del self._blocks[number]
