"""The lock files fit setup.cfg: `bash tests/lock.sh` was run after the last change there."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
EXTRAS = ("openmpi", "mpich", "test", "lint")


def requirements(*extras: str) -> list[Requirement]:
    """What mpipar itself needs, or what some of its extras add."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options.extras_require"][extra] for extra in extras]
    lines = "\n".join(texts or [config["options"]["install_requires"]]).splitlines()
    return [Requirement(line) for line in lines if line]


def locked(name: str) -> dict[str, set[str]]:
    """Versions of each package in a lock file; several where Pythons differ."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "tests" / name).read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^ ;]+)", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def test_everything_is_locked_at_a_version_that_is_allowed():
    versions = locked("requirements.lock")
    for one in requirements() + requirements(*EXTRAS):
        assert versions.get(one.name), f"{one.name} is not locked"
        assert all(one.specifier.contains(version) for version in versions[one.name]), one


def test_the_lowest_versions_are_those_that_are_allowed():
    """A bound such as 1.17 may be 1.17.1; what an older Python needs is not in that file."""
    versions = locked("requirements-lowest.lock")
    for one in requirements():
        (lowest,) = one.specifier
        if one.marker is None:
            assert lowest.operator == ">="
            (version,) = versions[one.name]
            assert f"{version}.".startswith(f"{lowest.version}."), one


def test_no_lock_file_names_an_index():
    for path in (ROOT / "tests").glob("*.lock"):
        assert "://" not in path.read_text()
