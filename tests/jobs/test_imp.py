"""mpipar.imp: IMP's own nine tests, and what they leave out."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpipar import imp
from mpipar.interfaces.imp_parallel import worker_groups
from tests.support import imp_tasks
from tests.support.imp_tasks import Arguments, Deadly, Give, NotedSetup, Sleep

ROOT = Path(__file__).parents[2]
NINE = "tests.support.imp_nine"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Workers write into the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A manager of two workers for all tests that do them no harm."""
    output = tmp_path_factory.mktemp("workers") / "worker%d.output"
    with imp.Manager(output=str(output)) as manager:
        manager.heartbeat_timeout = manager.connect_timeout = 30.0
        manager.add_worker(imp.LocalWorker())
        manager.add_slave(imp.LocalSlave())
        yield manager


@pytest.fixture
def manager():
    with imp.Manager() as manager:
        manager.heartbeat_timeout = manager.connect_timeout = 30.0
        yield manager


def run(manager, tasks, startup=None):
    context = manager.get_context(startup)
    for task in tasks:
        context.add_task(task)
    return list(context.get_results_unordered())


def python(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), **variables},
    )


def gone(process, seconds=10.0):
    """Whether a process ends within that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_what_the_nine_tests_of_imp_ask():
    done = python("-m", "unittest", NINE)
    assert done.returncode == 0, done.stderr
    assert "Ran 9 tests" in done.stderr


def test_example_of_the_page(folder):
    page = (ROOT / "docs" / "imp.md").read_text(encoding="utf-8")
    (folder / "distance.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    done = python("distance.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{d} {0.5 * d * d}" for d in range(10)]


# Tasks and results


def test_each_task_gives_one_result(shared):
    assert sorted(run(shared, map(Give, range(100)))) == list(range(100))


def test_no_task_gives_no_result_even_without_workers():
    assert run(imp.Manager(), []) == []


def test_tasks_wait_for_workers_to_be_added(manager):
    context = manager.get_context()
    context.add_task(Give(1))
    with pytest.raises(imp.NoMoreSlavesError, match="add some"):
        list(context.get_results_unordered())
    manager.add_worker(imp.LocalWorker())
    assert list(context.get_results_unordered()) == [1]


def test_results_of_any_kind(shared):
    values = [math.inf, -math.inf, None, "x" * 100_000, IndexError("a value")]
    results = run(shared, [Give(value) for value in [*values, math.nan]])
    assert {repr(result) for result in results} == {*map(repr, values), "nan"}


def test_task_added_while_iterating_is_run(shared):
    context = shared.get_context()
    context.add_task(Give(5))
    results = []
    for result in context.get_results_unordered():
        results.append(result)
        if result > 0:
            context.add_task(Give(result - 1))
    assert results == [5, 4, 3, 2, 1, 0]


def test_context_can_be_used_again(shared, tmp_path):
    context = shared.get_context(NotedSetup(tmp_path, "a"))
    for _ in range(3):
        context.add_task(Arguments(1))
        ((_, (name, _)),) = context.get_results_unordered()
        assert name == "a"
    assert len(list(tmp_path.iterdir())) <= 2


def test_iteration_that_ends_early_leaves_the_rest_for_the_next(shared):
    context = shared.get_context()
    for number in range(30):
        context.add_task(Sleep(number, 0.005))
    first = context.get_results_unordered()
    seen = [next(first), next(first)]
    first.close()
    assert sorted(seen + list(context.get_results_unordered())) == list(range(30))


# Setups


def test_setup_runs_once_on_each_worker_and_its_tuple_reaches_every_task(shared, tmp_path):
    results = run(shared, [Sleep(n, 0.01) for n in range(10)], NotedSetup(tmp_path, "a"))
    assert sorted(results) == list(range(10))
    assert len(list(tmp_path.iterdir())) == 2
    for number, setup in run(shared, map(Arguments, range(4)), NotedSetup(tmp_path, "b")):
        assert number in range(4)
        assert setup[0] == "b"


def test_two_contexts_share_the_workers(shared, tmp_path):
    contexts = {name: shared.get_context(NotedSetup(tmp_path, name)) for name in "ab"}
    for context in contexts.values():
        for number in range(10):
            context.add_task(Arguments(number))
    iterators = {name: context.get_results_unordered() for name, context in contexts.items()}
    results = {name: [] for name in contexts}
    for _ in range(10):
        for name, iterator in iterators.items():
            number, (setup, _) = next(iterator)
            assert setup == name
            results[name].append(number)
    assert {name: sorted(found) for name, found in results.items()} == {
        name: list(range(10)) for name in "ab"
    }
    assert len(list(tmp_path.iterdir())) <= 4


# What raises


@pytest.mark.parametrize(
    ("task", "setup", "kind", "text"),
    [
        (imp_tasks.raise_value_error, None, ValueError, "no such thing"),
        (Give(1), imp_tasks.raise_in_setup, LookupError, "no model there"),
        (Give(1), imp_tasks.give_one_number, TypeError, "int"),
        (imp_tasks.give_unpicklable, None, Exception, "pickle"),
        (imp_tasks.give_unreadable, None, ValueError, "no such thing"),
        (lambda: 1, None, Exception, "pickle"),
    ],
)
def test_what_raises_is_a_remote_error(shared, task, setup, kind, text):
    with pytest.raises(imp.RemoteError) as caught:
        run(shared, [task], setup)
    error = caught.value
    assert isinstance(error, imp.Error)
    assert isinstance(error.exc, kind)
    assert text in str(error.exc)
    assert str(error).startswith(f"{type(error.exc).__name__}: {error.exc} from ")


def test_remote_error_tells_the_remote_traceback(shared):
    with pytest.raises(imp.RemoteError) as caught:
        run(shared, [imp_tasks.raise_value_error])
    text = str(caught.value)
    assert "Remote traceback:\nTraceback" in text
    assert "in raise_value_error" in text
    assert re.search(r"from \S+ \(process \d+\)", text)


def all_of(context):
    """Return all results, and what was raised between them."""
    results, errors = [], []

    def iterate():
        try:
            results.extend(context.get_results_unordered())
        except imp.RemoteError as error:
            errors.append(error)
            return False
        return True

    while not iterate():
        pass
    return results, errors


def test_one_task_that_raises_costs_no_other(shared):
    context = shared.get_context()
    for number in range(10):
        context.add_task(Give(number) if number != 3 else imp_tasks.raise_value_error)
    results, errors = all_of(context)
    assert sorted(results) == [0, 1, 2, *range(4, 10)]
    assert [type(error.exc) for error in errors] == [ValueError]


# Workers that die, hang, or do not come


@pytest.mark.crash
def test_task_whose_worker_is_killed_is_run_elsewhere(manager, tmp_path):
    (tmp_path / "deaths").mkdir()
    for _ in range(3):
        manager.add_worker(imp.LocalWorker())
    deadly = [Deadly(tmp_path / "deaths", 2, signal.SIGKILL, parent=True) for _ in range(2)]
    results = run(manager, [*map(Give, range(40)), *deadly])
    assert sorted(map(str, results)) == sorted([*map(str, range(40)), "survived", "survived"])
    assert len(list((tmp_path / "deaths").iterdir())) == 2


@pytest.mark.crash
def test_task_that_kills_each_process_is_set_aside(manager, tmp_path):
    (tmp_path / "deaths").mkdir()
    manager.add_worker(imp.LocalWorker())
    context = manager.get_context()
    context.add_task(Deadly(tmp_path / "deaths", 99, signal.SIGKILL, parent=False))
    for number in range(10):
        context.add_task(Give(number))
    results, errors = all_of(context)
    assert sorted(results) == list(range(10))
    assert ["set aside" in str(error) for error in errors] == [True]
    assert len(list((tmp_path / "deaths").iterdir())) == 3


@pytest.mark.crash
def test_last_worker_lost_is_told_and_the_task_stays(manager, tmp_path):
    (tmp_path / "deaths").mkdir()
    manager.add_worker(imp.LocalWorker())
    context = manager.get_context()
    context.add_task(Deadly(tmp_path / "deaths", 1, signal.SIGKILL, parent=True))
    with pytest.raises(imp.NoMoreWorkersError, match="worker 0 <LocalWorker>"):
        list(context.get_results_unordered())
    manager.add_worker(imp.LocalWorker())
    assert list(context.get_results_unordered()) == ["survived"]


@pytest.mark.crash
def test_worker_that_hangs_is_given_up(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_groups, "SHORTEST_SILENCE", 3.0)
    (tmp_path / "deaths").mkdir()
    manager.heartbeat_timeout = 3.0
    for _ in range(2):
        manager.add_worker(imp.LocalWorker())
    stops = Deadly(tmp_path / "deaths", 1, signal.SIGSTOP, parent=True)
    assert sorted(run(manager, [stops, Give("a"), Give("b")])) == ["a", "b", "survived"]


class Late(imp.LocalWorker):
    """A worker whose queue is long."""

    def _start(self, command, unique_id, output):
        super()._start(f"sleep 1; {command}", unique_id, output)


def workers_seen(manager, count, *, then=lambda: None):
    """Run tasks until so many workers have had some; do something after the first result."""
    context = manager.get_context()
    for _ in range(3 * count):
        context.add_task(imp_tasks.give_processes)
    found = set()
    for worker, _ in context.get_results_unordered():
        if not found:
            then()
        found.add(worker)
        if len(found) < count:
            context.add_task(imp_tasks.give_processes)
    return len(found)


def test_worker_that_comes_late_is_put_to_work(manager):
    manager.add_worker(imp.LocalWorker())
    manager.add_worker(Late())
    assert workers_seen(manager, 2) == 2


def test_worker_added_while_iterating_is_put_to_work(manager):
    manager.add_worker(imp.LocalWorker())
    assert workers_seen(manager, 2, then=lambda: manager.add_worker(imp.LocalWorker())) == 2


def test_worker_that_cannot_start_is_told_with_its_output():
    manager = imp.Manager(python="/no/such/python", output="out%d")
    manager.add_worker(imp.LocalWorker())
    with pytest.raises(imp.NetworkError, match=r"ended with code 127 .*out0 ends: .*not found"):
        run(manager, [Give(1)])


def test_worker_that_does_not_connect_is_told_after_the_connect_timeout():
    manager = imp.Manager(python="sleep 30 #")
    manager.connect_timeout = 0.3
    manager.add_worker(imp.LocalWorker())
    with pytest.raises(imp.NetworkError, match=r"has not connected within 0\.3 s"):
        run(manager, [Give(1)])


def test_workers_that_stay_in_the_queue_are_told_after_the_heartbeat_timeout(sge):
    (sge / "qsub").write_text("#!/bin/sh\ncat > /dev/null\necho job 99 is in the queue\n")
    with imp.Manager() as manager:
        manager.heartbeat_timeout = 0.3
        manager.add_worker(imp.SGEQsubWorkerArray(2, ""))
        with pytest.raises(imp.NetworkError, match=r"ID 99\.2>: has not connected within 0\.3 s"):
            run(manager, [Give(1)])
    assert (sge / "qdel-calls").read_text() == "99\n"


def test_output_without_a_number_is_refused():
    with pytest.raises(imp.Error, match="%d"):
        imp.Manager(output="worker.output")


# How workers end

SCRIPT = """\
import os, sys, time
from mpipar import imp

