from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from evals.backtest.days import STRETCH_ROWS, StoredDays
from evals.backtest.recording import record
from evals.backtest.world import RecordedWorld
from evals.world.records import ServedDay
from tests.evals.backtest.history_files import START, History, history, no_progress

PER_DAY = STRETCH_ROWS // 2 - 1
"""Two days a stretch."""
N_DAYS = 5
FIRST = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows in order of time, and a label for every second one, the newest rows' first."""
    rows = pl.DataFrame(
        {"request_id": [f"r{n}" for n in range(N_DAYS * PER_DAY)], "x": range(N_DAYS * PER_DAY)}
    ).with_columns(
        (pl.lit(FIRST) + pl.duration(days=pl.col("x") // PER_DAY)).cast(pl.Datetime("us", "UTC")).alias("event_time")
    )
    labels = rows.filter(pl.col("x") % 2 == 0).select(
        "request_id", "event_time", pl.col("x").cast(pl.Float64).alias("label"),
        (pl.col("event_time") + pl.duration(days=1)).alias("available_at"),
    )  # fmt: skip
    return rows, labels.reverse()


def test_days_are_read_back_from_stretches_as_they_were_written(
    tmp_path: Path, frames: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    rows, labels = frames
    stored = StoredDays(tmp_path)
    cut = 2 * PER_DAY
    stored.write(rows[:cut], labels.filter(pl.col("label") < cut))
    stored.write(rows[cut:], labels.filter(pl.col("label") >= cut))

    names = [(FIRST + timedelta(days=n)).date().isoformat() for n in range(N_DAYS)]
    assert len(list(tmp_path.glob("rows-*.parquet"))) == 3
    for n, day in enumerate(names):
        of_day = rows[n * PER_DAY : (n + 1) * PER_DAY]
        found = stored.rows_of(day)
        assert found is not None and found.equals(of_day)
        ids = of_day["request_id"].to_list()
        stated = labels.filter(pl.col("request_id").is_in(ids)).select("request_id", "label", "available_at")
        assert stored.labels_of(day).equals(stated)
    parts = [part for part, _ in stored.parts([names[4], names[0], names[2], names[3]])]
    assert [part.height // PER_DAY for part in parts] == [1, 2, 1]
    assert pl.concat(parts).equals(pl.concat([rows[:PER_DAY], rows[2 * PER_DAY :]]))
    assert stored.rows_of("2027-01-01") is None and stored.labels_of("2027-01-01").is_empty()


def test_days_without_rows_are_passed_over(tmp_path: Path) -> None:
    weekly = history(n_days=28)
    mondays = weekly.predictions.filter(pl.col("event_time").dt.weekday() == 1)
    weekly = type(weekly)(spec=weekly.spec, predictions=mondays, labels=weekly.labels)
    recording = record(weekly.spec, *weekly.write(tmp_path / "files"), tmp_path / "days", progress=no_progress)
    world = RecordedWorld(tmp_path / "world", recording, start=START + timedelta(days=7))
    model = weekly.spec.model
    served = [(START + timedelta(days=n)).isoformat() for n in range(7, 21)]
    world.model(model).days += [ServedDay(day=day, arms=[]) for day in served]

    assert world.served_between(model, served[0], served[-1]) == [served[0], served[7]]
    assert world.served_between(model, served[1], served[3]) == [served[1]]  # one stands for all, and has its columns
    assert date.fromisoformat(served[7]) == START + timedelta(days=14)


def test_labels_that_came_early_are_not_read_for_those_that_will_come(tmp_path: Path) -> None:
    given = history(n_days=14)
    early = pl.when(pl.col("label") == 1).then(pl.col("available_at") - pl.duration(hours=47))
    labels = given.labels.with_columns(early.otherwise("available_at").alias("available_at"))
    given = History(spec=given.spec, predictions=given.predictions, labels=labels)
    recording = record(given.spec, *given.write(tmp_path / "files"), tmp_path / "days", progress=no_progress)

    def share(first: date, start: date) -> tuple[date, float]:
        world = RecordedWorld(tmp_path / f"{first}-{start}", recording, start=start)
        now = world.clock.now()
        since = datetime(first.year, first.month, first.day, tzinfo=UTC)
        rows = world.known_rows(start=since, end=now, as_of=now, excluded_days=())
        return rows["event_time"].max().date(), float(rows["label"].mean())  # type: ignore[union-attr,arg-type]  # times, numbers

    day, usual = share(START, START + timedelta(days=10))
    assert day == START + timedelta(days=7) and usual < 0.9
    # Where no row has had its delay, those are all there is.
    assert share(START + timedelta(days=8), START + timedelta(days=10)) == (START + timedelta(days=9), 1.0)
