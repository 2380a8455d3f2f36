"""The errors of IMP.parallel."""

from __future__ import annotations

from mpipar.errors import MpiparError

__all__ = ["Error", "NetworkError", "NoMoreWorkersError", "RemoteError"]


class Error(MpiparError):
    """Base of the errors of this interface."""

    exit_code = 70


class NoMoreWorkersError(Error):
    """There is no worker (left) to run tasks. The tasks stay in their context."""

    exit_code = 75


class NetworkError(Error):
    """No worker has started, or all workers have been silent for too long. The tasks stay."""

    exit_code = 69


class RemoteError(Error):
    """A task or a setup raised on a worker, or took down its worker again and again."""

    def __init__(self, exc: BaseException, traceback: str, worker: object) -> None:
        super().__init__(exc, traceback, worker)
        self.exc = exc
        self.traceback = traceback  # as text
        self.worker = worker  # host and process, as text

    def __str__(self) -> str:
        return (
            f"{type(self.exc).__name__}: {self.exc} from {self.worker}\n"
            f"Remote traceback:\n{self.traceback}"
        )
