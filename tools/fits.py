"""Fits side by side, with the number of threads that keeps them fast beside other load."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from joblib import cpu_count
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

T = TypeVar("T")


@contextmanager
def few_threads(n_workers: int = 1) -> Iterator[None]:
    """Limit OpenMP in this thread to half of the cores over `n_workers`, and one at least.

    OpenMP's threads spin at barriers: beside any other load, a boosted fit of 10,000 rows on both of 2 cores took
    3.0 s against 0.3 s on one.
    """
    cores: int = cpu_count()
    with threadpool_limits(max(1, cores // 2 // n_workers), user_api="openmp"):
        yield


def run_fits(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Results of `tasks` in their order: the cores go to the fits, not to the threads inside one."""
    n_workers = max(1, min(len(tasks), cpu_count()))

    def limited(task: Callable[[], T]) -> T:
        with few_threads(n_workers):
            return task()

    with warnings.catch_warnings(), ThreadPoolExecutor(n_workers) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # `fit_model` reports it with the candidate's name
        return list(pool.map(limited, tasks))
