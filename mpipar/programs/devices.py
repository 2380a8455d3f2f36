"""Which worker computes on which GPU, found out once, before a run begins."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import UnavailableError
from mpipar.runtime.process.launcher_variables import LOCAL_RANKS
from mpipar.runtime.stage import Block, Stage, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.runtime.pool import Pool

AUTO: Final = "auto"
PROCESSORS: Final = "processors"
"""What stands for the device where there is no GPU."""
GIGABYTE: Final = 1e9
_workers = itertools.count()
"""Numbers the workers that are threads of this process."""


@dataclass(frozen=True)
class DeviceChoice:
    """The GPUs that the user allows: numbers among those that a process sees; empty: all.

    needed   bytes of memory that a worker takes
    name     of the GPU and its libraries that all workers have; empty: not known yet
    """

    cards: tuple[int, ...]
    needed: float = 0.0
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> DeviceChoice:
        """Read --gpu, whose form the settings have checked."""
        return cls(() if text == AUTO else tuple(map(int, text.split(","))))

    def open(self) -> Accelerator:
        """Return this worker's GPU. Workers of one node are dealt to its GPUs in turn.

        raises  UnavailableError without such a GPU, or if it is not as the others
        """
        from mpipar.cryoem.device.accelerator import device_count, open_accelerator

        cards = self.cards or tuple(range(device_count()))
        accelerator = open_accelerator(cards[_number_on_node() % len(cards)])
        if self.name and accelerator.name != self.name:
            raise UnavailableError(
                f"--gpu: a worker has {accelerator.name} where the others have {self.name}, which "
                "give different bits"
            )
        return accelerator

    def require_memory(self, accelerator: Accelerator) -> None:
        """Raise UnavailableError if the GPU has less free memory than will be needed."""
        if accelerator.memory < self.needed:
            raise UnavailableError(
                f"--gpu: {accelerator.name.split(',', maxsplit=1)[0]} has "
                f"{accelerator.memory / GIGABYTE:.1f} GB free, and a worker needs about "
                f"{self.needed / GIGABYTE:.1f} GB; start fewer workers on each GPU, or leave --gpu "
                "out"
            )


def _number_on_node() -> int:
    """Return the number of this worker among those of its node."""
    for name in LOCAL_RANKS:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return next(_workers)


class DeviceStage(Stage):
    """Tells which device a worker has; does nothing else."""

    def __init__(self, choice: DeviceChoice) -> None:
        self.choice = choice

    def start(self, shared: Mapping[str, Any]) -> str:
        del shared
        try:
            accelerator = self.choice.open()
            self.choice.require_memory(accelerator)
        except UnavailableError as error:
            return f"{PROCESSORS}: {error}"
        return accelerator.name

    def run(self, task: Task, block: Block | None, state: str) -> str:
        del task, block
        return state


def choose(pool: Pool, text: str, needed: float) -> tuple[DeviceChoice | None, str]:
    """Return the GPUs that the workers are to use and what they are; None: the processors.

    text     of --gpu
    needed   bytes of memory that a worker takes
    raises   UnavailableError if a worker has no usable GPU, or the GPUs differ
    """
    parsed = DeviceChoice.parse(text)
    choice = DeviceChoice(parsed.cards, needed)
    tasks = [Task(number, None, None) for number in range(pool.workers)]
    found = set(pool.run(DeviceStage(choice), {}, tasks).results)
    lacking = sorted(name for name in found if name.startswith(PROCESSORS))
    if lacking:
        reason = lacking[0].removeprefix(f"{PROCESSORS}: ")
        if text == AUTO:
            return None, reason
        raise UnavailableError(reason)
    if len(found) > 1:
        raise UnavailableError(
            "--gpu: the workers have different GPUs or libraries, which give different bits: "
            f"{'; '.join(sorted(found))}"
        )
    name = found.pop()
    return replace(choice, name=name), name
