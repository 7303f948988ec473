"""The ground truth of a simulated model: its rows, the true P(y|x) behind them, and how both change over time.

Every day is a pure function of (seed, model, day, truth), so nothing but settings has to be stored.
"""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evals.world.replayed import Replayed
from state.spec import Feature, ModelSpec

Floats: TypeAlias = NDArray[np.float64]
LEVELS = ("a", "b", "c", "d")
WORDS = ("late", "refund", "broken", "thanks", "again", "blue", "order", "size")
DriftKind: TypeAlias = Literal[
    "concept", "signal_loss", "prior", "covariate", "segment", "unit", "skew", "missing", "new_level", "label_flip",
    "label_lost", "label_missing", "late_labels", "no_rows", "volume", "repeated", "late_rows", "extra",
]  # fmt: skip


_SHARES: tuple[DriftKind, ...] = (
    "prior", "label_flip", "label_lost", "label_missing", "late_labels", "repeated", "late_rows", "extra",
)  # fmt: skip
LATE_BY = timedelta(days=21)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One change of the world from `start` on. Dates are ISO days."""

    kind: DriftKind
    start: str
    until: str | None = None
    """First day without the change; None lasts for ever."""
    magnitude: float = 1.0
    """concept: 0-1 of a quarter turn of the true coefficients; signal_loss, missing, new_level, skew: a ratio;
    label_flip, label_lost (class 1 reported as 0), label_missing: a ratio of the labels; repeated (sent twice),
    late_rows (sent with the event time of three weeks ago), extra (with an unknown column): a ratio of the rows;
    prior: logits; covariate: standard deviations; unit, volume: a factor; late_labels: extra days."""
    features: tuple[str, ...] = ()
    """The affected features; empty means all of the fitting type."""
    level: str | None = None
    """segment: the level of the first named feature inside which the concept turns; new_level: its name."""
    ramp_days: int = 0
    """Days until the change has its full magnitude."""

    def strength(self, day: date) -> float:
        """Share of the magnitude that holds on `day`, 0 to 1."""
        age = (day - date.fromisoformat(self.start)).days
        if age < 0 or (self.until is not None and day >= date.fromisoformat(self.until)):
            return 0.0
        return min(1.0, (age + 1) / (self.ramp_days + 1))

    def touches(self, feature: Feature) -> bool:
        return not self.features or feature.name in self.features


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """How much traffic a model gets and how predictable it is."""

    rows_per_day: int = 300
    history_days: int = 60
    n_entities: int = 400
    signal: float = 1.4
    """Length of the true coefficient vector in standardised inputs: 1.4 gives a best possible AUC near 0.8."""
    intercept: float = -1.0
    day_sd: float = 0.15
    """Every day shifts all logits by a draw of this size: rows of one day share its weather."""
    day_rho: float = 0.0
    """Autocorrelation of those shifts from one day to the next: weather lasts."""
    noise_sd: float = 1.0
    """Residual of a regression."""
    unlabelled_ratio: float = 0.02
    """Rows whose label never comes."""
    replay: Replayed | None = None
    """Recorded rows in the place of all this but `history_days` and `rows_per_day`, which is the most of a day."""
    drifts: list[Drift] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One day's rows as recorded, and what is true about them."""

    frame: pl.DataFrame
    """`request_id, entity, event_time` and the features as every observer sees them."""
    offline: pl.DataFrame
    """`request_id` and the features as the offline store holds them: what a release of features skews is right here."""
    expected: Floats
    """True P(y = 1 | x), or the true mean of a regression; shape (n_rows,). Of a replay the outcome, for no more is known."""
    outcome: Floats
    """What really happened."""
    labels: pl.DataFrame
    """`request_id, label, available_at` as the label pipeline reports them; rows that never get one are left out."""
    extra: NDArray[np.bool_]
    """Which rows come with a column that no contract knows; shape (n_rows,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    recorded: dict[str, pl.Series]
    offline: dict[str, pl.Series]
    effects: Floats
    """Standardised contribution of each feature before its coefficient; shape (n_rows, n_features)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A day of a model; equal ones have the same rows."""

    rows_of: str
    seed: int
    day: date
    spec: ModelSpec = field(compare=False)
    truth: Truth = field(compare=False)


def day_rows(spec: ModelSpec, truth: Truth, *, seed: int, day: date) -> Day:
    """The rows of `day`; the same arguments give the same rows. Most days of a suite are days of several scenarios."""
    acting = replace(truth, drifts=[drift for drift in truth.drifts if drift.strength(day) > 0])
    rows_of = f"{spec.model}/{spec.task}/{spec.data.label.delay}/{spec.features}/{acting}"
    return _day_rows(_Wanted(rows_of=rows_of, seed=seed, day=day, spec=spec, truth=acting))


@functools.lru_cache(maxsize=1_000)
def _day_rows(wanted: _Wanted) -> Day:
    spec, truth, seed, day = wanted.spec, wanted.truth, wanted.seed, wanted.day
    rng = np.random.default_rng([seed, zlib.crc32(spec.model.encode()), day.toordinal()])
    # Faults draw from a source of their own, so that the healthy twin of a scenario has the same rows.
    fault_rng = np.random.default_rng([seed, zlib.crc32(f"{spec.model}/faults".encode()), day.toordinal()])
    if truth.replay is not None:
        drawn = _recorded(spec, truth, truth.replay.rows(day), day, rng, fault_rng)
    else:
        drawn = _simulated(spec, truth, seed, day, rng, fault_rng)
    n_rows, micros, inputs = len(drawn.outcome), drawn.micros, drawn.inputs
    shares = {kind: _total(truth, kind, day) for kind in _SHARES}
    request_id = (f"{spec.model}-{day.isoformat()}-" + _numbers(6, n_rows)[:n_rows]).alias("request_id")
    offline = pl.DataFrame([request_id, *inputs.offline.values()])
    reported, comes = _reported(spec, drawn.outcome, shares, fault_rng), drawn.comes
    if shares["label_missing"]:
        comes[comes] = fault_rng.random(int(comes.sum())) >= shares["label_missing"]
    labelled = np.flatnonzero(comes)
    delay = spec.data.label.delay + timedelta(days=shares["late_labels"])
    labels = pl.DataFrame([
        request_id.gather(labelled), pl.Series("label", reported[labelled], pl.Float64),
        _times("available_at", micros[labelled] + delay // timedelta(microseconds=1)),
    ])  # fmt: skip
    late = fault_rng.random(n_rows) < shares["late_rows"]
    event_time = _times("event_time", micros - late * (LATE_BY // timedelta(microseconds=1)))
    frame = pl.DataFrame([request_id, drawn.entity, event_time, *inputs.recorded.values()])
    extra = fault_rng.random(n_rows) < shares["extra"]
    again = np.flatnonzero(fault_rng.random(n_rows) < shares["repeated"])
    if not len(again):
        return Day(
            frame=frame, offline=offline, expected=drawn.expected, outcome=drawn.outcome, labels=labels, extra=extra
        )  # fmt: skip
    # The same row again is another request: with an id, and no label, of its own.
    copies = frame[again].with_columns(pl.col("request_id") + "-again")
    rows = np.concatenate([np.arange(n_rows), again])
    return Day(
        frame=pl.concat([frame, copies]), offline=offline, expected=drawn.expected[rows], outcome=drawn.outcome[rows],
        labels=labels, extra=extra[rows],
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """A day's rows before anything happens to their labels and their transport; all of shape (n_rows,)."""

    inputs: _Inputs
    micros: NDArray[np.int64]
    """Event times, ascending."""
    entity: pl.Series
    expected: Floats
    outcome: Floats
    comes: NDArray[np.bool_]
    """Rows that get a label."""


