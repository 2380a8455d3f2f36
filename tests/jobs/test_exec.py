"""`mpipar exec` under real launchers: a script runs as under python, its calls on the workers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.installed import MPIRUN, mpirun, tolerates_faults
from tests.support.jobs import NOTHING, ROOT, complaints, environment, run

if TYPE_CHECKING:
    from collections.abc import Sequence

EXEC = [sys.executable, "-m", "mpipar", "exec"]
TOLERANT = ["--with-ft", "ulfm"]

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")

SCRIPT = """
import atexit, os, signal, sys, time
from pathlib import Path
from mpipar import Executor

LEVEL = 3

def here(n):
    return n * LEVEL, os.getpid()

def die(n):
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(n):
    time.sleep(0.002)
    if n == 60:
        try:
            os.unlink("marker")
        except FileNotFoundError:
            return n
        os.kill(os.getpid(), signal.SIGKILL)
    return n

def late(text):
    time.sleep(0.3)
    Path("late").write_text(text)

if __name__ == "__main__":
    atexit.register(print, "at exit")
    executor = Executor()
    act = sys.argv[1]
    if act == "who":
        values, processes = zip(*executor.map(here, range(200)))
        print(sum(values), len(set(processes)), os.getpid() in processes, sys.argv, sys.path[0])
    elif act == "killed":
        Path("marker").touch()
        print(sum(executor.map(die_once, range(300))), executor.num_workers)
    elif act == "all":
        list(executor.map(die, range(9)))
    elif act == "isolated":
        print(type(executor.submit(die, 1).exception()).__name__, executor.num_workers)
    elif act == "late":
        executor.submit(late, "written")
    elif act == "raise":
        executor.submit(late, "written")
        raise KeyError("what the script says")
    else:
        sys.exit(int(act))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def job(ranks, script, *arguments, options=(), flags=()):
    start = [*mpirun(), *options, "-n", ranks, "-wdir", script.parent]
    return run(line=[*start, *EXEC, *flags, script, *arguments])


def test_functions_of_the_script_run_on_the_workers(script):
    done = job(4, script, "who", "--flag")
    assert done.returncode == 0, done.stderr
    total = 3 * sum(range(200))
    argv = [str(script), "who", "--flag"]
    assert done.stdout == f"{total} 3 False {argv} {script.parent}\nat exit\n"


