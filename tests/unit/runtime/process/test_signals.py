from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mpipar.errors import CancelledError, StoppedError, UsageError
from mpipar.runtime.clusters.thread_cluster import (
    open_pool,
)
from mpipar.runtime.process import signals
from mpipar.runtime.process.signal_wakeup import interrupted_waits
from mpipar.runtime.stage import Stage, Task

ROOT = Path(__file__).parents[3]


@pytest.fixture
def grace(monkeypatch):
    monkeypatch.setenv("MPIPAR_GRACE", "0.2")
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.05)


def send(number):
    signal.raise_signal(number)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (signal.SIGTERM, StoppedError, 75),
        (signal.SIGUSR1, StoppedError, 75),
        (signal.SIGHUP, StoppedError, 75),
        (signal.SIGINT, CancelledError, 130),
    ],
)
def test_a_signal_is_raised_at_the_next_safe_point(number, kind, code):
    with signals.handled():
        signals.check()
        send(number)
        with pytest.raises(kind, match=f"stopped by {signal.Signals(number).name}") as caught:
            signals.check()
    assert caught.value.exit_code == code


def test_where_no_safe_point_comes_it_is_raised_after_the_grace(grace):
    with signals.handled():
        send(signal.SIGTERM)
        start = time.monotonic()
        with pytest.raises(StoppedError):
            time.sleep(5)
    assert 0.1 < time.monotonic() - start < 2


def test_a_second_signal_does_not_wait_but_an_echo_is_none(monkeypatch):
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.2)
    with signals.handled():
        send(signal.SIGTERM)
        send(signal.SIGUSR1)  # at once: the same order by another way
        time.sleep(0.25)
        with pytest.raises(StoppedError, match="SIGTERM"):
            send(signal.SIGUSR1)


def test_what_must_not_be_cut_off_is_not(grace):
    reached = []

    def commit():
        with signals.postponed():
            send(signal.SIGTERM)
            time.sleep(0.4)
            reached.append(True)

    with signals.handled(), pytest.raises(StoppedError):
        commit()
    assert reached


def test_nothing_is_raised_while_it_is_being_dealt_with(grace):
    before = signal.getsignal(signal.SIGTERM)
    with signals.handled():
        send(signal.SIGTERM)
        signals.settle()
        send(signal.SIGTERM)
        time.sleep(0.4)
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_hears_of_it_and_so_does_the_main_thread(grace):
    heard = []

    def loop():
        while not heard:
            try:
                signals.check()
            except StoppedError as error:
                heard.append(error)
            time.sleep(0.01)

    with signals.handled():
        thread = threading.Thread(target=loop)
        thread.start()
        send(signal.SIGTERM)
        with pytest.raises(StoppedError):
            time.sleep(5)
        thread.join()
    assert heard


def test_outside_nothing_is_handled_and_checking_is_free():
    signals.check()
    with signals.postponed():
        signals.check()
    signals.settle()


def test_what_a_launcher_passed_on_is_called_by_its_name():
    with signals.handled(lambda heard: signal.SIGINT):
        send(signal.SIGUSR1)
        with pytest.raises(CancelledError, match="SIGINT"):
            signals.check()


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with signals.handled():
            send(signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_grace_must_be_a_time(monkeypatch):
    monkeypatch.setenv("MPIPAR_GRACE", "soon")
    with pytest.raises(UsageError, match="MPIPAR_GRACE"), signals.handled():
        pass


class Sleep(Stage):
    def run(self, task, block, state):
        time.sleep(0.05)


def test_a_run_of_a_pool_ends():
    with signals.handled(), open_pool(2) as pool:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        start = time.monotonic()
        with pytest.raises(StoppedError):
            pool.run(Sleep(), {}, [Task(n, None, None) for n in range(1000)])
        assert time.monotonic() - start < 2


WORKER = """
import os, signal, subprocess, sys, time
from mpipar.runtime.process import signals
signals.WORKER_SECONDS = 0.5
signals.leave_to_rank_0()
for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.raise_signal(number)
child = subprocess.run(["sh", "-c", "kill -INT $$; echo alive"], capture_output=True, text=True)
print("child", child.stdout == "", flush=True)
signal.raise_signal(signal.SIGTERM)
print("deaf to SIGTERM", flush=True)
time.sleep(10)
"""


def test_a_worker_leaves_it_to_rank_0_but_not_for_ever():
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == "child True\ndeaf to SIGTERM\n", done.stderr
    assert done.returncode == -signal.SIGTERM
    assert "no word from rank 0" in done.stderr


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR1, StoppedError)]
)
def test_a_user_s_own_code_is_ended_at_once_as_python_would(number, kind):
    with signals.raised_at_once(), pytest.raises(kind):
        send(number)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


FORKED = """
import multiprocessing, os, signal, sys, time
from mpipar.runtime.process import signals

def serve():
    time.sleep(60)

def ends(number):
    child = multiprocessing.get_context("fork").Process(target=serve)
    child.start()
    time.sleep(0.2)
    start = time.monotonic()
    os.kill(child.pid, number)
    child.join()
    return child.exitcode, time.monotonic() - start < 3

def user(*_):
    sys.exit(7)

if sys.argv[1] == "worker":
    signals.leave_to_rank_0()
    print(ends(signal.SIGTERM), ends(signal.SIGHUP))
else:
    with getattr(signals, sys.argv[1])():
        print(ends(signal.SIGTERM), ends(signal.SIGHUP))
        signal.signal(signal.SIGTERM, user)
        print(ends(signal.SIGTERM))
"""


@pytest.mark.parametrize("handling", ["worker", "handled", "raised_at_once"])
def test_a_process_that_is_forked_is_ended_by_signals_as_any_other(handling):
    words = [sys.executable, "-c", FORKED, handling]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "(-15, True) (-1, True)"
    assert lines[1:] == ([] if handling == "worker" else ["(7, True)"])


@pytest.mark.parametrize("handling", [signals.raised_at_once, signals.handled])
def test_a_wait_ends_that_the_signal_did_not_interrupt(grace, handling):
    def get_it():  # this thread, so the main thread's wait goes on
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    lock = threading.Lock()
    lock.acquire()
    thread = threading.Thread(target=get_it)
    start = time.monotonic()
    with handling():
        thread.start()
        with pytest.raises(StoppedError):
            lock.acquire(timeout=5)
    assert time.monotonic() - start < 2
    thread.join()


def test_nudging_leaves_all_as_it_was():
    threads = threading.active_count()
    with interrupted_waits([signal.SIGTERM]):
        assert threading.active_count() == threads + 1
        with interrupted_waits([signal.SIGTERM]):  # has nothing to add
            assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_nudging_stands_back_for_an_event_loop():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threads = threading.active_count()
    with interrupted_waits([signal.SIGTERM]):
        signal.set_wakeup_fd(writing)  # as asyncio does
    assert signal.set_wakeup_fd(writing) == writing  # not taken away
    with interrupted_waits([signal.SIGTERM]):
        assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == writing
    os.close(reading)
    os.close(writing)
