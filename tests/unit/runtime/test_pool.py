"""The in-process transport, and whole pools on it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpipar.errors import InputError, TaskFailedError, UsageError
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.stage import Stage, Task
from mpipar.runtime.transports import in_process
from tests.support.conversations import CONVERSATIONS
from tests.support.stages import Fails, Numbers, Total, Truncated, Where, tasks_of

COUNT = 40


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("size", [2, 4])
def test_conversation(conversation, size):
    verdicts = {}
    threads = [
        threading.Thread(target=lambda end=end: verdicts.update({end.rank: conversation(end)}))
        for end in in_process.local_cluster(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert verdicts == dict.fromkeys(range(size), True)


def test_arrays_are_passed_by_reference():
    ends = in_process.local_cluster(2)
    array: Any = np.zeros(3)
    ends[0].send(1, array)
    assert ends[1].receive()[0][1] is array


def run(pool, stage=None, count=COUNT, **how):
    return pool.run(stage or Total(), {"count": count}, tasks_of(count), **how)


def check(outcome, count=COUNT):
    assert outcome.results == list(range(count))
    assert outcome.sums["counted"].tolist() == [1] * count
    assert np.all(outcome.sums["total"] == sum(range(count)))


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_results_and_sums_are_the_same_for_any_number_of_workers(workers, threads):
    source = Numbers()
    with thread_cluster.open_pool(workers, threads=threads) as pool:
        pool.serve(source)
        for _ in range(3):
            check(run(pool))
    assert {name for _, name in source.reads} == {"block-reader"}


@pytest.mark.parametrize(
    ("workers", "threads", "text"),
    [
        (1, 1, "serial"),
        (1, 4, "4 threads"),
        (3, 1, "3 threads"),
        (2, 2, "2 workers, 2 threads each"),
    ],
)
def test_description(workers, threads, text):
    with thread_cluster.open_pool(workers, threads=threads) as pool:
        assert pool.description == text
        assert (pool.workers, pool.threads) == (workers, threads)


def test_second_run_needs_no_block_from_rank_0():
    with thread_cluster.open_pool(2) as pool:
        pool.serve(Numbers())
        first, second = run(pool).statistics, run(pool).statistics
        assert first.blocks_served + first.peer_blocks >= COUNT
        assert first.bytes_served == 8000 * first.blocks_served
        assert (second.blocks_served, second.bytes_served) == (0, 0)


def test_new_source_voids_what_was_cached():
    class Doubled(Numbers):
        def read(self, block):
            return {"x": 2 * super().read(block)["x"]}

    with thread_cluster.open_pool(2) as pool:
        pool.serve(Numbers())
        check(run(pool))
        pool.serve(Doubled())
        assert run(pool).results == [2 * number for number in range(COUNT)]


def test_cache_too_small_for_anything_still_works():
    with thread_cluster.open_pool(2, cache_bytes=0) as pool:
        pool.serve(Numbers())
        check(run(pool))
        check(run(pool))


def test_blocks_are_read_only():
    class Writes(Stage):
        def run(self, task, block, state):
            block["x"][0] = 1

    with thread_cluster.open_pool(1) as pool:
        pool.serve(Numbers())
        with pytest.raises(TaskFailedError, match="read-only"):
            run(pool, Writes())


def test_no_tasks_and_fewer_tasks_than_workers():
    with thread_cluster.open_pool(4) as pool:
        pool.serve(Numbers())
        empty = run(pool, count=0)
        assert (empty.results, empty.sums["total"].any()) == ([], False)
        check(run(pool, count=2), count=2)


def test_stage_without_sums():
    with thread_cluster.open_pool(2) as pool:
        outcome = pool.run(Where(), {"a": np.ones(10)}, tasks_of(10, blocks=False))
    assert outcome.sums is None
    assert {shared for _, _, shared in outcome.results} == {10.0}


def test_pool_may_be_closed_without_a_run_and_twice():
    pool = thread_cluster.open_pool(2)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(pool)


def test_closed_pool_leaves_no_thread_behind():
    before = set(threading.enumerate())
    with thread_cluster.open_pool(3, threads=2) as pool:
        pool.serve(Numbers())
        run(pool)
    left = set(threading.enumerate()) - before
    assert not left


def test_failing_task_is_tried_elsewhere_and_counted_once():
    with thread_cluster.open_pool(3) as pool:
        pool.serve(Numbers())
        check(run(pool, Fails(everywhere=False)))


def test_task_that_always_fails_is_an_error_with_remote_traceback_and_the_pool_lives_on():
    with thread_cluster.open_pool(2) as pool:
        pool.serve(Numbers())
        with pytest.raises(TaskFailedError, match=r"task 3 \(block 3\) failed 3 times") as caught:
            run(pool, Fails(everywhere=True))
        assert "ValueError: task 3 does not want to" in str(caught.value)
        assert "stages.py" in str(caught.value)
        check(run(pool))


def test_unreadable_block_is_the_sources_own_error_and_the_pool_lives_on():
    with thread_cluster.open_pool(2) as pool:
        pool.serve(Truncated())
        with pytest.raises(InputError, match="4096 bytes expected"):
            run(pool)
        check(run(pool, count=5), count=5)


def test_broken_start_is_an_error_at_once():
    class Broken(Total):
        def start(self, shared):
            raise MemoryError("too much")

    with (
        thread_cluster.open_pool(2) as pool,
        pytest.raises(TaskFailedError, match="Broken failed on rank"),
    ):
        pool.run(Broken(), {}, tasks_of(3, blocks=False))


def test_exception_of_the_watcher_stops_the_run_and_the_pool_lives_on():
    def watch(snapshot):
        raise KeyboardInterrupt

    with thread_cluster.open_pool(2) as pool:
        pool.serve(Numbers())
        with pytest.raises(KeyboardInterrupt):
            run(pool, Total(0.05), watch=watch)
        check(run(pool))


def test_watcher_sees_progress_up_to_the_end():
    seen = []
    with thread_cluster.open_pool(2) as pool:
        pool.serve(Numbers())
        run(pool, Total(0.02), watch=seen.append)
    done = [snapshot.done for snapshot in seen]
    assert len(seen) >= 3
    assert done == sorted(done)
    assert (done[-1], seen[-1].total) == (COUNT, COUNT)
    assert all(snapshot.running_workers <= 2 for snapshot in seen)


def test_statistics_are_those_of_the_run_under_way_or_of_the_last_one():
    with thread_cluster.open_pool(2) as pool:
        assert (pool.statistics().done, pool.statistics().total) == (0, 0)
        seen = []
        tasks = tasks_of(9, blocks=False)
        pool.run(Where(), {}, tasks, watch=lambda now: seen.append((now, pool.statistics())))
        for watched, asked in seen:
            assert replace(watched, elapsed=0.0) == replace(asked, elapsed=0.0)
        last = pool.statistics()
        assert (last.done, last.total, last.running_workers, last.lost) == (9, 9, 0, 0)
        assert pool.statistics() == last


def test_ids_of_tasks_must_be_a_range():
    with thread_cluster.open_pool(1) as pool:
        with pytest.raises(ValueError, match=r"0 \.\. n-1"):
            pool.run(Where(), {}, [Task(1, None, None)])
        with pytest.raises(ValueError, match="serves no source"):
            pool.run(Where(), {}, [Task(0, 3, None)])


@pytest.mark.parametrize(
    ("workers", "threads", "cache_bytes"), [(0, 1, 1), (-1, 1, 1), (2, 0, 1), (2, 1, -1)]
)
def test_pool_needs_workers_threads_and_a_cache(workers, threads, cache_bytes):
    before = set(threading.enumerate())
    with pytest.raises(UsageError):
        thread_cluster.open_pool(workers, threads=threads, cache_bytes=cache_bytes)
    assert set(threading.enumerate()) == before


def test_slowed_worker_does_its_share_and_no_more(monkeypatch):
    monkeypatch.setenv("MPIPAR_SLOW", "1:4")
    with thread_cluster.open_pool(2) as pool:
        pool.serve(Numbers())
        outcome = run(pool, Total(0.01), count=80)
    check(outcome, count=80)
    done = outcome.statistics.tasks_per_rank
    assert done[1] <= 24, done  # 16 is its share, 40 were placed there
    assert outcome.statistics.steals >= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_shuffled_runs_give_the_same(monkeypatch, seed):
    monkeypatch.setenv("MPIPAR_SHUFFLE", str(seed))
    with thread_cluster.open_pool(3) as pool:
        pool.serve(Numbers())
        check(run(pool))
        check(run(pool))


def test_python_task_does_not_keep_a_steal_waiting():
    """The loop gets its turn while pure Python computes."""

    class Busy(Stage):
        def run(self, task, block, state):
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                pass

    with thread_cluster.open_pool(2) as pool:
        outcome = pool.run(Busy(), {}, tasks_of(8, blocks=False))
    assert sum(outcome.statistics.tasks_per_rank.values()) == 8
