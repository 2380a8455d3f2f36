"""The script of a batch job, as `mpipar submit` writes it into the run's folder.

scheduler --> job.sh --> (of an array: the script of one run) --> python -m mpipar ... --> verdict
^                                                                            |
+--------------- cut off, and not for good: queued again <-------------------+
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mpipar.submit_settings import SubmitSettings

__all__ = ["JobRun", "array_script", "run_script"]

BEFORE_LIMIT: Final = 120  # seconds before the time limit at which a run is told to end
SHARE_OF_LIMIT: Final = 0.1  # of a short time limit

SLURM: Final = """\
ranks=${SLURM_NTASKS:-1}
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # one task, not the array
id=${id:-$SLURM_JOB_ID}
restarts=${SLURM_RESTART_COUNT:-0}
this=("$SLURM_JOB_ID" "$restarts")       # as verdict.json names this start
limit=()
again() { scontrol requeue "$id"; }
trap 'stopped=limit; kill -USR1 $job' USR1 # the time is nearly over
trap 'stopped=end; kill -TERM $job' TERM # scancel, preemption: if it is to go on, SLURM knows
"""

GRID_ENGINE: Final = """\
export PATH=${SGE_O_PATH:-$PATH}         # -V leaves it out; qrsh and qsub are found by it
ranks=${NSLOTS:-1}
id=$JOB_ID
restarts=$(($(cat job/ids 2>/dev/null | wc -l) - 1)) # it submits itself again: a line each time
[ $restarts -ge 0 ] || restarts=0        # the first line is still to be written
this=("$JOB_ID")
limit=(@LIMIT@)
again() {                                # a parallel job that exits with 99 may never start again
    new=$(qsub -terse job/job.sh </dev/null) && echo "${new%%.*}" >>job/ids
}
trap 'stopped=end; kill -USR1 $job' USR2 # about to be killed: qdel, h_rt
"""

RUN: Final = """\
#!/bin/bash
@DIRECTIVES@
# Made by `mpipar submit`. It may be submitted again by hand: it goes on where the run stopped.

cd @FOLDER@ || exit 74
run=$PWD
exec </dev/null >>job/log.txt 2>&1
job=
stopped=
@SYSTEM@
@SETUP@
python=@PYTHON@
command=(@COMMAND@)
begun() { compgen -G "$run/epoch/*.claim" >/dev/null; }
if begun; then command+=(--resume); fi

echo "submit: job $id, restart $restarts, $ranks ranks"
cd @WORK@ || exit 74
"${limit[@]}" "$python" -m mpipar "${command[@]}" --parallel="mpi:$ranks" &
job=$!
while kill -0 $job 2>/dev/null; do wait $job; done # a signal ends `wait`, not the ranks
wait $job
code=$?
trap '' USR1 USR2
trap - TERM
cd "$run" || exit 74

# How it ended is what verdict.json says of this very start: `requeue`, if it was killed.
verdict=$("$python" -c '
import json, sys
end = json.load(open("verdict.json"))
this = [end["job"].partition(".")[0], str(end["restarts"])]
print(end["verdict"] if this[: len(sys.argv) - 1] == sys.argv[1:] else "none")' \\
    "${this[@]}" 2>/dev/null) || verdict=none
echo "submit: verdict $verdict, exit code $code${stopped:+, stopped: $stopped}"
case $verdict:$code:$stopped in
    done:*) exit 0 ;;
    failed:*:limit) ;;                   # in the turmoil of the end; if not, it will fail again
    failed:*) exit $code ;;
    *:end) exit 143 ;;
    requeue:74:) exit 74 ;;              # the disk is full, and will be: make room, submit again
    none:6[4-9]: | none:7[0-4]: | none:12[67]:) exit $code ;; # refused; the reason is above
    none:75:) "$python" -m mpipar status . 2>/dev/null | grep -q ': running$' && exit 75 ;;
esac
if ! begun && [ $code != 75 ] && [ -z "$stopped" ]; then
    exit $((code ? code : 1))            # it did not even start
fi
if [ "$restarts" -ge @MAX_RESTARTS@ ]; then
    echo "submit: not queued again after $restarts restarts; to go on: mpipar submit ... --resume"
    exit 75
fi
echo "submit: queueing the job again"
again
"""

ARRAY: Final = """\
#!/bin/bash
@DIRECTIVES@
# Made by `mpipar submit --array`: each task of this job is one of these runs.

