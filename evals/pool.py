"""Processes for runs that end with the command that started them, however it ends."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def worker_pool(n_jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `n_jobs` processes, and a folder for what they write that goes with it.

    Where the block ends by an exception, Ctrl-C for one, what is queued is dropped and what is running is ended.
    """
    # Read when polars is imported, so before a worker begins. On small frames a second thread cost a run 9 % of its time.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    # A forked child would inherit the locks of threads that it lacks: polars then waits for ever.
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="steady-eval-", ignore_cleanup_errors=True) as folder:
        pool = ProcessPoolExecutor(n_jobs, mp_context=spawned, initializer=_begin_worker, initargs=(folder,))
        before = {process.pid for process in multiprocessing.active_children()}
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process.pid not in before:
                    process.kill()
                    process.join()
            raise
        pool.shutdown()


def _begin_worker(folder: str) -> None:
    # Ctrl-C reaches the whole group of processes; the one that was asked to stop ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tempfile.tempdir = folder
    # What a crew logs about its simulated platform is no news of the evaluation, and drowned the progress.
    logging.getLogger("steadyhand").addHandler(logging.NullHandler())
    # Imported modules are no garbage, and looking for cycles every 700 objects cost a run 7 % of its time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    # Each worker has a core; on small matrices a second thread mostly spins.
    threadpool_limits(1)


def _end_with_parent() -> None:
    """A worker holds both ends of its queue, and would wait for ever for a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
