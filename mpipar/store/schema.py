"""Names in a project folder and the small records kept there: what FORMAT.md says, as code."""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np

from mpipar.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_T = TypeVar("_T")

FORMAT: Final = (1, 1)
"""Major and minor version of what is written: a newer minor version can be read, a newer major one
cannot."""
PROJECT: Final = "project.h5"
STATUS: Final = "status.json"
VERDICT: Final = "verdict.json"
SEGMENTS: Final = "segments"
JOURNAL: Final = "journal"
EPOCH: Final = "epoch"
LOCK: Final = "lock"
ORPHANS: Final = "orphans"
JOB: Final = "job"  # the folder of what `mpipar submit` writes; the store only leaves it alone
FOLDERS: Final = (SEGMENTS, JOURNAL, EPOCH)
OWN_NAMES: Final = (*FOLDERS, ORPHANS, PROJECT, STATUS, VERDICT)
TEMPORARY: Final = ".tmp-"

SMALL_FILE: Final = 4096  # bytes that a claim, a mark or a status needs at most, roughly

MANIFEST: Final = "@manifest"
COMMIT: Final = "@commit"
PRUNED: Final = "@pruned"
VERDICT_RECORD: Final = "@verdict"
EXPORTING: Final = "@exporting"
EXPORT: Final = "@export"
VERDICTS: Final = ("done", "requeue", "failed")
NOT_ENDED: Final = (
    "begun, and no end is recorded: while status.json beats it runs; else it was killed, or could "
    "not write"
)

_EPOCH_FILE: Final = re.compile(r"(\d{6,})\.(claim|released|unlocked|log)")
_TEMPORARY: Final = re.compile(re.escape(TEMPORARY) + r"(\d{6,})-.+")
_SEGMENT: Final = re.compile(r"commit-(\d+)\.e(\d{6,})-\d{4,}\.h5")
_VERSION: Final = re.compile(r"(\d+)(?:\.(\d+))?")
_SIGNATURE: Final = re.compile(rb'(.*),"crc32":(\d+)\}', re.DOTALL)
_ARRAY_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+\- ]*")
_KINDS: Final = "biufcS"  # numpy's dtype kinds that HDF5 keeps bit for bit


@dataclass(frozen=True)
class Identity:
    """What a project is; in each claim and manifest, so that it is known before any commit."""

    format: str  # major and minor version: "1.1"
    kind: str
    settings: dict[str, Any]
    created: float  # seconds since 1970

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of the format."""
        return version_of(self.format)

    def is_same_run(self, other: Identity) -> bool:
        """Whether both are of one project: its settings may change, its beginning does not."""
        return (self.kind, self.created) == (other.kind, other.created)


@dataclass(frozen=True)
class CommitInfo:
    """One commit: the fields of its journal record. That record is the commit."""

    number: int
    epoch: int
    segment: str  # file name in segments/, where the arrays are
    size: int  # bytes
    sha256: str
    time: float  # seconds since 1970
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ExportInfo:
    """A file for other programs, as the journal records it before and after its rename."""

    name: str  # in the project's folder
    epoch: int
    size: int  # bytes
    sha256: str
    is_done: bool  # whether it was renamed; False: it may have been


@dataclass(frozen=True)
class Pin:
    """How much of an older epoch's journal counts: its first `size` bytes.

    `chain` is the CRC over the CRCs of the `records` in them.
    """

    epoch: int
    size: int
    records: int
    chain: int


def claim_name(epoch: int) -> str:
    """File in epoch/ that claims an epoch."""
    return f"{epoch:06d}.claim"


def released_name(epoch: int) -> str:
    """File in epoch/ by which an owner releases its claim."""
    return f"{epoch:06d}.released"


def unlocked_name(epoch: int) -> str:
    """File in epoch/ by which a person lets others pass over a claim."""
    return f"{epoch:06d}.unlocked"


def journal_name(epoch: int) -> str:
    """File in journal/ of an epoch."""
    return f"{epoch:06d}.log"


def segment_name(number: int, epoch: int, serial: int) -> str:
    """File in segments/; `serial` counts the segments of the epoch, so no name comes twice."""
    return f"commit-{number:04d}.e{epoch:06d}-{serial:04d}.h5"


def temporary_name(epoch: int, name: str) -> str:
    """Hidden name of an unfinished file; a later epoch than that in the name may remove it."""
    return f"{TEMPORARY}{epoch:06d}-{name}"


def epoch_of_temporary(name: str) -> int | None:
    """Return the epoch in the name of an unfinished file; None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return int(match[1]) if match else None