def _simulated(
    spec: ModelSpec, truth: Truth, seed: int, day: date, rng: np.random.Generator, fault_rng: np.random.Generator
) -> _Drawn:
    n_rows = _row_count(truth, day, int(rng.poisson(truth.rows_per_day)))
    inputs = _inputs(spec, truth, day, n_rows, rng, fault_rng)
    weather = rng.normal(0.0, truth.day_sd)
    if truth.day_rho:
        weather = _lasting(spec, truth, seed, day)
    score = _true_score(spec, truth, seed, day, inputs) + weather + _total(truth, "prior", day)
    if spec.task == "regression":
        expected = score
        outcome = score + rng.normal(0.0, truth.noise_sd, n_rows)
    else:
        expected = 1.0 / (1.0 + np.exp(-score))
        outcome = (rng.random(n_rows) < expected).astype(np.float64)
    micros = _micros(datetime.combine(day, time(), UTC)) + np.sort(rng.integers(0, 86_400 * 1_000, n_rows)) * 1_000
    entity = ("e" + _numbers(5, truth.n_entities).gather(rng.integers(0, truth.n_entities, n_rows))).alias("entity")
    return _Drawn(
        inputs=inputs, micros=micros, entity=entity, expected=expected, outcome=outcome,
        comes=rng.random(n_rows) >= truth.unlabelled_ratio,
    )  # fmt: skip


