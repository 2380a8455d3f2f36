"""joblib's backend on the workers of the job, and so that of scikit-learn.

joblib calls this API experimental. Its release 1.4 brought `submit` and `retrieve_result_callback`:
https://joblib.readthedocs.io/en/stable/custom_parallel_backend.html
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
    """Runs the calls of `joblib.Parallel` on an `Executor`, opened for each use."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, **options: Any) -> None:
        """`options` are those of `Executor`: parallel, isolate."""
        super().__init__(nesting_level=nesting_level)
        self._options = options
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
        """Have a batch of calls made; `callback` gets the future when the calls are over."""
        future = self._open().submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a batch of calls returned, or raise what they raised."""
        return out.result()

    def get_nested_backend(self) -> tuple[SequentialBackend, None]:
        """Return a backend that runs calls within calls one after the other, on their worker."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def terminate(self) -> None:
        """Take no more calls. The workers stay: they belong to the job."""
        self._close(cancel=False)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Drop the calls that no worker has got. The next call opens another executor."""
        del ensure_ready
        self._close(cancel=True)

    def _open(self) -> Executor:
        if self._executor is None:
            self._executor = Executor(**self._options)
        return self._executor

    def _close(self, *, cancel: bool) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=cancel)
