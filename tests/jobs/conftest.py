"""Which jobs note the lines that they run, where tests/run.sh asks for coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# They take long, or are suites of others, which behave otherwise where they meet coverage.
UNCOVERED = ("test_executor_", "test_huge_", "test_node_memory", "test_refine_", "test_signals")


@pytest.fixture(autouse=True, scope="module")
def _coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes that these tests start take no notes; the test itself does."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name.startswith(UNCOVERED):
            patch.delenv("COVERAGE_PROCESS_START", raising=False)
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield
