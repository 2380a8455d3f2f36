"""What AlignStage does with a block of images on a GPU, where references and sums stay."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem import noise, reconstruction
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.device import device_alignment, device_images
from mpipar.cryoem.device.device_alignment import DeviceGridSearch, DeviceReference
from mpipar.cryoem.fourier import components
from mpipar.cryoem.matches import Matches, match_terms
from mpipar.cryoem.rotations import with_half_turns
from mpipar.programs.block_rows import MASK_EDGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mpipar.cryoem.alignment import SearchPlan
    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.cryoem.device.device_alignment import DevicePoses
    from mpipar.cryoem.reconstruction import FixedPoint
    from mpipar.programs.block_rows import ImageGeometry, ParticleRows


ONE_AT_A_TIME = threading.Lock()
"""Threads of a process compute one after the other; meanwhile others copy their next block."""


@dataclass
class DeviceHalf:
    """What the device holds for one half set."""

    reference: DeviceReference
    weights: Any
    search: DeviceGridSearch | None
    sums: Any


@dataclass
class DeviceAligner:
    """Aligns and inserts blocks of images on one GPU, in one iteration.

    shared, first_independent_shell   see AlignStage
    """

    accelerator: Accelerator
    geometry: ImageGeometry
    plan: SearchPlan
    insertion_radius: int
    scales: FixedPoint
    shared: Mapping[str, Any]
    first_independent_shell: int = 1
    references: dict[int, DeviceReference] = field(default_factory=dict)
    halves: dict[int, DeviceHalf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = components(self.geometry.box, self.insertion_radius)
        self.wanted = device_images.components_on(self.accelerator, wanted)
        self.shape = reconstruction.sums_shape(self.insertion_radius)

    def reference(self, number: int) -> DeviceReference:
        """Return a half set's reference, put on the device when first needed."""
        if number not in self.references:
            transform, box = self.shared[f"reference{number}"][0], self.geometry.box
            self.references[number] = device_alignment.reference_on(
                self.accelerator, transform, box
            )
        return self.references[number]

    def half(self, number: int) -> DeviceHalf:
        """Return what the device holds for a half set, put there when first needed."""
        if number not in self.halves:
            on, wanted = self.accelerator, self.wanted
            reference = self.reference(number)
            weights = on.to_device(noise.weights(self.shared["noise"][number - 1], wanted.host))
            search = None
            if self.plan.exhaustive:
                orientations = with_half_turns(self.shared["orientations"])
                search = DeviceGridSearch(reference, orientations, self.plan, wanted)
            sums = on.xp.zeros(int(np.prod(self.shape)), np.int64)
            self.halves[number] = DeviceHalf(reference, weights, search, sums)
        return self.halves[number]

    def align(
        self, rows: ParticleRows, pixels: NDArray[np.float32]
    ) -> tuple[Poses, NDArray[np.float64], Matches]:
        """Return the new poses of a block, the power per shell that these leave, the matches."""
        with self.accelerator.active():
            there = self.accelerator.upload(pixels)
            with ONE_AT_A_TIME:
                return self._align(rows, there)

    def _align(self, rows: ParticleRows, pixels: Any) -> tuple[Poses, NDArray[np.float64], Matches]:
        on, wanted, box = self.accelerator, self.wanted, self.geometry.box
        half = self.half(rows.half)
        offset, gain = (
            on.to_device(values.astype(np.float32))[:, None, None]
            for values in (rows.offset, rows.gain)
        )
        images = (pixels - offset) * gain
        frequencies = wanted.frequencies
        ctf = device_images.contrast_on(on, rows.ctf, frequencies, box, self.geometry.pixel_size)
        centres = on.to_device(np.rint(rows.poses.shifts))
        discs = device_images.soft_discs(on, box, centres, self.geometry.radius, MASK_EDGE)
        masked = device_images.image_components(on, images * discs, wanted)
        data = device_images.weigh(on, masked, ctf, half.weights)
        data[:, 0] = 0.0  # zero frequency holds the background's offset, not the particle
        search = None if half.search is None else (half.search, ~rows.settled)
        found = device_alignment.find_poses(
            half.reference, wanted, data, rows.poses, self.plan, search
        )
        residual, matches = self._explained(rows.half, masked, ctf, data, found)
        self._insert(half, device_images.image_components(on, images, wanted), ctf, found)
        values = (found.rotations, found.shifts, found.score)
        return (
            Poses(*map(on.to_host, values)),
            wanted.host.shell_sums(on.to_host(residual)),
            Matches(*on.to_host(matches)),
        )

    def sums(self) -> dict[str, NDArray[np.int64]]:
        """Return the sums of all blocks so far, as AlignStage.partial does."""
        return {
            f"half{number}": self.accelerator.to_host(half.sums).reshape(self.shape)
            for number, half in self.halves.items()
        }

    def _explained(
        self, number: int, masked: Any, ctf: Any, data: Any, found: DevicePoses
    ) -> tuple[Any, Any]:
        """Return power (v,) and terms of matches (4, b), float64: see AlignStage."""
        on, host = self.accelerator, self.wanted.host
        count = host.within(self.plan.radius)
        frequencies = self.wanted.frequencies[:count]
        moves = device_images.phases(on, found.shifts, frequencies, self.geometry.box)
        own, held_out = (
            device_alignment.slices_of(self.reference(half), found.rotations, frequencies)
            for half in (number, 3 - number)
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

    def _insert(self, half: DeviceHalf, images: Any, ctf: Any, found: DevicePoses) -> None:
        """Add the block's slices to the sums on the device."""
        on, wanted = self.accelerator, self.wanted
        moved = images * device_images.phases(
            on, found.shifts, wanted.frequencies, self.geometry.box
        )
        values = device_images.weigh(on, moved, ctf, half.weights)
        values[:, 0] *= np.float32(0.5)  # zero frequency is its own Friedel mate
        device_images.insert(
            half.sums, self.shape, values, found.rotations, wanted.frequencies, self.scales
        )