def epoch_of_segment(name: str) -> int | None:
    """Return the epoch in the name of a segment; None for other names."""
    match = _SEGMENT.fullmatch(name)
    return int(match[2]) if match else None


def number_of_segment(name: str) -> int | None:
    """Return the number of the commit in the name of a segment; None for other names."""
    match = _SEGMENT.fullmatch(name)
    return int(match[1]) if match else None


def claimed_epochs(names: list[str]) -> list[int]:
    """Return the epochs with a claim among these file names of epoch/, lowest first."""
    matches = (_EPOCH_FILE.fullmatch(name) for name in names)
    return sorted(int(m[1]) for m in matches if m and m[2] == "claim")


def named_epochs(names: list[str]) -> set[int]:
    """Return the epochs whose claim, mark or journal is among these file names."""
    matches = (_EPOCH_FILE.fullmatch(name) for name in names)
    return {int(match[1]) for match in matches if match}


def is_vacant(folder: Path) -> bool:
    """Whether a folder is empty but for what a creation that was cut off leaves, or a job."""
    for entry in folder.iterdir():
        if entry.name == JOB and entry.is_dir():
            continue
        if entry.name not in FOLDERS or not entry.is_dir():
            return False
        if any(not child.name.startswith(TEMPORARY) for child in entry.iterdir()):
            return False
    return True


def encode(value: object) -> bytes:
    """Return a value as one line of JSON; numpy numbers become plain, other types StoreError."""
    try:
        _require_string_keys(value)
        return json.dumps(value, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"cannot be stored as JSON: {error}") from error


def _require_string_keys(value: object) -> None:
    """Raise TypeError for keys that are not strings: json.dumps would turn 1 into "1"."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"names must be strings, not {key!r:.60}")
            _require_string_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_string_keys(item)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON type: {value!r:.60}")


def decode(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; ValueError if there is anything else."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - JSONDecodeError is a ValueError too
    return value


def sign(body: bytes) -> bytes:
    """Return the JSON object `body` with its own checksum as its last field."""
    return body[:-1] + b',"crc32":%d}' % zlib.crc32(body)


def decode_signed(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; ValueError if its checksum is wrong; it may have none."""
    match = _SIGNATURE.fullmatch(data)
    if match is None:
        return decode(data)
    body = match[1] + b"}"
    if zlib.crc32(body) != int(match[2]):
        raise ValueError("wrong checksum")
    return decode(body)


