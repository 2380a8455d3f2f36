"""Point groups in RELION's settings: Cn and Dn about z (Dn: twofold along x), T, O, I1 - I4."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from mpipar.cryoem.rotations import SAME
from mpipar.errors import ProtocolError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN = (1 + math.sqrt(5)) / 2

# Axes of two generators (order, direction) of each polyhedral setting. T: threefold along z. O:
# fourfold along z. I = I2: twofolds along x, y and z, fivefold in the xz plane at +31.7 degrees
# from z; I1 is I2 turned by 90 degrees about z; I3 and I4 have a fivefold along z (Heymann et al.
# 2005, J. Struct. Biol. 151).
GENERATORS: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, math.sqrt(2 / 3), math.sqrt(1 / 3)))),
    "T222": ((2, (0, 0, 1)), (3, (1, 1, 1))),
    "O": ((4, (0, 0, 1)), (3, (1, 1, 1))),
    "I1": ((2, (1, 0, 0)), (5, (GOLDEN, 0, -1)), (3, (GOLDEN**2, 1, 0))),
    "I2": ((2, (0, 0, 1)), (5, (1, 0, GOLDEN)), (3, (0, 1, GOLDEN**2))),
    "I3": ((5, (0, 0, 1)), (2, (-1, 0, GOLDEN))),
    "I4": ((5, (0, 0, 1)), (2, (1, 0, GOLDEN))),
}
LARGEST_GROUP = 2 * 999  # D999
ALTERNATIVES = {"T": ("T", "T222"), "I": ("I2", "I1", "I3", "I4")}
VALID = "Cn, Dn (n = 1, 2, 3 ...), T, O, I (or a setting of it: I1, I2, I3, I4)"


def canonical_name(name: str) -> str:
    """Return the upper-case name of a point group; UsageError with the valid names if unknown."""
    upper = name.strip().upper()
    if upper in GENERATORS or upper == "I" or re.fullmatch(r"[CD][1-9]\d{0,2}", upper):
        return upper
    raise UsageError(f"unknown symmetry {name!r}; give one of {VALID}")


def settings_of(name: str) -> tuple[str, ...]:
    """Return each setting of the axes that `name` may mean, the usual one first."""
    canonical = canonical_name(name)
    return ALTERNATIVES.get(canonical, (canonical,))


def setting_with(name: str, turns: NDArray[np.float64]) -> str:
    """Return which setting of a point group has these operators, (g, 3, 3)."""
    return next(s for s in settings_of(name) if np.array_equal(operators(s), turns))


def operators(name: str) -> NDArray[np.float64]:
    """Return all rotations of a point group, (g, 3, 3), the identity first."""
    canonical = settings_of(name)[0]
    if canonical[0] in "CD":
        fold = int(canonical[1:])
        generators = [_turn(fold, (0, 0, 1))] + (
            [_turn(2, (1, 0, 0))] if canonical[0] == "D" else []
        )
    else:
        generators = [_turn(order, axis) for order, axis in GENERATORS[canonical]]
    return _closure(generators)


def _turn(order: int, axis: tuple[float, float, float]) -> NDArray[np.float64]:
    direction = np.asarray(axis, np.float64)
    return np.asarray(
        Rotation.from_rotvec(
            direction / np.linalg.norm(direction) * 2 * math.pi / order
        ).as_matrix()
    )


def _closure(generators: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    group = np.eye(3)[None]
    position = 0
    while position < len(group):
        for generator in generators:
            product = generator @ group[position]
            if not (np.abs(group - product).max(axis=(1, 2)) < SAME).any():
                group = np.concatenate([group, product[None]])
        position += 1
        if len(group) > LARGEST_GROUP:
            raise ProtocolError(
                f"{len(generators)} rotations give no finite group of symmetry operators"
            )
    return group


def in_asymmetric_unit(
    directions: NDArray[np.floating], symmetry: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which unit vectors lie in one asymmetric unit of the group.

    The unit is the set of directions nearer to a fixed point than to the symmetry mates of that
    point, which is not on an axis.

    directions  (m, 3)
    symmetry    (g, 3, 3)
    returns     (m,) bool
    """
    point = np.array([0.31830989, 0.18378170, 0.93000000])
    point /= np.linalg.norm(point)
    closeness = directions @ (symmetry @ point).T
    return np.asarray(closeness[:, 0] >= closeness.max(axis=1) - 1e-12)
