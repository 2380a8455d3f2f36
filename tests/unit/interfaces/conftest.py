"""Workers that are threads of this process, as with `--parallel=serial`; without `launch`."""

from __future__ import annotations

import pytest

from mpipar.interfaces.calls import registry
from mpipar.interfaces.calls.router import CallRouter
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.stage import Policy


@pytest.fixture
def pool():
    """Three workers, each a thread."""
    with thread_cluster.open_pool(3) as pool:
        yield pool


@pytest.fixture
def router(pool):
    """Their router."""
    router = CallRouter(pool, Policy())
    yield router
    router.close()


@pytest.fixture
def installed(router, monkeypatch):
    """That router is the one of this process."""
    monkeypatch.setattr(registry, "_opener", lambda text: pytest.fail(f"opened {text}"))
    monkeypatch.setattr(registry, "_resolver", lambda text, workers: text or "test")
    monkeypatch.setattr(registry, "_routers", {"test": router})
    return router