def _recorded(
    spec: ModelSpec,
    truth: Truth,
    rows: pl.DataFrame,
    day: date,
    rng: np.random.Generator,
    fault_rng: np.random.Generator,
) -> _Drawn:
    """A recorded day, thinned to at most `rows_per_day`: which rows stay is what the seed decides."""
    n_rows = min(_row_count(truth, day, min(rows.height, truth.rows_per_day)), rows.height)
    rows = rows[np.sort(rng.choice(rows.height, n_rows, replace=False))] if n_rows < rows.height else rows
    recorded, offline = {}, {}
    for feature in spec.features:
        column, now = rows[feature.name], _acting(truth, feature, day)
        mean = column.mean() if feature.type == "numeric" else None
        middle = float(mean) if isinstance(mean, int | float) else 0.0
        recorded[feature.name], offline[feature.name] = _both_stores(feature, column, now, fault_rng, middle=middle)
    known = rows["label"].is_not_null().to_numpy()
    outcome = rows["label"].fill_null(0.0).to_numpy().astype(np.float64)
    return _Drawn(
        inputs=_Inputs(recorded=recorded, offline=offline, effects=np.zeros((n_rows, len(spec.features)))),
        micros=rows["event_time"].dt.epoch("us").to_numpy(), entity=rows["entity"].alias("entity"),
        expected=outcome, outcome=outcome, comes=known.copy(),
    )  # fmt: skip


def _micros(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000


def _times(name: str, micros: NDArray[np.int64]) -> pl.Series:
    return pl.Series(name, micros, pl.Int64).cast(pl.Datetime("us", "UTC"))


def _numbers(n_digits: int, n: int) -> pl.Series:
    """The whole numbers from 0 on as text of so many digits; at least `n` of them."""
    return _texts(n_digits, 1 << n.bit_length())


@functools.lru_cache(maxsize=16)
def _texts(n_digits: int, n: int) -> pl.Series:
    return pl.int_range(n, eager=True).cast(pl.Utf8).str.zfill(n_digits)


def _lasting(spec: ModelSpec, truth: Truth, seed: int, day: date) -> float:
    """A day's shift that hangs together with those before it: an AR(1) of the same size, over the past two months."""
    draws = [
        np.random.default_rng([seed, zlib.crc32(f"{spec.model}/weather".encode()), day.toordinal() - age]).normal()
        for age in range(60)
    ]
    weights = truth.day_rho ** np.arange(60)
    return float(truth.day_sd * math.sqrt(1 - truth.day_rho**2) * (weights @ np.array(draws)))


def _reported(spec: ModelSpec, outcome: Floats, shares: dict[DriftKind, float], rng: np.random.Generator) -> Floats:
    """The labels as their pipeline reports them."""
    reported = outcome.copy()
    if spec.task != "regression":
        flipped = rng.random(len(outcome)) < shares["label_flip"]
        reported[flipped] = 1.0 - reported[flipped]
    if shares["label_lost"]:
        reported[rng.random(len(outcome)) < shares["label_lost"]] = 0.0
    return reported


def _row_count(truth: Truth, day: date, n_rows: int) -> int:
    """How many rows of `n_rows` are sent."""
    for drift in truth.drifts:
        if drift.kind == "no_rows" and drift.strength(day) > 0:
            return 0
        if drift.kind == "volume" and drift.strength(day) > 0:
            n_rows = int(n_rows * drift.magnitude)
    return n_rows


def _total(truth: Truth, kind: DriftKind, day: date) -> float:
    return sum(drift.magnitude * drift.strength(day) for drift in truth.drifts if drift.kind == kind)


def _feature_rng(seed: int, model: str, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{model}/{what}".encode())])


def _location(spec: ModelSpec, feature: Feature) -> tuple[float, float]:
    """Mean and standard deviation of a numeric feature in its own unit, the same for every seed."""
    if feature.low is not None and feature.high is not None:
        return (feature.low + feature.high) / 2, (feature.high - feature.low) / 10
    draw = _feature_rng(0, spec.model, feature.name).uniform(20.0, 80.0)
    return float(draw), float(draw) / 6


def _inputs(
    spec: ModelSpec, truth: Truth, day: date, n_rows: int, rng: np.random.Generator, fault_rng: np.random.Generator
) -> _Inputs:
    recorded: dict[str, pl.Series] = {}
    offline: dict[str, pl.Series] = {}
    effects = np.zeros((n_rows, len(spec.features)))
    for index, feature in enumerate(spec.features):
        now = _acting(truth, feature, day)
        shift = sum(drift.magnitude for drift in now if drift.kind == "covariate")
        if feature.type == "numeric":
            column, effects[:, index] = _numeric(spec, feature, shift, n_rows, rng)
        elif feature.type == "boolean":
            value = (rng.random(n_rows) < min(0.95, 0.5 + 0.15 * shift)).astype(np.float64)
            column, effects[:, index] = pl.Series(feature.name, value, pl.Float32), 2 * value - 1
        elif feature.type == "text":
            words = rng.choice(np.array(WORDS), (n_rows, 3))
            column = pl.Series(feature.name, [" ".join(row) for row in words], pl.Utf8)
        else:
            column, effects[:, index] = _levels(spec, feature, shift, n_rows, rng)
        middle = _location(spec, feature)[0]
        recorded[feature.name], offline[feature.name] = _both_stores(feature, column, now, fault_rng, middle=middle)
    return _Inputs(recorded=recorded, offline=offline, effects=effects)


def _acting(truth: Truth, feature: Feature, day: date) -> list[Drift]:
    """The changes that hold for a feature on `day`, with the magnitude that they have by then."""
    return [
        replace(drift, magnitude=drift.magnitude * drift.strength(day) if drift.kind != "unit" else drift.magnitude)
        for drift in truth.drifts
        if drift.touches(feature) and drift.strength(day) > 0
    ]


def _both_stores(
    feature: Feature, column: pl.Series, drifts: list[Drift], rng: np.random.Generator, *, middle: float
) -> tuple[pl.Series, pl.Series]:
    """The column as it is served and recorded, and as the offline store has it."""
    state = rng.bit_generator.state
    recorded = _spoiled(feature, column, drifts, rng, middle=middle)
    if not any(drift.kind == "skew" for drift in drifts):
        return recorded, recorded
    # The same draws once more, so that the other faults hit the same rows in both stores.
    rng.bit_generator.state = state
    return recorded, _spoiled(feature, column, drifts, rng, middle=None)


def _numeric(
    spec: ModelSpec, feature: Feature, shift: float, n_rows: int, rng: np.random.Generator
) -> tuple[pl.Series, Floats]:
    mean, sd = _location(spec, feature)
    z = np.clip(rng.normal(0.0, 1.0, n_rows), -4.9, 4.9) + shift
    return pl.Series(feature.name, mean + sd * z, pl.Float32), z


def _levels(
    spec: ModelSpec, feature: Feature, shift: float, n_rows: int, rng: np.random.Generator
) -> tuple[pl.Series, Floats]:
    weights = np.exp(shift * np.linspace(-0.5, 0.5, len(LEVELS)))
    index = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], rng.random(n_rows), side="right")
    effect = _feature_rng(0, spec.model, f"levels/{feature.name}").normal(0.0, 1.0, len(LEVELS))
    values = np.array(LEVELS, dtype=object)[index].tolist()
    return pl.Series(feature.name, values, pl.Utf8), (effect - effect.mean())[index]