def test_killed_worker_costs_no_call(script):
    done = job(4, script, "killed", options=TOLERANT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{sum(range(300))} 2\n")
    (line,) = complaints(done)
    assert "is lost" in line


def test_isolated_call_that_kills_its_process_costs_no_rank(script):
    done = job(3, script, "isolated", flags=["--isolate"])
    assert (done.returncode, done.stdout) == (0, "TaskFailedError 2\nat exit\n"), done.stderr


def test_without_a_worker_left_the_job_may_be_requeued(script):
    done = job(3, script, "all", options=TOLERANT)
    assert done.returncode == 75
    assert "BrokenWorkersError" in done.stderr
    assert "no worker is left" in done.stderr


@pytest.mark.parametrize("act", ["late", "raise", "7"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_script_ends_as_under_python(script, act, ranks):
    done = job(ranks, script, act, options=TOLERANT)
    assert done.returncode == {"late": 0, "raise": 1, "7": 7}[act]
    assert "at exit" in done.stdout
    if act != "7":
        assert (script.parent / "late").read_text() == "written"
    shown = [line for line in done.stderr.splitlines() if line.startswith(("Trace", "  File", "K"))]
    if act == "raise":
        assert shown[0].startswith("Traceback")
        assert f'File "{script}", line' in shown[1]
        assert shown[2] == "KeyError: 'what the script says'"
    else:
        assert shown == []


def test_module_and_own_mpirun():
    done = run(line=[*EXEC, "--parallel=mpi:3", "-m", "tests.support.module_script", "4", "5"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[16, 25] tests.support.module_script True\n"


def test_script_under_mpirun_without_exec_is_refused(script):
    done = run(line=[*mpirun(), "-n", 2, sys.executable, script, "who"])
    assert done.returncode != 0
    assert "mpirun -n N python -m mpipar exec" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 64, "needs a script"),
        (["none.py"], 66, "none.py"),
        (["-m", "no.such.module"], 66, "no.such.module"),
        (["--parallel=five", "x.py"], 64, "--parallel=five"),
        (["--paralel=mpi:2", "x.py"], 64, "did you mean --parallel"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, code, message):
    done = run(line=[*EXEC, *arguments])
    assert done.returncode == code
    (line,) = complaints(done)
    assert message in line
    assert "Traceback" not in done.stderr


NAPPING = """
import time
from mpipar import Executor

if __name__ == "__main__":
    with Executor() as executor:
        submitted = [executor.submit(time.sleep, 100) for _ in range(20)]
        print("waiting", flush=True)
        submitted[-1].result()
"""


@pytest.mark.parametrize("ranks", [1, 3])
def test_interrupt_drops_calls_and_ends_all(tmp_path, ranks):
    script = tmp_path / "napping.py"
    script.write_text(NAPPING)
    start = [*mpirun(), "-n", ranks] if ranks > 1 else []
    with subprocess.Popen(
        [str(word) for word in [*start, *EXEC, script]],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout.readline() == "waiting\n"
        job.send_signal(signal.SIGINT)
        assert job.wait(30) != 0
        assert ranks > 1 or "KeyboardInterrupt" in job.stderr.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signal_to_what_started_mpirun_ends_all(tmp_path, number, code):
    script = tmp_path / "napping.py"
    script.write_text(NAPPING)
    with subprocess.Popen(
        [str(word) for word in [*EXEC, "--parallel=mpi:3", script]],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout.readline() == "waiting\n"
        job.send_signal(number)
        assert job.wait(15) == code, job.stderr.read()  # not by force, after 23


WAYS: dict[str, Sequence[object]] = {
    "python": (sys.executable,),
    "serial": [*EXEC, "--parallel=serial"],
    "thread": [*EXEC, "--parallel=thread:2"],
    "ranks": [*mpirun(), *TOLERANT, "-n", 3, *EXEC],
}
LIKE_PYTHON = """
import argparse, os, sys
from pathlib import Path
if os.environ["WHOSE"] == "python":
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpipar import Executor

parser = argparse.ArgumentParser()
parser.add_argument("--power", type=int, default=1)
options = parser.parse_args()
text = Path("text").read_text()
os.environ["AT_TOP"] = "set"

class Point:
    def __init__(self, x: int):
        self.x = x

def seen(x: int):
    names = [os.environ.get(name) for name in ("AT_TOP", "LATER", "GONE")]
    ours = [__name__, Point.__module__, seen.__annotations__["x"].__name__, __file__]
    mask = os.umask(0o77)
    os.umask(mask)
    there = [os.getcwd(), sys.getrecursionlimit(), mask]
    return [x**options.power, text, sys.argv, *there, *names, *ours]

if __name__ == "__main__":
    os.chdir("work")
    assert Path(__file__).exists()
    os.environ["LATER"] = "set"
    del os.environ["GONE"]
    sys.setrecursionlimit(4321)
    os.umask(0o27)
    with Executor(2) as executor:
        print(*executor.submit(seen, 2).result())
        print(type(executor.submit(Point, 1).result()) is Point)
    os.chdir("..")
    del os.environ["LATER"]
    with Executor(2) as executor:
        print(*executor.submit(seen, 2).result())
"""


def under_python(folder, text, *arguments, way="python", env=NOTHING):
    """What a script prints under this way to start it, with that executor."""
    script = folder / "script.py"
    script.write_text(text)
    whose = {"WHOSE": "python" if way == "standard library" else "mpipar", **env}
    start = WAYS["python" if way == "standard library" else way]
    return run(line=[*start, script.name, *arguments], cwd=folder, env=whose, limit=50)


@pytest.mark.parametrize("way", WAYS)
def test_calls_see_what_processes_of_the_standard_library_see(tmp_path, way):
    (tmp_path / "work").mkdir()
    (tmp_path / "text").write_text("read-at-top")
    words, gone = ["--power", "3"], {"GONE": "not yet"}
    right = under_python(tmp_path, LIKE_PYTHON, *words, way="standard library", env=gone)
    assert right.stdout.startswith("8 read-at-top ['script.py', '--power', '3']"), right.stderr
    done = under_python(tmp_path, LIKE_PYTHON, *words, way=way, env=gone)
    assert done.stdout == right.stdout, done.stderr


POOLS = """
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from joblib import Parallel, delayed
from mpipar import Executor

def negative(x):
    return -x

def pools(kind):
    if kind == "joblib":
        return sum(Parallel(n_jobs=2)(delayed(negative)(x) for x in range(5)))
    pool = {"threads": ThreadPoolExecutor, "processes": ProcessPoolExecutor}[kind](2)
    pools.kept = pool
    return sum(pool.map(negative, range(5)))

if __name__ == "__main__":
    if sys.argv[2] == "script":
        print(pools(sys.argv[1]))
    else:
        with Executor(2) as executor:
            print(executor.submit(pools, sys.argv[1]).result())
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "words", [("threads", "script"), ("joblib", "script"), ("joblib", "call"), ("threads", "call")]
)
def test_pools_that_are_left_open_keep_nothing_from_ending(tmp_path, way, words):
    done = under_python(tmp_path, POOLS, *words, way=way)
    assert (done.returncode, done.stdout) == (0, "-10\n"), done.stderr


ENDING = """
import ctypes, os, sys
from mpipar import Executor

def end(how):
    if how == "os._exit":
        os._exit(3)
    ctypes.CDLL(None).exit(1)

if __name__ == "__main__":
    with Executor() as executor:
        print(type(executor.submit(end, sys.argv[1]).exception()).__name__)
        print(executor.submit(abs, -1).result())
"""


@pytest.mark.skipif(not tolerates_faults(), reason="this MPI ends a job that has lost a rank")
@pytest.mark.parametrize("how", ["os._exit", "exit of C"])
def test_call_that_ends_its_rank_with_an_exit_code_costs_no_other(tmp_path, how):
    script = tmp_path / "ending.py"
    script.write_text(ENDING)
    done = job(6, script, how, options=TOLERANT)
    assert (done.returncode, done.stdout) == (0, "TaskFailedError\n1\n"), done.stderr


PAGE = (ROOT / "docs" / "executor.md").read_text()
EXAMPLES = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_of_the_page_run(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    done = run(line=[*EXEC, "--parallel=thread:2", tmp_path / name])
    assert done.returncode == 0, done.stderr
    assert done.stdout
