"""The two controls that a managed model is held against: never retrained, and retrained on a schedule whatever happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from state.clock import utc
from state.contract import Encoder
from state.errors import SteadyError
from state.spec import ModelSpec, RecipeTraining
from tools.drift.performance import metric_value
from tools.estimators import FittedModel, fit_model
from tools.evaluation import metric_loss
from tools.fits import few_threads, run_fits
from tools.packaging import BATCH_ROWS, PackageScorer
from tools.times import EVENT_TIME
from tools.training_rows import encoder_columns, labelled_rows

Floats: TypeAlias = npt.NDArray[np.float64]
Scorer: TypeAlias = Callable[[pl.DataFrame], Floats]
Labelled: TypeAlias = Callable[[datetime, datetime], pl.DataFrame]
"""Answered rows with their labels and event time in [start, end): columns of `Outcomes.labelled`, oldest first."""
Progress: TypeAlias = Callable[[str], None]

SIDE_BY_SIDE = 2
"""Refits in memory at once, each with its own rows."""


class TrainingRows(Protocol):
    """Labelled rows as training reads them: `tools.data.training_window` with its folder and columns bound."""

    def __call__(
        self, *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """One scheduled refit of the always-retrain control."""

    at: datetime
    n_rows: int
    """Labelled rows that were known by `at`; 0 where there were none to fit on."""
    error: str = ""
    """Why it could not be fitted; the model before it then served on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When and from what the always-retrain control refits."""

    every: timedelta
    rows: TrainingRows
    excluded_days: Callable[[datetime], Collection[str]]
    """Days (ISO dates) known to be bad at a time."""
    candidate: str | None = None
    """Name of the recipe's candidate to fit; None takes the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlScores:
    """The same answered and labelled rows, oldest first, scored by what served them and by the controls."""

    times_us: npt.NDArray[np.int64]
    """Event time in microseconds since 1970, UTC."""
    version: npt.NDArray[np.str_]
    """The version that answered."""
    label: Floats
    served: Floats
    """Shape `(n_rows,)`, or `(n_rows, n_classes)` for multiclass; so are `never` and `always`."""
    never: Floats
    always: Floats | None
    """None where the spec trains by something else than a recipe, so that nothing can be refitted here."""
    refits: tuple[Refit, ...]

    def between(self, start: datetime, end: datetime, *, version: str | None = None) -> npt.NDArray[np.intp]:
        """Positions of the rows with event time in [start, end), answered by `version` where it is given."""
        first, last = np.searchsorted(self.times_us, [_us(start), _us(end)])
        rows = np.arange(first, last)
        return rows if version is None else rows[self.version[rows] == version]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of the same rows; None where they cannot say, for instance AUC of a single class."""

    n_rows: int
    served: float | None
    never: float | None
    always: float | None


def score_controls(
    spec: ModelSpec,
    *,
    package: Path,
    start: datetime,
    end: datetime,
    labelled: Labelled,
    schedule: Schedule,
    progress: Progress = lambda text: None,
) -> ControlScores:
    """Score every labelled row of [start, end) with the package that served first and with scheduled refits.

    Raises:
        ToolRejected: the package is damaged, or the recorded rows lack a feature of it.
    """
    first = never_retrain(package)
    return score_from(
        spec, first=first.score, n_classes=len(first.contract.classes or ()) or 2, start=start, end=end,
        labelled=labelled, schedule=schedule, progress=progress,
    )  # fmt: skip


def score_from(
    spec: ModelSpec,
    *,
    first: Scorer,
    n_classes: int,
    start: datetime,
    end: datetime,
    labelled: Labelled,
    schedule: Schedule,
    progress: Progress = lambda text: None,
) -> ControlScores:
    """Score every labelled row of [start, end) with what served first and with scheduled refits.

    Rows are read one stretch between two refits at a time, and only scores are kept.
    """
    times = refit_times(start, end, schedule.every)
    scheduled = always_retrain(
        spec, first=first, n_classes=n_classes, times=times, schedule=schedule, progress=progress
    )  # fmt: skip
    parts: list[tuple[pl.DataFrame, Floats, Floats]] = []
    refits: list[Refit] = []
    for at, until, (always, made) in zip(times, [*times[1:], end], scheduled, strict=True):
        refits += [made] if made is not None else []
        rows = labelled(at, until).drop_nulls(["score", "label"])
        if rows.height:
            kept = rows.select("event_time", "version", "score", "label")
            parts.append((kept, first(rows), always(rows)))
        progress(f"scored {rows.height} labelled rows of {at:%Y-%m-%d} to {until:%Y-%m-%d}")
    return _collected(parts, refits, always=isinstance(spec.training, RecipeTraining))


def refit_times(start: datetime, end: datetime, every: timedelta) -> list[datetime]:
    """`start` and every scheduled refit before `end`."""
    start, end = utc(start), utc(end)
    n_times = max(1, -((start - end) // every))
    return [start + i * every for i in range(n_times)]


def never_retrain(package: Path) -> PackageScorer:
    """The first champion, frozen.

    Raises:
        ToolRejected: the package is damaged.
    """
    return PackageScorer(package)


def always_retrain(
    spec: ModelSpec,
    *,
    first: Scorer,
    n_classes: int,
    times: Sequence[datetime],
    schedule: Schedule,
    progress: Progress = lambda text: None,
) -> Iterator[tuple[Scorer, Refit | None]]:
    """What would serve from each of `times` on: `first`, then one refit of the recipe a time, adopted unseen.

    A refit at t sees labels known by t and days not known to be bad by t. It chooses nothing: it fits one candidate
    once, without cross-validation, gates or a comparison. Two are fitted side by side. Where the spec trains by
    something else than a recipe, `first` serves on and nothing is refitted.
    """
    present: Scorer = first
    yield present, None
    if not isinstance(spec.training, RecipeTraining):
        yield from [(present, None)] * (len(times) - 1)
        return
    pending = list(times[1:])
    while pending:
        batch, pending = pending[:SIDE_BY_SIDE], pending[SIDE_BY_SIDE:]
        progress(f"refitting as of {' and '.join(f'{at:%Y-%m-%d}' for at in batch)}")
        for fitted, made in run_fits([partial(refit, spec, at, schedule, n_classes) for at in batch]):
            present = present if fitted is None else partial(score_with, fitted)
            yield present, made


def refit(spec: ModelSpec, at: datetime, schedule: Schedule, n_classes: int) -> tuple[FittedModel | None, Refit]:
    """The recipe's model of the labels known by `at`; None where none could be fitted, and the record says why."""
    assert isinstance(spec.training, RecipeTraining)
    recipe = spec.training
    n_rows = 0
    try:
        start = at - recipe.window if recipe.window is not None else None
        frame = schedule.rows(start=start, end=at, as_of=at, excluded_days=schedule.excluded_days(at))
        n_rows = frame.height
        seen = 0 if spec.task == "regression" or not n_rows else int(frame["label"].max() or 0) + 1  # type: ignore[arg-type]
        rows = labelled_rows(frame, spec, n_classes=0 if spec.task == "regression" else max(n_classes, seen))
        named = [candidate for candidate in recipe.candidates if candidate.name == schedule.candidate]
        candidate = (named or recipe.candidates)[0]
        fitted = fit_model(rows, candidate, task=spec.task, declared=spec.features, seed=recipe.seed)
    except SteadyError as exc:  # a schedule that cannot be kept once keeps what it has, as a cron job would
        return None, Refit(at=at, n_rows=n_rows, error=str(exc))
    return fitted, Refit(at=at, n_rows=n_rows)


