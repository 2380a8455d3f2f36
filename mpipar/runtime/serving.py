"""A worker's loop: it carries messages and events to the worker's machine, and its actions out."""

from __future__ import annotations

import os
import socket
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar.errors import MpiparError
from mpipar.runtime.compute import Engine
from mpipar.runtime.environment import patience
from mpipar.runtime.messages import (
    MASTER,
    Beat,
    Bye,
    Crashed,
    Failed,
    Finished,
    Hello,
    Send,
    Stop,
    Welcome,
)
from mpipar.runtime.transport import UnsendableError
from mpipar.runtime.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpipar.runtime.messages import Message, Rank
    from mpipar.runtime.transport import Transport
    from mpipar.runtime.worker import Action

BEAT_SECONDS = 1.0
LAST_TASK_SECONDS = 1.0
FLUSH_SECONDS = 5.0
CRASH_EXIT = 70
GREETING_PATIENCES = 30
"""Rank 0 may read a large input before it opens the pool."""


@dataclass(frozen=True)
class Departure:
    """How a worker ended."""

    code: int
    threads_ended: bool  # False: a task was still running, so its thread may outlive the loop


def serve(transport: Transport) -> Departure:
    """Work until told to stop. A fault of the runtime is reported to rank 0 before leaving."""
    try:
        return _Service(transport).run()
    except Exception:
        transport.send(MASTER, Crashed(traceback.format_exc()))
        _drain_until_stop(transport, patience())
        return Departure(CRASH_EXIT, threads_ended=False)


def _drain_until_stop(transport: Transport, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        arrived = transport.receive()
        if any(isinstance(message, Stop) for _, message in arrived):
            transport.send(MASTER, Bye())
            break
        transport.pause(moved=bool(arrived))
    _flush(transport)


def _flush(transport: Transport) -> None:
    until = time.monotonic() + FLUSH_SECONDS
    while transport.backlog() and time.monotonic() < until:
        transport.receive()
        transport.pause(moved=False)


class _Service:
    """The loop and what it needs; made once per worker."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._early: list[tuple[Rank, Message]] = []
        self._spoke = time.monotonic()

    def run(self) -> Departure:
        welcome = self._greet()
        if welcome is None:
            self._transport.send(MASTER, Bye())
            _flush(self._transport)
            return Departure(0, threads_ended=True)
        transport = self._transport
        transport.crowd(welcome.crowding)
        engine = Engine(welcome.threads, welcome.knobs.slowdown(transport.rank), transport.wake)
        worker = Worker(transport.rank, welcome)
        for source, message in self._early:
            self._perform(engine, worker.handle(source, message))  # type: ignore[arg-type]
        while not worker.stopped:
            moved = self._turn(worker, engine)
            transport.pause(moved=moved, relaxed=worker.is_computing)
        ended = engine.close(LAST_TASK_SECONDS)
        _flush(transport)
        return Departure(0, ended)

    def _greet(self) -> Welcome | None:
        """Say hello and return the answer; None if it is to stop."""
        transport = self._transport
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        transport.send(MASTER, Hello(socket.gethostname(), os.getpid(), cores or 1))
        bound = GREETING_PATIENCES * patience()
        until = time.monotonic() + bound
        while time.monotonic() < until:
            arrived = transport.receive()
            for position, (source, message) in enumerate(arrived):
                if isinstance(message, Stop):
                    return None
                if isinstance(message, Welcome):
                    self._early += arrived[position + 1 :]
                    return message
                self._early.append((source, message))  # a peer was welcomed before us
            transport.pause(moved=bool(arrived))
        raise MpiparError(f"rank 0 has not answered rank {transport.rank} for {bound:.0f} s")

    def _turn(self, worker: Worker, engine: Engine) -> bool:
        """Take what there is; return whether there was anything."""
        arrived = self._transport.receive()
        for source, message in arrived:
            self._perform(engine, worker.handle(source, message))  # type: ignore[arg-type]
        events = engine.events()
        actions = [action for event in events for action in worker.react(event)]
        self._perform(engine, [*worker.report(), *actions])
        if worker.run is not None and time.monotonic() - self._spoke > BEAT_SECONDS:
            self._send(MASTER, Beat(worker.run.serial))
        return bool(arrived or events)

    def _perform(self, engine: Engine, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action.rank, action.message)
            else:
                engine.perform(action)

    def _send(self, rank: Rank, message: Message) -> None:
        if rank == MASTER:
            self._spoke = time.monotonic()
        try:
            self._transport.send(rank, message)
        except UnsendableError as error:
            if not isinstance(message, Finished):
                raise
            # Its contribution is in our sums already, so the task must not be run again.
            tasks = ", ".join(str(task) for task, _ in message.results)
            text = f"the result of task {tasks} cannot be sent: {error}"
            self._transport.send(MASTER, Failed(message.serial, None, "TypeError", text, ""))
