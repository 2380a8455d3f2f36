"""Pools of workers that connect over TCP: they come late, break off, and fall silent."""

from __future__ import annotations

import threading
import time

import pytest

from mpipar.errors import RequeueError
from mpipar.runtime.clusters import tcp_cluster
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.machines.messages import Hello
from mpipar.runtime.transports import tcp_handshake
from mpipar.runtime.transports.tcp_transport import HubTransport
from tests.support.stages import Numbers, Total, tasks_of

KEY = tcp_handshake.new_key()
COUNT = 40


class Job:
    """A hub and workers that are threads here."""

    def __init__(self):
        self.hub = HubTransport(KEY)
        self.port = self.hub.listen("127.0.0.1")
        self.threads = []
        self.spokes = {}

    def expect(self, count):
        ranks = [self.hub.expect(f"w{number}") for number in range(1, count + 1)]
        assert ranks == list(range(1, count + 1))

    def start(self, rank, *, silent=False):
        """Let a worker come; a silent one says hello, and nothing ever after."""

        def work():
            spoke = self.spokes[rank] = tcp_cluster.connect("127.0.0.1", self.port, KEY, f"w{rank}")
            if silent:
                spoke.send(0, Hello("here", 1, 1))
                while not spoke.lost():
                    spoke.receive()
                    spoke.pause(moved=False)
            else:
                worker_loop.serve(spoke)
            spoke.close()

        self._do(work)

    def when(self, condition, action):
        """Do something as soon as something is the case."""

        def wait():
            until = time.monotonic() + 10
            while not condition() and time.monotonic() < until:
                time.sleep(0.005)
            action()

        self._do(wait)

    def _do(self, target):
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self.threads.append(thread)

    def end(self):
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def job():
    job = Job()
    yield job
    job.end()


def run(pool, seconds=0.0, count=COUNT):
    outcome = pool.run(Total(seconds), {"count": count}, tasks_of(count))
    assert outcome.results == list(range(count))
    assert outcome.sums["counted"].tolist() == [1] * count
    assert outcome.sums["total"][0, 0] == sum(range(count))
    return outcome.statistics


def test_workers_talk_through_the_hub(job):
    """They steal from each other, hand on blocks, and add up their sums."""
    job.expect(4)
    for rank in range(1, 5):
        job.start(rank)
    with tcp_cluster.open_pool(job.hub, patience=10) as pool:
        pool.serve(Numbers())
        while pool.workers < 4:
            run(pool)
        run(pool)


def test_run_begins_without_workers_and_takes_in_who_comes(job):
    job.expect(2)
    with tcp_cluster.open_pool(job.hub, patience=10) as pool:
        pool.serve(Numbers())
        job.start(1)
        job.when(lambda: pool.workers == 1, lambda: job.start(2))
        statistics = run(pool, 0.04)
        assert set(statistics.tasks_per_rank) == {1, 2}
        assert min(statistics.tasks_per_rank.values()) > 0


def test_last_worker_may_break_off_if_another_comes(job):
    job.expect(2)
    with tcp_cluster.open_pool(job.hub, patience=10) as pool:
        pool.serve(Numbers())
        job.start(1)
        job.when(lambda: pool.workers == 1, lambda: job.hub.declare_lost(1))
        job.when(lambda: pool.losses, lambda: job.start(2))
        statistics = run(pool, 0.01)
        assert statistics.lost == (1,)
        assert statistics.tasks_run_again > 0


def test_silent_worker_is_given_up(job, monkeypatch):
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.8")  # workers say something four times in it
    job.expect(2)
    job.start(1, silent=True)
    with tcp_cluster.open_pool(job.hub, patience=0.8) as pool:
        pool.serve(Numbers())
        job.when(lambda: pool.workers == 1, lambda: job.start(2))
        assert run(pool).lost == (1,)


@pytest.mark.parametrize("comes", [True, False])
def test_nobody_left_and_nobody_to_come_ends_the_run(job, comes):
    job.expect(1)
    with tcp_cluster.open_pool(job.hub, patience=10) as pool:
        pool.serve(Numbers())
        if comes:
            job.start(1)
        job.when(lambda: pool.workers == comes, lambda: job.hub.declare_lost(1))
        with pytest.raises(RequeueError, match=r"no worker is left|last worker is lost"):
            run(pool, 0.02)
        with pytest.raises(RequeueError):
            run(pool)


def test_pool_that_closes_takes_its_workers_with_it(job):
    job.expect(2)
    job.start(1)
    with tcp_cluster.open_pool(job.hub, patience=10) as pool:
        pool.serve(Numbers())
        run(pool)
    job.end()
