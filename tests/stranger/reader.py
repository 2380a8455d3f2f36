"""A reader of project folders by a stranger: written from FORMAT.md alone, without mpipar."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

MAJOR = 1
HEADER, RECORD = struct.Struct("<8sI16sI"), struct.Struct("<4sIQQQI")


class UpdateError(Exception):
    """The project has a later major version: update mpipar."""


class DamagedError(Exception):
    """A file is not what the journal says."""


@dataclass
class Journal:
    """The whole records of a journal: kind and payload, where each ends, and the chain there."""

    records: list[tuple[str, bytes]]
    ends: list[tuple[int, int]]


def read_journal(data: bytes) -> Journal:
    """Read header and records up to the first one that is not whole."""
    found = Journal([], [])
    if len(data) < HEADER.size:
        return found
    magic, _, _, header_crc = HEADER.unpack_from(data)
    if magic != b"MPIPARJ1" or zlib.crc32(data[:28]) != header_crc:
        return found
    at, chain = HEADER.size, header_crc
    while at + RECORD.size <= len(data):
        magic, k, p, serial, _, crc = RECORD.unpack_from(data, at)
        body, end = at + RECORD.size, at + RECORD.size + k + p
        if magic != b"mRec" or serial != len(found.records) or k > 255 or end > len(data):
            break
        if zlib.crc32(data[body:end], zlib.crc32(data[at : at + 32], header_crc)) != crc:
            break
        found.records.append((data[body : body + k].decode(), data[body + k : end]))
        chain = zlib.crc32(struct.pack("<I", crc), chain)
        found.ends.append((end, chain))
        at = end
    return found


def read_signed(path: Path) -> dict[str, Any]:
    """Read a claim, a mark, status.json or verdict.json."""
    data = path.read_bytes()
    match = re.fullmatch(rb'(.*),"crc32":(\d+)\}', data, re.DOTALL)
    if match:
        data = match[1] + b"}"
        if zlib.crc32(data) != int(match[2]):
            raise DamagedError(path)
    value: dict[str, Any] = json.loads(data)
    return value


def numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """The files NNNNNN.suffix of a folder with their epochs, newest first."""
    pattern = re.compile(rf"(\d{{6,}})\.{suffix}")
    files = [(pattern.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(m[1]), path) for m, path in files if m), reverse=True)


@dataclass
class Commit:
    """One commit, as its record has it."""

    number: int
    segment: Path
    size: int
    sha256: str
    attributes: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Read all arrays, after the segment was found to be whole."""
        data = self.segment.read_bytes()
        if len(data) != self.size or hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedError(self.segment)
        with h5py.File(self.segment, "r", locking=False) as file:
            return {name: d[()] for name, d in file.items() if isinstance(d, h5py.Dataset)}


@dataclass
class StrangersProject:
    """A project: its identity, its commits, and the records of the program."""

    identity: dict[str, Any]
    records: list[tuple[str, bytes]]
    commits: list[Commit]


def read_project(folder: Path) -> StrangersProject:
    """Read a project folder as "To read a project" has it."""
    for _, path in numbered(folder / "journal", "log"):
        newest = read_journal(path.read_bytes())
        if not newest.records or newest.records[0][0] != "@manifest":
            continue
        manifest = json.loads(newest.records[0][1])
        require_known(manifest["identity"])
        records = []
        for pin in manifest["accepted"]:
            older = folder / "journal" / f"{pin['epoch']:06d}.log"
            with older.open("rb") as file:
                part = read_journal(file.read(pin["size"]))
            end = part.ends[-1] if part.ends else (HEADER.size, None)
            if len(part.records) != pin["records"]:
                raise DamagedError(older)
            if part.ends and end != (pin["size"], pin["chain"]):
                raise DamagedError(older)
            records += part.records
        records = [r for r in records + newest.records if r[0] != "@manifest"]
        return StrangersProject(manifest["identity"], records, commits_of(folder, records))
    claim = read_signed(numbered(folder / "epoch", "claim")[0][1])
    require_known(claim["identity"])
    return StrangersProject(claim["identity"], [], [])


def require_known(identity: dict[str, Any]) -> None:
    """Refuse a later major version."""
    if int(str(identity["format"]).split(".")[0]) > MAJOR:
        raise UpdateError(f"format {identity['format']}: update mpipar")


def commits_of(folder: Path, records: list[tuple[str, bytes]]) -> list[Commit]:
    """The commits among the records, without those that were pruned."""
    lists = [json.loads(payload)["segments"] for kind, payload in records if kind == "@pruned"]
    pruned = {name for names in lists for name in names}
    found = []
    for kind, payload in records:
        if kind == "@commit":
            value = json.loads(payload)
            if value["segment"] in pruned:
                continue
            segment = folder / "segments" / value["segment"]
            found.append(
                Commit(
                    value["number"],
                    segment,
                    value["size"],
                    value["sha256"],
                    value["attributes"],
                )
            )
    return found


def text_of(cells: np.ndarray[Any, Any]) -> list[str]:
    """The cells of a text array."""
    texts = cells.tobytes().split(b"\0") if cells.dtype == np.uint8 else cells.tolist()
    return [text.decode() for text in texts]


def particle_list(first: Commit) -> dict[str, list[str]]:
    """The columns of the particle list, from commit 0; empty before version 1.1."""
    arrays, labels = first.arrays(), first.attributes.get("columns", {}).get("particles", [])
    table = {}
    for number, label in enumerate(labels):
        plain = re.fullmatch(r"[A-Za-z0-9_.:+-]+", label)
        name = f"particles.{label}" if plain else f"particles.column {number}"
        table[label] = text_of(arrays[name])
    return table


def index_is_whole(folder: Path) -> bool:
    """Whether project.h5 has the checksum that it ends with."""
    data = (folder / "project.h5").read_bytes()
    return data[-40:-32] == b"MPIPARH5" and hashlib.sha256(data[:-40]).digest() == data[-32:]
