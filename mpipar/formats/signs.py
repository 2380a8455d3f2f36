"""Whether the integers of an MRC file have a sign, where programs disagree about it.

The standard, RELION and mrcfile read signed ones, EMAN2 unsigned ones. IMOD goes by flags of its
own, and without them by the smallest and largest value. Where the header does not tell either, the
values do: read with the wrong sign, neighbours that are alike lie at both ends of the range, and a
histogram is torn in two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNSIGNED: Final = {0: "u1", 1: "u2"}  # of modes that the standard calls signed
LARGEST_SIGNED: Final = {0: 127, 1: 32767}
IMOD_FIELDS: Final = 152  # stamp and flags, four bytes each
IMOD_STAMP: Final = 1146047817
IMOD_SIGNED: Final = 1  # a bit of IMOD's flags: the bytes of mode 0 are signed
CLEARLY_CALMER: Final = 0.8
"""The true reading has the smaller differences of neighbours, by this factor or less."""
EDGES: Final = 16
"""The histogram is compared at both places where it could be torn, in bins of 1/16 of its range."""
CLEARLY_SMOOTHER: Final = np.log(2.0)
EVEN: Final = 1.1  # of the fullest bin to the emptiest: such values are those of a test pattern


def unsigned_by_header(
    raw: bytes, record: Any, order: Literal["<", ">"], mode: int
) -> tuple[bool | None, tuple[str, ...]]:
    """Whether a header says that integers have no sign, and a note if only its statistics say so.

    raw       the header's bytes
    returns   None where the header does not tell
    """
    if mode not in UNSIGNED:
        return False, ()
    stamp, flags = np.frombuffer(raw, f"{order}i4", 2, offset=IMOD_FIELDS).tolist()
    if stamp == IMOD_STAMP and mode == 0:
        return not flags & IMOD_SIGNED, ()
    low, high, most = float(record["dmin"]), float(record["dmax"]), LARGEST_SIGNED[mode]
    if most < high <= 2 * most + 1 and (low >= 0 or -low <= high - (most + 1)):
        note = f"its integers are read as unsigned ones: its header has values above {most}"
        return True, (note,)
    told = -(most + 1) <= low < high <= most and low == round(low) and high == round(high)
    return (False if told and low < 0 else None), ()


def unsigned_by_values(values: NDArray[np.unsignedinteger]) -> tuple[bool | None, str]:
    """Whether integers look unsigned, and a note on that; '' if both readings are the same.

    values    some or all pixels of a file, read as unsigned ones; neighbours along the last axis
    returns   None where that is open
    """
    half = int(np.iinfo(values.dtype).max) // 2 + 1
    if not (values >= half).any():
        return False, ""
    question = "its header does not say whether its integers have a sign"
    unsigned = _looks_unsigned(values.astype(np.int64), half)
    if unsigned is None:
        return None, (
            f"{question}, nor do their values: they are read as signed, as the standard says; if "
            "that is wrong, convert the file to mode 2"
        )
    kind = "unsigned" if unsigned else "signed"
    return unsigned, f"{question}: they are read as {kind} ones, which is what they look like"


def _looks_unsigned(values: NDArray[np.int64], half: int) -> bool | None:
    """Return whether the unsigned reading is in one piece; None if both or neither are."""
    if np.isin(values, (0, 2 * half - 1)).all():
        return True  # 0 and 255 are a mask's, 0 and -1 nobody's
    bins = np.bincount(values.ravel() * EDGES // (2 * half), minlength=EDGES) + 1.0
    if bins.max() < EVEN * bins.min():
        return None
    signed = np.where(values >= half, values - 2 * half, values)
    change, signed_change = (float(np.abs(np.diff(v)).sum()) for v in (values, signed))
    if min(change, signed_change) < CLEARLY_CALMER * max(change, signed_change):
        return change < signed_change
    at_half, at_zero = np.abs(np.log([bins[7] / bins[8], bins[15] / bins[0]]))
    if abs(at_half - at_zero) < CLEARLY_SMOOTHER:
        return None
    return bool(at_half < at_zero)
