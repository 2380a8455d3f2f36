"""The loops of master and worker where something is wrong with the other side."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from mpipar.errors import ProtocolError, RequeueError, TaskFailedError, UnavailableError
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.loops import respawning, worker_loop
from mpipar.runtime.machines.master import MasterMachine
from mpipar.runtime.machines.messages import (
    Bye,
    Crashed,
    Finished,
    Hello,
    Knobs,
    Place,
    Stop,
    Welcome,
)
from mpipar.runtime.machines.worker import WorkerMachine
from mpipar.runtime.pool import Pool, stop_workers
from mpipar.runtime.reports import LostWorker
from mpipar.runtime.stage import Policy, Stage
from mpipar.runtime.transports import in_process
from mpipar.runtime.transports.transport import UnsendableError
from tests.support.stages import Where, tasks_of


def in_thread(function, *arguments):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    return thread, found


def hear(end, kind):
    """Wait for a message of a kind; other kinds are dropped."""
    while True:
        arrived = [message for _, message in end.receive() if isinstance(message, kind)]
        if arrived:
            return arrived[0]
        end.pause(moved=False)


def test_worker_that_is_stopped_before_it_is_welcomed_leaves():
    master, worker = in_process.local_cluster(2)
    thread, found = in_thread(worker_loop.serve, worker)
    assert hear(master, Hello).host
    master.send(1, Stop())
    assert hear(master, Bye) == Bye()
    thread.join(5)
    assert found == [worker_loop.Departure(0, threads_ended=True)]


def test_message_of_a_peer_that_was_welcomed_before_us_is_kept(monkeypatch):
    master, peer, worker = in_process.local_cluster(3)
    seen = []
    plain = WorkerMachine.handle
    monkeypatch.setattr(
        WorkerMachine,
        "handle",
        lambda self, rank, message: seen.append(rank) or plain(self, rank, message),
    )
    peer.send(2, Place(1, ()))
    thread, _ = in_thread(worker_loop.serve, worker)
    hear(master, Hello)
    master.send(2, Welcome(1, 0, Knobs(), 1.0))
    master.send(2, Stop())
    thread.join(5)
    assert seen == [1, 0, 0]  # the Welcome itself is handed on as well


def test_fault_of_the_runtime_is_reported_and_the_worker_waits_to_be_stopped():
    master, worker = in_process.local_cluster(2)
    thread, found = in_thread(worker_loop.serve, worker)
    hear(master, Hello)
    master.send(1, Welcome(1, 0, Knobs(), 1.0))
    no_message: Any = "no message at all"
    master.send(1, no_message)
    assert "AttributeError" in hear(master, Crashed).text
    assert stop_workers(master, [1]) == []
    thread.join(5)
    assert found == [worker_loop.Departure(worker_loop.CRASH_EXIT, threads_ended=False)]


def test_worker_that_crashes_after_its_bye_leaves_at_once(monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(WorkerMachine, "report", broken)
    master, worker = in_process.local_cluster(2)
    worker.send(1, Welcome(1, 0, Knobs(), 1.0))
    worker.send(1, Stop())
    thread, found = in_thread(worker_loop.serve, worker)
    thread.join(5)
    assert found[0].code == worker_loop.CRASH_EXIT
    assert hear(master, Bye) == Bye()


def test_stop_that_arrives_with_the_message_that_crashes_is_heard():
    master, worker = in_process.local_cluster(2)
    thread, found = in_thread(worker_loop.serve, worker)
    hear(master, Hello)
    nonsense: Any = "nonsense"
    worker._inbox.extend([(0, Welcome(1, 0, Knobs(), 1.0)), (0, nonsense), (0, Stop())])
    worker.wake()
    thread.join(5)
    assert [departure.code for departure in found] == [worker_loop.CRASH_EXIT]
    assert hear(master, Bye) == Bye()


def test_worker_gives_up_when_nobody_welcomes_it(monkeypatch):
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.01")
    master, worker = in_process.local_cluster(2)
    assert worker_loop.serve(worker).code == worker_loop.CRASH_EXIT
    assert "rank 0 has not answered rank 1" in hear(master, Crashed).text


def test_pool_names_ranks_that_do_not_say_hello(monkeypatch):
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.1")
    ends = in_process.local_cluster(4)
    ends[2].send(0, Hello("node", 1, 1))
    with pytest.raises(UnavailableError, match="ranks 1, 3 have not said hello within"):
        Pool(ends[0], threads=1, cache_bytes=0)


def test_crash_of_a_worker_reaches_the_program(monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a fault of ours")

    pool = thread_cluster.open_pool(2)
    monkeypatch.setattr(WorkerMachine, "report", broken)
    with pytest.raises(ProtocolError, match="a fault of ours"):
        pool.run(Where(), {}, tasks_of(5, blocks=False))
    pool.close()


def test_silence_during_a_run_is_temporary_trouble_that_names_the_rank(monkeypatch):
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.3")
    ends = in_process.local_cluster(2)
    ends[1].send(0, Hello("node7", 4711, 1))
    pool = Pool(ends[0], threads=1, cache_bytes=0)
    with pytest.raises(RequeueError, match=r"rank 1 on node7 \(process 4711\)"):
        pool.run(Where(), {}, tasks_of(1, blocks=False))


def test_result_that_cannot_be_sent_fails_the_stage_not_the_task(monkeypatch):
    plain = in_process.InProcessTransport.send

    def picky(self, rank, message):
        if isinstance(message, Finished):
            raise UnsendableError("no pickle for it")
        plain(self, rank, message)

    with thread_cluster.open_pool(2) as pool:
        monkeypatch.setattr(in_process.InProcessTransport, "send", picky)
        with pytest.raises(Exception, match="cannot be sent: no pickle") as caught:
            pool.run(Where(), {}, tasks_of(1, blocks=False))
    assert "Where failed on rank" in str(caught.value)


# Workers that hang


def cut_off(monkeypatch, rank):
    """Let rank 0's machine cut off a worker, whatever time it is."""
    why = "silent for 9 s, so hung or cut off"
    monkeypatch.setattr(MasterMachine, "tick", lambda self, seconds: self.rank_lost(rank, why))


