"""A workspace lives in one time: it goes from a replay to live operation and never back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from console.preflight import Window, check_time
from console.settings import Settings
from console.wiring import this_process
from console.workspace import Workspace, open_workspace
from state import leases, store
from state.errors import InputError
from state.rows import ModelRow, SwitchRow
from tools.processes import start_ticks

PAST = datetime(2024, 3, 1, tzinfo=UTC)
WINDOW = Window(start=PAST, end=PAST + timedelta(days=30))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = open_workspace(Settings(home=tmp_path / "ws"), create=True)
    yield made
    made.close()


def managed(workspace: Workspace, *, at: datetime | None) -> None:
    model = ModelRow(id="loans", spec={}, spec_sha256="0" * 64, base_path=".", added_at=PAST)
    with workspace.db.transaction() as conn:
        store.put(conn, model, fence=None)
        if at is not None:
            store.put(conn, SwitchRow(id="domain_time", body={"at": at.isoformat()}), fence=None)


def test_an_empty_workspace_may_begin_either_way(workspace: Workspace) -> None:
    check_time(workspace, WINDOW)
    check_time(workspace, None)


def test_a_replay_goes_on_and_may_be_followed_by_live_operation(workspace: Workspace) -> None:
    managed(workspace, at=PAST)
    check_time(workspace, WINDOW)
    check_time(workspace, None)


def test_live_operation_does_not_go_back_to_a_replay(workspace: Workspace) -> None:
    managed(workspace, at=None)
    check_time(workspace, None)
    with pytest.raises(InputError, match=r"ws is in live operation: its time cannot go back .* 2024-03-01") as caught:
        check_time(workspace, WINDOW)
    assert "--home" in caught.value.remedy


def test_a_replay_that_stands_in_the_future_is_not_followed_by_the_present(workspace: Workspace) -> None:
    managed(workspace, at=datetime(2200, 1, 1, tzinfo=UTC))
    with pytest.raises(InputError, match="its replay stands at 2200-01-01"):
        check_time(workspace, None)


def test_a_replay_under_way_in_another_process_is_not_ended_from_outside(workspace: Workspace) -> None:
    managed(workspace, at=PAST)
    parent = this_process().replace(
        f"/{os.getpid()}/{start_ticks(os.getpid())}", f"/{os.getppid()}/{start_ticks(os.getppid())}"
    )
    with workspace.db.transaction() as conn:
        leases.acquire(conn, "model/parcels", parent, 600)
    with pytest.raises(InputError, match=f"process {os.getppid()}"):
        check_time(workspace, None)
