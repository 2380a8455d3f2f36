"""The process above mpirun, with small programs in mpirun's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SUPERVISE = """
import sys
from mpipar.cli.outcome import attempt
from mpipar.launch import signal_forwarding
signal_forwarding.AFTER_GRACE = 0.3
signal_forwarding.BY_FORCE = 0.3
signal_forwarding.ECHO_SECONDS = 0.1
command = [sys.executable, "-c", sys.argv[1]]
sys.exit(attempt(lambda: signal_forwarding.supervise(command, {}), rank=0))
"""
HEAD = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from mpipar.launch.signal_forwarding import note_begin, note_end, original_signal
heard = []
def hear(number, frame):
    heard.append(signal.Signals(number))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, hear)
def wait(count):
    while len(heard) < count:
        time.sleep(0.01)
print("ready", flush=True)
"""


def start(program):
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, HEAD + program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPIPAR_GRACE": "0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program, *signals):
    """Exit code, output and complaints; each signal is sent when a line has come."""
    process = start(program)
    said = process.stdout.readline()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.15)
    more, complaints = process.communicate(timeout=20)
    return process.returncode, said + more, complaints


@pytest.mark.parametrize("code", [0, 3])
def test_the_launcher_s_code_where_rank_0_tells_none(code):
    assert run(f"sys.exit({code})") == (code, "ready\n", "")
    assert run("os.kill(os.getpid(), 9)") == (137, "ready\n", "")


def test_rank_0_s_code_comes_before_the_launcher_s():
    assert run("note_begin(); note_end(65); sys.exit(1)")[0] == 65
    assert run("note_begin(); note_end(0); sys.exit(9)")[0] == 0


def test_a_launcher_that_ends_well_without_rank_0_does_not_deceive():
    code, _, complaints = run("note_begin()")
    assert code == 75
    assert "a node was lost" in complaints


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_every_signal_reaches_the_ranks_as_usr1_and_keeps_its_name(number):
    program = "wait(1); print(heard[0].name, original_signal(heard[0]).name); note_end(75)"
    code, said, _ = run(program, number)
    assert (code, said) == (75, f"ready\nSIGUSR1 {number.name}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_the_signal_s_own_code_where_rank_0_could_tell_none(number, code):
    found = run("wait(1); os.kill(os.getpid(), 9)", number)
    assert found == (code, "ready\n", f"mpipar: stopped by {number.name}\n")


def test_the_third_signal_is_for_the_launcher():
    program = "wait(3); print([n.name for n in heard]); note_end(75)"
    found = run(program, *3 * [signal.SIGINT])
    assert found == (75, "ready\n['SIGUSR1', 'SIGUSR1', 'SIGTERM']\n", "")


def test_a_launcher_that_does_not_end_is_ended():
    start = time.monotonic()
    code, said, _ = run(
        "wait(1); wait(2); print(heard[1].name, flush=True); wait(9)", signal.SIGINT
    )
    assert (code, said) == (130, "ready\nSIGTERM\n")
    assert time.monotonic() - start < 10


def test_a_launcher_does_not_outlive_us():
    process = start("wait(1); print(heard[0].name)")
    process.stdout.readline()
    process.kill()
    assert process.communicate()[0] == "SIGTERM\n"


def test_a_launcher_that_cannot_be_run():
    words = "from mpipar.launch.signal_forwarding import supervise; supervise(['/none/mpirun'], {})"
    done = subprocess.run(
        [sys.executable, "-c", words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UnavailableError: /none/mpirun cannot be run: No such file" in done.stderr