class Stuck(Stage):
    """Task 0 waits for an event when it is run first."""

    first, release = threading.Event(), threading.Event()

    def run(self, task, block, state):
        if task.id == 0 and not self.first.is_set():
            self.first.set()
            self.release.wait(10)
        return task.id


class Slow(Stage):
    def run(self, task, block, state):
        time.sleep(0.02)
        return task.id


@pytest.mark.parametrize("tries", [1, 2])
def test_task_beyond_its_time_costs_its_worker_and_not_the_run(tries, capfd):
    Stuck.first.clear()
    Stuck.release.clear()
    policy = Policy(timeout=1.0, tries=tries)
    with thread_cluster.open_pool(2) as pool:
        if tries > 1:
            outcome = pool.run(Stuck(), {}, tasks_of(5, blocks=False), policy=policy)
            assert outcome.results == [0, 1, 2, 3, 4]
        else:
            with pytest.raises(TaskFailedError, match=r"task 0 failed .*took longer than 1 s"):
                pool.run(Stuck(), {}, tasks_of(5, blocks=False), policy=policy)
        (loss,) = pool.losses
        assert loss.reason == "task 0 took longer than 1 s"
        Stuck.release.set()
        assert pool.workers == 1
    assert f"rank {loss.rank} on " in capfd.readouterr().err


def test_silent_worker_costs_its_tasks_and_is_told_so_when_it_comes_back(monkeypatch, capfd):
    cut_off(monkeypatch, 2)
    master, worker, late = in_process.local_cluster(3)
    late.send(0, Hello("node7", 4711, 1))
    thread, _ = in_thread(worker_loop.serve, worker)
    with Pool(master, threads=1, cache_bytes=0) as pool:
        assert len(pool.run(Where(), {}, tasks_of(4, blocks=False)).results) == 4
        assert str(pool.losses[0]).startswith("rank 2 on node7 (process 4711) is lost: silent for")
        assert master.cut_off_ranks() == [2]
        back, found = in_thread(worker_loop.serve, late)
        back.join(5)
        assert "so hung or cut off" in found[0].reason
        assert len(pool.run(Where(), {}, tasks_of(4, blocks=False)).results) == 4
        assert master.cut_off_ranks() == []
    thread.join(5)
    assert "the job goes on without it: silent for" in capfd.readouterr().err


def test_hung_worker_is_killed_by_one_on_its_host_in_the_end(monkeypatch):
    cut_off(monkeypatch, 2)
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
    killed = []
    monkeypatch.setattr(worker_loop, "kill_processes", killed.append)
    master, worker, late = in_process.local_cluster(3)
    late.send(0, Hello(socket.gethostname(), 4711, 1))
    thread, _ = in_thread(worker_loop.serve, worker)
    with Pool(master, threads=1, cache_bytes=0) as pool:
        pool.run(Where(), {}, tasks_of(4, blocks=False))
    thread.join(5)
    assert killed == [(4711,)]


def test_worker_that_hears_nothing_of_rank_0_for_long_leaves_a_run(monkeypatch, capfd):
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.02")
    master, worker = in_process.local_cluster(2)
    worker.send(1, Welcome(1, 0, Knobs(), 1.0))
    worker.send(1, Place(1, ()))
    assert worker_loop.serve(worker).code == worker_loop.ORPHAN_EXIT
    assert "nothing was heard of rank 0" in capfd.readouterr().err
    assert hear(master, Hello).cores


