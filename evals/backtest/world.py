"""A world whose rows were recorded: days are served by the clock, and nothing is known before it was available."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from agents.base import matured_until
from evals.backtest.days import Recent
from evals.backtest.models import RecordedModels
from evals.backtest.predictions import FLAGS, ID, TIME
from evals.backtest.recording import DAY, Recording, midnight
from evals.world.data import WorldData, WorldOutcomes
from evals.world.platform import build
from evals.world.records import ServedDay
from evals.world.traffic import DayRecord, record_day
from evals.world.truth import Day, Truth
from evals.world.world import World
from state.canonical import digest
from tools.ports import Pipelines, Platform

ROWS_KEPT, MIN_DAYS_KEPT, MAX_DAYS_KEPT = 300_000, 4, 1_000
"""Rows in memory at once, as days of the usual size: a drift window looks back over 28, a validation over all days."""


class RecordedWorld(World):
    """`World` over a recording. Servers, route and service metrics are simulated and healthy."""

    def __init__(self, folder: Path, recording: Recording, *, start: date) -> None:
        super().__init__(folder, start=start, models=RecordedModels(recording.n_classes))
        self.recording = recording
        n_before = (start - recording.first_day).days
        self.add(recording.spec, Truth(history_days=n_before))
        self.history_sha256 = _history_sha256(recording, start)
        per_day = max(1, recording.n_rows // len(recording.days))
        n_kept = min(max(ROWS_KEPT // per_day, MIN_DAYS_KEPT), MAX_DAYS_KEPT)
        self._rows: Recent[str, Day] = Recent(n_kept)
        self._records: Recent[str, DayRecord] = Recent(n_kept)
        self._labels: Recent[str, pl.DataFrame] = Recent(n_kept)
        self._unasked: Recent[tuple[str, ...], DayRecord] = Recent(MIN_DAYS_KEPT)
        """Of days without a request: one is like another as long as the same versions are in the route."""
        self._arms: dict[str, ServedDay] = {}

    def rows(self, model: str, day: date) -> Day:
        self.model(model)
        return self._rows.get(day.isoformat(), partial(self._read, day.isoformat()))

    def _read(self, day: str) -> Day:
        frame = self.recording.rows_of(day).select(self.recording.row_columns())
        nothing = np.full(frame.height, np.nan)
        labels = self.recording.labels_of(day)
        return Day(
            frame=frame,
            offline=frame,
            expected=nothing,
            outcome=nothing,
            labels=labels,
            extra=np.zeros(frame.height, dtype=np.bool_),
        )

    def served(self, model: str, day: str) -> DayRecord | None:
        for served in self.model(model).days[len(self._arms) :]:
            self._arms[served.day] = served
        if day not in self._arms:
            return None
        if day not in self.recording.days:
            return self._unasked.get(
                tuple(arm.version for arm in self._arms[day].arms), partial(self._answered, model, day)
            )
        return self._records.get(day, partial(self._answered, model, day))

    def labelled(self, model: str, day: str) -> pl.DataFrame:
        self.model(model)
        return self._labels.get(day, partial(self._join_labels, model, day))

    def _answered(self, model: str, day: str) -> DayRecord:
        rows = self.rows(model, date.fromisoformat(day))
        task = self.recording.spec.task
        record = record_day(rows, self._arms[day], loaded=self._loaded, task=task, model=model)
        if task == "multiclass" and record.predictions.is_empty():  # no score told how many classes there are
            none = pl.Series("score", np.zeros((0, self.recording.n_classes)))
            record = replace(record, predictions=record.predictions.with_columns(none))
        flags = self.recording.rows_of(day).select(ID, FLAGS).filter(pl.col(FLAGS).list.len() > 0)
        if flags.is_empty():
            return record
        both = record.predictions.drop(FLAGS).join(flags, on=ID, how="left", maintain_order="left")
        flagged = both.with_columns(pl.col(FLAGS).fill_null([])).select(record.predictions.columns)
        return DayRecord(
            predictions=flagged, by_version=record.by_version, expected=record.expected,
            n_unanswered=record.n_unanswered,
        )  # fmt: skip

    def served_between(self, model: str, first: str, last: str) -> list[str]:
        """Days without rows are left out, which are most of a history by months; where all are, the first stands for them."""
        days = super().served_between(model, first, last)
        return [day for day in days if day in self.recording.days] or days[:1]

    def served_days(self) -> list[str]:
        return [served.day for served in self.model(self.recording.spec.model).days]

    def history_days(self, model: str) -> list[date]:
        """Days before the first live one, those without rows left out."""
        self.model(model)
        return [date.fromisoformat(day) for day in self.recording.days if day < self.state.start]

    def known_rows(
        self, *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame:
        """Labelled rows that have had the label delay by now, with the labels known by now at the latest.

        Of newer rows only the labels that came early are known, which are others than those to come: churn is seen at
        once, and its absence when the delay is over. They stand in where no row has had the delay.
        """
        now = self.clock.now()
        read = partial(self.recording.training_rows, start=start, as_of=min(as_of, now), excluded_days=excluded_days)
        due = matured_until(now, self.recording.spec.data.label.delay)
        rows = read(end=min(end, due))
        return rows if rows.height or end <= due else read(end=min(end, now))


def _history_sha256(recording: Recording, start: date) -> str:
    """Digest of the history as it was known when live operation began."""
    days = [day for day in recording.days if day < start.isoformat()]
    known = recording.known(days, as_of=midnight(start)).select(ID, TIME, "label")
    # A day at a time: a long history need not fit.
    return digest(
        [recording.days[day] for day in days] + [str(known.select(pl.struct(pl.all()).hash(7).sum()).collect())]
    )


class RecordedData(WorldData):
    world: RecordedWorld

    def days(self, model: str) -> Sequence[str]:
        return [day.isoformat() for day in self.world.history_days(model)]

    def history(self, model: str, *, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        """Rows from before live operation, with their labels as known by now."""
        days = [
            day.isoformat() for day in self.world.history_days(model)
            if (start is None or midnight(day) + DAY > start) and (end is None or midnight(day) < end)
        ]  # fmt: skip
        rows = self.world.recording.known(days, as_of=self.world.clock.now())
        if start is not None:
            rows = rows.filter(pl.col(TIME) >= start)
        return rows if end is None else rows.filter(pl.col(TIME) < end)

    def digest(self, model: str) -> str:
        self.world.model(model)
        return self.world.history_sha256


class RecordedOutcomes(WorldOutcomes):
    world: RecordedWorld

    def revisions(self, model: str) -> Mapping[str, int]:
        """The number of records, by event day: every row came on its own day."""
        self.world.model(model)
        days = self.world.recording.days
        return {day: days[day] for day in self.world.served_days() if day in days}


def platform_of(world: RecordedWorld, pipelines: Pipelines) -> Platform:
    """The ports over the recorded world."""
    return replace(
        build(world), pipelines=pipelines, data=RecordedData(world), outcomes=RecordedOutcomes(world), features=None
    )
