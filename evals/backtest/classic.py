"""The rule that many teams retrain by, as a control: a test of drift or a fall of F1 fires, and a refit takes over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from scipy.special import kolmogorov

from agents.base import matured_until
from state.encoding import Column
from state.profile import Profile, fit_bins
from state.spec import ModelSpec
from tools.controls import Floats, Labelled, Progress, Schedule, Scorer, refit, score_with
from tools.drift.statistics import FeatureStatistics, describe
from tools.evaluation import metric_loss
from tools.fits import few_threads

LOOK = timedelta(days=7)
"""Time between two looks, and the stretch of rows that each takes; a block where that is longer."""
PSI, KS_P, KEPT = 0.25, 0.05, 0.9
REFERENCE_ROWS = 50_000
"""Rows of a training window that stand for all of it."""
Reason: TypeAlias = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    at: datetime
    reason: Reason
    error: str = ""
    """Why nothing could be fitted; the model before it then served on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicSources:
    """Where the rule reads: each source answers for a stretch of event time."""

    rows: Labelled
    """Every row, labelled or not."""
    known: Any
    """`(start, end, as_of)` -> rows with the labels known by then."""
    final: Labelled
    """Rows with the labels finally known, which the rule is scored on and never sees."""


@dataclass(slots=True, kw_only=True)
class Classic:
    """Scores of every finally labelled row under the rule, oldest first, and when it fired."""

    scores: list[Floats] = field(default_factory=list)
    firings: list[Firing] = field(default_factory=list)
    n_looks: int = 0

    @property
    def score(self) -> Floats:
        return np.concatenate(self.scores) if self.scores else np.zeros(0)


def run_classic(
    spec: ModelSpec, *, n_classes: int, first: Scorer, reference: pl.DataFrame, start: datetime, end: datetime,
    sources: ClassicSources, schedule: Schedule, progress: Progress,
) -> Classic:  # fmt: skip
    """Live through [start, end): `first` serves until the rule fires, then each refit at once. `reference` are the
    labelled rows of the history, the newest of which set the score that must not be lost."""
    result = Classic()
    serving, profile = first, _profile(spec, reference)
    held = reference.filter(pl.col("event_time") >= pl.col("event_time").max() - timedelta(days=14))
    least = _score(spec, held, first)
    length = max(LOOK, spec.monitoring.block)
    for at, until in _stretches(start, end, length):
        rows = sources.final(at, until)
        if rows.height:
            result.scores.append(serving(rows))
        if until >= end:
            break
        result.n_looks += 1
        reason = _drifted(spec, profile, sources.rows(at, until)) or _worse(
            spec, sources, serving, least, until, length
        )
        if not reason:
            continue
        progress(f"the classic rule fires on {until:%Y-%m-%d}: {reason}")
        with few_threads():
            model, made = refit(spec, until, schedule, n_classes)
        result.firings.append(Firing(at=until, reason=reason, error=made.error))
        if model is not None:
            serving = partial(score_with, model)
            profile = _profile(spec, schedule.rows(start=None, end=until, as_of=until, excluded_days=()))
    return result


def _stretches(start: datetime, end: datetime, length: timedelta) -> Iterator[tuple[datetime, datetime]]:
    at = start
    while at < end:
        yield at, min(at + length, end)
        at += length


def _drifted(spec: ModelSpec, reference: Profile, rows: pl.DataFrame) -> Reason:
    """The first feature whose PSI or KS test fires; empty where none does."""
    if rows.is_empty():
        return ""
    current = Profile.count(reference.bins, _columns(spec, rows), "now")
    for feature in describe(reference, current):
        if feature.psi > PSI:
            return f"PSI of {feature.name} is {feature.psi:.2f}"
        p_value = _ks_p(feature)
        if p_value is not None and p_value < KS_P:
            return f"KS of {feature.name} has p {p_value:.2g}"
    return ""


def _ks_p(feature: FeatureStatistics) -> float | None:
    n, m = feature.n_reference, feature.n_current
    if feature.ks is None or not n or not m:
        return None
    return float(kolmogorov(feature.ks * math.sqrt(n * m / (n + m))))


def _worse(
    spec: ModelSpec, sources: ClassicSources, serving: Scorer, least: float | None, now: datetime, length: timedelta
) -> Reason:
    """Why the score of the newest matured stretch is below nine tenths of the reference; empty where it is not."""
    if least is None:
        return ""
    end = matured_until(now, spec.data.label.delay)
    found = _score(spec, sources.known(end - length, end, now), serving)
    if found is None:
        return ""
    if spec.task == "regression":
        return f"{spec.objective.metric} is {found:.4g}, reference {least:.4g}" if found > least / KEPT else ""
    return f"F1 is {found:.3f}, reference {least:.3f}" if found < KEPT * least else ""


def _score(spec: ModelSpec, rows: pl.DataFrame, scorer: Scorer) -> float | None:
    """F1 of a classifier (mean over several classes), the objective's error of a regression; None where there is none."""
    if rows.is_empty():
        return None
    metric = spec.objective.metric if spec.task == "regression" else "f1"
    loss = metric_loss(metric, rows["label"].to_numpy(), scorer(rows), spec)
    if loss is None:
        return None
    return loss if spec.task == "regression" else (1 - loss) or None


def _profile(spec: ModelSpec, rows: pl.DataFrame) -> Profile:
    """Of the rows that a model was fitted on, thinned evenly."""
    columns = _columns(spec, rows.gather_every(max(1, rows.height // REFERENCE_ROWS)))
    bins = fit_bins(
        {feature.name: (feature.type, columns[feature.name]) for feature in spec.features},
        bounds={feature.name: (feature.low, feature.high) for feature in spec.features},
    )
    return Profile.count(bins, columns, "reference")


def _columns(spec: ModelSpec, rows: pl.DataFrame) -> dict[str, Column]:
    def values(series: pl.Series) -> Column:
        return series.fill_null(math.nan).to_numpy() if series.dtype.is_float() else series.to_list()

    return {feature.name: values(rows[feature.name]) for feature in spec.features}


def refits_of(firings: Sequence[Firing]) -> int:
    """How often a refit took over."""
    return sum(not firing.error for firing in firings)
