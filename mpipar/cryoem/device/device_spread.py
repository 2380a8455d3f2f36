"""The poses near the best of each image, on a GPU: the twin of `mpipar.cryoem.pose_spread`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem import pose_spread
from mpipar.cryoem.alignment import climb_options
from mpipar.cryoem.device.device_alignment import FEW_COMPONENTS, FEW_THREADS, DevicePoses
from mpipar.cryoem.device.device_images import THREADS
from mpipar.cryoem.pose_spread import APART, MOST_PEAKS, NARROW, NEGLIGIBLE, SPHERE, WIDER
from mpipar.kernels.device import device_drawn_poses
from mpipar.kernels.device.device_code import blocks_for, launch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.alignment import SearchPlan
    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.cryoem.device.device_alignment import DeviceReference
    from mpipar.cryoem.device.device_images import DeviceComponents


@dataclass(frozen=True)
class DeviceWeightedPoses:
    """Poses of a block's images, one or several for each: see `pose_spread.WeightedPoses`."""

    image: Any
    rotations: Any
    shifts: Any
    weight: Any


def at_best(xp: Any, found: DevicePoses) -> DeviceWeightedPoses:
    """Return one pose (b, ...) of each image, with all its weight."""
    count = len(found.score)
    return DeviceWeightedPoses(xp.arange(count), found.rotations, found.shifts, xp.ones(count))


class DeviceSpread:
    """The twin of `pose_spread.PoseSpread`, for whole blocks at once."""

    def __init__(
        self,
        accelerator: Accelerator,
        wanted: DeviceComponents,
        plan: SearchPlan,
        scale: tuple[float, float],
        points: NDArray[np.float64],
    ) -> None:
        """Take what all images have in common.

        scale    radius of the particle in pixels, and the share of components that count: see
                 PoseSpread's `radius` and `independent`
        points   (k, 5) from `pose_spread.deviates`
        """
        self._on, self._plan, self._radius = accelerator, plan, scale[0]
        self._frequencies = wanted.frequencies[: wanted.host.within(plan.radius)]
        self._points = accelerator.to_device(points)
        self._factor = 2.0 * scale[1]  # of a score, to be a log-likelihood

    def about(self, reference: DeviceReference, data: Any, found: DevicePoses) -> (
        DeviceWeightedPoses
    ):  # fmt: skip
        """Return the poses of each image, from those that were found (b, n), in any order."""
        xp = self._on.xp
        peaks = self._peaks(found)
        images, count = peaks.score.shape
        factors, alone = self._factors(peaks, reference.box)
        shape = (images, count, len(self._points))
        rotations, shifts = xp.empty((*shape, 3, 3)), xp.empty((*shape, 2))
        density = xp.empty(shape)
        blocks = blocks_for(density.size, THREADS)
        of = peaks.rotations, peaks.shifts, factors
        arguments = (of, peaks.owners, alone, self._points, rotations, shifts, density)
        launch(device_drawn_poses.draw_poses, blocks, THREADS, arguments)
        rows = xp.arange(images, dtype=np.int32)[:, None, None]
        owners = xp.where(xp.isfinite(density), rows, np.int32(-1))
        scores = self._scores(reference, data, owners, (rotations, shifts))
        exponent = xp.where(owners >= 0, self._factor * scores - density, -math.inf)
        exponent = exponent.reshape(images, -1)
        weight = xp.exp(exponent - exponent.max(axis=1, keepdims=True))
        weight *= weight > NEGLIGIBLE * weight.sum(axis=1, keepdims=True)
        weight /= weight.sum(axis=1, keepdims=True)
        image, place = xp.nonzero(weight)
        flat = rotations.reshape(images, -1, 3, 3), shifts.reshape(images, -1, 2)
        return DeviceWeightedPoses(
            image, flat[0][image, place], flat[1][image, place], weight[image, place]
        )

    def _peaks(self, found: DevicePoses) -> DevicePoses:
        """Return the best poses of each image that are apart, (b, p), best first."""
        xp = self._on.xp
        rows = xp.arange(len(found.score))[:, None]
        order = xp.argsort(-found.score, axis=1)[:, : 2 * MOST_PEAKS]
        ranked = found.taken((rows, order))
        present = (ranked.owners >= 0) & ~self._near_a_better(ranked)
        behind = -math.log(NEGLIGIBLE) / self._factor
        present &= ranked.score > ranked.score[:, :1] - behind
        present[:, 0] = True
        places = xp.arange(present.shape[1])
        first = xp.argsort(xp.where(present, places, places + len(places)), axis=1)
        kept = first[:, :MOST_PEAKS]
        peaks = ranked.taken((rows, kept))
        peaks.owners = xp.where(present[rows, kept], peaks.owners, np.int32(-1))
        return peaks

    def _near_a_better(self, ranked: DevicePoses) -> Any:
        """Return whether each pose (b, n), best first, is near one before it."""
        xp, (angle, distance) = self._on.xp, APART
        same_angle = 8.0 * math.sin(math.radians(angle) / 2) ** 2
        turned = ranked.rotations[:, :, None] - ranked.rotations[:, None]
        moved = ranked.shifts[:, :, None] - ranked.shifts[:, None]
        near = (turned**2).sum(axis=(3, 4)) < same_angle
        near &= (moved**2).sum(axis=3) < distance**2
        places = xp.arange(ranked.score.shape[1])
        return (near & (places[:, None] > places)).any(axis=2)

    def _factors(self, peaks: DevicePoses, box: int) -> tuple[Any, Any]:
        """Return factors (b, p, 5, 5) of what is drawn from, and who keeps the first peak, (b,)."""
        xp, shape = self._on.xp, peaks.score.shape
        factors, variances = xp.empty((*shape, 5, 5)), xp.empty((*shape, 5))
        widest = math.radians(pose_spread.WIDEST_TURN), pose_spread.WIDEST_MOVE
        launch(
            device_drawn_poses.spread_factors,
            blocks_for(peaks.score.size, THREADS),
            THREADS,
            (
                xp.ascontiguousarray(peaks.curvature).reshape(-1, 5, 5),
                self._factor,
                widest,
                WIDER,
                factors.reshape(-1, 5, 5),
                variances.reshape(-1, 5),
            ),
        )
        own = variances[:, 0]
        moved = SPHERE * self._radius**2 * own[:, :3].sum(axis=1) + own[:, 3:].sum(axis=1)
        narrow = xp.sqrt(moved) * (self._plan.radius / box) < NARROW
        return factors, narrow & ((peaks.owners >= 0).sum(axis=1) == 1)

    def _scores(
        self, reference: DeviceReference, data: Any, owners: Any, poses: tuple[Any, Any]
    ) -> Any:
        """Return the scores of poses, of the shape of their owners."""
        scores = self._on.xp.empty(owners.shape)
        radius = self._plan.radius
        few = len(self._frequencies) <= FEW_COMPONENTS
        launch(
            device_drawn_poses.score_poses,
            owners.size,
            FEW_THREADS if few else device_drawn_poses.MOST_SCORERS,
            (
                (reference.flat, *reference.shape),
                self._frequencies,
                data,
                owners.reshape(-1),
                climb_options(self._plan, reference.box, 0),
                radius,
                (poses[0].reshape(-1, 3, 3), poses[1].reshape(-1, 2)),
                scores.reshape(-1),
            ),
            4 * 4 * (2 * radius + 1),
        )
        return scores
