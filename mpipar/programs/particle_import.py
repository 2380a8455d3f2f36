"""Particles of a STAR file, copied into a folder that needs nothing else: list, images, checksums.

.importing-NAME/            until all is there; the same command goes on with it
origin.json             what is imported, and how
images-HASH-0001.mrcs   each written under a temporary name, synced, renamed
NAME/                       the same folder, with particles.star and checksums.txt
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mpipar.errors import InputError, OutputError, ProjectLockedError, counted
from mpipar.formats.mrc import write_stack
from mpipar.formats.star import ORIGIN_COLUMNS, listed_particles, read_particles, with_columns
from mpipar.formats.tables import write_tables
from mpipar.programs.images import open_stacks
from mpipar.store import durable
from mpipar.store.segments import seal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.formats.mrc import Stack
    from mpipar.formats.particles import ParticleSet

__all__ = ["FLOAT_TYPES", "import_particles"]

FLOAT_TYPES: Final = ("float32", "float16")
FILE_BYTES: Final = 256 << 20  # of images in one file, at most
LIST, CHECKSUMS, ORIGIN, LOCK = "particles.star", "checksums.txt", "origin.json", "lock"
MEGABYTE: Final = 1_000_000


@dataclass(frozen=True)
class _ImportPlan:
    """What goes into which file: particles in the order of the list, `per_file` in each file."""

    particles: ParticleSet
    stacks: tuple[Stack, ...]
    type: str
    per_file: int
    origin: dict[str, Any]

    @property
    def files(self) -> dict[str, NDArray[np.int64]]:
        """The particles of each file, by its name."""
        tag = hashlib.sha256(json.dumps(self.origin).encode()).hexdigest()[:8]
        rows = np.arange(self.particles.count)
        parts = np.array_split(rows, range(self.per_file, len(rows), self.per_file))
        return {f"images-{tag}-{n:04d}.mrcs": part for n, part in enumerate(parts, start=1)}


def import_particles(star: Path, to: Path, kind: str, say: Callable[[str], None]) -> None:
    """Copy particles into a new folder, which is whole or not there.

    to       the folder
    kind     of the images' numbers: "float32", "float16"
    say      is told of progress, notes, and an earlier import that is gone on with
    raises   InputError, MissingInputError; OutputError if the folder is there already;
             ProjectLockedError if another process imports into it; DiskFullError
    """
    _refuse_if_there(to)
    plan = _plan(star, kind)
    for note in plan.particles.warnings:
        say(f"note: {note}")
    hidden = to.with_name(f".importing-{to.name}")
    with durable.named_errors(to, _bytes_of(plan)), _sole_writer(hidden):
        _begin(hidden, plan, say)
        sums = _write_images(hidden, plan, say)
        _write_list(hidden, plan)
        sums |= {name: seal_of(hidden / name).sha256 for name in (LIST, ORIGIN)}
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        durable.write_temporary(hidden / CHECKSUMS, "".join(lines).encode())
        _refuse_if_there(to)
        (hidden / LOCK).unlink()
        durable.sync_folder(hidden)
        hidden.rename(to)
        durable.sync_folder(to.parent)


def _refuse_if_there(to: Path) -> None:
    if os.path.lexists(to):
        raise OutputError(f"{to}: is there already, and is kept; choose another name with --to")


def _plan(star: Path, kind: str) -> _ImportPlan:
    particles = read_particles(star)
    stacks = open_stacks(particles)
    pixels = stacks[0].box ** 2
    origin = {
        "list": hashlib.sha256(particles.path.read_bytes()).hexdigest(),
        "stacks": [[str(stack.path), *_size_and_time(stack.path)] for stack in stacks],
        "type": kind,
    }
    per_file = max(1, FILE_BYTES // (pixels * np.dtype(kind).itemsize))
    return _ImportPlan(particles, stacks, kind, per_file, origin)


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _bytes_of(plan: _ImportPlan) -> int:
    return plan.particles.count * plan.stacks[0].box ** 2 * np.dtype(plan.type).itemsize


@contextlib.contextmanager
def _sole_writer(hidden: Path) -> Iterator[None]:
    """Hold a lock on the hidden folder, which is made; it ends with this process."""
    hidden.mkdir(exist_ok=True)
    fd = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ProjectLockedError(
                f"{hidden}: another process imports there; wait until it ends"
            ) from error
        yield
    finally:
        os.close(fd)


def _begin(hidden: Path, plan: _ImportPlan, say: Callable[[str], None]) -> None:
    """Keep what an import of the same particles has left, and remove anything else."""
    data, origin = json.dumps(plan.origin).encode(), hidden / ORIGIN
    if origin.exists() and origin.read_bytes() == data:
        say(f"going on with an earlier import in {hidden}")
        return
    for entry in hidden.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    durable.write_temporary(hidden / f"{ORIGIN}.tmp", data)
    durable.replace(hidden / f"{ORIGIN}.tmp", origin)


def _write_images(hidden: Path, plan: _ImportPlan, say: Callable[[str], None]) -> dict[str, str]:
    """Write each file that is not there yet; return the sha256 of all."""
    sums: dict[str, str] = {}
    done = 0
    for name, rows in plan.files.items():
        if not (hidden / name).exists():
            images = _images(plan, rows)
            temporary = hidden / f"{name}.tmp"
            write_stack(temporary, images, plan.particles.pixel_size)
            durable.sync_file(temporary)
            durable.replace(temporary, hidden / name)
        sums[name] = seal_of(hidden / name).sha256
        done += len(rows)
        count = plan.particles.count
        say(f"{done} of {counted(count, 'image')} ({100 * done / count:.0f} %)")
    return sums


def _images(plan: _ImportPlan, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return images of particles (k, n, n) in the type of the import, as they are in their stacks.

    raises   InputError if a pixel is no number, or too large for the type
    """
    particles, box = plan.particles, plan.stacks[0].box
    images = np.empty((len(rows), box, box), np.float32)
    for number in np.unique(particles.stack[rows]).tolist():
        places = np.flatnonzero(particles.stack[rows] == number)
        images[places] = plan.stacks[number].read(particles.slice[rows[places]])
        plan.stacks[number].close()
    with np.errstate(over="ignore", invalid="ignore"):
        converted = images.astype(plan.type, copy=False)
    wrong = np.flatnonzero(~np.isfinite(converted).all(axis=(1, 2)))
    if wrong.size:
        place = int(wrong[0])
        why = (
            f"grey values that {plan.type} cannot hold; import with --type float32"
            if np.isfinite(images[place]).all()
            else "pixels that are no numbers"
        )
        raise InputError(f"particle {rows[place] + 1} of {particles.path} has {why}")
    return converted


def _write_list(hidden: Path, plan: _ImportPlan) -> None:
    particles = plan.particles
    names = [
        f"{image:06d}@{name}"
        for name, rows in plan.files.items()
        for image in range(1, len(rows) + 1)
    ]
    columns: dict[str, Any] = {"rlnImageName": names}
    if particles.origins is not None:
        columns |= dict(zip(ORIGIN_COLUMNS, particles.origins.T, strict=True))
    table = with_columns(listed_particles(particles), columns)
    write_tables(hidden / LIST, {"optics": particles.optics, "particles": table})
    durable.sync_file(hidden / LIST)
