"""A crew of threads of this process, as `--parallel=serial` is one; without `launch`."""

from __future__ import annotations

import pytest

from mpipar.interfaces.calls import registry, router
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.stage import Policy


@pytest.fixture
def pool():
    """Three workers, each a thread."""
    with thread_cluster.open_pool(3) as pool:
        yield pool


@pytest.fixture
def crew(pool):
    """Their crew."""
    crew = router.CallRouter(pool, Policy())
    yield crew
    crew.close()


@pytest.fixture
def installed(crew, monkeypatch):
    """That crew is the one of this process."""
    monkeypatch.setattr(registry, "_opener", lambda text: pytest.fail(f"opened {text}"))
    monkeypatch.setattr(registry, "_resolver", lambda text, workers: text or "test")
    monkeypatch.setattr(registry, "_crews", {"test": crew})
    return crew
