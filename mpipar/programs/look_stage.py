"""The stage of the first look at all images: what is measured of them, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpipar.programs.stored_images import StoredImages
from mpipar.runtime.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.programs.stages import ImageStatistics, MeasureStage
    from mpipar.programs.stored_images import ImageFindings
    from mpipar.runtime.stage import Block, Task


@dataclass(frozen=True)
class ImageLook:
    """What was found of a block's images; no statistics if one of them is unusable."""

    findings: ImageFindings
    statistics: ImageStatistics | None


class LookStage(Stage):
    """Measures the images of a block, unless one of them is unusable."""

    def __init__(self, measure: MeasureStage) -> None:
        self.measure = measure

    def start(self, shared: Mapping[str, Any]) -> Any:
        return self.measure.start(shared)

    def run(self, task: Task, block: Block | None, state: Any) -> ImageLook:
        assert isinstance(block, StoredImages)
        findings = block.findings
        if findings.fault.any():
            return ImageLook(findings, None)
        return ImageLook(findings, self.measure.run(task, block, state))
