"""A refinement whose pool's statistics are recorded.

`python -m tests.support.pool_statistics RECORD refine ...` is mpipar's command line; rank 0 also
writes the statistics of each run of the pool to the file RECORD.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import jobs

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence


def recorded(
    words: Sequence[str],
    record: Path,
    *,
    ranks: int | None = None,
    env: Mapping[str, str] = jobs.NOTHING,
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run a refinement; also return the statistics of each run of its pool."""
    assert words[0] == "mpipar"
    done = jobs.run(["tests.support.pool_statistics", record, *words[1:]], ranks=ranks, env=env)
    return done, json.loads(record.read_text()) if record.exists() else []


def main(record: Path, arguments: list[str]) -> int:
    """mpipar's command line, with the pool's statistics written to a file."""
    from mpipar.cli import main as command_line
    from mpipar.launch import prepare_process

    prepare_process()
    from mpipar.runtime.pool import Pool

    really, kept = Pool.run, list[dict[str, Any]]()

    def noted(pool: Pool, stage: Any, shared: Any, tasks: Any, **more: Any) -> Any:
        outcome = really(pool, stage, shared, tasks, **more)
        kept.append(
            {"stage": type(stage).__name__, "tasks": len(tasks), **vars(outcome.statistics)}
        )
        record.write_text(json.dumps(kept))
        return outcome

    Pool.run = noted  # type: ignore[method-assign,assignment]
    return command_line.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
