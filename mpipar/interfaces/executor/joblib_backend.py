"""joblib's backend on the workers of the job, and so that of scikit-learn.

joblib calls this API experimental; it is that of its release 1.4, in which `submit` and
`retrieve_result_callback` came: https://joblib.readthedocs.io/en/stable/custom_parallel_backend.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib.parallel import ParallelBackendBase, SequentialBackend

from mpipar.interfaces.executor.executor import Executor

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["JoblibBackend"]


class JoblibBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib is not typed
    """Runs what `joblib.Parallel` is given on an `Executor`, opened for each use of it."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, **words: Any) -> None:
        """`words` are those of `Executor`: parallel, isolate."""
        super().__init__(nesting_level=nesting_level)
        self._words = words
        self._executor: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many of `n_jobs` calls can run at once; -1: all workers, -2: all but one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        workers = self._open().num_workers
        if n_jobs is None:
            return workers
        return min(n_jobs, workers) if n_jobs > 0 else max(1, workers + 1 + n_jobs)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], None] | None = None
    ) -> Future[Any]:
        """Have a batch of calls made; `callback` gets the future when they are over."""
        future = self._open().submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a batch of calls returned, or raise what they raised."""
        return out.result()

    def get_nested_backend(self) -> tuple[SequentialBackend, None]:
        """Calls within calls are made one after the other: the workers are busy with the outer."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def terminate(self) -> None:
        """Take no more calls. The workers stay: they are the job's."""
        self._close(cancel=False)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Drop what no worker has begun. The next call opens another executor, so all is ready."""
        del ensure_ready
        self._close(cancel=True)

    def _open(self) -> Executor:
        if self._executor is None:
            self._executor = Executor(**self._words)
        return self._executor

    def _close(self, *, cancel: bool) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=cancel)
