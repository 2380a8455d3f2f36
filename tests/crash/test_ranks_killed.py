"""Workers killed at any moment of a job that `mpirun --with-ft ulfm` started.

Promises: exactly once, same bits, work survives.

Each job must end by itself, soon, with rank 0's exit code, with all results right, and leave no
process behind. The default runs kill at a few random moments, `slow` at many and on more ranks.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpipar.launch.mpirun import FAULT_TOLERANT
from tests.support import instruments, jobs, refine_runs
from tests.support.installed import mpirun, tolerates_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIMIT = 60.0  # seconds: an undisturbed job takes less than ten
REQUEUE = 75


pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not tolerates_faults(), reason="no Open MPI with fault tolerance here"),
]


def job(ranks: int, words: Sequence[object], env: Mapping[str, str] = jobs.NOTHING) -> jobs.Job:
    program = [sys.executable, "-m", *map(str, words)]
    line = [*mpirun(), *FAULT_TOLERANT, "-n", str(ranks), *program]
    return jobs.Job([], line=line, env=env)


def worker_processes(started: jobs.Job) -> dict[int, int]:
    """Process of each worker, by what the launcher put into its environment."""
    found = {}
    for pid in started.pids():
        with suppress(OSError):
            for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = item.partition(b"=")
                if name == b"OMPI_COMM_WORLD_RANK" and int(value) > 0:
                    found[int(value)] = pid
    return found


def kill_at(moments: Sequence[float], pids: Sequence[int]) -> None:
    """Kill -9, one process at each of these moments, in seconds from now."""
    start = time.monotonic()
    for moment, pid in zip(sorted(moments), pids, strict=True):
        time.sleep(max(0.0, start + moment - time.monotonic()))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def sum_with_kills(ranks: int, kills: int, seed: int, span: float) -> tuple[int, str]:
    """Kill workers of a job that sums; its exit code and what it said."""
    dice = random.Random(seed)
    with job(ranks, ["tests.support.summing"]) as started:
        assert started.process.stdout is not None
        processes = json.loads(started.process.stdout.readline())
        victims = dice.sample(sorted(processes.values()), kills)
        kill_at([dice.uniform(0, span) for _ in victims], victims)
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    return done.returncode, done.stdout


STAGES = ("epoch", "segments/commit-0000*", "segments/commit-0001*")
"""What is there when a refinement begins, has looked at its images, and has done iteration 1."""


def is_there(path: Path, pattern: str) -> bool:
    return any(path.glob(pattern))


def refine_with_kills(
    reference: refine_runs.Reference,
    folder: Path,
    ranks: int,
    kills: int,
    seed: int,
    stages: tuple[str, ...] = STAGES,
) -> str:
    """Kill workers of a refinement and compare its files; what it said."""
    dice = random.Random(seed)
    path = folder / "run"
    with job(ranks, reference.input.words("--path", path)) as started:
        jobs.wait_until(path.exists, started)
        victims = dice.sample(sorted(worker_processes(started).values()), kills)
        for stage, pid in zip(sorted(dice.choices(stages, k=kills)), victims, strict=True):
            jobs.wait_until(functools.partial(is_there, path, stage), started)
            kill_at([dice.uniform(0, 0.1)], [pid])
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    assert done.returncode == 0, done.stdout + done.stderr
    assert refine_runs.digests(path) == reference.digests
    return done.stdout


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(("seed", "kills"), [(1, 1), (2, 2), (3, 2), (4, 1)])
def test_sums_are_right_whoever_is_killed(seed: int, kills: int) -> None:
    code, said = sum_with_kills(4, kills, seed, span=2.0)
    assert (code, said.splitlines()[-1]) == (0, "all right"), said


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("seed", range(100, 104))
def test_sums_are_right_after_many_kills(ranks: int, seed: int) -> None:
    code, said = sum_with_kills(ranks, 1 + seed % min(3, ranks - 2), seed, span=2.5)
    assert (code, said.splitlines()[-1]) == (0, "all right"), said


MOMENTS = [
    "1:starts",
    "1:sends:Hello:1",
    "2:sent:Hello:1",
    "1:receives:Welcome:1",
    "1:receives:Begin:1",  # rank 1 has to pass it on, a large message
    "1:sent:Begin:1",
    "4:receives:Begin:2",
    "2:receives:Place:2",
    "2:sends:BlockRequest:3",
    "3:sent:BlockRequest:40",  # of a large block
    "3:sends:Finished:1",
    "1:sent:Finished:30",
    "3:sends:Idle:1",
    "3:receives:StealFrom:1",
    "3:sent:StealRequest:1",
    "2:receives:StealRequest:1",
    "1:receives:StealRequest:1",
    "2:sent:StealReply:1",
    "1:sent:StealReply:1",
    "3:receives:StealReply:1",
    "3:sent:Claim:1",
    "3:receives:Granted:1",
    "2:sent:BlockReply:1",
    "1:receives:Collect:1",
    "1:sends:Collected:1",
    "4:sent:Collected:1",
    "1:receives:Reduce:1",  # rank 1 is the inner node
    "1:receives:Partial:2",
    "1:sent:Partial:3",
    "4:sent:Partial:2",
    "1:sent:More:1",
    "2:receives:Forget:1",
    "1:receives:Stop:1",
    "1:sends:Bye:1",
    "1:receives:Partial:1 4:receives:Collect:2",
    "1:starts 2:receives:Begin:1 3:receives:Collect:1",
]

LEADERS = [  # ranks 1 and 3 are a host, of which 1 publishes the shared arrays
    "hosts:2 1:receives:Begin:1",
    "hosts:2 1:sent:Begin:1",
    "hosts:2 3:late 1:sent:Begin:1",  # when 3 looks for them
    "hosts:2 1:sent:Finished:2",  # while 3 maps them
    "hosts:2 1:sent:Begin:2 3:receives:Begin:2",
    "hosts:2 2:receives:Begin:1",
    "4:late 1:sent:Begin:1",  # one host: 1 passes on what rank 0 has published
]


@pytest.mark.parametrize("moment", [*MOMENTS[4:7], "1:sent:Partial:3"])
def test_death_at_a_certain_message(moment: str) -> None:
    die_at(moment)


@pytest.mark.parametrize("moment", LEADERS[2:4])
def test_death_of_the_rank_that_published_the_shared_arrays(moment: str) -> None:
    die_at(moment)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS + LEADERS)
def test_death_at_each_message(moment: str) -> None:
    die_at(moment)


def die_at(moment: str) -> None:
    """Let workers of a job of 5 ranks die at certain messages; rank 4 is below rank 1."""
    # Slow ranks are robbed, and have blocks that thieves ask of them.
    knobs = {"MPIPAR_SLOW": "1:3,2:3"}
    with job(5, ["tests.support.summing", *moment.split()], knobs) as started:
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    at_the_end = "Stop" in moment or "Bye" in moment
    deaths = [word for word in moment.split() if word.count(":") == 3 or "starts" in word]
    assert at_the_end or done.stdout.count("is lost; ") == len(deaths), done.stdout
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all right"), done.stdout


def test_loss_is_told_with_its_host_process_and_tasks() -> None:
    code, said = sum_with_kills(3, 1, seed=5, span=0.1)
    (line,) = [line for line in said.splitlines() if "is lost" in line]
    assert code == 0
    assert " on " in line
    assert "(process " in line
    assert line.endswith("run again by the 1 left"), line


REPLACED = "has been started in the place of a lost one; it did "
DIES_EARLY = """
import os, signal, sys
class Death:
    def find_spec(self, name, path=None, target=None):
        first = os.environ["MPIPAR_TEST_FIRST"]
        if name == "mpipar.runtime.clusters.mpi_cluster" and not os.path.exists(first):
            open(first, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
if "mpi_spawn_main" in "".join(sys.orig_argv):
    sys.meta_path.insert(0, Death())
"""
"""The first worker that is spawned dies before MPI has started in it."""


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True])
def test_lost_worker_is_replaced(tmp_path: Path, early: bool) -> None:
    env = {"PRTE_MCA_state_base_recoverable": "1"}
    if early:
        env["PYTHONPATH"] = instruments.instrument(tmp_path, DIES_EARLY)
        env["MPIPAR_TEST_FIRST"] = str(tmp_path / "first")
    with job(4, ["tests.support.summing", "replace", "6"], env) as started:
        assert started.process.stdout is not None
        processes = json.loads(started.process.stdout.readline())
        kill_at([0.1, 0.5], [processes["1"], processes["2"]])
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all right"), done
    assert done.stdout.count(REPLACED) == (1 if early else 2), done.stdout
    assert f"{REPLACED}0" not in done.stdout
    assert not early or (tmp_path / "first").exists()


def test_last_worker_lost_is_a_requeue() -> None:
    code, said = sum_with_kills(4, 3, seed=6, span=0.3)
    assert code == REQUEUE, said
    assert said.splitlines()[-1].startswith("RequeueError: the last worker is lost"), said


def test_workers_do_not_outlive_rank_0() -> None:
    with job(4, ["tests.support.summing"]) as started:
        assert started.process.stdout is not None
        workers = set(json.loads(started.process.stdout.readline()).values())
        (rank_0,) = set(started.pids()) - workers - {started.process.pid}
        os.kill(rank_0, signal.SIGKILL)
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    assert done.returncode != 0


@pytest.mark.parametrize("rank", [0, 2])
def test_rank_that_ends_before_mpi_starts_does_not_hang_the_others(
    tmp_path: Path, rank: int
) -> None:
    script = tmp_path / "start.py"
    script.write_text(
        "import os, sys\n"
        f"if os.environ['OMPI_COMM_WORLD_RANK'] == '{rank}': sys.exit(1)\n"
        "from mpipar.cli.main import main\n"
        "sys.exit(main(['refine', '--input', 'none.star', '--model', 'none.mrc']))\n"
    )
    line = [*mpirun(), *FAULT_TOLERANT, "-n", "4", sys.executable, str(script)]
    with jobs.Job([], line=line, env={"MPIPAR_PATIENCE": "3"}) as started:
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    assert done.returncode != 0
    assert "mpipar: MPI has not started on all ranks within" in done.stderr


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_refinement_has_the_same_bits_whoever_is_killed(
    reference: refine_runs.Reference, tmp_path: Path, seed: int
) -> None:
    said = refine_with_kills(reference, tmp_path, 4, 1 + seed % 2, seed)
    assert "is lost; " in said


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("seed", range(200, 202))
def test_refinement_has_the_same_bits_after_many_kills(
    reference: refine_runs.Reference, tmp_path: Path, ranks: int, seed: int
) -> None:
    refine_with_kills(reference, tmp_path, ranks, 1 + seed % min(3, ranks - 2), seed)


def test_refinement_has_the_same_bits_if_a_worker_dies_in_a_soft_iteration(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    said = refine_with_kills(reference, tmp_path, 3, 1, 0, stages=STAGES[1:2])
    assert said.index("is lost; ") < said.index(" soft  "), "before the iteration's row"


def test_refinement_without_workers_can_be_resumed(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    words = reference.input.words("--path", path)
    with job(3, words) as started:
        jobs.wait_until(lambda: any(path.glob("segments/*0001*")), started)
        for pid in worker_processes(started).values():
            os.kill(pid, signal.SIGKILL)
        done = started.finish(LIMIT)
        assert started.leaves_nothing()
    assert done.returncode == REQUEUE, done.stdout + done.stderr
    assert json.loads((path / "verdict.json").read_text())["verdict"] == "requeue"
    assert jobs.run([*words, "--resume"], ranks=2).returncode == 0
    assert refine_runs.digests(path) == reference.digests
