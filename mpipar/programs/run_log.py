"""run.log: what was run, where and with what, and what was said, for who has the folder only."""

from __future__ import annotations

import shlex
import socket
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from mpipar.errors import MpiparError
from mpipar.programs import checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpipar.runtime.pool import Pool
    from mpipar.store.project import Project

LOG: Final = "run.log"


class RunLog:
    """The text of run.log: for each start command, hosts and versions, then the lines said.

    project   its folder; what an earlier start has left in run.log stays before the new lines
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lines: list[str] = []
        self._before = ""
        if (project.path / LOG).exists():
            self._before = (project.path / LOG).read_text(encoding="utf-8", errors="replace") + "\n"

    def begin(self, pool: Pool, device: str = "") -> None:
        """Note what was started, where, and with what.

        device   the GPU and its libraries, if one aligns
        """
        versions = ", ".join(f"{k} {v}" for k, v in checkpoints.environment(device).items())
        ranks = Counter(hello.host for hello in pool.hosts.values())
        hosts = ", ".join(f"{host} ({count})" for host, count in ranks.items())
        self.add(f"command: {shlex.join(['mpipar', *sys.argv[1:]])}")
        self.add(f"hosts: rank 0 on {socket.gethostname()}; workers on {hosts}")
        self.add(f"workers: {pool.description}")
        self.add(f"versions: {versions}")

    def add(self, line: str) -> None:
        """Note a line, with the time."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Publish the log at the end of what is done inside, which may be an error."""
        try:
            yield
        except MpiparError as error:
            self.add(f"ended: {error}")
            if self._project.commits():  # else the folder is removed
                with suppress(MpiparError):  # a full disk; a writer that was passed over
                    self.publish()
            raise
        self.publish()

    def publish(self) -> None:
        """Replace run.log by what has been noted until now."""
        text = self._before + "".join(f"{line}\n" for line in self._lines)
        with self._project.export(LOG) as path:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
