"""The stages that workers run for a refinement: measure all images; align and insert."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar import kernels
from mpipar.cryoem import alignment, masks, noise, reconstruction
from mpipar.cryoem.alignment import GridSearch, Poses, Reference, SearchPlan
from mpipar.cryoem.ctf import contrast_transfer
from mpipar.cryoem.fourier import Components, components, image_components, largest_radius
from mpipar.cryoem.matches import Matches, match_terms
from mpipar.cryoem.pose_spread import PoseSpread, at_best
from mpipar.cryoem.signatures import signatures
from mpipar.programs.fold_sums import FoldTotals
from mpipar.programs.kept import latest
from mpipar.runtime.stage import Block, Stage, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mpipar.cryoem.pose_spread import WeightedPoses
    from mpipar.programs.block_rows import ImageGeometry, MeasuredRows, ParticleRows
    from mpipar.programs.device_block import DeviceAligner
    from mpipar.programs.devices import DeviceChoice

MODERATE = (1e-10, 1e10)
"""Grey values within these bounds have squares and sums that fit float32."""
INSERTED_AT_ONCE = 64  # slices: their memory does not grow with the block


@dataclass(frozen=True)
class ImageStatistics:
    """What is measured of a block's images.

    mean, deviation   (b,) of the background
    power             (b, s) per shell, inside the particle's disc
    largest           (b, s) largest amplitude of each shell
    likeness          (b, t) per shell, the product with the model's mean projection; 0 without one
    expected          (b, t) per shell, the product of that projection with itself
    digest            (b,) hash of the pixels
    signature         (b, d) vector that the image shares with copies of another grey scale
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    power: NDArray[np.float64]
    largest: NDArray[np.float64]
    likeness: NDArray[np.float64]
    expected: NDArray[np.float64]
    digest: NDArray[np.uint64]
    signature: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> ImageStatistics:
        """Return what is measured of some of the images, in the order of `rows`."""
        return ImageStatistics(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class MeasureStage(Stage):
    """Measures each image, before the first iteration: background, power, largest amplitudes.

    profile   (t,) the model's mean over all orientations, per shell of its transform; None: the
              images are not compared with it
    """

    def __init__(self, geometry: ImageGeometry, profile: NDArray[np.float64] | None = None) -> None:
        self.geometry = geometry
        self.profile = profile

    def start(self, shared: Mapping[str, Any]) -> None:
        del shared
        kernels.begin_to_load()  # the stages that follow need them

    def run(self, task: Task, block: Block | None, state: Any) -> ImageStatistics:
        del state
        assert block is not None
        images = block["images"]
        mean, deviation = masks.background(images, self.geometry.radius)
        centred = images - mean[:, None, None].astype(np.float32)
        scale = _scale(centred)
        centred = np.asarray(centred / scale[:, None, None], np.float32)
        wanted = components(self.geometry.box, largest_radius(self.geometry.box))
        masked = image_components(centred * self.geometry.disc(), wanted)
        power = wanted.shell_sums(masked.real**2 + masked.imag**2)
        whole = image_components(centred, wanted)
        largest = np.maximum.reduceat(np.abs(whole), wanted.starts, axis=-1)
        likeness, expected = self._likeness(task.payload, masked)
        digest = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images]
        return ImageStatistics(
            mean,
            deviation,
            power * scale[:, None] ** 2,
            largest * scale[:, None],
            likeness * scale[:, None],
            expected,
            np.frombuffer(b"".join(digest), np.uint64),
            signatures(whole, wanted),
        )

    def _likeness(
        self, rows: MeasuredRows | None, masked: NDArray[np.complex64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the product of images (b, v) with the model's mean projection, per shell.

        That projection is the same from all sides, so no orientation is needed. The product is
        negative for dark particles. Its own product with itself is returned, too.
        """
        if rows is None or self.profile is None:
            return np.zeros((len(masked), 1)), np.zeros((len(masked), 1))
        box, pixel_size = self.geometry.box, self.geometry.pixel_size
        wanted = components(box, len(self.profile) - 1)
        images = masked[:, : len(wanted.shell)]
        moved = images * alignment.phases(rows.shifts, wanted.frequencies, box)
        ctf = contrast_transfer(rows.ctf, wanted.frequencies, box, pixel_size)
        projection = ctf * self.profile[wanted.shell]
        return wanted.shell_sums(moved.real * projection), wanted.shell_sums(projection**2)


def _scale(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what to divide each image (b, n, n) by, so that squares fit float32; usually 1."""
    strongest = np.abs(images).max(axis=(1, 2)).astype(np.float64)
    moderate = (strongest > MODERATE[0]) & (strongest < MODERATE[1])
    return np.where(moderate | (strongest == 0), 1.0, strongest)


@dataclass(frozen=True)
class AlignResult:
    """The new poses of a block, and what they explain of its images.

    residual   (s,) power per shell that they leave unexplained
    matches    of each particle with its own half map and with the one that has not seen it
    """

    poses: Poses
    residual: NDArray[np.float64]
    matches: Matches


@dataclass
class AlignState:
    """A worker's state in an iteration; the grid and sums of a fold are made when needed."""

    shared: Mapping[str, Any]
    wanted: Components
    spread: PoseSpread | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    grids: dict[tuple[int, int], GridSearch] = field(default_factory=dict)
    sums: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    aligner: DeviceAligner | None = None


class AlignStage(Stage):
    """Finds each particle's pose against its fold's reference; adds its slice to its fold's sums.

    Shared arrays: ``reference1, reference2`` (transforms, of each fold), ``noise`` (2, s),
    for an exhaustive search ``orientations`` (o, 3, 3), of which the half-turned ones are
    understood, and ``deviates`` (k, 5), without which each image is inserted at its best pose only.

    devices                  the GPUs that do it; None: the processors
    first_independent_shell  the references share no finer detail: matches with the held-out one
                             count from this shell on
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        plan: SearchPlan,
        insertion_radius: int,
        scales: reconstruction.FixedPoint,
        devices: DeviceChoice | None = None,
        first_independent_shell: int = 1,
    ) -> None:
        self.geometry = geometry
        self.first_independent_shell = first_independent_shell
        self.plan = plan
        self.insertion_radius = insertion_radius
        self.scales = scales
        self.devices = devices

    def start(self, shared: Mapping[str, Any]) -> AlignState:
        wanted = components(self.geometry.box, self.insertion_radius)
        state = AlignState(shared, wanted, self._spread(wanted, shared.get("deviates")))
        if self.devices is not None:
            from mpipar.programs.device_block import DeviceAligner, DeviceBlocks

            on, radius = self.devices.open(), self.insertion_radius
            blocks = DeviceBlocks.of(on, self.geometry, radius, shared)
            state.aligner = DeviceAligner(
                blocks, self.plan, self.scales, self.first_independent_shell
            )
        return state

    def run(self, task: Task, block: Block | None, state: AlignState) -> AlignResult:
        assert block is not None
        rows: ParticleRows = task.payload
        if state.aligner is not None:
            return AlignResult(*state.aligner.align(rows, block["images"]))
        wanted, half = state.wanted, rows.half
        own = half, rows.fold % len(state.shared[f"reference{half}"])
        images = rows.scaled(block["images"])
        ctf = contrast_transfer(
            rows.ctf, wanted.frequencies, self.geometry.box, self.geometry.pixel_size
        )
        weights = noise.weights(state.shared["noise"][half - 1], wanted)
        masked = image_components(images * self.geometry.discs(rows.poses.shifts), wanted)
        reference = self._reference(state, own)
        data = alignment.weigh(masked, ctf, weights)
        data[:, 0] = 0.0  # zero frequency holds the background's offset, not the particle
        grid = self._grid(state, own, reference) if self.plan.exhaustive else None
        search = None if grid is None else (grid, ~rows.settled)
        peaks = alignment.find_poses(reference, wanted, data, rows.poses, self.plan, search)
        found = alignment.best_of(peaks)
        residual, matches = self._explained(state, own, masked, ctf, data, found)
        weighted = at_best(found)
        if state.spread is not None:
            weighted = state.spread.about(reference, data, peaks)
        self._insert(state, rows, image_components(images, wanted), ctf, weighted)
        return AlignResult(found, residual, matches)

    def totals(self, shapes: Mapping[str, tuple[int, ...]]) -> FoldTotals:
        return FoldTotals(shapes, self.scales)

    def partial(self, state: AlignState) -> dict[str, NDArray[np.int64]]:
        return state.sums if state.aligner is None else state.aligner.sums()

    def _spread(self, wanted: Components, points: NDArray[np.float64] | None) -> PoseSpread | None:
        if points is None:
            return None
        geometry = self.geometry
        return PoseSpread(wanted, self.plan, geometry.radius, geometry.covered(), points)

    def _grid(self, state: AlignState, of: tuple[int, int], reference: Reference) -> GridSearch:
        orientations = state.shared["orientations"]
        with state.lock:
            return latest(
                state.grids,
                of,
                lambda: GridSearch(reference, orientations, self.plan, state.wanted),
            )[0]

    def _reference(self, state: AlignState, of: tuple[int, int]) -> Reference:
        """Return the reference for a half set and fold."""
        half, fold = of
        transforms = state.shared[f"reference{half}"]
        return Reference(transforms[fold % len(transforms)], self.plan.radius, self.geometry.box)

    def _explained(
        self,
        state: AlignState,
        own: tuple[int, int],
        masked: NDArray[np.complex64],
        ctf: NDArray[np.float32],
        data: NDArray[np.float32],
        found: Poses,
    ) -> tuple[NDArray[np.float64], Matches]:
        """Return the power per shell of images minus reference, and the matches.

        All of the images' power, while the reference's grey scale is not yet that of the images.
        """
        wanted, count = state.wanted, state.wanted.within(self.plan.radius)
        frequencies = wanted.frequencies[:count]
        moves = alignment.phases(found.shifts, frequencies, self.geometry.box)
        mine, held_out = (
            alignment.slices_of(self._reference(state, of), found.rotations, frequencies).view(
                np.complex64
            )
            for of in (own, (3 - own[0], own[1]))
        )
        modelled = 0 if self.plan.free_scale else count
        model = (mine * ctf[:, :count] * moves.conj())[:, :modelled]
        residual = noise.residual_power(masked, model, wanted).sum(axis=0)
        first = min(wanted.within(self.first_independent_shell - 1), count)
        matches = Matches(
            *match_terms(mine, moves, data[:, :count]),
            *match_terms(held_out[:, first:], moves[:, first:], data[:, first:count]),
        )
        return np.asarray(residual), matches

    def _insert(
        self,
        state: AlignState,
        rows: ParticleRows,
        images: NDArray[np.complex64],
        ctf: NDArray[np.float32],
        poses: WeightedPoses,
    ) -> None:
        """Add the block's slices; last, so that a task that fails leaves nothing behind."""
        wanted = state.wanted
        weights = noise.weights(state.shared["noise"][rows.half - 1], wanted)
        with state.lock:
            name = rows.sums
            if name not in state.sums:
                state.sums[name] = reconstruction.empty_sums(self.insertion_radius)
            for start in range(0, len(poses.image), INSERTED_AT_ONCE):
                part = slice(start, start + INSERTED_AT_ONCE)
                of, turned = poses.image[part], poses.rotations[part]
                moves = alignment.phases(poses.shifts[part], wanted.frequencies, self.geometry.box)
                values = alignment.weigh(images[of] * moves, ctf[of], weights)
                values *= poses.weight[part, None, None].astype(np.float32)
                values[:, 0] *= 0.5  # zero frequency is its own Friedel mate
                reconstruction.insert(state.sums[name], values, turned, wanted, self.scales)