def through_json(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return values as JSON gives them back, so that a writer has what a reader will get.

    what   names the values in a StoreError
    """
    try:
        return decode(encode(dict(values)))
    except StoreError as error:
        raise StoreError(f"{what}: {error}") from error


def check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise StoreError for arrays that would not come back bit for bit; nothing is written yet."""
    for name, array in arrays.items():
        if not _ARRAY_NAME.fullmatch(name):
            raise StoreError(f"array name {name!r}: use letters, digits, _ . : + - and blanks")
        if array.dtype.kind not in _KINDS or array.dtype.itemsize == 0:
            raise StoreError(
                f"array {name!r} has dtype {array.dtype}; the store keeps numbers, bool and "
                "fixed-length bytes"
            )


@contextlib.contextmanager
def _understood(what: str) -> Iterator[None]:
    """A record that lacks something, or has something else in its place, is an error."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{what}: is not as FORMAT.md has it ({error}); read it with the version of mpipar "
            "that wrote it"
        ) from error


def export_to_json(info: ExportInfo) -> bytes:
    """Return an export as the payload of its journal records, which tell whether it is done."""
    fields_of = asdict(info)
    del fields_of["is_done"]
    return encode(fields_of)


def export_from_json(data: bytes, *, is_done: bool) -> ExportInfo:
    """Return the export in the payload of a journal record."""
    with _understood("an export in the journal"):
        return known_fields(ExportInfo, {**decode(data), "is_done": is_done})


def commit_to_json(info: CommitInfo) -> bytes:
    """Return a commit as the payload of its journal record."""
    return encode(asdict(info))


def commit_from_json(data: bytes) -> CommitInfo:
    """Return the commit in the payload of a journal record."""
    with _understood("a commit in the journal"):
        return known_fields(CommitInfo, decode(data))


def version_of(text: object) -> tuple[int, int]:
    """Return major and minor version from a format such as "1.1"; mpipar 0.1.0 wrote the number 1.

    raises   ValueError if it is none
    """
    match = _VERSION.fullmatch(str(text))
    if match is None:
        raise ValueError(f"no version of the format: {text!r:.60}")
    return int(match[1]), int(match[2] or 0)


def version_text(version: tuple[int, int]) -> str:
    """Return a version of the format as it is written."""
    return "{}.{}".format(*version)


def pruned_to_json(names: Sequence[str]) -> bytes:
    """Return the payload of the record that says which segments are pruned."""
    return encode({"segments": list(names)})


def pruned_from_json(data: bytes) -> list[str]:
    """Return the segments in the payload of a record that says which are pruned."""
    with _understood("a list of pruned segments in the journal"):
        return [str(name) for name in decode(data)["segments"]]


def identity_from_json(value: dict[str, Any], what: str) -> Identity:
    """Return what a project is from a claim or manifest, which `what` names in errors.

    raises   StoreError if a later version of mpipar made the project, ValueError if it is not told
    """
    version = version_of(value.get("format"))
    if version[0] > FORMAT[0]:
        raise StoreError(
            f"{what}: has format {version_text(version)}, and this mpipar knows formats up to "
            f"{FORMAT[0]}; update mpipar"
        )
    return known_fields(Identity, {**value, "format": version_text(version)})


def for_writing(identity: Identity, what: str) -> Identity:
    """Return the identity that a project has when this mpipar writes to it.

    raises   StoreError if a later version of mpipar made it: what that has added would be lost
    """
    if identity.version > FORMAT:
        raise StoreError(
            f"{what}: has format {identity.format}, which this mpipar can read, but writes only up "
            f"to {version_text(FORMAT)}; update mpipar to go on with it"
        )
    return replace(identity, format=version_text(FORMAT))


def known_fields(cls: type[_T], value: dict[str, Any]) -> _T:
    """Return a dataclass from its fields; others, of a later minor version, are left out.

    raises   TypeError if one is missing
    """
    known = {field.name for field in fields(cast("Any", cls))}
    return cls(**{name: item for name, item in value.items() if name in known})


def build(cls: type[_T], value: dict[str, Any], what: str) -> _T:
    """Return a dataclass of a program from its fields.

    raises   StoreError if there are more fields, from a later version of mpipar; TypeError if one
             is missing
    """
    known = {field.name for field in fields(cast("Any", cls))}
    more = sorted(value.keys() - known)
    if more and known <= value.keys():
        raise StoreError(
            f"{what}: has fields that this mpipar does not know ({', '.join(more)}); update mpipar"
        )
    return cls(**value)


def manifest_to_json(identity: Identity, pins: tuple[Pin, ...]) -> bytes:
    """Return the payload of an epoch's first record: what counts of the older epochs."""
    return encode({"identity": asdict(identity), "accepted": [asdict(pin) for pin in pins]})


def manifest_from_json(data: bytes) -> tuple[Identity, tuple[Pin, ...]]:
    """Return identity and pins from the payload of an epoch's first record."""
    what = "the first record of the newest journal"
    with _understood(what):
        value = decode(data)
        identity = identity_from_json(value["identity"], what)
        return identity, tuple(known_fields(Pin, pin) for pin in value["accepted"])