def task():
    return os.getppid()

if __name__ == "__main__":
    manager = imp.Manager()
    manager.add_worker(imp.LocalWorker())
    context = manager.get_context()
    context.add_task(task)
    print(next(context.get_results_unordered()), flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_script_needs_no_module_for_its_tasks_and_leaves_no_worker(folder):
    (folder / "script.py").write_text(SCRIPT)
    done = python("script.py", 0)
    assert done.returncode == 0, done.stderr
    assert gone(int(done.stdout))
    assert sorted(path.name for path in folder.iterdir()) == ["script.py", "worker0.output"]


@pytest.mark.crash
def test_workers_end_when_their_manager_is_killed(folder):
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "60"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        worker = int(process.stdout.readline())
        process.kill()
    assert gone(worker)


# SGE


QSUB = """\
#!/bin/sh
echo "$@" >> {here}/qsub-calls
cat > {here}/script
for i in 1 2; do
    SGE_TASK_ID=$i /bin/sh {here}/script < /dev/null > /dev/null 2>&1 &
done
echo 'Your job-array 17.1-2:1 ("STDIN") has been submitted'
"""


@pytest.fixture
def sge(tmp_path, monkeypatch):
    """Commands of SGE that start what they are given on this machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "qsub": QSUB,
        "qdel": '#!/bin/sh\necho "$@" >> {here}/qdel-calls\n',
        "qrsh": '#!/bin/sh\necho "$@" >> {here}/qrsh-calls\nshift 3\nexec "$@"\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(text.format(here=tools))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


def test_array_job_of_workers(manager, sge):
    array = imp.SGEQsubWorkerArray(2, "-l mem_free=1G")
    manager.add_worker(array)
    assert workers_seen(manager, 2) == 2
    calls = (sge / "qsub-calls").read_text().split()
    wanted = "-S /bin/sh -l mem_free=1G -j y -cwd -r n -o sge-errors -t 1-2"
    assert calls == wanted.split()
    assert [repr(worker) for worker in manager._all_workers] == [
        "<SGE qsub worker, ID 17.1>",
        "<SGE qsub worker, ID 17.2>",
    ]
    key = list(Path().glob(".mpipar-imp-*.key"))
    assert [path.stat().st_mode & 0o777 for path in key] == [0o600]
    manager.close()
    assert not (sge / "qdel-calls").exists()
    assert not list(Path().glob(".mpipar-imp-*"))


def test_parallel_environment(manager, sge, tmp_path, monkeypatch):
    host_file = tmp_path / "hosts"
    host_file.write_text("node1 1 long.q UNDEFINED\nnode2 2 short.q UNDEFINED\n")
    monkeypatch.setenv("PE_HOSTFILE", str(host_file))
    manager.add_worker(imp.SGEPEWorkerArray())
    assert workers_seen(manager, 3) == 3
    calls = (sge / "qrsh-calls").read_text().splitlines()
    assert [line.split()[:3] for line in calls] == [["-inherit", "-V", "node2"]] * 2


def test_parallel_environment_that_is_none(monkeypatch):
    monkeypatch.delenv("PE_HOSTFILE", raising=False)
    manager = imp.Manager()
    manager.add_worker(imp.SGEPEWorkerArray())
    with pytest.raises(imp.Error, match="qsub -pe"):
        run(manager, [Give(1)])


def test_failing_qsub_is_told(sge):
    (sge / "qsub").write_text("#!/bin/sh\necho denied: host is no submit host\nexit 1\n")
    manager = imp.Manager()
    manager.add_worker(imp.SGEQsubWorkerArray(2, ""))
    context = manager.get_context()
    context.add_task(Give(1))
    with pytest.raises(imp.NetworkError, match="code 1: denied"):
        list(context.get_results_unordered())
    manager.add_worker(imp.LocalWorker())
    assert list(context.get_results_unordered()) == [1]


# In an MPI job

RANKS_SCRIPT = """\
import os, sys, time
from mpipar import imp

def setup():
    return os.getppid(), os.getpid()

def task(rank, process):
    time.sleep(0.05)
    return rank, process

if __name__ == "__main__":
    manager = imp.Manager()
    for _ in range(int(sys.argv[1])):
        manager.add_worker(imp.LocalWorker())
    context = manager.get_context(setup)
    for _ in range(12):
        context.add_task(task)
    results = list(context.get_results_unordered())
    print(len(results), len({rank for rank, _ in results}), len(set(results)))
"""


def mpirun(*arguments):
    start = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "-n", "4"]
    return subprocess.run(
        [*start, sys.executable, "-m", "mpipar", "exec", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PYTHONPATH": str(ROOT)} | os.environ,
    )


def test_ranks_of_an_mpi_job_are_the_workers(folder):
    (folder / "script.py").write_text(RANKS_SCRIPT)
    done = mpirun("script.py", 3)
    assert (done.returncode, done.stdout) == (0, "12 3 3\n"), done.stderr
    assert sorted(path.name for path in folder.glob("worker*")) == [
        f"worker{number}.output" for number in range(3)
    ]


def test_what_eight_of_them_ask_in_an_mpi_job():
    done = mpirun("-m", "unittest", f"{NINE}.Anywhere")
    assert done.returncode == 0, done.stderr
    assert "Ran 8 tests" in done.stderr


def test_fewer_workers_than_ranks_are_said_so(folder):
    (folder / "script.py").write_text(RANKS_SCRIPT)
    done = mpirun("script.py", 1)
    assert (done.returncode, done.stdout[:3]) == (0, "12 "), done.stderr
    assert "no more of the 3" in done.stderr


def test_script_that_mpirun_starts_without_exec_is_refused(folder):
    (folder / "script.py").write_text(RANKS_SCRIPT)
    start = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "-n", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*start, sys.executable, "script.py", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode != 0
    assert "python -m mpipar exec" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_workers_killed_at_random_cost_no_result(manager, seed):
    """Up to all workers but one, while they start, compute, or have nothing to do."""
    generator = random.Random(seed)
    for _ in range(4):
        manager.add_worker(imp.LocalWorker())
    context = manager.get_context()
    for number in range(300):
        context.add_task(Sleep(number, generator.choice([0.0, 0.001, 0.02])))
    iterator = context.get_results_unordered()
    results = [next(iterator)]
    victims = generator.sample(manager._all_workers, generator.randint(1, 3))
    times = sorted(generator.uniform(0.0, 1.0) for _ in victims)
    began = time.monotonic()
    for victim, when in zip(victims, times, strict=True):
        while time.monotonic() - began < when and len(results) < 299:
            results.append(next(iterator))
        os.killpg(victim._child.pid, signal.SIGKILL)
    results.extend(iterator)
    assert sorted(results) == list(range(300))


@pytest.mark.slow
def test_result_beyond_two_gigabytes(shared):
    (array,) = run(shared, [imp_tasks.give_large])
    assert (array.nbytes, array[-1]) == (2_200_000_000, 7)
