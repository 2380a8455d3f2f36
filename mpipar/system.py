"""Facts about Linux that several layers need: the death of a parent, orphans, the boot.

Nothing here raises on another system. It imports little, because processes that must start quickly
import it, and nothing later than at its own import: the calls are safe between fork and exec.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["adopt_orphans", "boot_id", "end_with_parent"]

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def _find_prctl() -> Callable[..., int]:
    """Return the system call prctl(2), or what does nothing where there is none."""
    try:
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return lambda *_: -1
    return found


_prctl = _find_prctl()


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> bool:
    """Have the kernel send this process a signal when its parent dies.

    parent    process number of the parent, learnt by the child in another way than from getppid
    number    the signal
    returns   whether the parent still lives; if not, the signal never comes
    """
    _prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants whose own parent dies."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def boot_id() -> str:
    """Return what tells one start of this machine from another; "" where the kernel has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
