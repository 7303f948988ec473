"""A recorded history as the backtest reads it: one parquet file of rows and one of labels for each day."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from evals.backtest.labels import AVAILABLE, LABEL, StagedLabels, label_counts, stage_labels, usual_delay
from evals.backtest.predictions import ENTITY, FLAGS, ID, SCORE, TIME, Progress, StagedPredictions, stage_predictions
from state.canonical import digest
from state.errors import InputError
from state.spec import Feature, ModelSpec, RecipeTraining
from tools.data import smallest_hashes
from tools.datastore import schema_of
from tools.times import EVENT_TIME

GROUP_ROWS = 500_000
"""Rows in memory at once while days are written."""
DAY = timedelta(days=1)
LONGEST_GAP = 400
"""Days without a prediction beyond which one side of the gap is taken for an error of the clock."""
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
class Recording:
    """One model's history; every read of it names the time up to which labels are known."""

    folder: Path
    spec: ModelSpec
    """As the backtest uses it: of a file without features, the score is the only one."""
    days: dict[str, int]
    """ISO date -> rows, ascending; days without rows are left out."""
    has_scores: bool
    can_train: bool
    why_not: str
    """Why nothing can be trained; empty where it can."""
    n_rows: int
    n_labels: int
    n_late: int
    n_restated: int
    sha256: str
    """Digest of the source files."""
    notes: tuple[str, ...]

    @property
    def first_day(self) -> date:
        return date.fromisoformat(min(self.days))

    @property
    def last_day(self) -> date:
        return date.fromisoformat(max(self.days))

    def row_columns(self) -> list[str]:
        """Columns of a row, in order."""
        return [ID, ENTITY, TIME, *self.spec.feature_names(), *([SCORE] if self.score_is_extra else [])]

    @property
    def score_is_extra(self) -> bool:
        """Whether rows carry the recorded score beside their features."""
        return self.has_scores and SCORE not in self.spec.feature_names()

    def rows_of(self, day: str) -> pl.DataFrame:
        """The day's rows in order of event time, with `flags`."""
        path = self.folder / "rows" / f"{day}.parquet"
        return pl.read_parquet(path) if day in self.days else pl.DataFrame(schema=self.row_schema())

    def row_schema(self) -> pl.Schema:
        known = schema_of({feature.name: feature.type for feature in self.spec.features})
        known.pop(LABEL)
        if self.has_scores:
            known[SCORE] = pl.Float64()
        return pl.Schema({**{name: known[name] for name in self.row_columns()}, FLAGS: pl.List(pl.String())})

    def labels_of(self, day: str) -> pl.DataFrame:
        """Every statement about the day's rows, in order of availability."""
        path = self.folder / "labels" / f"{day}.parquet"
        return pl.read_parquet(path) if path.exists() else pl.DataFrame(schema=LABEL_SCHEMA)

    def known(self, days: Collection[str], *, as_of: datetime) -> pl.LazyFrame:
        """Rows of these days with the newest label known by `as_of`, null where none was: `row_columns`, `label`."""
        paths = [self.folder / "rows" / f"{day}.parquet" for day in sorted(days) if day in self.days]
        if not paths:
            schema = pl.Schema({**self.row_schema(), LABEL: pl.Float64()})
            return pl.LazyFrame(schema=schema).select(*self.row_columns(), LABEL)
        rows = pl.scan_parquet(paths).select(self.row_columns())
        stated = [path for day in sorted(days) if (path := self.folder / "labels" / f"{day}.parquet").exists()]
        if not stated:
            return rows.with_columns(pl.lit(None, dtype=pl.Float64).alias(LABEL))
        labels = pl.scan_parquet(stated).filter(pl.col(AVAILABLE) <= as_of)
        newest = labels.group_by(ID).agg(pl.col(LABEL).sort_by(AVAILABLE, maintain_order=True).last())
        return rows.join(newest, on=ID, how="left", maintain_order="left")

    def training_rows(
        self, *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame:
        """Labelled rows with event time in [start, end), oldest first, known by `as_of`; `tools.controls.TrainingRows`."""
        excluded = set(excluded_days)
        first = start.date().isoformat() if start is not None else ""
        days = [day for day in self.days if first <= day <= end.date().isoformat() and day not in excluded]
        rows = self.known(days, as_of=as_of).filter(pl.col(TIME) < end, pl.col(LABEL).is_not_null())
        if start is not None:
            rows = rows.filter(pl.col(TIME) >= start)
        most = self.spec.training.max_rows if isinstance(self.spec.training, RecipeTraining) else None
        if most is not None:
            kept = smallest_hashes(rows.select(ID).collect(engine="streaming")[ID], most)
            rows = rows if kept is None else rows.join(kept.lazy(), on=ID, how="semi")
        return rows.collect(engine="streaming").sort(TIME, ID)


def record(spec: ModelSpec, predictions: Path, labels: Path, folder: Path, *, progress: Progress) -> Recording:
    """Read, check and join a team's files, and write them to `folder` by day.

    Raises:
        InputError: they cannot be used; the message names file, field or record, and the remedy.
    """
    if spec.task == "multiclass":
        raise InputError(
            f"{spec.model}: task multiclass is not backtested yet",
            remedy="Backtest one class against the others: binary",
        )
    staging = folder / "staging"
    staging.mkdir(parents=True)
    staged = stage_predictions(predictions, spec, staging, progress)
    _refuse_gap(predictions, staged)
    outcomes = stage_labels(labels, spec, staged, progress)
    n_labels, n_late, n_restated = label_counts(spec, outcomes.statements)
    days = _write_days(folder, staged, outcomes, progress)
    shutil.rmtree(staging)
    used, why_not = spec_used(spec, has_features=staged.has_features, has_scores=staged.has_scores)
    sources = [source.sha256 for source in (*staged.sources, *outcomes.sources)]
    return Recording(
        folder=folder, spec=used, days=days, has_scores=staged.has_scores, can_train=not why_not, why_not=why_not,
        n_rows=sum(days.values()), n_labels=n_labels, n_late=n_late, n_restated=n_restated, sha256=digest(sources),
        notes=(*staged.notes, *outcomes.notes),
    )  # fmt: skip


def spec_used(spec: ModelSpec, *, has_features: bool, has_scores: bool) -> tuple[ModelSpec, str]:
    """The spec that the loop is run with, and why nothing can be trained (empty where it can).

    Raises:
        InputError: nothing can be trained and nothing was scored either.
    """
    why_not = ""
    if not has_features:
        why_not = "the predictions hold scores and no features"
        spec = spec.model_copy(update={"features": [Feature(name=SCORE, type="numeric")]})
    if not isinstance(spec.training, RecipeTraining):
        why_not = f"training.kind is {spec.training.kind!r}, which is not carried out here"
    if why_not and not has_scores:
        raise InputError(
            f"{spec.model}: {why_not}, and the predictions have no score: there is no model to watch",
            remedy="Add a column score with what your model answered, or declare a recipe (training.kind: recipe)",
        )
    return spec, why_not


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
    index = staged.index.with_columns((pl.col(TIME) - pl.col(TIME).shift(1)).dt.total_days().alias("gap"))
    wide = index.with_columns(pl.col(ID).shift(1).alias("before"), pl.col(TIME).shift(1).alias("since"))
    wide = wide.filter(pl.col("gap") > LONGEST_GAP)
    if wide.is_empty():
        return
    first = wide.row(0, named=True)
    raise InputError(
        f"{path}: no prediction for {first['gap']} days, between {first['since']:%Y-%m-%d} (id {first['before']}) and "
        f"{first[TIME]:%Y-%m-%d} (id {first[ID]}, row {first['row']} of {first['file']})",
        remedy="Correct the event times, or give the rows of one side of the gap only",
    )


def _write_days(folder: Path, staged: StagedPredictions, outcomes: StagedLabels, progress: Progress) -> dict[str, int]:
    counted = staged.index.group_by(pl.col(TIME).dt.date().alias("day")).len().sort("day")
    days = {day.isoformat(): int(n) for day, n in counted.iter_rows()}
    for name in ("rows", "labels"):
        (folder / name).mkdir()
    parts = pl.scan_parquet(list(staged.parts))
    n_written = 0
    for first, last in _groups(days):
        begin, end = midnight(first), midnight(last) + DAY
        rows = parts.filter(pl.col(TIME) >= begin, pl.col(TIME) < end).collect().sort(TIME, ID)
        for (day,), of_day in rows.group_by(pl.col(TIME).dt.date(), maintain_order=True):
            of_day.write_parquet(folder / "rows" / f"{day}.parquet", compression="lz4", statistics=True)
        n_written += rows.height
        progress(f"wrote {n_written} rows by day")
    statements = outcomes.statements.with_columns(pl.col(TIME).dt.date().alias("day")).sort("day", maintain_order=True)
    for (day,), of_day in statements.group_by("day", maintain_order=True):
        of_day.select(LABEL_SCHEMA.names()).write_parquet(folder / "labels" / f"{day}.parquet", compression="lz4")
    return days


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
