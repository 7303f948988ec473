from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from evals.world.platform import build
from tests.contract.support import MODEL, START, TRUTH, Side, at, new_world, source_rows
from tools.data import WorkspaceData
from tools.importer import import_files
from tools.ports import Data

SCHEMA = {
    "request_id": pl.Utf8(), "entity": pl.Utf8(), "event_time": pl.Datetime("us", "UTC"), "tenure": pl.Float32(),
    "spend": pl.Float32(), "visits": pl.Float32(), "plan": pl.Utf8(), "mobile": pl.Float32(), "label": pl.Float64(),
}  # fmt: skip


def history_side(kind: str, folder: Path, *, seed: int) -> Side[Data]:
    """Thirty days of history before `START`, and two later days that are no history."""
    world = new_world(folder / "world", seed=seed)
    if kind == "world":
        return Side(open=lambda: build(world).data)
    source = folder / "source"
    source.mkdir(parents=True)
    source_rows(world, n_days=2).write_parquet(source / "rows.parquet")
    root = folder / "workspace"
    import_files(root, world.specs[MODEL], source, until=at(0))
    return Side(open=lambda: WorkspaceData(root))


@pytest.fixture(params=["world", "laptop"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def side(kind: str, tmp_path: Path) -> Side[Data]:
    return history_side(kind, tmp_path, seed=1)


def test_days_are_the_iso_dates_of_the_history_ascending(side: Side[Data]) -> None:
    days = side.open().days(MODEL)

    assert len(days) == TRUTH.history_days
    assert list(days) == sorted(set(days))
    assert days[-1] == "2026-03-01" < START.isoformat()


def test_history_carries_the_agreed_columns_and_types(side: Side[Data]) -> None:
    rows = side.open().history(MODEL, start=None, end=None).collect()

    assert dict(rows.schema) == SCHEMA
    assert rows["request_id"].n_unique() == rows.height > 1_000
    assert set(rows["label"].drop_nulls()) == {0.0, 1.0}
    assert sorted(set(rows["event_time"].dt.strftime("%Y-%m-%d"))) == list(side.open().days(MODEL))


def test_history_is_cut_at_start_inclusive_and_end_exclusive(side: Side[Data]) -> None:
    data = side.open()
    rows = data.history(MODEL, start=None, end=None).collect().sort("event_time")
    first, last = rows["event_time"][100], rows["event_time"][700]

    part = data.history(MODEL, start=first, end=last).collect().sort("event_time")

    assert part["event_time"].to_list() == rows["event_time"].to_list()[100:700]


def test_a_window_outside_the_history_is_empty_with_its_columns(side: Side[Data]) -> None:
    rows = side.open().history(MODEL, start=at(5), end=at(9)).collect()

    assert rows.height == 0
    assert dict(rows.schema) == SCHEMA


def test_the_digest_names_the_data(kind: str, tmp_path: Path) -> None:
    one, two = history_side(kind, tmp_path / "1", seed=1), history_side(kind, tmp_path / "2", seed=2)

    assert one.open().digest(MODEL) == one.open().digest(MODEL)
    assert one.open().digest(MODEL) != two.open().digest(MODEL)
    assert len(one.open().digest(MODEL)) == 64
