"""Programs of other people's libraries on `mpipar.Executor`: `python -m tests.support.libraries`.

Each prints what its library found, which depends on no worker, and so is the same on any number.
"""

from __future__ import annotations

import asyncio
import sys

import emcee
import joblib
import numpy as np
from scipy.optimize import Bounds, differential_evolution
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import mpipar.joblib  # noqa: F401  # which makes the backend known
from mpipar import Executor

X = np.linspace(0, 1, 1000)
Y = 2 * X + 1 + np.random.default_rng(1).normal(0, 0.1, X.size)


def log_probability(line):
    slope, offset = line
    return -0.5 * np.sum((Y - slope * X - offset) ** 2) / 0.01


def with_emcee():
    """Arrays as arguments, thousands of short calls, in rounds."""
    start = np.random.default_rng(2).normal(1, 0.1, (32, 2))
    with Executor() as pool:
        sampler = emcee.EnsembleSampler(32, 2, log_probability, pool=pool)
        sampler.random_state = np.random.RandomState(3).get_state()
        sampler.run_mcmc(start, 100)
    return sampler.get_chain(flat=True).sum(axis=0).tolist()


def spring(lengths):
    return float(np.sum((lengths - np.arange(lengths.size)) ** 2))


def with_scipy():
    """Not an executor, but its `map`."""
    bounds = Bounds([-5.0] * 4, [5.0] * 4)
    with Executor() as executor:
        found = differential_evolution(
            spring, bounds, workers=executor.map, updating="deferred", rng=1, maxiter=30
        )
    return found.x.tolist()


def with_sklearn():
    """A grid search, by joblib's backend."""
    images, digits = load_digits(n_class=4, return_X_y=True)
    with joblib.parallel_config(backend="mpipar"):
        grid = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [1e-3, 1e-2]}, cv=3)
        grid.fit(images, digits)
    return grid.cv_results_["mean_test_score"].tolist()


def with_joblib():
    """Generators, failing calls, and another use after them."""
    with joblib.parallel_config(backend="mpipar"):
        calls = (joblib.delayed(divmod)(1000, n) for n in range(1, 200))
        values = list(joblib.Parallel(return_as="generator")(calls))
        try:
            joblib.Parallel()(joblib.delayed(divmod)(1, n) for n in range(100))
        except ZeroDivisionError as error:
            values.append(str(error))
        with joblib.Parallel(n_jobs=2) as parallel:
            values += parallel(joblib.delayed(abs)(-n) for n in range(10))
    return values


def with_asyncio():
    """Coroutines that wait for calls."""

    async def gather(executor):
        here = asyncio.get_running_loop()
        return await asyncio.gather(
            *(here.run_in_executor(executor, divmod, 100, n) for n in range(1, 50))
        )

    with Executor() as executor:
        return asyncio.run(gather(executor))


PROGRAMS = {
    "emcee": with_emcee,
    "scipy": with_scipy,
    "sklearn": with_sklearn,
    "joblib": with_joblib,
    "asyncio": with_asyncio,
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, PROGRAMS[name](), flush=True)
