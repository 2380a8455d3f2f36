"""A crew of threads of this process, as `--parallel=serial` is one; without `launch`."""

from __future__ import annotations

import pytest

from mpipar.interfaces import crew as crews
from mpipar.runtime import local
from mpipar.runtime.stage import Policy


@pytest.fixture
def pool():
    """Three workers, each a thread."""
    with local.open_pool(3) as pool:
        yield pool


@pytest.fixture
def crew(pool):
    """Their crew."""
    crew = crews.Crew(pool, Policy())
    yield crew
    crew.close()


@pytest.fixture
def installed(crew, monkeypatch):
    """That crew is the one of this process."""
    monkeypatch.setattr(crews, "_opener", lambda text: pytest.fail(f"opened {text}"))
    monkeypatch.setattr(crews, "_resolver", lambda text, workers: text or "test")
    monkeypatch.setattr(crews, "_crews", {"test": crew})
    return crew
