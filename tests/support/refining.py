"""Real refinements for tests: a small input, the command line with and without mpirun, instruments.

The input is cut from the data set of jobs/demo, in a folder of its own. One run of it, serial and
undisturbed, is the reference that all others are compared with; it is made once per test session.

`python -m tests.support.refining RECORD refine ...` is mpipar's command line; rank 0 also writes
the statistics of each run of the pool to the file RECORD.
"""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.support.blocks import (
    optics_columns,
    particle_columns,
    write_mrc,
    write_particle_input,
    write_star,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.iteration import Dataset, RefineState
    from mpipar.settings import RefineSettings

ROOT: Final = Path(__file__).parents[2]
DEMO: Final = ROOT / "jobs" / "demo" / "data"
MPIRUN: Final = Path(sys.prefix) / "bin" / "mpirun"
PATIENCE: Final = 150.0  # seconds; a job that takes longer hangs
TEST_LIMIT: Final = 60.0  # seconds, as pyproject.toml has it
FILES: Final = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "particles.star", "fsc.txt")
"""What must have the same bits, however it was computed."""
PARTICLES, BOX, PIXEL_SIZE, ITERATIONS = 160, 32, 11.2, 2
NOTHING: Final[Mapping[str, str]] = {}
MARK: Final = "MPIPAR_TEST_JOB"  # in the environment of every process of a job


@dataclass(frozen=True)
class Input:
    """A particle list and a model, in a folder with nothing else but the stack."""

    folder: Path
    star: Path
    model: Path
    stack: Path

    def moved(self, folder: Path) -> Input:
        """The same files in another folder."""
        return Input(folder, *(folder / path.name for path in (self.star, self.model, self.stack)))

    def words(self, *more: object, iterations: int = ITERATIONS) -> list[str]:
        """Words of a refinement of this input, after `python -m`."""
        files = ["--input", self.star, "--model", self.model]
        return [str(w) for w in ("mpipar", "refine", *files, "--iter", iterations, *more)]


