"""The same bits from every way of running a refinement, and each task counted once.

Promises: same bits, exactly once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support import jobs, refine_input, refine_runs
from tests.support.installed import MPIRUN
from tests.support.memory import peak_memory
from tests.support.pool_statistics import recorded

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


WAYS: dict[str, tuple[int | None, list[str], dict[str, str]]] = {
    "threads": (None, ["--parallel=thread:2"], {}),
    "2 ranks": (2, [], {}),
    "3 ranks": (3, [], {}),
    "4 ranks": (4, [], {}),
    "4 ranks, random steals": (4, [], {"MPIPAR_SHUFFLE": "1"}),
    "3 ranks, one slow": (3, [], {"MPIPAR_SLOW": "1:3"}),
    "3 ranks, two compute threads each": (3, ["--threads", "2"], {}),
    "3 ranks, other random steals": (3, [], {"MPIPAR_SHUFFLE": "2"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_bits_are_those_of_one_process(
    reference: refine_runs.Reference, tmp_path: Path, way: str
) -> None:
    ranks, words, knobs = WAYS[way]
    path = tmp_path / "run"
    done = jobs.run(reference.input.words("--path", path, *words), ranks=ranks, env=knobs)
    assert done.returncode == 0, done.stderr
    assert refine_runs.digests(path) == reference.digests


def test_another_seed_gives_other_bits(reference: refine_runs.Reference, tmp_path: Path) -> None:
    """The comparison above can fail: the digests see the random grid that a seed turns."""
    path = tmp_path / "run"
    done = jobs.run(reference.input.words("--path", path, "--seed", 1, "--parallel=thread:2"))
    assert done.returncode == 0, done.stderr
    before, after = reference.digests, refine_runs.digests(path)
    same = {name for name in before if before[name] == after[name]}
    assert same == {"mask.mrc"}  # a sphere


def test_a_slow_rank_is_relieved_and_each_task_counts_once(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    done, runs = recorded(
        reference.input.words("--path", tmp_path / "run"),
        tmp_path / "record.json",
        ranks=3,
        env={"MPIPAR_SLOW": "2:4"},
    )
    assert done.returncode == 0, done.stderr
    stages = ["LookStage", "SoftStage", "HeldOutStage", "AlignStage"]
    assert [run["stage"] for run in runs] == stages
    for run in runs:
        assert sum(run["tasks_per_rank"].values()) == run["tasks"]
    for run in runs[1:]:
        fast, tasks = run["tasks_per_rank"]["1"], run["tasks"]
        # a rank at a quarter of the speed should do a fifth; half is what it does without stealing
        assert 0.65 * tasks < fast < tasks, run
    # placement is sticky: what was stolen in one iteration is placed with the thief in the next
    assert runs[0]["steals"] + runs[1]["steals"] > 0
    assert sum(run["tasks_stolen"] for run in runs) >= fast - (tasks + 1) // 2
    assert refine_runs.digests(tmp_path / "run") == reference.digests


def test_images_are_served_once(reference: refine_runs.Reference, tmp_path: Path) -> None:
    size = refine_input.PARTICLES * refine_input.BOX**2 * 4  # as float32
    done, runs = recorded(
        reference.input.words("--path", tmp_path / "run"), tmp_path / "record.json", ranks=3
    )
    assert done.returncode == 0, done.stderr
    first, *others = [run["bytes_served"] for run in runs]
    # a block may be served twice if its task is stolen again while the thief fetches it from a peer
    assert size <= first <= 1.1 * size
    assert sum(others) < 0.05 * size
    said = re.findall(r"^ +(\d+) +(?:soft|all) .* (\d+\.\d\d) +\S+ \S+$", done.stdout, re.MULTILINE)
    soft, _, search = others
    assert said == [(f"{n}", f"{bytes_ / 1e6:.2f}") for n, bytes_ in ((1, soft), (2, search))]


def test_a_batch_log_holds_whole_plain_lines(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    words = reference.input.words("--path", tmp_path / "run")
    with jobs.Job(words, ranks=3, log=tmp_path / "log") as job:
        done = job.finish()
    assert done.returncode == 0, done.stderr
    raw = (tmp_path / "log").read_bytes()
    assert raw.endswith(b"\n")
    strange = {byte for byte in raw if byte < 32} - {10}
    assert not strange, raw
    text = raw.decode()
    assert re.search(r"^ +2 +all +\d+\.\d\d ", text, re.MULTILINE), text
    assert re.search(r"^resolution \d+\.\d+ A", text, re.MULTILINE)
    assert f"results in {tmp_path / 'run'}: map.mrc" in text
    for phase in ("weighing all poses", "looking for signal", "searching"):
        assert re.search(rf"^  {phase} +\d+\.\d s +\d+%$", text, re.MULTILINE), "time per phase"


@pytest.mark.slow
def test_64_ranks_fit_in_20_gigabytes_and_give_the_same_bits(tmp_path: Path) -> None:
    data = refine_input.DEMO
    whole = refine_input.Input(data, data / "particles.star", data / "init.mrc", data)
    alone = jobs.run(whole.words("--path", tmp_path / "2", "--parallel=thread:2"), limit=600)
    assert alone.returncode == 0, alone.stderr
    with jobs.Job(
        whole.words("--path", tmp_path / "64"), ranks=64, env={"MPIPAR_PATIENCE": "300"}
    ) as job:
        done, peak = peak_memory(job, limit=900)
    print(f"64 ranks: {peak / 1e9:.1f} GB at most")
    assert done.returncode == 0, done.stderr
    assert refine_runs.digests(tmp_path / "64") == refine_runs.digests(tmp_path / "2")
    assert peak < 20e9
