"""The stages of soft iterations: the posterior of each image over a grid, back-projected whole."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem import alignment, noise, reconstruction
from mpipar.cryoem.alignment import Reference
from mpipar.cryoem.ctf import contrast_transfer
from mpipar.cryoem.fourier import Components, components, image_components
from mpipar.cryoem.posterior import Expectation, GridPosterior, SoftPlan, SoftPoses
from mpipar.programs.fold_sums import FoldTotals
from mpipar.programs.kept import latest
from mpipar.runtime.stage import Block, Stage, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mpipar.programs.block_rows import ImageGeometry, ParticleRows
    from mpipar.programs.device_soft import DeviceExpecter
    from mpipar.programs.devices import DeviceChoice


@dataclass(frozen=True)
class SoftResult:
    """What is known of a block's images, and the power per shell (s,) that is left unexplained."""

    found: SoftPoses
    residual: NDArray[np.float64]


@dataclass
class SoftState:
    """A worker's state in an iteration.

    grids       of the references that were needed last
    by_pose     sums by orientation that were added to last
    inserted    sums of those that had to make room
    expecter    does all that on a GPU instead
    """

    shared: Mapping[str, Any]
    wanted: Components
    lock: threading.Lock = field(default_factory=threading.Lock)
    grids: dict[tuple[str, int], GridPosterior] = field(default_factory=dict)
    by_pose: dict[str, reconstruction.OrientationSums] = field(default_factory=dict)
    inserted: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    expecter: DeviceExpecter | None = None

    def grid(
        self,
        name: str,
        fold: int,
        geometry: ImageGeometry,
        plan: SoftPlan,
        spectrum: NDArray[np.float64],
    ) -> GridPosterior:
        """Return the grid of one of the shared references of this name, for noise (s,)."""
        with self.lock:
            references = self.shared[name]
            key = name, fold % len(references)

            def make() -> GridPosterior:
                reference = Reference(references[key[1]], plan.radius, geometry.box)
                orientations = self.shared["orientations"]
                weights = noise.weights(spectrum, self.wanted)
                return GridPosterior(reference, orientations, plan, self.wanted, weights)

            return latest(self.grids, key, make)[0]

    def add(self, name: str, expected: Expectation, scales: reconstruction.FixedPoint) -> None:
        """Add a block's expectation to the sums of this name."""
        with self.lock:
            orientations = self.shared["orientations"]
            sums, old = latest(
                self.by_pose,
                name,
                lambda: reconstruction.OrientationSums(orientations, self.wanted, scales),
            )
            sums.add(expected.values, expected.rows)
            self.insert(old)

    def insert(self, old: dict[str, reconstruction.OrientationSums]) -> None:
        """Insert the slices of sums that are not kept by orientation any longer."""
        for name, sums in old.items():
            whole = sums.inserted(self.wanted.radius)
            self.inserted[name] = self.inserted[name] + whole if name in self.inserted else whole


