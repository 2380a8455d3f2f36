"""The decorator that compiles kernels: ahead of the first call, without the GIL, once per node.

Kernels carry explicit signatures, so importing their modules compiles them or loads them from
numba's cache. Many ranks of one node do that at the same moment: the first takes a lock and
compiles, the others wait and load what it made (`compile_lock`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
from numba.core import sigutils
from numba.core.types import Array

if TYPE_CHECKING:
    from numba.core.typing.templates import Signature

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Reassociation lets loops use vector registers. The order of a sum is then the compiler's, but the
# same in every process that runs the same machine code, which is what bit-identical results need.
# NaN and infinity keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}


def kernel(
    signature: str | Signature | None = None, changes: tuple[int, ...] = ()
) -> Callable[[Kernel], Kernel]:
    """Compile a function for `signature`, e.g. ``"void(float32[:,::1], int64)"``.

    signature  as a text, or as numba's object where a type has no name in numba; None for helpers
               that kernels call
    changes    which arguments are changed in place; of the others, read-only arrays will do
    """
    arguments = None if signature is None else _arguments(signature, changes)
    compiled = numba.njit(
        arguments, nogil=True, cache=True, fastmath=FAST_MATH, error_model="numpy"
    )
    return cast("Callable[[Kernel], Kernel]", compiled)


def _arguments(signature: str | Signature, changes: tuple[int, ...]) -> Any:
    types, result = sigutils.normalize_signature(signature)  # type: ignore[no-untyped-call]
    given = [
        kind.copy(readonly=True) if isinstance(kind, Array) and place not in changes else kind
        for place, kind in enumerate(types)
    ]
    return result(*given)
