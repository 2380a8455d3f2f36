"""What AlignStage and SoftStage do with blocks of images on a GPU, where all large arrays stay."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem import noise, reconstruction
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.device import device_alignment, device_images, device_spread
from mpipar.cryoem.device.device_alignment import DeviceGridSearch, DeviceReference
from mpipar.cryoem.device.device_memory import SLICES_PER_INSERTION
from mpipar.cryoem.device.device_spread import DeviceSpread
from mpipar.cryoem.fourier import components
from mpipar.cryoem.matches import Matches, match_terms
from mpipar.cryoem.rotations import with_half_turns
from mpipar.programs.block_rows import MASK_EDGE
from mpipar.programs.kept import latest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mpipar.cryoem.alignment import SearchPlan
    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.cryoem.device.device_alignment import DevicePoses
    from mpipar.cryoem.device.device_images import DeviceComponents
    from mpipar.cryoem.device.device_spread import DeviceWeightedPoses
    from mpipar.cryoem.reconstruction import FixedPoint
    from mpipar.programs.block_rows import ImageGeometry, ParticleRows


ONE_AT_A_TIME = threading.Lock()
"""Threads of a process compute one after the other; meanwhile others copy their next block."""


@dataclass
class DeviceBlocks:
    """What all that is done with blocks of images on one GPU has in common.

    shared       see AlignStage and SoftStage
    references   of the half sets' folds that were needed so far
    """

    accelerator: Accelerator
    geometry: ImageGeometry
    wanted: DeviceComponents
    shared: Mapping[str, Any]
    references: dict[tuple[int, int], DeviceReference] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        accelerator: Accelerator,
        geometry: ImageGeometry,
        radius: int,
        shared: Mapping[str, Any],
    ) -> Self:
        """Return these for components out to `radius` cycles per box."""
        wanted = components(geometry.box, radius)
        return cls(accelerator, geometry, device_images.components_on(accelerator, wanted), shared)

    def fold(self, rows: ParticleRows) -> tuple[int, int]:
        """Return the half set and fold whose reference a block of particles is compared with."""
        return rows.half, rows.fold % len(self.shared[f"reference{rows.half}"])

    def reference(self, of: tuple[int, int]) -> DeviceReference:
        """Return the reference of a half set and fold, put on the device when first needed."""
        half, fold = of
        transforms = self.shared[f"reference{half}"]
        of = half, fold % len(transforms)
        if of not in self.references:
            self.references[of] = device_alignment.reference_on(
                self.accelerator, transforms[of[1]], self.geometry.box
            )
        return self.references[of]

    def weights(self, spectrum: NDArray[np.float64]) -> Any:
        """Return 1 / noise (v,) float32, for noise (s,)."""
        return self.accelerator.to_device(noise.weights(spectrum, self.wanted.host))

    def scaled(self, rows: ParticleRows, pixels: Any) -> tuple[Any, Any]:
        """Return images as they are used (b, n, n), and their contrast transfer (b, v)."""
        on = self.accelerator
        offset, gain = (
            on.to_device(values.astype(np.float32))[:, None, None]
            for values in (rows.offset, rows.gain)
        )
        ctf = device_images.contrast_on(
            on, rows.ctf, self.wanted.frequencies, self.geometry.box, self.geometry.pixel_size
        )
        return (pixels - offset) * gain, ctf

    def inside_discs(self, images: Any, shifts: NDArray[np.float64]) -> Any:
        """Return transforms (b, v) of images inside the discs of particles with these shifts."""
        on, geometry = self.accelerator, self.geometry
        centres = on.to_device(np.rint(shifts))
        discs = device_images.soft_discs(on, geometry.box, centres, geometry.radius, MASK_EDGE)
        return device_images.image_components(on, images * discs, self.wanted)


class DeviceAligner:
    """Aligns and inserts blocks of images on one GPU, in one iteration."""

    def __init__(
        self,
        blocks: DeviceBlocks,
        plan: SearchPlan,
        scales: FixedPoint,
        first_independent_shell: int = 1,
    ) -> None:
        """Take what the iteration's blocks have in common; see AlignStage."""
        self.blocks = blocks
        self.plan = plan
        self.first_independent_shell = first_independent_shell
        self._scales = scales
        self._shape = reconstruction.sums_shape(blocks.wanted.host.radius)
        self._searches: dict[tuple[int, int], DeviceGridSearch] = {}
        self._weights: dict[int, Any] = {}
        self._sums: dict[str, Any] = {}
        points, geometry = blocks.shared.get("deviates"), blocks.geometry
        self.spread: DeviceSpread | None = None
        if points is not None:
            scale = geometry.radius, geometry.covered()
            self.spread = DeviceSpread(blocks.accelerator, blocks.wanted, plan, scale, points)

    def weights(self, half: int) -> Any:
        """Return 1 / noise (v,) of a half set, put on the device when first needed."""
        if half not in self._weights:
            self._weights[half] = self.blocks.weights(self.blocks.shared["noise"][half - 1])
        return self._weights[half]

    def search(self, of: tuple[int, int]) -> DeviceGridSearch | None:
        """Return the search with the reference of a half set and fold, if there is a search."""
        if not self.plan.exhaustive:
            return None
        blocks = self.blocks

        def make() -> DeviceGridSearch:
            orientations = with_half_turns(blocks.shared["orientations"])
            return DeviceGridSearch(blocks.reference(of), orientations, self.plan, blocks.wanted)

        return latest(self._searches, of, make)[0]

    def align(
        self, rows: ParticleRows, pixels: NDArray[np.float32]
    ) -> tuple[Poses, NDArray[np.float64], Matches]:
        """Return the new poses of a block, the power per shell that these leave, the matches."""
        accelerator = self.blocks.accelerator
        with accelerator.active():
            there = accelerator.upload(pixels)
            with ONE_AT_A_TIME:
                return self._align(rows, there)

    def _align(self, rows: ParticleRows, pixels: Any) -> tuple[Poses, NDArray[np.float64], Matches]:
        blocks, of = self.blocks, self.blocks.fold(rows)
        on, wanted, reference = blocks.accelerator, blocks.wanted, blocks.reference(of)
        images, ctf = blocks.scaled(rows, pixels)
        masked = blocks.inside_discs(images, rows.poses.shifts)
        data = device_images.weigh(on, masked, ctf, self.weights(rows.half))
        data[:, 0] = 0.0  # zero frequency holds the background's offset, not the particle
        grid = self.search(of)
        search = None if grid is None else (grid, ~rows.settled)
        peaks = device_alignment.find_poses(reference, wanted, data, rows.poses, self.plan, search)
        found = device_alignment.best_of(on.xp, peaks)
        residual, matches = self._explained(of, masked, ctf, data, found)
        poses = device_spread.at_best(on.xp, found)
        if self.spread is not None:
            poses = self.spread.about(reference, data, peaks)
        self.insert(rows, device_images.image_components(on, images, wanted), ctf, poses)
        values = (found.rotations, found.shifts, found.score)
        return (
            Poses(*map(on.to_host, values)),
            wanted.host.shell_sums(on.to_host(residual)),
            Matches(*on.to_host(matches)),
        )

    def sums(self) -> dict[str, NDArray[np.int64]]:
        """Return the sums of all blocks so far, as AlignStage.partial does."""
        on = self.blocks.accelerator
        return {name: on.to_host(sums).reshape(self._shape) for name, sums in self._sums.items()}

    def _explained(
        self, of: tuple[int, int], masked: Any, ctf: Any, data: Any, found: DevicePoses
    ) -> tuple[Any, Any]:
        """Return power (v,) and terms of matches (4, b), float64: see AlignStage."""
        blocks = self.blocks
        on, host = blocks.accelerator, blocks.wanted.host
        count = host.within(self.plan.radius)
        frequencies = blocks.wanted.frequencies[:count]
        moves = device_images.phases(on, found.shifts, frequencies, blocks.geometry.box)
        own, held_out = (
            device_alignment.slices_of(blocks.reference(each), found.rotations, frequencies)
            for each in (of, (3 - of[0], of[1]))
        )
        residual = masked.copy()
        if not self.plan.free_scale:
            residual[:, :count] -= own * ctf[:, :count] * moves.conj()
        power = residual.real.astype(np.float64) ** 2 + residual.imag.astype(np.float64) ** 2
        first = min(host.within(self.first_independent_shell - 1), count)
        terms = (
            *match_terms(own, moves, data[:, :count]),
            *match_terms(held_out[:, first:], moves[:, first:], data[:, first:count]),
        )
        return power.sum(axis=0), on.xp.stack(terms)

    def insert(self, rows: ParticleRows, images: Any, ctf: Any, poses: DeviceWeightedPoses) -> None:
        """Add slices of the block's images (b, v) at their poses to the sums on the device."""
        blocks = self.blocks
        on, frequencies = blocks.accelerator, blocks.wanted.frequencies
        if rows.sums not in self._sums:
            self._sums[rows.sums] = on.xp.zeros(int(np.prod(self._shape)), np.int64)
        weights = self.weights(rows.half)
        for start in range(0, len(poses.image), SLICES_PER_INSERTION):
            part = slice(start, start + SLICES_PER_INSERTION)
            of, turned, share = poses.image[part], poses.rotations[part], poses.weight[part]
            moves = device_images.phases(on, poses.shifts[part], frequencies, blocks.geometry.box)
            values = device_images.weigh(on, images[of] * moves, ctf[of], weights)
            values *= share[:, None, None].astype(np.float32)
            values[:, 0] *= np.float32(0.5)  # zero frequency is its own Friedel mate
            sums = self._sums[rows.sums]
            device_images.insert(sums, self._shape, values, turned, frequencies, self._scales)
