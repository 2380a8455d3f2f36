from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mpipar.runtime.isolation.isolated_tasks import TaskChild
from mpipar.runtime.machines.caught_error import StartFailedError
from mpipar.runtime.stage import Task
from tests.support.acts import Acts, tasks


@pytest.fixture
def child_of():
    made = []

    def make(timeout=None, **shared):
        made.append(TaskChild(Acts(), shared, timeout=timeout))
        return made[-1]

    yield make
    for child in made:
        child.close()


def gone(process):
    """Whether a process has ended; a zombie that nobody has waited for yet has."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return True
    return status.rsplit(")", 1)[1].split()[0] == "Z"


def soon(condition):
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_many_tasks_come_back_in_order_from_one_other_process(child_of):
    child = child_of()
    runs = [list(child.run(tasks(*["count"] * 700))) for _ in range(2)]
    assert [ran.task for ran in runs[0]] == list(range(700))
    assert [ran.result[1] for run in runs for ran in run] == list(range(1, 1401))
    (process,) = {ran.result[0] for run in runs for ran in run}
    assert process != os.getpid()
    assert all(ran.error is None and ran.seconds >= 0 for ran in runs[0])


def test_large_arrays_go_there_and_back(child_of):
    child = child_of(y=np.arange(12.0).reshape(3, 4).T)
    block = {"x": np.arange(3_000_000).reshape(3, -1)}
    work = [(Task(number, 5, "arrays"), block) for number in range(5)]
    for ran in child.run(work):
        doubled, shared, writeable = ran.result
        assert np.array_equal(doubled, block["x"] * 2)
        assert np.array_equal(shared, np.arange(12.0).reshape(3, 4).T)
        assert doubled.flags.writeable
        assert not writeable


def test_a_block_is_sent_once_while_it_is_among_the_last_used(child_of):
    blocks = [{"x": np.full(10, number)} for number in range(6)]
    order = [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 1, 1, 0, None, 5]
    work = [(Task(n, b, "block"), None if b is None else blocks[b]) for n, b in enumerate(order)]
    child = child_of()
    assert [ran.result for ran in child.run(work)] == order
    assert [ran.result for ran in child.run(work)] == order


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("segfault", "the process ended by SIGSEGV while running it"),
        ("exit 3", "the process ended with exit code 3 while running it"),
        ("killed", "the process was killed by SIGKILL (out of memory?) while running it"),
    ],
)
def test_death_costs_the_task_that_caused_it_and_no_other(child_of, what, said):
    child = child_of()
    before, culprit, *after = child.run(tasks("count", what, "count", "count"))
    assert culprit.task == 1
    assert (culprit.error.kind, culprit.error.text) == ("Died", said)
    assert [ran.error for ran in (before, *after)] == [None] * 3
    assert [ran.result[1] for ran in after] == [1, 2]  # a new process
    if what == "segfault":
        assert "string_at" in culprit.error.traceback


def test_task_beyond_its_time_is_killed_and_says_where_it_was(child_of):
    child = child_of(timeout=0.5)
    first, hung, last = child.run(tasks(0.3, "hang", 0.3))
    assert (first.error, last.error) == (None, None)
    assert hung.error.kind == "Timeout"
    assert hung.error.text == "no end after 0.5 s while running it; the process was killed"
    assert "in act" in hung.error.traceback


def test_a_reader_that_is_slow_does_not_make_its_tasks_late(child_of):
    child = child_of(timeout=0.2)
    child.start()
    for ran in child.run(tasks(0.01, 0.01, 0.01)):
        assert ran.error is None
        time.sleep(0.3)


@pytest.mark.parametrize(("what", "kind"), [("raise", "ValueError"), ("sys.exit", "SystemExit")])
def test_exception_becomes_text_and_the_process_goes_on(child_of, what, kind):
    first, second = child_of().run(tasks(what, "count"))
    assert first.error.kind == kind
    assert "in act" in first.error.traceback
    assert second.result[1] == 2


def test_what_pickle_refuses_is_trouble_of_that_task_alone(child_of):
    work = tasks("count", "lambda", lambda: None, "count")
    first, result, payload, last = child_of().run(work)
    assert "the result of task 1 cannot be pickled" in result.error.text
    assert "task 2 cannot be pickled" in payload.error.text
    assert [ran.task for ran in (first, result, payload, last)] == [0, 1, 2, 3]
    assert last.result[1] == 3


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("raise", "ValueError", "bad task"),
        ("exit 3", "Died", "the process ended with exit code 3 while its stage started"),
    ],
)
def test_stage_that_does_not_start_is_told_as_such(child_of, what, kind, said):
    child = child_of(start=what)
    with pytest.raises(StartFailedError) as caught:
        list(child.run(tasks("count")))
    assert (caught.value.caught.kind, caught.value.caught.text) == (kind, said)


def test_no_task_begins_after_the_longest_time_of_its_burst(child_of):
    child = child_of()
    assert [one.task for one in child.run(tasks(*[0.1] * 10), longest=0.01)] == [0]
    ran = list(child.run(tasks(*[0.1] * 10), longest=0.15))
    assert [one.task for one in ran] in ([0], [0, 1])
    assert [one.result for one in child.run(tasks(0.0))] == [0]


def test_process_that_dies_between_runs_is_nobodys_fault(child_of):
    child = child_of()
    ((process, _),) = [ran.result for ran in child.run(tasks("count"))]
    os.kill(process, signal.SIGKILL)
    assert soon(lambda: gone(process))
    ((other, count),) = [ran.result for ran in child.run(tasks("count"))]
    assert (other != process, count) == (True, 1)


def test_output_goes_through_before_the_process_dies(child_of, capfd):
    list(child_of().run(tasks("print", "exit 3")))
    assert capfd.readouterr().out == "hello from a task"


def test_a_dead_task_leaves_no_process_of_its_own(child_of, capfd):
    list(child_of().run(tasks("offspring")))
    sleeper = int(capfd.readouterr().out.split()[1])
    assert soon(lambda: gone(sleeper))


def test_close_ends_a_running_task_from_another_thread(child_of):
    child = child_of()
    (process, _) = next(iter(child.run(tasks("count")))).result
    closer = threading.Timer(0.2, child.close)
    closer.start()
    start = time.monotonic()
    assert list(child.run(tasks(60.0, "count"))) == []
    assert time.monotonic() - start < 5
    closer.join()
    assert gone(process)
    assert list(child.run(tasks("count"))) == []


def test_a_run_that_is_abandoned_leaves_nothing_to_the_next(child_of):
    child = child_of()
    for ran in child.run(tasks("count", 60.0, "count")):
        assert ran.task == 0
        break
    assert [ran.result for ran in child.run(tasks("print", 0.0))] == [0, 1]


def test_child_dies_with_its_worker_in_the_middle_of_a_task():
    code = (
        "from mpipar.runtime.isolation.isolated_tasks import TaskChild\n"
        "from tests.support.acts import Acts, tasks\n"
        "child = TaskChild(Acts(), {}, timeout=None)\n"
        "for ran in child.run(tasks('count', 'hang')):\n"
        "    print(ran.result[0], flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        process = int(worker.stdout.readline())
        worker.kill()
        assert soon(lambda: gone(process))


def test_environment_is_that_of_a_process_alone(child_of, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (ran,) = child_of().run(tasks("environment"))
    environment, on_interrupt, stdin = ran.result
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID"} & environment.keys()
    assert environment["SLURM_JOB_ID"] == "17"
    assert on_interrupt is signal.SIG_IGN
    assert stdin == ""


def test_child_loads_no_more_than_it_needs():
    code = (
        "import sys, mpipar.runtime.isolation.child_main\n"
        "print({'mpi4py', 'numba', 'h5py', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
