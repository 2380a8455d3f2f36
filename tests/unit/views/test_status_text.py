"""A run's status as lines, several as a table."""

from __future__ import annotations

from typing import Any

from mpipar.views.status_text import status_lines, status_table

WIDTH = 80
NOTHING: dict[str, Any] = dict.fromkeys(
    [
        *("phase", "done", "total", "unit", "phase_seconds_left", "run_seconds_left", "running"),
        *("failed", "retried", "done_before", "workers", "tasks", "bytes_served", "master_memory"),
        *("iteration", "resolution", "verdict", "exit_code", "created", "writer", "kind"),
    ]
) | {
    "folder": "/data/refine_01",
    "state": "unreadable",
    "reason": "how the latest run stands cannot be read",
    "iterations": [],
}
REFINE = NOTHING | {
    "kind": "refine",
    "state": "running",
    "reason": "the latest run has not closed it (process 1234 on node17.cluster.example.org, slurm "
    "job 4711 (restart 2), since 2026-11-26 22:10:00 +0100); last heart-beat 3 s ago",
    "created": 1.7e9,
    "writer": {
        "host": "node17.cluster.example.org",
        "epoch": 3,
        "job": {"system": "slurm", "id": "4711", "restarts": 2, "state": "unknown"},
    },
    "phase": "iteration 2: soft",
    "done": 250,
    "total": 1000,
    "unit": "particles",
    "phase_seconds_left": 61.0,
    "run_seconds_left": [300.0, 900.0],
    "workers": {"alive": 63, "busy": 60, "late": 1, "lost": 2},
    "tasks": {"done": 30, "total": 131, "stolen": 4, "run_again": 5},
    "bytes_served": 2_000_000_000,
    "master_memory": 1_500_000_000,
    "iteration": 1,
    "resolution": 59.731,
    "iterations": [{"iteration": 1, "kind": "soft", "resolution": 59.731, "jumped": 1.0}],
}
RUN = NOTHING | {
    "folder": "/data/run_01",
    "kind": "run",
    "state": "failed",
    "phase": "commands",
    "done": 3,
    "total": 3,
    "unit": "commands",
    "running": 0,
    "failed": 1,
    "retried": 2,
    "done_before": 5,
    "writer": {"host": "n1", "epoch": 1, "job": None},
}


def test_a_refinement_under_way():
    lines = status_lines(REFINE)
    assert lines[0] == "refine_01: running"
    text = "\n".join(lines)
    assert "started 3 times" in text
    assert "  slurm job 4711, restart 2\n" in text
    assert "  iteration 2: soft, 250 of 1000, the run: about 5 to 15 min left\n" in text
    assert "  1 iteration finished, resolution 59.73 A\n" in text
    assert "  workers: 63 alive (60 busy, 1 late), 2 lost\n" in text
    assert "  tasks: 30 of 131 done, 4 stolen, 5 run again\n" in text
    assert "  rank 0: 2000 MB served, 1.5 GB memory at most\n" in text
    assert lines[-1].split() == ["1", "soft", "59.73", "100.00"]
    assert max(map(len, lines)) <= WIDTH


def test_a_list_of_commands():
    text = "\n".join(status_lines(RUN))
    assert "commands: 0 running, 1 failed, 2 tried again, 5 done in earlier starts" in text
    assert "left" not in text


def test_of_an_unreadable_run_little_is_said():
    assert status_lines(NOTHING) == [
        "refine_01: unreadable",
        "  how the latest run stands cannot be read",
    ]


def test_table():
    lines = status_table([REFINE, RUN, NOTHING])
    head, refine, run, nothing = lines
    columns = [head.index(word) for word in ("run", "state", "doing", "resolution", "left", "job")]
    assert [refine[at:].split("  ")[0] for at in columns] == [
        "refine_01",
        "running",
        "iteration 2: soft 25%",
        "59.73 A",
        "5 to 15 min",
        "slurm 4711",
    ]
    assert run.split("  ")[-1] == "n1"
    assert "3 of 3 commands" in run
    assert nothing.split() == ["refine_01", "unreadable", "-", "-", "-", "-"]
    assert max(map(len, status_table([REFINE, RUN]))) <= WIDTH
