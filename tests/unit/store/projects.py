"""A project to try things on, and how it dies."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.store import Project, epoch, schema

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = {"sym": "c1", "iterations": 3, "mask": None}
X = np.arange(12.0).reshape(3, 4)


def create(path: Path, **words: Any) -> Project:
    return Project.create(path, settings=SETTINGS, kind="refine", **words)


def tree(path: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in path.rglob("*")}


def die(project: Project) -> None:
    """End as a killed process does: nothing is released, and the claim names a process now gone."""
    writer = project._writer
    writer.heartbeat.stop()
    writer.journal.close()
    writer.ownership.drop_lock()
    claim = replace(writer.claim, process_start="1")
    epoch.claim_path(project.path, claim.epoch).write_bytes(schema.encode(asdict(claim)))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the header": lambda log: flip(log, 13),
    "a bit of the header's checksum": lambda log: flip(log, 30),
    "a bit of the last batch": lambda log: flip(log, -1),
    "a missing file": Path.unlink,
    "an empty file": lambda log: os.truncate(log, 0),
    "a part of the header": lambda log: os.truncate(log, 20),
    "the header alone": lambda log: os.truncate(log, 32),
    "all but the last byte": lambda log: os.truncate(log, log.stat().st_size - 1),
}
