"""Rows and labels of a recorded history on disk: a file of each for a stretch of days, the newest read ones in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from evals.backtest.labels import AVAILABLE, LABEL
from evals.backtest.predictions import ID, TIME
from tools.times import EVENT_TIME

STRETCH_ROWS = 20_000
"""Rows of one file. One a day costs a fit on two years of 24 rows a day three times what the fit itself takes."""
ROWS_KEPT, MIN_KEPT = 200_000, 2
"""Rows of stretches in memory at once, and the fewest stretches."""
LABEL_SCHEMA = pl.Schema({ID: pl.String(), LABEL: pl.Float64(), AVAILABLE: EVENT_TIME})
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The newest few values that were made; older ones are made again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a day stands: the number of its stretch, and offset and length in the files of rows and labels."""

    stretch: int
    rows: tuple[int, int]
    labels: tuple[int, int]


class StoredDays:
    """Every day of a history, written once in order of time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, Place] = {}
        self._n_stretches = 0
        self._largest = 1
        self._kept: Recent[int, tuple[pl.DataFrame, pl.DataFrame]] | None = None

    def write(self, rows: pl.DataFrame, labels: pl.DataFrame) -> None:
        """Add whole days that are later than all before: `rows` in order of time, and `labels` of these days in order of
        availability, both with `event_time`."""
        labels = labels.sort(_DAY_OF, maintain_order=True)
        n_rows, n_labels = _counts(rows), _counts(labels)
        row_at = label_at = 0
        for days in _stretches(n_rows):
            first_row, first_label = row_at, label_at
            for day in days:
                of_rows, of_labels = n_rows[day], n_labels.get(day, 0)
                self._places[day] = Place(
                    stretch=self._n_stretches, rows=(row_at - first_row, of_rows),
                    labels=(label_at - first_label, of_labels),
                )  # fmt: skip
                row_at, label_at = row_at + of_rows, label_at + of_labels
            self._largest = max(self._largest, row_at - first_row)
            of_stretch = labels[first_label:label_at].select(LABEL_SCHEMA.names())
            rows[first_row:row_at].write_parquet(self._path("rows", self._n_stretches), compression="lz4")
            of_stretch.write_parquet(self._path("labels", self._n_stretches), compression="lz4")
            self._n_stretches += 1

    def rows_of(self, day: str) -> pl.DataFrame | None:
        """None where the day has no rows."""
        place = self._places.get(day)
        return None if place is None else self._stretch(place.stretch)[0].slice(*place.rows)

    def labels_of(self, day: str) -> pl.DataFrame:
        """Every statement about the day's rows, in order of availability."""
        place = self._places.get(day)
        if place is None:
            return pl.DataFrame(schema=LABEL_SCHEMA)
        return self._stretch(place.stretch)[1].slice(*place.labels)

    def parts(self, days: Collection[str]) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Rows and labels of these days, a stretch at a time, in order of time."""
        for number, wanted in self._grouped(days):
            rows, labels = self._stretch(number)
            yield (
                _runs(rows, [self._places[day].rows for day in wanted]),
                _runs(labels, [self._places[day].labels for day in wanted]),
            )

    def files(self, days: Collection[str]) -> tuple[list[Path], list[Path]]:
        """The files of rows and of labels that hold these days, among others."""
        numbers = [number for number, _ in self._grouped(days)]
        return [self._path("rows", number) for number in numbers], [self._path("labels", number) for number in numbers]

    def _grouped(self, days: Collection[str]) -> Iterator[tuple[int, list[str]]]:
        known = sorted(day for day in days if day in self._places)
        for number, of_number in groupby(known, lambda day: self._places[day].stretch):
            yield number, list(of_number)

    def _stretch(self, number: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        if self._kept is None:
            self._kept = Recent(max(MIN_KEPT, ROWS_KEPT // self._largest))
        return self._kept.get(
            number,
            lambda: (pl.read_parquet(self._path("rows", number)), pl.read_parquet(self._path("labels", number))),
        )

    def _path(self, what: str, number: int) -> Path:
        return self._folder / f"{what}-{number:05}.parquet"


_DAY_OF = pl.col(TIME).dt.date()


def _counts(frame: pl.DataFrame) -> dict[str, int]:
    """Rows of each day, in order of time, of a frame that is."""
    found = frame.group_by(_DAY_OF.alias("day"), maintain_order=True).len()
    return {day.isoformat(): n for day, n in found.iter_rows()}


def _stretches(n_rows: dict[str, int]) -> Iterator[list[str]]:
    """Consecutive days of about `STRETCH_ROWS` rows together."""
    days: list[str] = []
    total = 0
    for day, n in n_rows.items():
        if days and total + n > STRETCH_ROWS:
            yield days
            days, total = [], 0
        days.append(day)
        total += n
    if days:
        yield days


def _runs(frame: pl.DataFrame, places: list[tuple[int, int]]) -> pl.DataFrame:
    """The rows at these offsets and lengths, which ascend; those that touch are cut out together."""
    runs: list[tuple[int, int]] = []
    for offset, length in places:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((offset, length))
    cut = [frame.slice(*run) for run in runs]
    return cut[0] if len(cut) == 1 else pl.concat(cut)
