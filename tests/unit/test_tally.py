from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TALLY = Path(__file__).parents[1] / "support" / "tally.py"
GOOD = '<testcase classname="c" name="good"/>'
BAD = '<testcase classname="c" name="good"><failure>x</failure></testcase>'
SKIPPED = '<testcase classname="c" name="left"><skipped/></testcase>'


def tier(folder, name, end, *files):
    (folder / name).mkdir()
    (folder / name / "end").write_text(end)
    for number, cases in enumerate(files):
        text = f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
        (folder / name / f"{number}.xml").write_text(text)


def tally(folder):
    done = subprocess.run(
        [sys.executable, TALLY, folder], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_test_on_several_ranks_is_one_test(tmp_path):
    tier(tmp_path, "mpi-2", "0 3", GOOD + SKIPPED, GOOD + SKIPPED)
    assert tally(tmp_path)[0] == 0
    assert tally(tmp_path)[1][-1] == "total: 1 passed, 0 failed, 1 skipped"


def test_failure_on_any_rank_fails_the_test(tmp_path):
    tier(tmp_path, "mpi-2", "1 3", GOOD, BAD)
    assert tally(tmp_path)[0] == 1
    assert tally(tmp_path)[1][-1] == "total: 0 passed, 1 failed, 0 skipped"


def test_tier_without_tests_has_failed(tmp_path):
    tier(tmp_path, "unit", "5 0", "")
    tier(tmp_path, "mpi-1", "0 0", SKIPPED)
    code, lines = tally(tmp_path)
    assert code == 1
    assert sum("ran no test" in line for line in lines) == 2
    assert lines[-1] == "total: 0 passed, 2 failed, 1 skipped"


def test_tier_that_ended_badly_has_failed_though_its_tests_passed(tmp_path):
    tier(tmp_path, "unit", "134 0", GOOD)
    tier(tmp_path, "jobs", "124 1800", GOOD)
    code, lines = tally(tmp_path)
    assert code == 1
    assert any("ended with exit code 134" in line for line in lines)
    assert any("time limit" in line for line in lines)


def test_tier_that_was_left_out_is_skipped_not_failed(tmp_path):
    tier(tmp_path, "unit", "0 1", GOOD)
    tier(tmp_path, "cluster", "left-out 0")
    assert tally(tmp_path) == (0, tally(tmp_path)[1])
    assert tally(tmp_path)[1][-1] == "total: 1 passed, 0 failed, 1 skipped"


def test_tier_that_cannot_run_here_says_why(tmp_path):
    tier(tmp_path, "unit-3.99", "left-out 0 no Python 3.99 here")
    tier(tmp_path, "lint", "0 3", GOOD)
    code, lines = tally(tmp_path)
    assert code == 0
    assert any(line.endswith("  no Python 3.99 here") for line in lines)
