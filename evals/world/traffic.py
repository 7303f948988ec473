"""One day's requests: who answered which row, with what score, how fast, and what was never answered."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from evals.world.models import Model
from evals.world.records import LATENCY_BOUNDS_MS, Arm, Counters, ServedDay
from evals.world.truth import Day, Floats

BASE_LATENCY_MS = 4.0
P_FLOOR = 1e-6
FULL = 20.0
"""Times as long as alone that an answer of a full server takes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayRecord:
    predictions: pl.DataFrame
    """Prediction records of the answered rows, in order of event time."""
    by_version: Mapping[str, Counters]
    """What the proxy counted on this day."""
    expected: Floats
    """The truth of the answered rows."""
    n_unanswered: int

    def harm(self, task: str) -> float:
        """Sum over rows of the expected excess loss of the served scores over the truth."""
        return excess_loss(self.predictions["score"].to_numpy(), self.expected, task) + self.n_unanswered


def excess_loss(score: Floats, expected: Floats, task: str) -> float:
    """Sum over rows of the expected log loss of `score` beyond that of the truth `expected`; squared error in a regression."""
    if task == "regression":
        return float(((score - expected) ** 2).sum())
    p, q = np.clip(expected, P_FLOOR, 1 - P_FLOOR), np.clip(score, P_FLOOR, 1 - P_FLOOR)
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum())


@functools.lru_cache(maxsize=100_000)
def position(model: str, entity: str) -> float:
    """Where an entity stands in [0, 100); the same for ever, so assignment is sticky."""
    digest = hashlib.blake2b(entity.encode(), key=model.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100.0


def record_day(rows: Day, served: ServedDay, *, loaded: Callable[[str], Model], task: str, model: str) -> DayRecord:
    """Score every row with the arm that its entity is assigned to."""
    frame = rows.frame
    place = np.array([position(model, entity) for entity in frame["entity"].to_list()], dtype=np.float64)
    # Cumulative in route order: raising the last version's share keeps everybody who was on it.
    upper = np.cumsum([arm.weight for arm in served.arms])
    chosen = np.minimum(np.searchsorted(upper, place, side="right"), len(served.arms) - 1)
    score = np.zeros(frame.height)
    failed = np.zeros(frame.height, dtype=bool)
    by_version: dict[str, Counters] = {}
    for index, arm in enumerate(served.arms):
        mine = np.flatnonzero(chosen == index)
        rng = np.random.default_rng([zlib.crc32(f"{model}/{arm.version}/{served.day}".encode())])
        failed[mine] = True if arm.digest is None else rng.random(len(mine)) < _error_ratio(arm, len(mine))
        if arm.digest is not None and len(mine):
            given = _scores(loaded(arm.digest), frame if len(mine) == frame.height else frame[mine], arm, task)
            score = score if score.ndim == given.ndim else np.zeros((frame.height, *given.shape[1:]))
            score[mine] = given
        by_version[arm.version] = Counters(
            n_requests=len(mine),
            n_errors=int(failed[mine].sum()),
            latency=_latency(len(mine) if arm.digest else 0, arm, rng),
        )
    flags = pl.Series("flags", [[], ["extra:note"]], pl.List(pl.Utf8))
    first = ["request_id", "entity", "event_time"]
    predictions = pl.DataFrame([
        *(frame[name] for name in first),
        pl.Series("version", [arm.version for arm in served.arms], pl.Utf8).gather(chosen),
        pl.Series("mirrored", np.zeros(frame.height, dtype=bool)),
        pl.Series("score", score),
        flags.gather(rows.extra.astype(np.int64)) if rows.extra.any() else flags.new_from_index(0, frame.height),
        *(frame[name] for name in frame.columns if name not in first),
    ])  # fmt: skip
    return DayRecord(
        predictions=predictions.filter(pl.Series(~failed)) if failed.any() else predictions,
        by_version=by_version,
        expected=rows.expected[~failed],
        n_unanswered=int(failed.sum()),
    )


def _scores(model: Model, frame: pl.DataFrame, arm: Arm, task: str) -> Floats:
    score = model.score(frame) + arm.score_shift
    return np.clip(score, 0.0, 1.0) if task == "binary" else score


def _error_ratio(arm: Arm, n_requests: int) -> float:
    """What a server refuses: by its own fault, and what is beyond its capacity."""
    beyond = 0.0 if arm.capacity is None or not n_requests else max(0.0, 1.0 - arm.capacity / n_requests)
    return max(arm.error_ratio, beyond)


def _wait_ratio(arm: Arm, n_requests: int) -> float:
    """How much longer an answer takes under the load of a day than alone: 1 / (1 - load), the mean time in an M/M/1 queue
    (Kleinrock, Queueing Systems, 1975); a server that is full answers what it takes after `FULL` times as long."""
    load = n_requests / arm.capacity if arm.capacity else 0.0
    return 1.0 / (1.0 - min(load, 1.0 - 1.0 / FULL))


def _latency(n_requests: int, arm: Arm, rng: np.random.Generator) -> list[int]:
    drawn = (
        BASE_LATENCY_MS * arm.latency_ratio * _wait_ratio(arm, n_requests) * np.exp(rng.normal(0.0, 0.4, n_requests))
    )
    cells = np.searchsorted(np.array(LATENCY_BOUNDS_MS), drawn, side="left")
    return [int(n) for n in np.bincount(cells, minlength=len(LATENCY_BOUNDS_MS) + 1)]
