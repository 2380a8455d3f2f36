"""Deques of several workers and a list of who owns what, in any order of steal events.

The master is replaced by the plainest one that can be right: a dictionary of owners. So this
checks the transaction itself: ask, give, claim, word; with thieves and victims dying in between.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpipar.runtime.machines.messages import (
    MASTER,
    Claim,
    Granted,
    Idle,
    Refused,
    StealFrom,
    StealReply,
    StealRequest,
)
from mpipar.runtime.machines.task_deque import TaskDeque
from mpipar.runtime.stage import Task


class Steals(RuleBasedStateMachine):
    """The wire is a queue for each pair of ranks; `done` collects what has been run."""

    @initialize(workers=st.integers(2, 4), each=st.integers(0, 4))
    def start(self, workers, each):
        self.deques = {rank: TaskDeque(1) for rank in range(1, workers + 1)}
        self.owner = {}
        self.done = []
        self.wires = {}
        self.idle = set()
        for rank, mine in self.deques.items():
            first = len(self.owner)
            tasks = [Task(first + number, None, None) for number in range(each * (rank % 2))]
            self.owner.update((task.id, rank) for task in tasks)
            mine.place(tasks, lambda block: False)
        self.total = len(self.owner)

    def post(self, source, sends):
        for send in sends:
            if send.rank == MASTER or send.rank in self.deques:
                self.wires.setdefault((source, send.rank), deque()).append(send.message)

    def busy(self):
        return sorted(wire for wire, waiting in self.wires.items() if waiting)

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def message_arrives(self, data):
        source, target = data.draw(st.sampled_from(self.busy()))
        message = self.wires[source, target].popleft()
        if target == MASTER:
            self.master(source, message)
        elif source in self.deques or source == MASTER:
            self.worker(self.deques[target], source, message)

    def master(self, source, message):
        if source not in self.deques:
            return
        if isinstance(message, Idle):
            self.idle.add(source)
        elif isinstance(message, Claim):
            good = tuple(t for t in message.tasks if self.owner.get(t) == message.victim)
            bad = tuple(t for t in message.tasks if t not in good)
            self.owner.update(dict.fromkeys(good, source))
            for kind, tasks in ((Granted, good), (Refused, bad)):
                if tasks:
                    word = kind(1, message.claim, tasks)
                    self.wires.setdefault((MASTER, source), deque()).append(word)

    def worker(self, mine, source, message):
        match message:
            case StealFrom():
                sends = mine.on_steal_from(message)
            case StealRequest():
                sends = mine.on_steal_request(source, message, lambda block: False)
            case StealReply():
                sends = mine.on_steal_reply(source, message)
            case Granted():
                sends = mine.on_granted(message) or []
            case Refused():
                sends = mine.on_refused(message) or []
        rank = next(rank for rank, other in self.deques.items() if other is mine)
        self.post(rank, sends)

    @rule(data=st.data())
    def worker_runs_a_task_or_is_idle(self, data):
        rank = data.draw(st.sampled_from(sorted(self.deques)))
        mine = self.deques[rank]
        if mine.tasks:
            task = mine.tasks.popleft().id
            assert self.owner.pop(task) == rank, "ran a task of somebody else"
            self.done.append(task)
        else:
            self.post(rank, mine.report_idle())

    @precondition(lambda self: self.idle and len(self.deques) > 1)
    @rule(data=st.data(), share=st.sampled_from([0.1, 0.5, 1.0]))
    def master_names_a_victim(self, data, share):
        thief = data.draw(st.sampled_from(sorted(self.idle)))
        victim = data.draw(st.sampled_from(sorted(set(self.deques) - {thief})))
        self.idle.discard(thief)
        self.wires.setdefault((MASTER, thief), deque()).append(StealFrom(1, victim, share))

    @precondition(lambda self: len(self.deques) > 1)
    @rule(data=st.data())
    def worker_dies(self, data):
        lost = data.draw(st.sampled_from(sorted(self.deques)))
        del self.deques[lost]
        self.idle.discard(lost)
        for wire in [wire for wire in self.wires if wire[1] == lost]:
            del self.wires[wire]
        for rank, mine in self.deques.items():
            # The master's word that a rank is gone is immediate here; the scheduler's own machine
            # has it on the wire.
            self.post(rank, mine.on_rank_lost(rank, lost))
        self.owner = {task: rank for task, rank in self.owner.items() if rank != lost}
        self.total = len(self.owner) + len(self.done)

    @invariant()
    def every_task_is_in_at_most_one_deque(self):
        tasks = [task.id for mine in getattr(self, "deques", {}).values() for task in mine.tasks]
        assert len(tasks) == len(set(tasks))
        assert not set(tasks) & set(getattr(self, "done", ()))

    def teardown(self):
        """No task that a live worker owns is forgotten: it can still be run."""
        if not hasattr(self, "deques"):
            return
        while self.busy():
            source, target = self.busy()[0]
            message = self.wires[source, target].popleft()
            if target == MASTER:
                self.master(source, message)
            elif source in self.deques or source == MASTER:
                self.worker(self.deques[target], source, message)
        runnable = {task.id: rank for rank, d in self.deques.items() for task in d.tasks}
        assert runnable == self.owner
        assert len(runnable) + len(self.done) == self.total


TestSteals = Steals.TestCase
TestSteals.settings = settings(stateful_step_count=60, deadline=None)
