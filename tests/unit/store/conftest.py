"""Fixtures of the store's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.store.projects import create

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "refine_01"


@pytest.fixture
def project(path: Path):
    with create(path) as project:
        yield project
