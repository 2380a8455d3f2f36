"""A run as one file, for another place: packed, and unpacked with all checksums compared.

The archive is a tar file, so that `tar` unpacks it too. Its last member, MPIPAR-PACK.json, names
each file with size and sha256: an archive that was cut off has none.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from mpipar import store
from mpipar.errors import InputError, MissingInputError, OutputError, reason_of
from mpipar.results.whole_output import whole_output
from mpipar.store.snapshot import snapshot
from mpipar.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpipar.store.snapshot import SnapshotFile

__all__ = ["pack", "unpack"]

MANIFEST_NAME: Final = "MPIPAR-PACK.json"
VERSION: Final = 1
_MODES: Final = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}
_READ_BYTES: Final = 1 << 20
_LONGEST_MANIFEST: Final = 1 << 30


class _Hashed(io.RawIOBase):
    """A file to read that is made of pieces, and counts and hashes what was read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces, self._rest = pieces, b""
        self.digest, self.size = hashlib.sha256(), 0

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes, or what is left."""
        while len(self._rest) < size or size < 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        end = len(self._rest) if size < 0 else size
        found, self._rest = self._rest[:end], self._rest[end:]
        self.digest.update(found)
        self.size += len(found)
        return found


def pack(folder: Path, to: Path | None) -> tuple[Path, int, int]:
    """Write a run into one archive, as it is at one moment, whole or not at all; it may go on.

    to        the archive, compressed if its name ends with .gz, .bz2 or .xz; None: such as
              refine_01.tar, in the current folder
    returns   the archive, how many files are in it, and their bytes
    raises    MissingInputError if there is no run, CorruptStoreError if it is damaged, OutputError
    """
    name = folder.resolve().name
    final = (to or Path(f"{name}.tar")).absolute()
    if folder.resolve() in final.resolve().parents:
        raise OutputError(f"{final}: lies in the run's own folder; choose another place with --to")
    listed: dict[str, list[Any]] = {}
    with snapshot(folder) as files, whole_output(final) as temporary, _new(temporary, final) as tar:
        for file in sorted(files, key=lambda file: file.name):
            listed[file.name] = _add(tar, name, file)
        said = {"version": VERSION, "mpipar": __version__, "project": name, "files": listed}
        data = json.dumps(said, indent=1).encode()
        info = tarfile.TarInfo(MANIFEST_NAME)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return final, len(listed), sum(size for size, _ in listed.values())


def _new(temporary: Path, final: Path) -> tarfile.TarFile:
    mode: Any = _MODES.get(final.suffix, "w")
    tar: tarfile.TarFile = tarfile.open(temporary, mode, format=tarfile.PAX_FORMAT)  # noqa: SIM115
    tar.copybufsize = _READ_BYTES  # type: ignore[attr-defined]
    return tar


def _add(tar: tarfile.TarFile, top: str, file: SnapshotFile) -> list[Any]:
    info = tarfile.TarInfo(f"{top}/{file.name}")
    info.size, info.mode = file.size, 0o644
    with contextlib.suppress(OSError):
        info.mtime = int(file.path.stat().st_mtime)
    source = _Hashed(file.pieces())
    tar.addfile(info, source)
    return [source.size, source.digest.hexdigest()]


def unpack(archive: Path, to: Path | None) -> tuple[Path, list[str]]:
    """Unpack a run into a new folder, whole or not at all, after all its checksums were compared.

    to        the new folder; None: of the name that the run had, in the current folder
    returns   the folder, and what `mpipar check` says of it, one line each
    raises    MissingInputError; InputError if it is no archive of mpipar, or was cut off or
              changed; OutputError if the folder is there already
    """
    with _reading(archive), tarfile.open(archive, "r:*") as tar:
        first = tar.next()
        if first is None:
            raise InputError(f"{archive}: is an empty archive")
        final = (to or Path(_inner(archive, first)[0])).absolute()
        with whole_output(final) as temporary:
            temporary.mkdir()
            _extract(archive, tar, first, temporary)
    return final, store.check(final)


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What goes wrong while an archive is read is an error that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0].removesuffix(":")
        raise InputError(f"{archive}: is no whole archive: {reason}; copy it again") from error
    except OSError as error:
        raise MissingInputError(f"{archive}: cannot be read: {reason_of(error)}") from error


def _inner(archive: Path, info: tarfile.TarInfo) -> tuple[str, str]:
    """Return the archive's folder and a member's name in it; InputError if it leads elsewhere."""
    top, _, name = info.name.partition("/")
    safe = PurePosixPath(name)
    parts_are_safe = not safe.is_absolute() and name == str(safe) and ".." not in safe.parts
    if not name or top in {"", ".", ".."} or not parts_are_safe or not info.isfile():
        raise InputError(f"{archive}: was not made by `mpipar pack`: it has {info.name!r:.80}")
    return top, name


def _extract(archive: Path, tar: tarfile.TarFile, first: tarfile.TarInfo, folder: Path) -> None:
    info: tarfile.TarInfo | None = first
    found: dict[str, list[Any]] = {}
    said: dict[str, Any] | None = None
    while info is not None:
        pieces = _pieces(archive, tar, info)
        if info.name == MANIFEST_NAME and info.size <= _LONGEST_MANIFEST:
            said = _manifest(archive, b"".join(pieces))
        else:
            name = _inner(archive, info)[1]
            if name in found:
                raise InputError(f"{archive}: has {name} twice")
            found[name] = _write(folder / name, pieces)
        info = _next(archive, tar)
    if said is None:
        raise InputError(
            f"{archive}: has no {MANIFEST_NAME} at its end: it was cut off; copy it again"
        )
    listed = said["files"]
    wrong = sorted(n for n in found.keys() | listed if found.get(n) != listed.get(n))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{archive}: {wrong[0]}{more} is not what was packed; copy it again")


def _manifest(archive: Path, data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
        version, _ = said["version"], said["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{archive}: its {MANIFEST_NAME} is damaged; copy it again") from error
    if version > VERSION:
        raise InputError(f"{archive}: was packed by a later version of mpipar; update mpipar")
    whole: dict[str, Any] = said
    return whole


def _next(archive: Path, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _reading(archive):
        return tar.next()


def _pieces(archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    with _reading(archive):
        file = tar.extractfile(info)
        while file is not None and (piece := file.read(_READ_BYTES)):
            yield piece


def _write(path: Path, pieces: Iterator[bytes]) -> list[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    return [size, digest.hexdigest()]