class SoftStage(Stage):
    """Weighs all poses of each image against its fold's reference; adds them to its fold's sums.

    Shared arrays: ``reference1, reference2`` (transforms, of each fold), ``noise`` (2, s), and
    ``orientations`` (m, 3, 3), of which those half a turn in the image plane away are understood.

    devices   the GPUs that do it; None: the processors
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        plan: SoftPlan,
        scales: reconstruction.FixedPoint,
        devices: DeviceChoice | None = None,
    ) -> None:
        self.geometry = geometry
        self.plan = plan
        self.scales = scales
        self.devices = devices

    def start(self, shared: Mapping[str, Any]) -> SoftState:
        radius = self.plan.insertion_radius
        state = SoftState(shared, components(self.geometry.box, radius))
        if self.devices is not None:
            from mpipar.programs.device_block import DeviceBlocks
            from mpipar.programs.device_soft import DeviceExpecter

            blocks = DeviceBlocks.of(self.devices.open(), self.geometry, radius, shared)
            state.expecter = DeviceExpecter(blocks, self.plan, self.scales)
        return state

    def run(self, task: Task, block: Block | None, state: SoftState) -> SoftResult:
        assert block is not None
        rows: ParticleRows = task.payload
        wanted, spectrum = state.wanted, spectrum_of(state.shared, rows.half, self.geometry)
        if state.expecter is not None:
            return SoftResult(*state.expecter.expect(rows, block["images"], spectrum))
        masked, data = weighted(rows, block["images"], self.geometry, wanted, spectrum)
        name = f"reference{rows.half}"
        grid = state.grid(name, rows.fold, self.geometry, self.plan, spectrum)
        expected = grid.expect(data, rows.poses.shifts)
        power = wanted.shell_sums(masked.real**2 + masked.imag**2).sum(axis=0)
        if not self.plan.free_scale:  # else the grey scale of the reference is not the images'
            inner = components(self.geometry.box, self.plan.radius)
            explained = inner.shell_sums(expected.explained)
            power[: len(explained)] -= explained * spectrum[: len(explained)]
        expected.values[:, :, 0] *= 0.5  # zero frequency is its own Friedel mate
        state.add(rows.sums, expected, self.scales)
        return SoftResult(expected.found, power)

    def totals(self, shapes: Mapping[str, tuple[int, ...]]) -> FoldTotals:
        return FoldTotals(shapes, self.scales)

    def partial(self, state: SoftState) -> dict[str, NDArray[np.int64]]:
        if state.expecter is not None:
            return state.expecter.sums()
        state.insert(state.by_pose)
        state.by_pose = {}
        return state.inserted


class HeldOutStage(Stage):
    """Tells how much better a reference predicts images that it has not seen than a coarser one.

    Shared arrays: as in SoftStage, but ``reference1`` is made of the second half set and
    ``reference2`` of the first; ``coarse1, coarse2`` are these without detail beyond the start's.

    A result is (b, 2): the evidence of the reference and of the coarse one for each image.
    """

    def __init__(self, geometry: ImageGeometry, plan: SoftPlan) -> None:
        self.geometry = geometry
        self.plan = plan

    def start(self, shared: Mapping[str, Any]) -> SoftState:
        return SoftState(shared, components(self.geometry.box, self.plan.radius))

    def run(self, task: Task, block: Block | None, state: SoftState) -> NDArray[np.float64]:
        assert block is not None
        rows: ParticleRows = task.payload
        spectrum = spectrum_of(state.shared, rows.half, self.geometry)
        _, data = weighted(rows, block["images"], self.geometry, state.wanted, spectrum)
        grids = [
            state.grid(f"{name}{rows.half}", 0, self.geometry, self.plan, spectrum)
            for name in ("reference", "coarse")
        ]
        return np.stack([grid.evidence(data, rows.poses.shifts) for grid in grids], axis=1)


def spectrum_of(
    shared: Mapping[str, Any], half: int, geometry: ImageGeometry
) -> NDArray[np.float64]:
    """Return the noise (s,) with which components of images in discs may be added up.

    A disc that fills the fraction f of an image leaves f of the noise's power, in components of
    which only the fraction f are independent. So a log-likelihood counts each f times.
    """
    return np.asarray(shared["noise"][half - 1] / geometry.covered())


def weighted(
    rows: ParticleRows,
    images: NDArray[np.float32],
    geometry: ImageGeometry,
    wanted: Components,
    spectrum: NDArray[np.float64],
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Return transforms of images inside their discs, (b, v), and these weighted, (b, v, 3)."""
    ctf = contrast_transfer(rows.ctf, wanted.frequencies, geometry.box, geometry.pixel_size)
    masked = image_components(rows.scaled(images) * geometry.discs(rows.poses.shifts), wanted)
    return masked, alignment.weigh(masked, ctf, noise.weights(spectrum, wanted))
