"""A volume as a numpy array that knows how large its voxels are."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["VolumeArray"]

_VOLUME_AXES = 3


class VolumeArray(np.ndarray[Any, np.dtype[np.float32]]):
    """A map or mask, (n, n, n) float32, axes z y x: a numpy array in all it does.

    voxel_size   A; NaN if the run was begun by a mpipar that did not record it. What is computed
                 from the array has it too, also where an operation has made it wrong: binning,
                 steps in a slice

    The origin is voxel n // 2 of each axis. A notebook shows the three central slices.
    """

    voxel_size: float

    @classmethod
    def of(cls, data: NDArray[np.floating[Any]], voxel_size: float) -> Self:
        """Return the array with a voxel size in A; float32 data are not copied."""
        array = np.asarray(data, np.float32).view(cls)
        array.voxel_size = voxel_size
        return array

    def __array_finalize__(self, source: object) -> None:
        self.voxel_size = getattr(source, "voxel_size", np.nan)

    def __array_wrap__(
        self, array: Any, context: Any = None, return_scalar: bool = False, /
    ) -> Any:
        del context
        return array[()] if return_scalar or array.ndim == 0 else array.view(type(self))._like(self)

    def _like(self, other: VolumeArray) -> Self:
        self.voxel_size = other.voxel_size
        return self

    def __reduce__(self) -> Any:
        return _unpickled, (np.asarray(self), self.voxel_size)

    def __repr__(self) -> str:
        if self.ndim != _VOLUME_AXES or not self.size:
            return repr(np.asarray(self))
        shape, values = " x ".join(map(str, self.shape)), np.asarray(self)
        return (
            f"VolumeArray {shape} (z y x) {self.dtype}, voxels of {self.voxel_size:.4g} A; values "
            f"{values.min():.4g} to {values.max():.4g}, deviation {values.std():.4g}"
        )

    def _repr_png_(self) -> bytes | None:
        """Return the central slices as a PNG, for notebooks; None if this is no volume."""
        from mpipar.views.plots import slices_picture

        if self.ndim != _VOLUME_AXES or not self.size:
            return None
        file = BytesIO()
        slices_picture(file, np.asarray(self), self.voxel_size)
        return file.getvalue()


def _unpickled(data: NDArray[np.float32], voxel_size: float) -> VolumeArray:
    return VolumeArray.of(data, voxel_size)
