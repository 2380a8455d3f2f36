"""What SoftStage does with a block of images on a GPU, where slices and sums stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem.device import device_images
from mpipar.cryoem.device.device_posterior import DeviceOrientationSums, DevicePosterior
from mpipar.programs.device_block import ONE_AT_A_TIME
from mpipar.programs.kept import latest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.posterior import SoftPlan, SoftPoses
    from mpipar.cryoem.reconstruction import FixedPoint
    from mpipar.programs.block_rows import ParticleRows
    from mpipar.programs.device_block import DeviceBlocks


class DeviceExpecter:
    """Weighs all poses of blocks of images on one GPU, in one iteration, and sums the images."""

    def __init__(self, blocks: DeviceBlocks, plan: SoftPlan, scales: FixedPoint) -> None:
        """Take what the iteration's blocks have in common; see SoftStage."""
        self._blocks, self._plan, self._scales = blocks, plan, scales
        self._grids: dict[tuple[int, int], DevicePosterior] = {}
        self._by_pose: dict[str, DeviceOrientationSums] = {}
        self._inserted: dict[str, NDArray[np.int64]] = {}

    def expect(
        self, rows: ParticleRows, pixels: NDArray[np.float32], spectrum: NDArray[np.float64]
    ) -> tuple[SoftPoses, NDArray[np.float64]]:
        """Return what is known of a block's images, and the power (s,) left unexplained.

        spectrum   (s,) from `soft_stage.spectrum_of`
        """
        accelerator = self._blocks.accelerator
        with accelerator.active():
            there = accelerator.upload(pixels)
            with ONE_AT_A_TIME:
                return self._expect(rows, there, spectrum)

    def _expect(
        self, rows: ParticleRows, pixels: Any, spectrum: NDArray[np.float64]
    ) -> tuple[SoftPoses, NDArray[np.float64]]:
        blocks = self._blocks
        on, host = blocks.accelerator, blocks.wanted.host
        images, ctf = blocks.scaled(rows, pixels)
        masked = blocks.inside_discs(images, rows.poses.shifts)
        weights = blocks.weights(spectrum)
        data = device_images.weigh(on, masked, ctf, weights)
        grid = self.grid(blocks.fold(rows))
        expected = grid.expect(data, on.to_device(rows.poses.shifts))
        power = masked.real.astype(np.float64) ** 2 + masked.imag.astype(np.float64) ** 2
        residual = power.sum(axis=0)
        if not self._plan.free_scale:  # else the grey scale of the reference is not the images'
            count = len(expected.explained)
            residual[:count] -= expected.explained / weights[:count]
        expected.values[:, :, 0] *= np.float32(0.5)  # zero frequency is its own Friedel mate
        self._add(rows.sums, expected.values)
        return expected.found, host.shell_sums(on.to_host(residual))

    def sums(self) -> dict[str, NDArray[np.int64]]:
        """Return the sums of all blocks so far, as SoftStage.partial does."""
        with self._blocks.accelerator.active():
            self._insert(self._by_pose)
        self._by_pose = {}
        return self._inserted

    def grid(self, of: tuple[int, int]) -> DevicePosterior:
        """Return the posterior over the grid with the reference of a half set and fold."""

        def make() -> DevicePosterior:
            blocks = self._blocks
            orientations = blocks.shared["orientations"]
            return DevicePosterior(blocks.reference(of), orientations, self._plan, blocks.wanted)

        return latest(self._grids, of, make)[0]

    def _add(self, name: str, values: Any) -> None:
        blocks = self._blocks

        def make() -> DeviceOrientationSums:
            return DeviceOrientationSums(
                blocks.accelerator, blocks.shared["orientations"], blocks.wanted, self._scales
            )

        sums, old = latest(self._by_pose, name, make)
        sums.add(values)
        self._insert(old)

    def _insert(self, old: dict[str, DeviceOrientationSums]) -> None:
        """Insert the slices of sums that are not kept by orientation any longer."""
        for name, sums in old.items():
            whole = sums.inserted(self._blocks.wanted.host.radius)
            self._inserted[name] = self._inserted[name] + whole if name in self._inserted else whole
