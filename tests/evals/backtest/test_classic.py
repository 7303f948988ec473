"""The classic rule: when it fires, and that it sees nothing of what comes later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from evals.backtest.classic import Classic, ClassicSources, run_classic
from evals.world.platform import example_spec
from state.spec import ModelSpec
from tests.evals.backtest.history_files import no_progress
from tools.controls import Floats, Schedule

START = datetime(2025, 3, 3, tzinfo=UTC)
N_WEEKS = 4
Move = Callable[[Floats, Floats], tuple[Floats, Floats]]


def spec_of() -> ModelSpec:
    features = [{"name": "x", "type": "numeric"}]
    return example_spec(features=features, label_delay_days=1)


def rows(first: datetime, n_days: int, move: Move, *, from_day: datetime) -> pl.DataFrame:
    """60 rows a day: class 1 where x is high; `move` changes x and the label from a day on."""
    days = np.repeat(np.arange(n_days), 60)
    rng = np.random.default_rng(7)
    x = rng.normal(size=len(days))
    label = (x + rng.normal(scale=0.3, size=len(days)) > 0).astype(np.float64)
    times = [first + timedelta(days=int(day), minutes=n % 60) for n, day in enumerate(days)]
    later = np.array([at >= from_day for at in times])
    moved_x, moved_label = move(x, label)
    return pl.DataFrame(
        {
            "request_id": [f"r{n}" for n in range(len(days))], "event_time": times,
            "x": np.where(later, moved_x, x), "label": np.where(later, moved_label, label),
        },
        schema_overrides={"event_time": pl.Datetime("us", "UTC")},
    )  # fmt: skip


def fired(move: Move) -> tuple[Classic, list[datetime]]:
    """The rule over four weeks, the second of which brings the move; and until when labels were asked for."""
    begin = START - timedelta(days=42)
    frame = rows(begin, 42 + 7 * N_WEEKS, move, from_day=START + timedelta(days=7))
    asked: list[datetime] = []

    def between(since: datetime, until: datetime) -> pl.DataFrame:
        return frame.filter(pl.col("event_time") >= since, pl.col("event_time") < until)

    def known(since: datetime, until: datetime, as_of: datetime) -> pl.DataFrame:
        asked.append(max(until, as_of))
        return between(since, until)

    def training(
        *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame:
        asked.append(max(end, as_of))
        return between(begin, end)

    schedule = Schedule(every=timedelta(days=14), rows=training, excluded_days=lambda at: ())
    result = run_classic(
        spec_of(), n_classes=2, first=lambda given: (given["x"] > 0).to_numpy().astype(np.float64),
        reference=between(begin, START),
        start=START, end=START + timedelta(days=7 * N_WEEKS),
        sources=ClassicSources(rows=between, known=known, final=between), schedule=schedule, progress=no_progress,
    )  # fmt: skip
    assert len(result.score) == 60 * 7 * N_WEEKS
    return result, asked


@pytest.mark.parametrize(
    ("move", "reasons"),
    [
        pytest.param(lambda x, y: (x, y), [], id="nothing"),
        pytest.param(lambda x, y: (x + 2.0, y), ["PSI of x"], id="inputs"),
        pytest.param(lambda x, y: (x + 0.25, y), ["KS of x"], id="inputs-a-little"),
        pytest.param(lambda x, y: (x, 1 - y), ["F1 is"], id="labels"),
    ],
)
def test_the_rule_fires_at_the_look_after_the_move_and_says_why(move: Move, reasons: list[str]) -> None:
    result, asked = fired(move)

    assert result.n_looks == N_WEEKS - 1
    assert [f.reason.startswith(reason) for f, reason in zip(result.firings, reasons, strict=False)] == [True] * len(
        reasons
    )
    assert bool(result.firings) is bool(reasons)
    if reasons:
        assert result.firings[0].at == START + timedelta(days=14)
    assert all(at <= START + timedelta(days=7 * (N_WEEKS - 1)) for at in asked)


def test_a_refit_serves_from_its_look_on() -> None:
    result, _ = fired(lambda x, y: (x, 1 - y))

    before, after = result.scores[1], result.scores[-1]
    assert set(before) <= {0.0, 1.0}
    assert 0 < np.min(after) < np.max(after) < 1