runs=(
@RUNS@
)
exec bash "${runs[$((@TASK@ - 1))]}/job/job.sh"
"""


@dataclass(frozen=True)
class JobRun:
    """One run of a job."""

    folder: Path  # absolute
    command: tuple[str, ...]  # of mpipar: `refine`, its options, and --path
    work: Path  # the folder in which it was submitted
    threads: int  # of each rank


def run_script(system: str, settings: SubmitSettings, run: JobRun, python: str) -> str:
    """Return the script of one run.

    system   "slurm" or "sge"
    python   the program that runs mpipar
    """
    seconds = settings.seconds
    limit = ""
    if seconds is not None:
        ends = seconds - min(BEFORE_LIMIT, SHARE_OF_LIMIT * seconds)
        limit = f"timeout --signal=USR1 --kill-after={BEFORE_LIMIT} {ends:.0f}"
    words = {
        "SYSTEM": SLURM if system == "slurm" else GRID_ENGINE.replace("@LIMIT@", limit),
        "DIRECTIVES": _directives(system, settings, run),
        "FOLDER": shlex.quote(str(run.folder)),
        "SETUP": settings.setup or "# no shell commands before the run",
        "PYTHON": shlex.quote(python),
        "COMMAND": shlex.join(run.command),
        "WORK": shlex.quote(str(run.work)),
        "MAX_RESTARTS": str(settings.max_restarts),
    }
    return _filled(RUN, words)


def array_script(system: str, settings: SubmitSettings, runs: Sequence[JobRun]) -> str:
    """Return the script of a job array, whose tasks run the scripts of these runs."""
    task = "SLURM_ARRAY_TASK_ID" if system == "slurm" else "SGE_TASK_ID"
    words = {
        "DIRECTIVES": _directives(system, settings, runs[0], array=len(runs)),
        "RUNS": "\n".join(f"    {shlex.quote(str(run.folder))}" for run in runs),
        "TASK": task,
    }
    return _filled(ARRAY, words)


def _filled(template: str, words: dict[str, str]) -> str:
    """Put words into a template; what they hold is not looked at again."""
    for name, text in words.items():
        template = template.replace(f"@{name}@", text.replace("@", "\0"))
    return template.replace("\0", "@")


def _directives(system: str, settings: SubmitSettings, run: JobRun, array: int = 0) -> str:
    lines = _slurm(settings, run, array) if system == "slurm" else _sge(settings, run, array)
    more = re.split(r"[;\n]", settings.directives or "")
    lines += [line for line in map(str.strip, more) if line]
    mark = "#SBATCH" if system == "slurm" else "#$"
    return "\n".join(f"{mark} {line.removeprefix(mark).strip()}" for line in lines)


def _slurm(settings: SubmitSettings, run: JobRun, array: int) -> list[str]:
    asked = {
        "nodes": settings.nodes,
        "ntasks": settings.ntasks,
        "cpus-per-task": run.threads if run.threads > 1 else None,
        "mem-per-cpu": settings.memory and _share(settings.memory, run.threads),
        "time": settings.seconds and -(-settings.seconds // 60),
        "partition": settings.partition,
        "account": settings.account,
        "array": f"1-{array}" if array else None,
    }
    lines = [f"--job-name={_name(run)}"]
    lines += [f"--{name}={value}" for name, value in asked.items() if value is not None]
    before = BEFORE_LIMIT
    if settings.seconds is not None:
        before = round(min(BEFORE_LIMIT, SHARE_OF_LIMIT * settings.seconds))
    log = str(run.folder / "job" / "scheduler.txt").replace("%", "%%")
    return [
        *lines,
        f"--signal=B:USR1@{before}",
        "--requeue",
        "--open-mode=append",
        f'--output="{log}"',
    ]


def _share(memory: str, threads: int) -> str:
    """Return a rank's memory for each of its processors, in SLURM's megabytes."""
    number, unit = (memory[:-1], memory[-1]) if memory[-1].isalpha() else (memory, "M")
    megabytes = int(number) * {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[unit]
    return f"{-(-megabytes // threads):.0f}M"


def _sge(settings: SubmitSettings, run: JobRun, array: int) -> list[str]:
    log = run.folder / "job" / "scheduler.txt"
    asked = {
        "-l h_rt=": settings.seconds,
        "-l h_vmem=": settings.memory,
        "-q ": settings.partition,
        "-P ": settings.account,
        "-t ": f"1-{array}" if array else None,
    }
    return [
        f"-N {_name(run)}",
        f"-pe {settings.parallel_environment} {settings.ntasks}",
        *(f"{name}{value}" for name, value in asked.items() if value is not None),
        "-S /bin/bash",
        "-V",
        "-notify",
        "-j y",
        f'-o "{log}"',
    ]


def _name(run: JobRun) -> str:
    """Return a name that both schedulers take for a job."""
    name = re.sub(r"[^\w.-]", "_", run.folder.name)
    return name if name[:1].isalpha() else f"run_{name}"
