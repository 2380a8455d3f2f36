"""A run that has gone wrong says so: once it is sure, at its end, in fsc.txt, in its verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mpipar.programs import convergence, soft_iteration
from tests.support import refine_runs
from tests.support.refine_input import make_input

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SURE_EARLY, AT_THE_END = "wrong contrast", "resolution not past the start"


def test_images_of_the_wrong_contrast_are_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few iterations of each kind, and as if they had been enough to show signal."""
    for name in ("FEWEST_SOFT", "MOST_SOFT", "MOST_EXHAUSTIVE"):
        monkeypatch.setattr(convergence, name, 2)
    for name in ("LEAST_GAIN", "CERTAIN"):
        monkeypatch.setattr(soft_iteration, name, 0.0)
    made, path = make_input(tmp_path / "input"), tmp_path / "run"
    words = made.words("--contrast", "invert", "--path", path, iterations=6)
    done = refine_runs.run_here(words, tmp_path)
    assert done.returncode == 0, done.stderr
    during, _, after = done.stdout.partition("\nresolution ")
    assert during.count(f"\nwarning: {SURE_EARLY}: ") == 1
    assert AT_THE_END not in during
    lines = after.splitlines()
    assert lines[1] == "warnings:"
    assert lines[2].startswith(f"  {AT_THE_END}: ")
    assert any(line.startswith(f"  {SURE_EARLY}: ") for line in lines)
    head = (path / "fsc.txt").read_text().splitlines()
    assert head[0] == "# warnings:"
    assert head[1] == f"# {lines[2]}"
    verdict = json.loads((path / "verdict.json").read_text())
    assert verdict["verdict"] == "done"
    assert verdict["reason"].startswith(f"refinement finished, with warnings: {AT_THE_END}")