def _spoiled(
    feature: Feature, column: pl.Series, drifts: list[Drift], rng: np.random.Generator, *, middle: float | None
) -> pl.Series:
    """The column after its faults; what is true stays as it was. `middle` is what skew serves, None for no skew."""
    for drift in drifts:
        hit = pl.Series(rng.random(len(column)) < drift.magnitude)
        if drift.kind == "unit" and feature.type == "numeric":
            column = (column * drift.magnitude).cast(pl.Float32)
        elif drift.kind == "skew" and feature.type == "numeric" and middle is not None:
            column = column.set(hit, middle)
        elif drift.kind == "new_level" and feature.type == "categorical":
            column = column.set(hit, drift.level or "new")
        elif drift.kind == "missing":
            column = column.set(hit, None)
    return column


def _coefficients(spec: ModelSpec, truth: Truth, seed: int, day: date) -> Floats:
    size = len(spec.features)
    start, other = _feature_rng(seed, spec.model, "coefficients").normal(0.0, 1.0, (2, size))
    start = start / np.linalg.norm(start)
    other = other - start * (other @ start)
    length = float(np.linalg.norm(other))
    # One feature has no orthogonal direction: its concept turns by changing sign.
    other = other / length if length > 1e-9 else -start
    angle = min(1.0, _total(truth, "concept", day)) * math.pi / 2
    lost = min(1.0, _total(truth, "signal_loss", day))
    turned: Floats = truth.signal * (1.0 - lost) * (math.cos(angle) * start + math.sin(angle) * other)
    return turned


def _inside(column: pl.Series, level: str) -> NDArray[np.bool_]:
    """The rows of a segment: those with this level of a category, or with `true` or `false` of a flag."""
    if column.dtype.is_numeric():
        return (column == float(level == "true")).fill_null(value=False).to_numpy()
    return column.eq_missing(pl.Series([level], dtype=pl.Utf8)).to_numpy()


def _true_score(spec: ModelSpec, truth: Truth, seed: int, day: date, inputs: _Inputs) -> Floats:
    beta = _coefficients(spec, truth, seed, day)
    score: Floats = truth.intercept + inputs.effects @ beta
    for drift in truth.drifts:
        strength = drift.strength(day)
        if drift.kind == "segment" and strength > 0 and drift.features:
            inside = _inside(inputs.recorded[drift.features[0]], str(drift.level))
            turned = truth.intercept + inputs.effects @ beta * (1.0 - 2.0 * drift.magnitude * strength)
            score = np.where(inside, turned, score)
    return score
