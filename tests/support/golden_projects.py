"""Golden projects: small refinements of each version of the format, kept under tests/golden.

`python -m tests.support.golden_projects` makes one with the mpipar that is there, and must be run
once for each new version of the format; an archive that is there is never made anew. Beside the
archive lies what must be read from it: type, shape and sha256 of each array of each commit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py

from tests.support.jobs import ROOT
from tests.support.refine_input import make_input

if TYPE_CHECKING:
    import numpy as np

GOLDEN: Final = ROOT / "tests" / "golden"
HOME: Final = Path(tempfile.gettempdir()) / "golden"  # named in the projects, so always the same
PARTICLES, BOX = 16, 8
RUN: Final = """
import socket, sys
socket.gethostname = lambda: "node1"
from mpipar.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def archives() -> list[Path]:
    """All golden projects, oldest version of the format first."""
    return sorted(GOLDEN.glob("*.tar.xz"))


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack a golden project below a folder; return the project's folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xJf", archive, "-C", folder], check=True)
    return folder / "refine_01"


def expected(archive: Path) -> dict[str, dict[str, list[Any]]]:
    """What a reader must find: for each commit and each array its type, shape and sha256."""
    found: dict[str, dict[str, list[Any]]] = json.loads(
        archive.with_name(archive.name.replace(".tar.xz", ".json")).read_text()
    )
    return found


def digest(array: np.ndarray[Any, Any]) -> list[Any]:
    """Type, shape and sha256 of an array."""
    return [array.dtype.str, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def make(version: str) -> Path:
    """Make a golden project: an epoch of one iteration, one that resumes it, one that prunes it."""
    archive = GOLDEN / f"refine-{version}.tar.xz"
    if archive.exists():
        raise SystemExit(f"{archive} is there, and is kept")
    made = make_input(HOME / "input", PARTICLES, BOX)
    project = HOME / "refine_01"
    for words in (
        [*made.words("--path", project, iterations=1)[1:]],
        ["refine", "--resume", "--path", project, "--iter", "3"],
        ["prune", project, "--keep", "2"],
    ):
        subprocess.run([sys.executable, "-c", RUN, *map(str, words)], check=False)
    for picture in project.glob("*.png"):
        picture.unlink()  # they are large
    GOLDEN.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(project, project.name, filter=_anonymous)
    arrays = {}
    for segment in sorted((project / "segments").iterdir()):
        with h5py.File(segment) as file:
            names = [name for name in file if isinstance(file[name], h5py.Dataset)]
            number = str(int(segment.name[7:11]))
            arrays[number] = {name: digest(file[name][()]) for name in names}
    (GOLDEN / f"refine-{version}.json").write_text(json.dumps(arrays, indent=1) + "\n")
    return archive


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    print(make(sys.argv[1]))