def score_with(model: FittedModel, frame: pl.DataFrame) -> Floats:
    """Scores of `frame` by a model in memory, in batches of bounded size."""
    names = [feature.name for feature in model.features]
    encoder = Encoder(model.features)
    with few_threads():
        parts = [
            model.score_encoded(encoder.encode(encoder_columns(chunk, names)))
            for chunk in frame.iter_slices(BATCH_ROWS)
        ]
    return np.concatenate(parts)


def compare(spec: ModelSpec, scores: ControlScores, rows: npt.NDArray[np.intp]) -> Compared:
    """The objective's metric over the rows at positions `rows`, taken together, three ways."""

    def value(given: Floats | None) -> float | None:
        loss = None if given is None else metric_loss(spec.objective.metric, scores.label[rows], given[rows], spec)
        return None if loss is None or not math.isfinite(loss) else metric_value(spec.objective.metric, loss)

    return Compared(
        n_rows=len(rows), served=value(scores.served), never=value(scores.never), always=value(scores.always)
    )


def _collected(parts: list[tuple[pl.DataFrame, Floats, Floats]], refits: list[Refit], *, always: bool) -> ControlScores:
    frames = [frame for frame, _, _ in parts]
    served = [_matrix(frame["score"]) for frame in frames]
    columns = [served, [never for _, never, _ in parts], [scores for _, _, scores in parts]]
    width = max((a.shape[1] for column in columns for a in column if a.ndim == 2), default=0)
    first, second, third = (_stacked(column, width) for column in columns)
    schema = pl.Schema({"event_time": EVENT_TIME, "version": pl.String(), "label": pl.Float64()})
    rows = pl.concat([frame.select(schema.names()) for frame in frames]) if frames else pl.DataFrame(schema=schema)
    return ControlScores(
        times_us=rows["event_time"].dt.epoch("us").to_numpy(),
        version=np.array(rows["version"].to_list(), dtype=np.str_),
        label=rows["label"].cast(pl.Float64).to_numpy(),
        served=first,
        never=second,
        always=third if always else None,
        refits=tuple(refits),
    )


def _matrix(scores: pl.Series) -> Floats:
    """Recorded scores; versions from before a class was first seen give it no probability."""
    if not isinstance(scores.dtype, pl.List | pl.Array):
        return scores.cast(pl.Float64).to_numpy()
    rows = scores.to_list()
    found = np.zeros((len(rows), max(map(len, rows))))
    for at, row in enumerate(rows):
        found[at, : len(row)] = row
    return found


def _stacked(parts: list[Floats], width: int) -> Floats:
    if not parts:
        return np.zeros(0)
    padded = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) if a.ndim == 2 else a for a in parts]
    return np.concatenate(padded)


def _us(at: datetime) -> int:
    return (utc(at) - datetime(1970, 1, 1, tzinfo=utc(at).tzinfo)) // timedelta(microseconds=1)
