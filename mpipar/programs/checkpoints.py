"""Checkpoints of a refinement: its state as commits of the project, read back bit for bit."""

from __future__ import annotations

import hashlib
import platform
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.matches import Matches
from mpipar.errors import CorruptStoreError, InputError, UnavailableError
from mpipar.formats.star import listed_particles
from mpipar.programs.commit_arrays import notes_of, text_arrays
from mpipar.programs.convergence import FinishedIteration
from mpipar.programs.dataset import ImageConstants
from mpipar.programs.iteration import Maps, RefineState
from mpipar.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet
    from mpipar.programs.block_rows import ImageGeometry
    from mpipar.programs.inputs import RefineInputs
    from mpipar.store.project import Commit, Project

LIBRARIES = ("numpy", "scipy", "numba", "h5py")


def fingerprint(inputs: RefineInputs) -> str:
    """Return the sha256 of what a resumed run must find unchanged.

    That is the particle list, the model, the mask, and the stacks' names and sizes.
    """
    digest = hashlib.sha256(inputs.particles.path.read_bytes())
    digest.update(inputs.model.tobytes())
    if inputs.mask is not None:
        digest.update(inputs.mask.tobytes())
    for path in inputs.particles.stacks:
        digest.update(f"{path.name} {path.stat().st_size}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def environment(device: str = "") -> dict[str, str]:
    """Return what the bits of a result depend on besides input and settings, as name: version.

    device   the GPU and its libraries, if one aligns
    """
    own = {"cpu": _cpu(), "python": platform.python_version(), "mpipar": __version__}
    if device:
        own["device"] = device
    return own | {name: version(name) for name in LIBRARIES}


def _cpu() -> str:
    """Return the CPU's model, or its family where the system does not tell the model."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return models[0] if models else platform.machine()
    return platform.machine()


def changed_environment(project: Project, device: str = "") -> list[str]:
    """Return what of `environment` has changed since the run began: "numpy was 2.1, is 2.2".

    raises   UnavailableError if the run began on a GPU and has none now, or the other way round
    """
    with _understood(project):
        then = project.load(project.commits()[0]).attributes["environment"]
        before = then.get("device", "")
    if bool(before) != bool(device):
        raise UnavailableError(
            f"{project.path} was begun on {before or 'processors'}, and now there is "
            f"{device or 'no GPU'}: the two do not give the same bits; resume it on what it was "
            "begun on, or begin a new run"
        )
    now = environment(device)
    return [
        f"{name} was {then.get(name, 'not recorded')}, is {value}"
        for name, value in now.items()
        if then.get(name) != value
    ]


@dataclass(frozen=True)
class RunOrigin:
    """What a run begins with, as commit 0 tells it, so that a project can be read by itself.

    input_hash   of `fingerprint`
    symmetry     name of the point group, in the setting that is used
    device       the GPU and its libraries, if one aligns
    """

    input_hash: str
    particles: ParticleSet
    geometry: ImageGeometry
    symmetry: str
    device: str = ""


def commit_first(
    project: Project, constants: ImageConstants, state: RefineState, origin: RunOrigin
) -> None:
    """Commit 0: what stays the same, and the state before the first iteration."""
    listed, optics = listed_particles(origin.particles), origin.particles.optics
    arrays: dict[str, NDArray[Any]] = {
        "half": constants.half,
        "offset": constants.offset,
        "gain": constants.gain,
        "largest": constants.largest,
        **({} if constants.fold is None else {"fold": constants.fold}),
        **_state_arrays(state),
        **text_arrays("particles", listed),
        **text_arrays("optics", optics),
    }
    attributes = {
        **_state_attributes(state),
        **_geometry_attributes(origin.geometry),
        "symmetry": origin.symmetry,
        "columns": {"particles": list(listed.columns), "optics": list(optics.columns)},
        "normalised": constants.normalised,
        "input": origin.input_hash,
        "environment": environment(origin.device),
        "history": [],
    }
    project.commit(0, arrays, attributes, notes_of(arrays, origin.geometry))


def commit(
    project: Project,
    geometry: ImageGeometry,
    state: RefineState,
    maps: Maps,
    history: Sequence[FinishedIteration],
) -> None:
    """Commit a finished iteration: its state, its maps, and the history of all iterations."""
    arrays: dict[str, NDArray[Any]] = {
        **_state_arrays(state),
        "half_maps": maps.halves,
        "mask": maps.mask,
        "map": maps.combined,
        "fsc_unmasked": maps.unmasked,
        "fsc_masked": maps.masked,
        "fsc_corrected": maps.corrected,
    }
    attributes = {
        **_state_attributes(state),
        **_geometry_attributes(geometry),
        "history": [asdict(step) for step in history],
    }
    project.commit(state.iteration, arrays, attributes, notes_of(arrays, geometry))


def _geometry_attributes(geometry: ImageGeometry) -> dict[str, Any]:
    """Return box and particle radius in pixels, and the pixel size in A."""
    return {"box": geometry.box, "pixel_size": geometry.pixel_size, "radius": geometry.radius}


def _state_arrays(state: RefineState) -> dict[str, NDArray[Any]]:
    return {
        "rotations": state.poses.rotations,
        "shifts": state.poses.shifts,
        "score": state.poses.score,
        "references": state.references,
        "noise": state.noise,
        "fsc": state.correlation,
        "settled": state.settled,
        "before": state.before,
        "peak": state.peak,
        **asdict(state.matches),
    }


def _state_attributes(state: RefineState) -> dict[str, Any]:
    return {
        "iteration": state.iteration,
        "resolution": state.resolution,
        "resolved_shell": state.resolved_shell,
        "jumped": state.jumped,
        "drift": state.drift,
        "evidence": state.evidence,
        "spread": state.spread,
    }


@contextmanager
def _understood(project: Project) -> Iterator[None]:
    """A commit that lacks something, or has something else, is an error that names the project."""
    try:
        yield
    except (KeyError, TypeError, IndexError) as error:
        raise CorruptStoreError(
            f"{project.path}: a commit is not as this mpipar writes it ({error}); go on with the "
            "version that made the run, or begin a new one"
        ) from error


def _latest(project: Project) -> Commit:
    latest = project.latest()
    if latest is None:
        raise CorruptStoreError(f"{project.path} has no commit, so no state to go on from")
    return latest


def load_constants(project: Project, input_hash: str) -> ImageConstants:
    """Load the constants of commit 0.

    raises   InputError if the run was started with other input than that of `input_hash`
    """
    with _understood(project):
        first = project.load(project.commits()[0])
        known = first.attributes["input"]
    if known != input_hash:
        raise InputError(
            f"{project.path} was started with other input: the particle list, model, mask or a "
            "stack has changed since; start a new run, or restore the files"
        )
    arrays = first.arrays
    with _understood(project):
        return ImageConstants(
            arrays["half"],
            arrays["offset"],
            arrays["gain"],
            arrays["largest"],
            bool(first.attributes["normalised"]),
            arrays.get("fold"),
        )


def load_history(project: Project) -> list[FinishedIteration]:
    """Load the history: all finished iterations, oldest first."""
    with _understood(project):
        return [FinishedIteration(**step) for step in _latest(project).attributes["history"]]


def load_state(project: Project) -> RefineState:
    """Load the state of the latest commit, bit for bit as it was."""
    latest = _latest(project)
    arrays, attributes = latest.arrays, latest.attributes
    with _understood(project):
        return RefineState(
            iteration=attributes["iteration"],
            poses=Poses(arrays["rotations"], arrays["shifts"], arrays["score"]),
            references=arrays["references"],
            noise=arrays["noise"],
            correlation=arrays["fsc"],
            resolution=attributes["resolution"],
            resolved_shell=attributes["resolved_shell"],
            settled=arrays["settled"],
            jumped=attributes["jumped"],
            drift=attributes.get("drift", 0.0),
            before=arrays["before"],
            peak=arrays["peak"],
            evidence=attributes["evidence"],
            spread=attributes["spread"],
            matches=_matches_of(arrays, len(arrays["score"])),
        )


def _matches_of(arrays: Mapping[str, NDArray[Any]], count: int) -> Matches:
    """Return the matches of a commit; those of a commit that has none, from before, are unknown."""
    names = Matches.__dataclass_fields__
    if not set(names) & set(arrays):
        return Matches.unknown(count)
    return Matches(*(arrays[name] for name in names))


def load_maps(project: Project) -> Maps:
    """Load the maps of the latest commit."""
    arrays = _latest(project).arrays
    names = ("half_maps", "mask", "map", "fsc_unmasked", "fsc_masked", "fsc_corrected")
    with _understood(project):
        return Maps(*(arrays[name] for name in names))
