"""Performance of a model over labelled block losses, and the detector that watches them (level L4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from state.clock import utc
from state.spec import LOWER_IS_BETTER, Metric
from tools.drift.longrun import long_run_error

Floats: TypeAlias = npt.NDArray[np.float64]
T = TypeVar("T", int, pl.Series, pl.Expr)

RATES = (0.25, 0.5, 1.0, 2.0)
"""Rates of the mixture: each is quickest to find a loss of as many block standard deviations."""
CLIP = 4.0
"""A block counts for at most this many standard deviations, so that one bad day alone raises no alarm."""
_MONDAY_US = 4 * 86_400_000_000
"""Blocks longer than a day are laid out from Monday 1970-01-05."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def block_loss(metric: Metric, y: npt.ArrayLike, score: npt.ArrayLike, *, threshold: float = 0.5) -> float | None:
    """The loss of one block under `metric`, lower is better; None where the block cannot say.

    `y` is the class index or the number, shape `(n_rows,)`. `score` is the probability of class 1 or the number,
    shape `(n_rows,)`, or the probabilities of all classes, `(n_rows, n_classes)`. Metrics where higher is better
    become 1 - metric; those of several classes are means over the classes present. `threshold` decides class 1.
    None: no rows; ROC AUC or PR AUC with a single class; precision without a positive call, recall without a
    positive row, F1 without both.
    """
    truth, scores = np.asarray(y, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if not len(truth):
        return None
    if metric == "rmse":
        return float(np.sqrt(np.mean((truth - scores) ** 2)))
    if metric == "mae":
        return float(np.mean(np.abs(truth - scores)))
    if metric == "roc_auc" and scores.ndim == 1:
        value = _class_value(metric, truth == 1, truth == 1, scores)
        return None if value is None else 1.0 - value
    probabilities = np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores
    if metric == "log_loss":
        chosen = probabilities[np.arange(len(truth)), truth.astype(np.intp)]
        return float(-np.mean(np.log(np.clip(chosen, 1e-15, 1.0))))
    called = (scores >= threshold).astype(np.float64) if scores.ndim == 1 else scores.argmax(axis=1).astype(np.float64)
    if metric == "accuracy":
        return float(np.mean(called != truth))
    classes = [1] if scores.ndim == 1 else range(scores.shape[1])
    values = [_class_value(metric, truth == k, called == k, probabilities[:, k]) for k in classes]
    found = [value for value in values if value is not None]
    return 1.0 - float(np.mean(found)) if found else None


def metric_value(metric: Metric, loss: float) -> float:
    """The metric that a block loss stands for: the loss itself, or 1 - loss where higher is better."""
    return loss if metric in LOWER_IS_BETTER else 1.0 - loss


def block_of(times: pl.Series, block: timedelta) -> pl.Series:
    """Start of the block of each UTC time, as text: an ISO date where blocks are whole days, else an ISO time."""
    length = block // timedelta(microseconds=1)
    first, last = times.min(), times.max()
    if isinstance(first, datetime) and isinstance(last, datetime) and not times.null_count():
        name = block_at(utc(first), block)
        if name == block_at(utc(last), block):
            # The rows of a look, as a rule: writing a time is slow.
            return pl.Series([name], dtype=pl.String).new_from_index(0, len(times))
    if length == 86_400_000_000:
        return times.dt.strftime("%Y-%m-%d")
    start = _start_us(times.dt.epoch("us"), length)
    whole_days = length % 86_400_000_000 == 0
    return pl.from_epoch(start, time_unit="us").dt.strftime("%Y-%m-%d" if whole_days else "%Y-%m-%dT%H:%M:%S")


def _start_us(micros: T, length: int) -> T:
    """Start of the block of each time, both in microseconds since 1970."""
    return (micros - _MONDAY_US) // length * length + _MONDAY_US


def due_at(block: timedelta, delay: timedelta) -> pl.Expr:
    """When the block of each `event_time` is first judged: labels have had their delay since the midnight that ends it."""
    day = 86_400_000_000
    length = block // timedelta(microseconds=1)
    end = _start_us(pl.col("event_time").dt.epoch("us"), length) + length
    midnight = -(-end // day) * day
    return pl.from_epoch(midnight, time_unit="us").dt.replace_time_zone("UTC") + delay


def block_at(time: datetime, block: timedelta) -> str:
    """`block_of` for one UTC time."""
    length = block // timedelta(microseconds=1)
    start = _EPOCH + timedelta(microseconds=_start_us((time - _EPOCH) // timedelta(microseconds=1), length))
    return start.strftime("%Y-%m-%d" if length % 86_400_000_000 == 0 else "%Y-%m-%dT%H:%M:%S")


def block_losses(
    metric: Metric, frame: pl.DataFrame, *, block: timedelta = timedelta(days=1), threshold: float = 0.5
) -> dict[str, float]:
    """Loss by block, oldest first, of rows with `event_time`, `score` and `label`.

    Rows without a label or a score are left out, never counted as class 0; so are blocks that cannot say.
    """
    rows = frame
    if rows["label"].null_count() or rows["score"].null_count():
        rows = rows.drop_nulls(["label", "score"])
    losses: dict[str, float] = {}
    for name, part in rows_by(rows, block_of(rows["event_time"], block)).items():
        loss = block_loss(metric, part["label"].to_numpy(), scores_of(part["score"]), threshold=threshold)
        if loss is not None and math.isfinite(loss):
            losses[name] = loss
    return losses


def scores_of(column: pl.Series) -> Floats:
    """Scores as numbers: shape `(n_rows,)`, or `(n_rows, n_classes)` where each row has a list."""
    listed = isinstance(column.dtype, pl.List | pl.Array)
    return np.array(column.to_list() if listed else column.to_numpy(), dtype=np.float64)


def rows_by(frame: pl.DataFrame, key: pl.Series) -> dict[str, pl.DataFrame]:
    """The rows of `frame` by the text in `key`, one a row, in order of it. A look's rows are mostly of one block."""
    if not len(key):
        return {}
    if not key.null_count() and key.min() == key.max():
        return {str(key[0]): frame}
    parts = frame.with_columns(key.alias("__key")).partition_by("__key", as_dict=True, include_key=False)
    return {str(name): part for (name,), part in sorted(parts.items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What healthy block losses look like."""

    mean: float
    sd: float
    """Of one block; scaled up where blocks hang together, so that sums of blocks are judged rightly."""
    n: int
    null: float
    """Largest mean loss that still counts as healthy: mean + the larger of the tolerance and two standard errors."""


def reference_from_losses(losses: Sequence[float], *, tolerance: float = 0.02) -> Reference:
    """The reference from out-of-sample block losses (blocked cross-validation), in order of time.

    `tolerance` is relative to the mean. Raises ValueError with fewer than two blocks.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a reference needs at least two block losses, not {len(values)}")
    mean, error = float(values.mean()), long_run_error(values)
    # A reference that never moved would make any block infinitely surprising.
    sd = max(error * math.sqrt(len(values)), 0.01 * abs(mean), 1e-12)
    return Reference(mean=mean, sd=sd, n=len(values), null=mean + max(tolerance * abs(mean), 2 * error))


def change_point(losses: Mapping[str, float], *, null: float, sd: float) -> str | None:
    """The block in which a rise of the loss above `null` most likely began; None where none of them speaks for one.

    It is where the detector's own evidence begins: the start of the run of blocks, up to the newest, whose increments
    sum to the most under any of the rates (the maximum-likelihood estimate of CUSUM).
    """
    blocks = sorted(losses)
    z = np.minimum((np.array([losses[block] for block in blocks]) - null) / sd, CLIP)
    best, found = 0.0, None
    for rate in RATES if blocks else ():
        sums = np.cumsum((rate * z - rate * rate / 2)[::-1])[::-1]
        if sums.max() > best:
            best, found = float(sums.max()), blocks[int(sums.argmax())]
    return found


@dataclass(slots=True)
class EDetector:
    """Shiryaev-Roberts e-detector on block losses: looks are free, and a restart goes on from `state()`.

    Under a mean loss at or below the null, P(alarm by block t) <= t / false_alarm_blocks. The state is a few floats.
    For a family of k watched segments that share half of the budget pass 2 k times the number of blocks to each.

    Source: Shin, Ramdas, Rinaldo, E-detectors: a nonparametric framework for sequential change detection (2024);
    increments exp(rate z - rate^2 / 2) for sub-Gaussian z = (loss - null) / sd.
    """

    reference: Reference
    false_alarm_blocks: float = 8_000.0
    n_blocks: int = 0
    last_block: str | None = None
    """Blocks at or before this one have been counted and are passed over."""
    _logs: list[float] = field(default_factory=lambda: [0.0] * len(RATES))
    """log(1 + M) for each rate, M being its Shiryaev-Roberts statistic."""

    def update(self, loss: float | None, *, block: str | None = None) -> float:
        """Take in one block's mean loss and return `log_e`. None and a block already counted change nothing."""
        if loss is None or not math.isfinite(loss):
            return self.log_e
        if block is not None:
            if self.last_block is not None and block <= self.last_block:
                return self.log_e
            self.last_block = block
        z = min((loss - self.reference.null) / self.reference.sd, CLIP)
        self._logs = [
            float(np.logaddexp(0.0, log + rate * z - rate * rate / 2))
            for log, rate in zip(self._logs, RATES, strict=True)
        ]
        self.n_blocks += 1
        return self.log_e

    def update_all(self, losses: Mapping[str, float]) -> float:
        """Take in every block not yet counted, oldest first, and return `log_e`."""
        for block in sorted(losses):
            self.update(losses[block], block=block)
        return self.log_e

    @property
    def log_e(self) -> float:
        """Natural logarithm of the mixture's evidence; alarm at log(false_alarm_blocks). -1e9 where there is none."""
        parts = [log + math.log(-math.expm1(-log)) for log in self._logs if log > 0]
        if not parts:
            return -1e9
        return float(np.logaddexp.reduce(parts)) - math.log(len(RATES))

    @property
    def alarm(self) -> bool:
        return self.log_e >= math.log(self.false_alarm_blocks)

    def restarted(self) -> EDetector:
        """The same detector without its evidence: it goes on after the last block that was counted."""
        return EDetector(
            reference=self.reference, false_alarm_blocks=self.false_alarm_blocks, last_block=self.last_block
        )

    def state(self) -> dict[str, float | int | str | list[float] | None]:
        """JSON of everything that a restart needs."""
        reference = self.reference
        return {
            "mean": reference.mean,
            "sd": reference.sd,
            "n": reference.n,
            "null": reference.null,
            "false_alarm_blocks": self.false_alarm_blocks,
            "n_blocks": self.n_blocks,
            "last_block": self.last_block,
            "logs": list(self._logs),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> EDetector:
        """The detector that `state()` described, bit for bit."""
        numbers = {name: float(str(state[name])) for name in ("mean", "sd", "null", "false_alarm_blocks")}
        logs = state["logs"]
        last = state["last_block"]
        return cls(
            reference=Reference(mean=numbers["mean"], sd=numbers["sd"], n=int(str(state["n"])), null=numbers["null"]),
            false_alarm_blocks=numbers["false_alarm_blocks"],
            n_blocks=int(str(state["n_blocks"])),
            last_block=None if last is None else str(last),
            _logs=[float(str(log)) for log in logs] if isinstance(logs, Iterable) else [0.0] * len(RATES),
        )


def _class_value(
    metric: Metric, positive: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_], score: Floats
) -> float | None:
    n_positive, n_called = int(positive.sum()), int(called.sum())
    hits = int((positive & called).sum())
    match metric:
        case "precision":
            return hits / n_called if n_called else None
        case "recall":
            return hits / n_positive if n_positive else None
        case "f1":
            return 2 * hits / (n_positive + n_called) if n_positive + n_called else None
        case "roc_auc" | "pr_auc":
            if n_positive in (0, len(positive)):
                return None
            return _roc_auc(positive, score) if metric == "roc_auc" else _average_precision(positive, score)
        case _:
            raise ValueError(f"{metric} is not a metric of one class")


def _roc_auc(positive: npt.NDArray[np.bool_], score: Floats) -> float:
    """Mann-Whitney form, ties counting half."""
    order = np.argsort(score, kind="stable")
    ordered, n_positive = score[order], int(positive.sum())
    ranks = np.arange(1, len(score) + 1, dtype=np.float64)
    if not (ordered[1:] > ordered[:-1]).all():
        _, inverse, counts = np.unique(ordered, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = float(ranks[positive[order]].sum()) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * (len(positive) - n_positive))


def roc_auc_of_subsets(positive: npt.NDArray[np.bool_], score: Floats, subsets: npt.NDArray[np.bool_]) -> Floats | None:
    """ROC AUC inside each of `subsets` `(n_subsets, n_rows)`, NaN where it has a single class; None where scores tie.

    One sort of the block serves every subset: without ties a row's rank in one is the number of its rows up to there.
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    if not (ordered[1:] > ordered[:-1]).all():
        return None
    hit, up = subsets[:, order], positive[order]
    ours = hit & up
    n_positive, n_rows = ours.sum(axis=1), hit.sum(axis=1)
    ranks = np.where(ours, np.cumsum(hit, axis=1), 0).sum(axis=1)
    n_pairs = n_positive * (n_rows - n_positive)
    above = ranks - n_positive * (n_positive + 1) / 2
    return np.asarray(np.divide(above, n_pairs, out=np.full(len(subsets), np.nan), where=n_pairs > 0))


def _average_precision(positive: npt.NDArray[np.bool_], score: Floats) -> float:
    """Sum of precision times the step in recall, over distinct scores from the top."""
    values, inverse = np.unique(-score, return_inverse=True)
    n_hits = np.cumsum(np.bincount(inverse, weights=positive, minlength=len(values)))
    n_called = np.cumsum(np.bincount(inverse, minlength=len(values)))
    steps = np.diff(np.concatenate([[0.0], n_hits])) / n_hits[-1]
    return float(np.sum(n_hits / n_called * steps))
