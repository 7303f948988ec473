"""A recorded history as the backtest reads it: rows and labels by day, and what was known of them when."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from evals.backtest.days import StoredDays
from evals.backtest.labels import AVAILABLE, LABEL, StagedLabels, in_order, label_counts, stage_labels, usual_delay
from evals.backtest.predictions import (
    CALLED,
    CONFIDENCE,
    ENTITY,
    FILE,
    FLAGS,
    ID,
    ROW,
    SCORE,
    TIME,
    Progress,
    Release,
    StagedPredictions,
    stage_predictions,
)  # fmt: skip
from state.canonical import digest
from state.errors import InputError
from state.spec import Feature, ModelSpec, RecipeTraining
from tools.data import smallest_hashes
from tools.datastore import schema_of
from tools.drift.performance import due_at
from tools.times import EVENT_TIME
from tools.training_rows import WHEN_DUE

GROUP_ROWS = 200_000
"""Rows in memory at once while days are written."""
DAY = timedelta(days=1)
EPOCH = date(1970, 1, 1)
CALL_METRICS = ("accuracy", "f1", "precision", "recall")
"""Those that a predicted class suffices for."""
LONGEST_GAP = 400
"""Days without a prediction beyond which one side of the gap is taken for an error of the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One model's history; every read of it names the time up to which labels are known."""

    stored: StoredDays
    spec: ModelSpec
    """As the backtest uses it: of a file without features, the score is the only one."""
    days: dict[str, int]
    """ISO date -> rows, ascending; days without rows are left out."""
    has_scores: bool
    score_type: pl.DataType
    """Float64, or of a multiclass model List(Float64) of probabilities or String, the predicted class."""
    classes: tuple[str, ...]
    """Of a multiclass model: the name of each label."""
    can_train: bool
    why_not: str
    """Why nothing can be trained; empty where it can."""
    n_rows: int
    n_labels: int
    n_late: int
    n_restated: int
    releases: tuple[Release, ...]
    """Versions of the team's own model, in order of their first answers."""
    sha256: str
    """Digest of the source files."""
    notes: tuple[str, ...]

    @property
    def first_day(self) -> date:
        return date.fromisoformat(min(self.days))

    @property
    def last_day(self) -> date:
        return date.fromisoformat(max(self.days))

    @property
    def n_classes(self) -> int:
        """0 for regression."""
        return {"binary": 2, "multiclass": len(self.classes), "regression": 0}[self.spec.task]

    def row_columns(self) -> list[str]:
        """Columns of a row, in order."""
        return [ID, ENTITY, TIME, *self.spec.feature_names(), *([SCORE] if self.score_is_extra else [])]

    @property
    def score_is_extra(self) -> bool:
        """Whether rows carry the recorded score beside their features."""
        return self.has_scores and SCORE not in self.spec.feature_names()

    def rows_of(self, day: str) -> pl.DataFrame:
        """The day's rows in order of event time, with `flags`."""
        rows = self.stored.rows_of(day)
        return rows if rows is not None else pl.DataFrame(schema=self.row_schema())

    def row_schema(self) -> pl.Schema:
        known = schema_of({feature.name: feature.type for feature in self.spec.features})
        known.pop(LABEL)
        if self.has_scores:
            known[SCORE] = self.score_type
        return pl.Schema({**{name: known[name] for name in self.row_columns()}, FLAGS: pl.List(pl.String())})

    def labels_of(self, day: str) -> pl.DataFrame:
        """Every statement about the day's rows, in order of availability."""
        return self.stored.labels_of(day)

    def known(self, days: Collection[str], *, as_of: datetime) -> pl.LazyFrame:
        """Rows of these days with the newest label known by `as_of`, null where none was: `row_columns`, `label`."""
        row_files, label_files = self.stored.files(days)
        if not row_files:
            schema = pl.Schema({**self.row_schema(), LABEL: pl.Float64()})
            return pl.LazyFrame(schema=schema).select(*self.row_columns(), LABEL)
        of_days = pl.col(TIME).dt.date().is_in([date.fromisoformat(day) for day in days])
        rows = pl.scan_parquet(row_files).filter(of_days).select(self.row_columns())
        newest = _newest(pl.scan_parquet(label_files), pl.col(AVAILABLE) <= as_of)
        return rows.join(newest, on=ID, how="left", maintain_order="left")

    def training_rows(
        self, *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame:
        """Labelled rows with event time in [start, end), oldest first, known by `as_of`, with the label when it was due;
        `tools.controls.TrainingRows`."""
        return self._labelled(
            [*self.row_columns(), LABEL, WHEN_DUE], start=start, end=end, as_of=as_of, excluded_days=excluded_days
        )

    def fitting_rows(
        self, *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame:
        """`training_rows` without ids and entities, which are most of a narrow history and which no fit reads."""
        columns = [name for name in self.row_columns() if name not in (ID, ENTITY)]
        return self._labelled([*columns, LABEL], start=start, end=end, as_of=as_of, excluded_days=excluded_days)

    def _labelled(
        self,
        columns: list[str],
        *,
        start: datetime | None,
        end: datetime,
        as_of: datetime,
        excluded_days: Collection[str],
    ) -> pl.DataFrame:
        """A stretch of days at a time: only the result is ever in memory whole."""
        excluded = set(excluded_days)
        first = start.date().isoformat() if start is not None else ""
        days = [day for day in self.days if first <= day <= end.date().isoformat() and day not in excluded]
        wanted = (pl.col(TIME) < end) & pl.col(LABEL).is_not_null()
        wanted = wanted if start is None else wanted & (pl.col(TIME) >= start)
        most = self.spec.training.max_rows if isinstance(self.spec.training, RecipeTraining) else None
        kept = None
        if most is not None and sum(self.days[day] for day in days) > most:
            ids = [rows.filter(wanted).select(ID) for rows, _ in self._joined(days, as_of)]
            kept = smallest_hashes(pl.concat(ids)[ID], most)
        parts = []
        for joined, labels in self._joined(days, as_of):
            rows = joined.filter(wanted)
            if kept is not None:
                rows = rows.join(kept, on=ID, how="semi", maintain_order="left")
            if WHEN_DUE in columns:
                rows = rows.join(self._when_due(rows, labels, as_of), on=ID, how="left", maintain_order="left")
            parts.append(rows.select(columns))
        if parts:
            return pl.concat(parts)
        nothing = self.known([], as_of=as_of).with_columns(pl.lit(None, dtype=pl.Float64).alias(WHEN_DUE))
        return nothing.select(columns).collect()

    def _joined(self, days: Collection[str], as_of: datetime) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """`known` of these days and every statement about them, a stretch at a time."""
        for rows, labels in self.stored.parts(days):
            newest = _newest(labels.lazy(), pl.col(AVAILABLE) <= as_of).collect()
            yield rows.select(self.row_columns()).join(newest, on=ID, how="left", maintain_order="left"), labels

    def _when_due(self, rows: pl.DataFrame, labels: pl.DataFrame, as_of: datetime) -> pl.DataFrame:
        """`request_id, label_when_due` of rows whose label had come at the midnight on which the loop judged them."""
        delay = -(-self.spec.data.label.delay // DAY) * DAY
        due = rows.select(ID, due_at(self.spec.monitoring.block, delay).alias("due"))
        stated = labels.lazy().join(due.lazy(), on=ID, how="inner", maintain_order="left")
        come = _newest(stated, pl.col(AVAILABLE) <= pl.min_horizontal("due", pl.lit(as_of, dtype=EVENT_TIME)))
        return come.rename({LABEL: WHEN_DUE}).collect()


def _newest(labels: pl.LazyFrame, come: pl.Expr) -> pl.LazyFrame:
    """`request_id, label`: the last statement about each row that had `come`, of statements in order of availability."""
    return labels.filter(come).unique(ID, keep="last", maintain_order=True).select(ID, LABEL)


def record(spec: ModelSpec, predictions: Path, labels: Path, folder: Path, *, progress: Progress) -> Recording:
    """Read, check and join a team's files, and write them to `folder` by day.

    Raises:
        InputError: they cannot be used; the message names file, field or record, and the remedy.
    """
    staging = folder / "staging"
    staging.mkdir(parents=True)
    staged = stage_predictions(predictions, spec, staging, progress)
    _refuse_unmeasured(spec, staged)
    _refuse_gap(predictions, staged)
    outcomes = stage_labels(labels, spec, staged, staging, progress)
    stored = StoredDays(folder)
    days, (n_labels, n_late, n_restated) = _write_days(stored, spec, staged, outcomes, progress)
    shutil.rmtree(staging)
    used, why_not = spec_used(
        spec, has_features=staged.has_features, has_scores=staged.has_scores, score_type=staged.score_type
    )
    sources = [source.sha256 for source in (*staged.sources, *outcomes.sources)]
    return Recording(
        stored=stored, spec=used, days=days, has_scores=staged.has_scores, score_type=staged.score_type,
        classes=outcomes.classes, can_train=not why_not, why_not=why_not,
        n_rows=sum(days.values()), n_labels=n_labels, n_late=n_late, n_restated=n_restated, releases=staged.releases,
        sha256=digest(sources),
        notes=(*staged.notes, *outcomes.notes),
    )  # fmt: skip


def _refuse_unmeasured(spec: ModelSpec, staged: StagedPredictions) -> None:
    if staged.has_scores and staged.score_type == pl.String() and spec.objective.metric not in CALL_METRICS:
        raise InputError(
            f"{spec.model}: the predictions name a class and no probability, and the objective {spec.objective.metric} "
            "needs one",
            remedy=f"Add a column score_<class> for every class, or choose {', '.join(CALL_METRICS)} as objective.metric",
        )


def spec_used(
    spec: ModelSpec, *, has_features: bool, has_scores: bool, score_type: pl.DataType
) -> tuple[ModelSpec, str]:
    """The spec that the loop is run with, and why nothing can be trained (empty where it can).

    Raises:
        InputError: nothing can be trained and nothing was scored either.
    """
    why_not = ""
    if not has_features:
        why_not = "the predictions hold scores and no features"
        spec = spec.model_copy(update={"features": _watched(score_type)})
    if not isinstance(spec.training, RecipeTraining):
        why_not = f"training.kind is {spec.training.kind!r}, which is not carried out here"
    if why_not and not has_scores:
        raise InputError(
            f"{spec.model}: {why_not}, and the predictions have no score: there is no model to watch",
            remedy="Add a column score with what your model answered, or declare a recipe (training.kind: recipe)",
        )
    return spec, why_not


def _watched(score_type: pl.DataType) -> list[Feature]:
    """What stands for the features where there are none: what the recorded model said."""
    if score_type == pl.Float64():
        return [Feature(name=SCORE, type="numeric")]
    if score_type == pl.String():
        return [Feature(name=SCORE, type="categorical")]
    return [Feature(name=CALLED, type="categorical"), Feature(name=CONFIDENCE, type="numeric", low=0, high=1)]


def late_by(recording: Recording, *, start: datetime) -> str:
    """What a person should know where labels usually came later than the spec says; empty where they did not."""
    declared = recording.spec.data.label.delay
    frames = [recording.labels_of(day) for day in recording.days if day < start.date().isoformat()]
    times = [recording.rows_of(day).select(ID, TIME) for day in recording.days if day < start.date().isoformat()]
    if not frames or not times:
        return ""
    statements = pl.concat(frames).join(pl.concat(times), on=ID, how="inner").sort(AVAILABLE)
    usual = usual_delay(statements, known_by=start)
    if usual is None or usual <= declared + DAY:
        return ""
    days = -(-usual // DAY)
    return (
        f"Before {start:%Y-%m-%d} one label in twenty took longer than {days} days, and the spec says "
        f"{declared / DAY:g}: with data.label.delay: P{days}D missing labels would be told from late ones."
    )


def _refuse_gap(path: Path, staged: StagedPredictions) -> None:
    """A single wrong year would make years of empty days."""
    times = np.sort(staged.index.times_us)
    wide = np.flatnonzero(np.diff(times) >= (LONGEST_GAP + 1) * (DAY // timedelta(microseconds=1)))
    if not len(wide):
        return
    edges = pl.Series(times[wide[0] : wide[0] + 2]).cast(EVENT_TIME)
    rows = pl.scan_parquet(list(staged.parts)).select(ID, TIME, ROW, pl.col(FILE).cast(pl.String))
    rows = rows.filter(pl.col(TIME).is_in(edges.implode()))
    found = rows.collect().sort(TIME, ID).unique(TIME, keep="first", maintain_order=True)
    since, first = found.rows(named=True)
    raise InputError(
        f"{path}: no prediction for {(first[TIME] - since[TIME]).days} days, between {since[TIME]:%Y-%m-%d} "
        f"(id {since[ID]}) and {first[TIME]:%Y-%m-%d} (id {first[ID]}, row {first[ROW]} of {first[FILE]})",
        remedy="Correct the event times, or give the rows of one side of the gap only",
    )


def _write_days(
    stored: StoredDays, spec: ModelSpec, staged: StagedPredictions, outcomes: StagedLabels, progress: Progress
) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Rows and labels by day; the number of rows of each day, and `label_counts`."""
    numbers, n_rows = np.unique(staged.index.times_us // (DAY // timedelta(microseconds=1)), return_counts=True)
    days = {(EPOCH + int(day) * DAY).isoformat(): int(n) for day, n in zip(numbers, n_rows, strict=True)}
    parts, stated = pl.scan_parquet(list(staged.parts)), pl.scan_parquet(list(outcomes.parts))
    n_written, counts = 0, np.zeros(3, dtype=np.int64)
    for first, last in _groups(days):
        of_group = (pl.col(TIME) >= midnight(first)) & (pl.col(TIME) < midnight(last) + DAY)
        rows = parts.filter(of_group).drop(ROW, FILE).collect().sort(TIME, ID)
        statements = in_order(stated.filter(of_group).collect())
        stored.write(rows, statements)
        n_written += rows.height
        counts += label_counts(spec, statements)
        progress(f"wrote {n_written} rows by day")
    n_labels, n_late, n_restated = (int(n) for n in counts)
    return days, (n_labels, n_late, n_restated)


def _groups(days: dict[str, int]) -> list[tuple[date, date]]:
    """First and last day of ranges of about `GROUP_ROWS` rows each."""
    groups: list[list[str]] = [[]]
    n_rows = 0
    for day, n in days.items():
        if groups[-1] and n_rows + n > GROUP_ROWS:
            groups.append([])
            n_rows = 0
        groups[-1].append(day)
        n_rows += n
    return [(date.fromisoformat(group[0]), date.fromisoformat(group[-1])) for group in groups if group]


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