def smaller(arrays: NDArray[np.floating[Any]], box: int, dimensions: int) -> NDArray[np.float32]:
    """Squares or cubes cut to `box` in Fourier space; white noise keeps its deviation."""
    axes = tuple(range(-dimensions, 0))
    old = arrays.shape[-1]
    centred = np.fft.ifftshift(arrays, axes=axes)
    transform = np.fft.fftshift(np.fft.fftn(centred, axes=axes), axes=axes)
    inner: tuple[Any, ...] = (..., *[slice(old // 2 - box // 2, old // 2 + box // 2)] * len(axes))
    kept = np.fft.ifftshift(transform[inner], axes=axes)
    small = np.fft.fftshift(np.fft.ifftn(kept, axes=axes).real, axes=axes)
    return np.asarray(small * (box / old) ** (len(axes) / 2), np.float32)


def demo_images(count: int = PARTICLES, box: int = BOX) -> NDArray[np.float32]:
    """The demo's first particles at a smaller box."""
    from mpipar.formats.mrc import Stack

    stack = Stack(DEMO / "particles.mrcs")
    images = stack.read(np.arange(count))
    stack.close()
    return smaller(images, box, 2)


def not_read_first(count: int) -> int:
    """A particle that is not among those which are read before anything is computed."""
    from mpipar.programs.images import FIRST_LOOK

    read = np.linspace(0, count - 1, FIRST_LOOK).astype(int)
    return int(np.setdiff1d(np.arange(count), read)[0])


def make_input(folder: Path, count: int = PARTICLES, box: int = BOX) -> Input:
    """Write a small particle stack, its STAR file, and the model."""
    from mpipar.formats.mrc import read_volume

    folder.mkdir(parents=True, exist_ok=True)
    stack = write_mrc(folder / "particles.mrcs", demo_images(count, box), pixel_size=PIXEL_SIZE)
    model = smaller(read_volume(DEMO / "init.mrc").data, box, 3)
    write_mrc(folder / "init.mrc", model, pixel_size=PIXEL_SIZE, volume=True)
    lines = (DEMO / "particles.star").read_text().splitlines()
    rows = [line for line in lines if "@" in line]
    head = "\n".join(line for line in lines if "@" not in line).rstrip()
    head = head.replace("5.600000 64 2", f"{PIXEL_SIZE:.6f} {box} 2")
    star = folder / "particles.star"
    star.write_text("\n".join([head, *rows[:count], ""]))
    return Input(folder, star, folder / "init.mrc", stack)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without launchers and knobs, and with more."""
    launchers = ("OMPI_COMM", "PMI", "SLURM", "NSLOTS", "MPIPAR", "PRTE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    kept |= {"MPIPAR_PATIENCE": "50", **more}
    paths = [more.get("PYTHONPATH", ""), str(ROOT)]
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def command(ranks: int | None, words: Sequence[object]) -> list[str]:
    """`python -m words`, alone (None) or as so many ranks."""
    program = [sys.executable, "-m", *map(str, words)]
    return program if ranks is None else [*mpirun(), "-n", str(ranks), *program]


@functools.cache
def mpirun() -> tuple[str, ...]:
    """The mpirun of this environment, with what lets it start more ranks than cores."""
    said = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, check=False)
    return (str(MPIRUN), *(["--oversubscribe"] if "Open MPI" in said.stdout else []))


def run(
    words: Sequence[object],
    *,
    ranks: int | None = None,
    cwd: Path = ROOT,
    limit: float = PATIENCE,
    env: Mapping[str, str] = NOTHING,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m words` to its end."""
    with Job(words, ranks=ranks, cwd=cwd, env=env) as job:
        return job.finish(limit)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said to the user about an error."""
    return [line for line in done.stderr.splitlines() if line.startswith("mpipar:")]


def digests(folder: Path, made: Input | None = None) -> dict[str, str]:
    """Sha256 of every result of a run; what names the folder of its input `made` is made even."""
    whole = {name: (folder / name).read_bytes() for name in FILES}
    if made is not None:
        whole["particles.star"] = whole["particles.star"].replace(bytes(made.folder), b"FOLDER")
    return {name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}


@dataclass(frozen=True)
class Reference:
    """An undisturbed serial run, and the input that it and all compared runs have."""

    input: Input
    path: Path
    digests: dict[str, str]
    said: str
    seconds: float
    statistics: list[dict[str, Any]]


@functools.cache
def reference(base: Path, iterations: int = ITERATIONS) -> Reference:
    """Make the input and refine it in one process without mpirun; once per session."""
    base = base / f"reference-{iterations}"
    made = make_input(base / "input")
    words = made.words("--path", base / "run", iterations=iterations)
    start = time.monotonic()
    done, statistics = recorded(words, base / "record.json")
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - start
    path = base / "run"
    return Reference(made, path, digests(path), done.stdout, seconds, statistics)


def run_here(words: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run mpipar's command line in this process: the same, without seconds of imports."""
    from mpipar.cli.main import main

    before, there = dict(os.environ), Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    try:
        os.chdir(cwd)
        for name in set(os.environ) - set(environment(NOTHING)):
            del os.environ[name]
        with redirect_stdout(out), redirect_stderr(err), patience(PATIENCE):
            code = main([str(word) for word in words[1:]])
    finally:
        os.chdir(there)
        os.environ.clear()
        os.environ.update(before)
    return subprocess.CompletedProcess("mpipar", code, out.getvalue(), err.getvalue())


def recorded(
    words: Sequence[str],
    record: Path,
    *,
    ranks: int | None = None,
    env: Mapping[str, str] = NOTHING,
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run a refinement; also return the statistics of each run of its pool."""
    assert words[0] == "mpipar"
    done = run(["tests.support.refining", record, *words[1:]], ranks=ranks, env=env)
    return done, json.loads(record.read_text()) if record.exists() else []


class Job:
    """A job whose processes are all known, and none of which outlives it."""

    def __init__(
        self,
        words: Sequence[object],
        *,
        ranks: int | None = None,
        cwd: Path = ROOT,
        line: Sequence[str] | None = None,
        log: Path | None = None,
        env: Mapping[str, str] = NOTHING,
    ) -> None:
        """Start `python -m words`, or the command `line` as it is; stdout may go to a file."""
        self._mark = uuid.uuid4().hex
        with log.open("wb") if log else nullcontext(subprocess.PIPE) as stdout:
            self.process = subprocess.Popen(
                list(line) if line is not None else command(ranks, words),
                cwd=cwd,
                env=environment({**env, MARK: self._mark}),
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )

    def finish(self, limit: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for the end."""
        with patience(limit):
            out, err = self.process.communicate(timeout=limit)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def pids(self) -> list[int]:
        """All living processes of the job: the launcher first."""
        return sorted(_living(self._mark))

    def kill(self) -> int:
        """Kill -9 every process at once; how many there were."""
        killed = 0
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.01)
        self.process.communicate(timeout=PATIENCE)
        return killed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def _living(mark: str) -> Iterator[int]:
    """Processes that have the mark in their environment. A zombie's environment is empty."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:  # gone, or another user's
                continue


def wait_until(condition: Callable[[], bool], job: Job, limit: float = PATIENCE) -> None:
    """Wait for something that a running job does."""
    until = time.monotonic() + limit
    with patience(limit):
        while not condition():
            assert job.process.poll() is None, job.process.communicate()
            assert time.monotonic() < until, "the job does not do what the test waits for"
            time.sleep(0.002)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """While a job has its own time limit, the test that waits for it is no hang.

    Pytest's limit for a test begins again afterwards.
    """
    if "PYTEST_CURRENT_TEST" not in os.environ:
        yield
        return
    faulthandler.dump_traceback_later(seconds + 10, exit=True, file=2)
    yield
    faulthandler.dump_traceback_later(TEST_LIMIT, exit=True, file=2)


# Instruments: code that each process of a job runs before anything else.

OPENED: Final = """
import os, sys
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "alone")
log = os.open(os.path.join(os.environ["MPIPAR_TEST_OPENED"], rank),
              os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "mmap.__new__") and arguments:
        os.write(log, f"{event} {arguments[0]}\\n".encode())
sys.addaudithook(hook)
"""
"""Notes what each rank opens, one line a file, in the folder MPIPAR_TEST_OPENED."""

SYNCED: Final = """
import os, re, threading
count, main = 0, threading.main_thread()
target, wanted = os.environ["MPIPAR_TEST_SYNC"].split("@")
here = os.environ["MPIPAR_TEST_SYNCED"]
def watched(sync):
    def watching(fd):
        global count
        path = os.readlink(f"/proc/self/fd/{fd}")
        if threading.current_thread() is main and re.search(target, path):
            count += 1
            if str(count) == wanted:
                open(here + ".reached", "x").close()
                with open(here + ".fifo") as fifo:
                    fifo.read()
        sync(fd)
    return watching
if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
    os.fsync, os.fdatasync = watched(os.fsync), watched(os.fdatasync)
"""
"""Before its n-th sync of a file whose path matches the target, rank 0 waits for a pipe's end."""


def instrument(folder: Path, code: str) -> str:
    """PYTHONPATH entry that makes every process run this code first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


class Pause:
    """What makes a job wait before one of rank 0's syncs until it is let go."""

    def __init__(self, folder: Path, target: str, number: int) -> None:
        """Wait before the `number`-th sync of a file or folder whose path matches `target`."""
        here = folder / "synced"
        self.environment = {
            "PYTHONPATH": instrument(folder / "instrument", SYNCED),
            "MPIPAR_TEST_SYNC": f"{target}@{number}",
            "MPIPAR_TEST_SYNCED": str(here),
        }
        self._reached, self._fifo = here.with_suffix(".reached"), here.with_suffix(".fifo")
        os.mkfifo(self._fifo)

    def wait(self, job: Job) -> None:
        """Return when the job has come to the sync."""
        wait_until(self._reached.exists, job)

    def let_go(self) -> None:
        """Let the job go on."""
        with self._fifo.open("w"):
            pass


def peak_memory(job: Job, limit: float) -> tuple[subprocess.CompletedProcess[str], int]:
    """Wait for the end of a job; also return the most bytes that its processes shared and had.

    Proportional set sizes, summed: memory that processes share counts once.
    """
    until, peak = time.monotonic() + limit, 0
    out, err = (stream.read for stream in (job.process.stdout, job.process.stderr) if stream)
    with patience(limit):
        while job.process.poll() is None:
            assert time.monotonic() < until, "the job takes too long"
            peak = max(peak, sum(map(_proportional_size, job.pids())))
            time.sleep(0.2)
    return subprocess.CompletedProcess(job.process.args, job.process.returncode, out(), err()), peak


def _proportional_size(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) << 10


@dataclass(frozen=True)
class Small:
    """A refinement of noise before its first iteration, in this process; no worker, no project."""

    settings: RefineSettings
    inputs: RefineInputs
    data: Dataset
    state: RefineState


def small(folder: Path, count: int = 40, box: int = 16, **columns: Any) -> Small:
    """Prepare a refinement of `count` images of noise; `columns` are added to the STAR file."""
    from mpipar.cryoem import symmetry
    from mpipar.programs import dataset
    from mpipar.programs.inputs import read_inputs
    from mpipar.programs.stages import SpectrumStage
    from mpipar.settings import RefineSettings

    folder.mkdir(exist_ok=True)
    star = write_particle_input(folder, count, box)
    if columns:
        write_star(
            star, {"optics": optics_columns(), "particles": particle_columns(count, **columns)}
        )
    settings = RefineSettings(input=star, model=folder / "init.mrc")
    inputs = read_inputs(settings)
    geometry = dataset.geometry_of(inputs, settings, inputs.model)
    half = dataset.half_sets(inputs.particles, settings.seed)
    blocks = dataset.blocks_of(half)
    source, stage = inputs.stacks.divided(blocks), SpectrumStage(geometry)
    tasks = dataset.first_tasks(blocks)
    looks = [stage.run(task, source.read(task.id), None) for task in tasks]
    source.close()
    constants, spectra = dataset.measure(box, half, blocks, looks)
    operators = symmetry.operators("c1")
    data = dataset.make_dataset(inputs, settings, geometry, operators, constants)
    state = dataset.first_state(inputs, data, spectra, inputs.model, 12.0)
    return Small(settings, inputs, data, state)


def needs(*programs: str) -> list[str]:
    """Which of these programs are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def _record(record: Path, arguments: list[str]) -> int:
    """mpipar's command line, with the pool's statistics written to a file."""
    from mpipar.cli.main import main
    from mpipar.launch import prepare_process

    prepare_process()
    from mpipar.runtime.pool import Pool

    really, kept = Pool.run, list[dict[str, Any]]()

    def noted(pool: Pool, stage: Any, shared: Any, tasks: Any, **more: Any) -> Any:
        outcome = really(pool, stage, shared, tasks, **more)
        kept.append(
            {"stage": type(stage).__name__, "tasks": len(tasks), **vars(outcome.statistics)}
        )
        record.write_text(json.dumps(kept))
        return outcome

    Pool.run = noted  # type: ignore[method-assign,assignment]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(_record(Path(sys.argv[1]), sys.argv[2:]))