# Losses, as a transport that notices them tells


def with_losses(end, lost):
    """Let an end say once that these ranks are dead."""
    told = [list(lost)]
    end.lost = lambda: told.pop() if told else []
    return end


def test_worker_that_finds_rank_0_dead_leaves():
    _, worker = in_process.local_cluster(2)
    assert worker_loop.serve(with_losses(worker, [0])).code == worker_loop.ORPHAN_EXIT


def test_worker_lost_before_its_hello_is_not_waited_for():
    master, _, worker = in_process.local_cluster(3)
    thread, _ = in_thread(worker_loop.serve, worker)
    with Pool(with_losses(master, [1]), threads=1, cache_bytes=0) as pool:
        assert pool.workers == 1
        assert [str(loss) for loss in pool.losses] == [
            "rank 1 is lost; no task is run again by the 1 left"
        ]
        assert pool.new_losses() == pool.losses
        assert pool.new_losses() == [], "each is told once"
        assert len(pool.run(Where(), {}, tasks_of(3, blocks=False)).results) == 3
    thread.join(5)


def test_all_workers_lost_before_their_hello_is_a_requeue():
    master, _, _ = in_process.local_cluster(3)
    with pytest.raises(RequeueError, match="rank 2 is lost, and no worker is left"):
        Pool(with_losses(master, [1, 2]), threads=1, cache_bytes=0)


def test_no_run_begins_without_a_worker():
    master, worker = in_process.local_cluster(2)
    thread, _ = in_thread(worker_loop.serve, worker)
    with Pool(master, threads=1, cache_bytes=0) as pool:
        with_losses(master, [1])
        with pytest.raises(RequeueError, match="no worker is left"):
            pool.run(Where(), {}, tasks_of(3, blocks=False))
        assert pool.losses[0].hello is not None
    worker.send(1, Stop())
    thread.join(5)


def test_worker_lost_after_stop_is_not_waited_for():
    master, _ = in_process.local_cluster(2)
    assert stop_workers(with_losses(master, [1]), [1]) == []


# New workers in the place of lost ones


class Workers:
    """Workers as threads on one transport; a new one can be started."""

    def __init__(self, workers):
        self.ends = in_process.local_cluster(workers + 1)
        self.threads = [in_thread(worker_loop.serve, end)[0] for end in self.ends[1:]]
        self.hosts = []

    def start(self, host):
        self.hosts.append(host)
        end = in_process.InProcessTransport(len(self.ends), self.ends)
        self.ends.append(end)
        self.threads.append(in_thread(worker_loop.serve, end)[0])
        return end.rank

    def join(self):
        for thread in self.threads:
            thread.join(5)


def test_lost_worker_is_replaced_and_the_new_one_works_and_can_be_lost_as_well(monkeypatch):
    monkeypatch.setattr(respawning, "PAUSE_SECONDS", 0.0)
    workers = Workers(2)
    with Pool(workers.ends[0], threads=1, cache_bytes=0, late_workers=workers.start) as pool:
        assert pool.replace_lost()
        for lost, after in (([1], [2, 3]), ([3], [2, 4])):
            with_losses(workers.ends[0], [])
            tasks = [*tasks_of(40, blocks=False)]

            def lose(snapshot, lost=lost):
                if snapshot.done > 3 and lost:
                    with_losses(workers.ends[0], [lost.pop()])

            outcome = pool.run(Slow(), {}, tasks, watch=lose)
            assert outcome.results == list(range(40))
            assert outcome.statistics.tasks_per_rank[after[1]] > 0
            assert sorted(pool._loop.ranks) == after
        assert [str(gain).split()[1] for gain in pool.gains] == ["3", "4"]
        assert (pool.new_gains(), pool.new_gains()) == (pool.gains, [])
        for end in (1, 3):
            workers.ends[0].send(end, Stop())
    assert workers.hosts == [pool.hosts[2].host] * 2
    workers.join()


def test_pool_that_cannot_replace_says_so():
    with thread_cluster.open_pool(1) as pool:
        assert not pool.replace_lost()


def test_replacement_is_wanted_only_where_somebody_lives_and_not_without_end(monkeypatch):
    monkeypatch.setattr(respawning, "PAUSE_SECONDS", 0.0)
    started: list[str] = []
    unused: Any = None
    replacer = respawning.RespawnedWorkers(started.append, unused, 5.0)
    hosts = {1: Hello("a", 1, 1), 2: Hello("b", 2, 1)}
    replacer.on_loss(LostWorker(1, hosts[1], 0, 1), hosts, [2])  # nobody is left on a
    assert not replacer.start_next()
    for _ in range(20):
        replacer.on_loss(LostWorker(2, hosts[2], 0, 1), hosts, [2])
        replacer.start_next()
    assert started == ["b"] * 2 * respawning.MOST
