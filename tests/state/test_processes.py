"""Real processes, really killed: what is committed is there, what is not is not, and a stale one is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from state import audit, leases, ledger, log
from state.database import Database
from state.keys import Signer
from tests.state.support import change, mark

SIGNER = Signer("steadyhand.test/log", bytes(32))

# Runs the ledger through one action and stops, so that the test can kill it, at the step that it is told.
WORKER = """
import sys, time
from state import ledger, leases
from state.database import Database
from tests.state.support import change, commit, mark

url, owner, stop_at = sys.argv[1:]

def step(name):
    if name == stop_at:
        print("at", name, flush=True)
        time.sleep(60)

with Database.open(url) as db:
    with db.transaction() as conn:
        lease = leases.acquire(conn, "model:flights", owner, 0)
    step("leased")
    with db.transaction() as conn:
        intent = commit(conn, lease.fence)
        step("committing")
    step("intended")
    for state in ("acting", "done", "verified"):
        with db.transaction() as conn:
            mark(conn, lease.fence, change(intent, state))
            step(f"marking {state}")
        step(state)
"""


def start(url: str, stop_at: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, url, "worker-1", stop_at], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == f"at {stop_at}\n"
    return worker


def kill(worker: subprocess.Popen[str]) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert worker.stdout is not None
    worker.stdout.close()


@pytest.mark.parametrize(
    ("stop_at", "left"),
    [
        ("committing", None),
        ("intended", "intended"),
        ("marking acting", "intended"),
        ("acting", "acting"),
        ("marking done", "acting"),
        ("done", "done"),
        ("marking verified", "done"),
        ("verified", "verified"),
    ],
)
def test_after_a_kill_at_any_step_another_worker_finishes_the_action(
    db: Database, url: str, tmp_path: Path, stop_at: str, left: str | None
) -> None:
    kill(start(url, stop_at))

    with db.transaction() as conn:
        lease = leases.acquire(conn, "model:flights", "worker-2", 60)
        assert lease is not None
        rows = ledger.open_actions(conn, "flights")
        assert [row.state for row in rows] == ([left] if left not in (None, "verified") else [])
    for row in rows:
        with db.transaction() as conn:
            intent = ledger.reopen(conn, row.id, lease.fence)
        assert intent.epoch == 2
        for state in {"intended": ("acting", "done", "verified"), "acting": ("acting", "done", "verified")}.get(
            row.state, ("verified",)
        ):
            with db.transaction() as conn:
                mark(conn, lease.fence, change(intent, state))  # type: ignore[arg-type]
    log.checkpoint(db, SIGNER, tmp_path / "second")

    with db.snapshot() as conn:
        assert ledger.open_actions(conn, "flights") == []
        verified = ledger.last_verified(conn, "flights", "train_candidates")
        assert (verified is None) == (left is None)
    result = audit.verify(db, tmp_path / "second", SIGNER.vkey)
    assert result.ok, result.problems


def test_a_stopped_process_that_wakes_up_late_changes_nothing(db: Database, url: str) -> None:
    worker = start(url, "leased")
    try:
        with db.transaction() as conn:
            lease = leases.acquire(conn, "model:flights", "worker-2", 60)
        assert lease is not None
        assert lease.epoch == 2
    finally:
        kill(worker)
    root = Path(__file__).parents[2]
    late = WORKER.replace(
        'leases.acquire(conn, "model:flights", owner, 0)', 'leases.Lease(scope="model:flights", owner=owner, epoch=1)'
    )
    woken = subprocess.run(
        [sys.executable, "-c", late, url, "worker-1", "never"], capture_output=True, text=True, cwd=root, check=False
    )

    assert woken.returncode == 1
    assert "StaleRevision: lease 'model:flights' is in epoch 2, not 1" in woken.stderr
    with db.snapshot() as conn:
        assert log.size(conn) == 0
        assert ledger.open_actions(conn, "flights") == []
