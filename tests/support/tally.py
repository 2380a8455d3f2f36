"""Summary of a run of tests/run.sh, from the JUnit files of its tiers.

A test that ran on several ranks is one test, failed if it failed on any. A tier that ended badly,
or ran no test, or only skipped, has failed, whatever its files say.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

RANKING = ("passed", "skipped", "failed")  # worst last


@dataclass(frozen=True)
class Tier:
    """What became of one tier."""

    name: str
    seconds: int
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    trouble: str = ""  # why the tier failed, beyond tests that failed
    note: str = ""  # why the tier was left out

    @property
    def is_bad(self) -> bool:
        return bool(self.failed or self.trouble)


def verdict(case: ET.Element) -> str:
    """Passed, skipped or failed."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def verdicts(files: list[Path]) -> list[str]:
    """Verdict of each test, the worst of all ranks."""
    worst: dict[tuple[str, str], str] = {}
    for file in files:
        for case in ET.parse(file).iter("testcase"):
            test = (case.get("classname", ""), case.get("name", ""))
            worst[test] = max(worst.get(test, "passed"), verdict(case), key=RANKING.index)
    return list(worst.values())


def tally(folder: Path) -> Tier:
    """What became of the tier that left this folder."""
    code, seconds, *reason = (folder / "end").read_text(encoding="utf-8").split(maxsplit=2)
    if code == "left-out":
        return Tier(folder.name, 0, skipped=1, note=" ".join(reason).strip())
    try:
        found = verdicts(sorted(folder.glob("*.xml")))
    except ET.ParseError as error:
        return Tier(folder.name, int(seconds), failed=1, trouble=f"broken JUnit file: {error}")
    passed, skipped, failed = (found.count(word) for word in RANKING)
    trouble = ""
    if passed + failed == 0:
        trouble = "ran no test"
    elif code == "124":
        trouble = "ran into its time limit"
    elif code != "0" and not failed:
        trouble = f"ended with exit code {code}"
    return Tier(folder.name, int(seconds), passed, failed or int(trouble != ""), skipped, trouble)


def main(results: str) -> int:
    """Print the table and the total."""
    ends = sorted(Path(results).glob("*/end"), key=lambda end: end.stat().st_mtime_ns)
    tiers = [tally(end.parent) for end in ends]
    print(f"\n{'tier':12} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
    for t in tiers:
        row = f"{t.name:12} {t.passed:7} {t.failed:7} {t.skipped:8} {t.seconds:8}"
        print(f"{row}  {t.trouble or t.note}".rstrip())
    passed, failed, skipped = (
        sum(getattr(t, word) for t in tiers) for word in ("passed", "failed", "skipped")
    )
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if not tiers or any(t.is_bad for t in tiers) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
