"""Many jobs with random kills, and how they ended: `python -m tests.crash.campaign --runs 500`.

Each job sums over blocks (or refines), on 4, 8 or 16 ranks under `mpirun --with-ft ulfm`. Workers
get SIGKILL, one to three of them but never the last, at random moments: as soon as MPI has started
there, in transfers of 40 MB, in tasks, steals and reductions. A job is good if it ends by itself
with code 0 and every result is right (a refinement: the same bits as without mpirun).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mpipar.launch.mpirun import FAULT_TOLERANT
from tests.support import instruments, jobs, refine_runs
from tests.support.installed import mpirun

LIMIT: Final = 90.0  # seconds; an undisturbed job takes less than ten
SPAN: Final = {"sums": 3.0, "refine": 2.0}  # seconds after the start in which ranks are killed
STARTED: Final = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "mpipar.runtime.transports.mpi_transport":  # mpi4py has been imported before it
            sys.meta_path.remove(self)
            mark = os.path.join(os.environ["MPIPAR_TEST_STARTED"], rank)
            open(mark, "w").write(str(os.getpid()))
rank = os.environ.get("OMPI_COMM_WORLD_RANK")
if rank is not None:
    sys.meta_path.insert(0, Watch())
"""
"""Notes each rank's process when MPI has started in it."""
OUTCOMES: Final = ("good", "wrong", "hang", "stray", "failed")


@dataclass(frozen=True)
class Case:
    """One job of the campaign; the seed decides who is killed and when."""

    kind: str
    ranks: int
    seed: int
    replace: bool = False

    @property
    def kills(self) -> int:
        return random.Random(self.seed).randint(1, min(3, self.ranks - 2))


def started(folder: Path) -> list[int]:
    """Processes of the workers in which MPI has started: a death before that is another story."""
    return [int(path.read_text() or 0) for path in folder.iterdir() if path.name != "0"]


def kill_some(job: jobs.Job, case: Case, victims: list[int], start: float) -> int:
    """Kill workers at moments that the seed decides; how many of them still lived."""
    dice = random.Random(f"{case.kind} {case.ranks} {case.seed}")
    chosen = dice.sample(sorted(victims), min(case.kills, len(victims) - 1))
    # One in three at once: while the others are still greeting.
    early = [dice.random() < 1 / 3 for _ in chosen]
    moments = [0.0 if soon else dice.uniform(0, SPAN[case.kind]) for soon in early]
    killed = 0
    for moment, pid in sorted(zip(moments, chosen, strict=True)):
        time.sleep(max(0.0, start + moment - time.monotonic()))
        if job.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def kill_replacement(job: jobs.Job, case: Case) -> int:
    """Kill one of the processes that were started in the place of others, if there are any."""
    dice = random.Random(f"replacement {case.seed}")
    time.sleep(dice.uniform(0, 2.0))
    spawned = []
    for pid in job.pids():
        with suppress(OSError):
            if b"mpi_spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                spawned.append(pid)
    if not spawned:
        return 0
    with suppress(ProcessLookupError):
        os.kill(dice.choice(spawned), signal.SIGKILL)
    return 1


def living(job: jobs.Job) -> str:
    """What still runs, and what each of its threads waits for."""
    lines = []
    for pid in job.pids():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:60].decode()
            waits = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/wchan")]
            lines.append(f"{pid} {words!r} {waits}")
    return "\n".join(lines)


def words_of(case: Case, reference: refine_runs.Reference | None, path: Path) -> list[str]:
    """Words after `python -m`."""
    if reference is None:
        return ["tests.support.summing", *(["replace", "8"] if case.replace else [])]
    return [*reference.input.words("--path", path), *(["--replace-lost"] if case.replace else [])]


def wait_for_start(job: jobs.Job, case: Case, folder: Path) -> list[int]:
    """Processes of all workers, once MPI has started in them."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until and job.process.poll() is None:
        found = started(folder)
        if len(found) == case.ranks - 1 and all(found):
            return found
        time.sleep(0.002)
    return []


def run(case: Case, reference: refine_runs.Reference | None, folder: Path) -> tuple[str, str, int]:
    """Run one job; how it ended, what it said if not well, how many were killed."""
    path, marks = folder / f"{case.ranks}-{case.seed}", folder / f"started-{case.seed}"
    marks.mkdir()
    words = words_of(case, reference, path)
    program = [sys.executable, "-m", *words]
    line = [*mpirun(), *FAULT_TOLERANT, "-n", str(case.ranks), *program]
    env = {"PRTE_MCA_state_base_recoverable": "1", "MPIPAR_TEST_STARTED": str(marks)}
    env["PYTHONPATH"] = instruments.instrument(folder / "instrument", STARTED)
    with jobs.Job([], line=line, log=folder / "out", env=env) as job:
        killed = kill_some(job, case, wait_for_start(job, case, marks), time.monotonic())
        if case.replace:
            killed += kill_replacement(job, case)
        try:
            done = job.finish(LIMIT)
        except Exception as error:  # of any kind: it is counted, and the campaign goes on
            return "hang", f"{error}\n{(folder / 'out').read_text()}{living(job)}", killed
        left = [] if job.leaves_nothing() else job.pids()
    said = (folder / "out").read_text()
    if done.returncode != 0:
        return "failed", f"code {done.returncode}\n{said}\n{done.stderr}", killed
    if reference is None:
        right = said.splitlines()[-1:] == ["all right"]
    else:
        right = refine_runs.digests(path) == reference.digests
    if not right:
        return "wrong", f"{said}\n{done.stderr}", killed
    return ("stray", f"left: {left}", killed) if left else ("good", "", killed)


def main(arguments: list[str]) -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--kind", choices=["sums", "refine"], default="sums")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--replace-lost", action="store_true")
    parser.add_argument("--log", type=Path, help="add a line of JSON for each run to this file")
    asked = parser.parse_args(arguments)
    counts: dict[int, Counter[str]] = {ranks: Counter() for ranks in asked.ranks}
    kills: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        folder = Path(scratch)
        reference = refine_runs.reference(folder) if asked.kind == "refine" else None
        for number in range(asked.runs):
            ranks = asked.ranks[number % len(asked.ranks)]
            case = Case(asked.kind, ranks, asked.seed + number, asked.replace_lost)
            begin = time.monotonic()
            how, said, killed = run(case, reference, folder)
            counts[ranks][how] += 1
            kills[ranks] += killed
            if how != "good":
                print(f"{case}: {how}\n{said}", flush=True)
            if asked.log:
                row = {**vars(case), "killed": killed, "how": how, "s": time.monotonic() - begin}
                with asked.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
    print("ranks  runs  kills  " + "  ".join(OUTCOMES))
    for ranks, count in counts.items():
        cells = "  ".join(f"{count[how]:{len(how)}}" for how in OUTCOMES)
        print(f"{ranks:5}  {count.total():4}  {kills[ranks]:5}  {cells}")
    return int(any(count["good"] != count.total() for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
