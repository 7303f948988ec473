"""Workers of the evaluation end with the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from evals.pool import worker_pool

LONG = 300.0
PARENT = """
import os, time
from evals.pool import worker_pool
if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 300).result()
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_exception_ends_what_runs_drops_what_is_queued_and_removes_what_was_written() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        pid = pool.submit(os.getpid).result()
        folder = Path(pool.submit(tempfile.mkdtemp).result()).parent
        for _ in range(3):
            pool.submit(time.sleep, LONG)
        assert folder.is_dir()
        raise KeyboardInterrupt

    assert time.monotonic() - began < LONG
    assert gone(pid)
    assert not folder.exists()


def test_workers_ignore_ctrl_c_which_reaches_the_whole_group() -> None:
    with worker_pool(1) as pool:
        os.kill(pool.submit(os.getpid).result(), signal.SIGINT)
        assert pool.submit(sum, [1, 1]).result() == 2


def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()

    deadline = time.monotonic() + 60
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)
