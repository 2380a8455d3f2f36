"""Run the checkers of code and scripts; write their verdicts as a JUnit file."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("jobs/**/*.s*", "slurm/**/*.s*", "tests/**/*.sh", ".ci/run")
    for path in ROOT.glob(pattern)
    if path.suffix in {".sh", ".sge", ".sbatch", ""} and path.is_file()
)
CHECKERS = {
    "ruff": ["ruff", "check", "."],
    "ruff-format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
    "shellcheck": ["shellcheck", "--shell=bash", *SCRIPTS],
}


def main(junit: str) -> int:
    """Run all checkers, also after one has failed."""
    suite = ET.Element("testsuite", name="lint")
    failed = 0
    for name, (program, *arguments) in CHECKERS.items():
        begin = time.monotonic()
        done = subprocess.run(
            [BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - begin
        print(f"{name}: {'failed' if done.returncode else 'passed'}  ({seconds:.1f} s)", flush=True)
        case = ET.SubElement(suite, "testcase", name=name, time=f"{seconds:.3f}")
        if done.returncode:
            failed += 1
            said = done.stdout + done.stderr
            print(said, flush=True)
            ET.SubElement(case, "failure", message=f"{name} failed").text = said
    ET.ElementTree(suite).write(junit, encoding="utf-8", xml_declaration=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
