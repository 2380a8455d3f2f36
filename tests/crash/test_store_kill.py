"""Kill -9 at random moments, and processes that race for a project."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from mpipar.errors import MissingInputError, ProjectLockedError
from mpipar.store import Project, check, read_status

pytestmark = pytest.mark.crash

RUN = """
    import sys
    from pathlib import Path
    import numpy as np
    from mpipar.errors import MpiparError
    from mpipar.store import Project

    path = Path(sys.argv[1])

    def say(*words):
        print(*words, flush=True)
"""
COMMITTING = """
    project = Project.open(path, writer=True)
    say("open")
    n = len(project.commits())
    done = len(project.records("result"))
    while True:
        for i in range(done, 20):
            project.append("result", b"%d.%d" % (n, i))
            say("result", n, i)
        project.commit(n, {"x": np.full(20_000, n)}, {"n": n})
        say("commit", n)
        n, done = n + 1, 0
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    program = textwrap.dedent(RUN) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def kill(process: subprocess.Popen[str]) -> list[str]:
    """Kill -9; return what the process had said."""
    assert process.stdout
    process.send_signal(signal.SIGKILL)
    with process.stdout as stdout:  # not communicate(): it misses what readline() has read ahead
        said = stdout.read()
    process.wait(timeout=30)
    return said.splitlines()


def create(path: Path) -> None:
    Project.create(path, settings={"a": 1}, kind="test").close()


def kill_at_random(path: Path, seed: int, rounds: int) -> None:
    create(path)
    moments = random.Random(seed)
    committed, results = -1, -1
    while rounds > 0 or committed < 4:  # on a slow disk it takes more of them
        rounds -= 1
        assert rounds > -50, "too few commits: the test tests nothing"
        process = start(COMMITTING, path)
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        time.sleep(moments.uniform(0.0, 0.25))
        for line in kill(process):
            words = line.split()  # the last line may be cut short, and then said too little
            if words[0] == "commit" and len(words) == 2:
                committed, results = int(words[1]), -1
            elif words[0] == "result" and len(words) == 3:
                results = int(words[2])
        project = Project.open(path, writer=False)
        numbers = [info.number for info in project.commits()]
        found = [int(r.split(b".")[1]) for r in project.records("result")]
        assert numbers == [*range(len(numbers))]
        assert len(numbers) - 1 in {committed, committed + 1}
        assert found == [*range(len(found))]
        if len(numbers) - 1 == committed:
            assert len(found) - 1 in {results, results + 1}
        latest = project.latest()
        if latest is not None:
            assert np.array_equal(latest.arrays["x"], np.full(20_000, latest.number))
        assert check(path) == []
        committed, results = len(numbers) - 1, len(found) - 1


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    kill_at_random(tmp_path / "p", seed=1, rounds=8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_what_was_acknowledged_survives_kill_9_often(tmp_path, seed):
    kill_at_random(tmp_path / "p", seed=seed, rounds=30)


def test_of_many_that_race_for_a_dead_owners_project_one_wins(tmp_path):
    path = tmp_path / "p"
    go = tmp_path / "go"
    os.mkfifo(go)
    dead = start(
        "project = Project.create(path, settings={}, kind='test'); say('open'); input()", path
    )
    assert dead.stdout
    assert dead.stdout.readline() == "open\n"
    kill(dead)
    racing = """
        import os, select
        gate = os.open(sys.argv[2], os.O_RDONLY | os.O_NONBLOCK)
        say("ready")
        select.select([gate], [], [])  # until somebody has opened it for writing
        try:
            project = Project.open(path, writer=True)
        except MpiparError as error:
            say(type(error).__name__, error)
        else:
            say("won", project._writer.claim.epoch)
            sys.stdin.read()
    """
    racers = [start(racing, path, go) for _ in range(4)]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    go.open("w").close()
    said = [racer.stdout.readline() for racer in racers if racer.stdout]
    won = [i for i, text in enumerate(said) if text == "won 2\n"]
    assert len(won) == 1, said
    winner = racers[won[0]]
    for i, text in enumerate(said):
        if i != won[0]:
            assert text.startswith("ProjectLockedError")
            assert f"process {winner.pid} on " in text
    for racer in racers:
        kill(racer)
    with Project.open(path, writer=True) as project:
        assert project.latest() is None
    assert check(path) == []


def test_runs_that_start_together_get_their_own_folders(tmp_path):
    code = """
        from mpipar.store import next_free
        project = Project.create(next_free(path, "refine"), settings={}, kind="test")
        project.commit(1, {}, {})
        project.close()
        say(project.path.name)
    """
    processes = [start(code, tmp_path) for _ in range(4)]
    names = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(names) == [f"refine_{i:02d}" for i in range(1, 5)]
    assert all(check(tmp_path / name) == [] for name in names)


def test_a_stopped_owner_is_alive_and_refuses_until_it_is_killed(tmp_path):
    path = tmp_path / "p"
    create(path)
    owner = start(COMMITTING, path)
    assert owner.stdout
    assert owner.stdout.readline() == "open\n"
    owner.send_signal(signal.SIGSTOP)
    with pytest.raises(ProjectLockedError, match=f"process {owner.pid} on "):
        Project.open(path, writer=True)
    Project.open(path, writer=False).latest()
    kill(owner)
    Project.open(path, writer=True).close()


def test_the_beat_ends_with_the_process(tmp_path):
    path = tmp_path / "p"
    code = """
        project = Project.create(path, settings={}, kind="test", lease=0.1)
        say("open")
    """
    process = start(code, path)
    process.communicate(timeout=30)
    assert process.returncode == 0, "a living beat must not keep the process"
    last = read_status(path)
    time.sleep(0.3)
    assert read_status(path) == last


def test_a_full_disk_is_survived_for_real(tmp_path):
    """The kernel itself refuses: a limit on the size of files stands for the quota."""
    code = """
        import resource
        project = Project.create(path, settings={}, kind="test")
        project.commit(1, {"x": np.arange(10)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        for number in range(3):
            try:
                project.commit(2, {"x": np.zeros(1_000_000)}, {})
            except MpiparError as error:
                say(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        project.commit(2, {"x": np.arange(20)}, {})
        project.close()
    """
    process = start(code, tmp_path / "p")
    said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0, said
    assert len(said) == 3
    assert all(line.startswith("DiskFullError") and "8008192 bytes" in line for line in said)
    latest = Project.open(tmp_path / "p", writer=False).latest()
    assert latest is not None
    assert latest.arrays["x"].tolist() == [*range(20)]
    assert check(tmp_path / "p") == []
    assert len(list((tmp_path / "p" / "segments").iterdir())) == 2


def test_killed_while_creating_is_a_project_or_none(tmp_path):
    moments = random.Random(3)
    for number in range(6):
        path = tmp_path / f"p{number}"
        process = start("say('go'); Project.create(path, settings={'a': 1}, kind='test')", path)
        assert process.stdout
        assert process.stdout.readline() == "go\n"
        time.sleep(moments.uniform(0.0, 0.03))
        kill(process)
        try:
            project = Project.open(path, writer=True)
        except MissingInputError:
            create(path)
        else:
            assert project.settings == {"a": 1}
            project.close()
        assert check(path) == []
