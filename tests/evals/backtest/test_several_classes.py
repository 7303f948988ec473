"""A history of a model of several classes: probabilities or predicted classes, features or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from evals.backtest.live import Lived, Wish, live
from evals.backtest.measure import judge
from evals.backtest.recording import Recording, record
from evals.world.platform import example_spec
from policies.engine import SHIPPED
from state import log, store
from state.errors import InputError
from state.rows import IncidentRow
from state.spec import ModelSpec
from tests.evals.backtest.history_files import QUICK, START, no_progress

N_BEFORE = 22
FIRST_LIVE = START + timedelta(days=N_BEFORE)
TURN = FIRST_LIVE + timedelta(days=6)
NAMES = np.array(["red", "green", "blue"])
RECIPE = {**QUICK["training"], "candidates": [{"name": "logistic", "estimator": "logistic_regression"}]}
Change = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    spec: ModelSpec
    predictions: pl.DataFrame
    labels: pl.DataFrame

    def read(self, folder: Path) -> Recording:
        folder.mkdir(parents=True)
        self.predictions.write_parquet(folder / "predictions.parquet")
        self.labels.write_parquet(folder / "labels.parquet")
        return record(
            self.spec, folder / "predictions.parquet", folder / "labels.parquet", folder / "read", progress=no_progress
        )

    def lived(self, folder: Path) -> Lived:
        recording = self.read(folder / "files")
        (folder / "run").mkdir()
        wish = Wish(history_days=N_BEFORE, answers="none", policy_dir=SHIPPED)
        return live(recording, folder / "run", wish, told=no_progress)


def files(
    *, n_days: int = 46, per_day: int = 120, turns: bool = False, metric: str = "log_loss", seed: int = 4
) -> Files:
    """Three classes by two features; from `TURN` on the world answers the other way where `turns` is set. The recorded
    probabilities are those of the world before the turn."""
    goal = (
        {"metric": metric, "op": "<=", "value": 2.0}
        if metric == "log_loss"
        else {"metric": metric, "op": ">=", "value": 0.3}
    )
    spec = example_spec(
        label_delay_days=2, gates=[], **{
            **QUICK, "training": RECIPE, "task": "multiclass", "objective": goal,
            "features": [{"name": "x", "type": "numeric"}, {"name": "z", "type": "numeric"}],
        },
    )  # fmt: skip
    rng, n = np.random.default_rng(seed), n_days * per_day
    x, z = rng.normal(size=n), rng.normal(size=n)
    seconds = np.repeat(np.arange(n_days), per_day) * 86_400 + rng.integers(0, 86_400, n)
    times = [datetime(START.year, START.month, START.day, tzinfo=UTC) + timedelta(seconds=int(s)) for s in seconds]
    turned = np.array([turns and at.date() >= TURN for at in times])

    def shares(sign: Any) -> Any:
        logits = np.stack([1.5 * x * sign, -1.5 * x * sign, 1.5 * z * sign], axis=1)
        odds = np.exp(logits)
        return odds / odds.sum(axis=1, keepdims=True)

    given, true = shares(np.ones(n)), shares(np.where(turned, -1.0, 1.0))
    chosen = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    ids = [f"r{i}" for i in range(n)]
    rows = {"request_id": ids, "event_time": times, "x": x, "z": z}
    rows |= {f"score_{name}": given[:, at] for at, name in enumerate(NAMES)}
    label = {"request_id": ids, "label": NAMES[chosen], "available_at": [at + timedelta(days=2) for at in times]}
    return Files(spec=spec, predictions=pl.DataFrame(rows).sort("event_time"), labels=pl.DataFrame(label))


def called(given: Files) -> Files:
    """The same with the predicted class in the place of probabilities, and without features."""
    scores = given.predictions.select("^score_.*$").to_numpy()
    frame = given.predictions.select("request_id", "event_time")
    named = frame.with_columns(pl.Series("predicted_class", NAMES[scores.argmax(axis=1)]))
    return Files(spec=given.spec, predictions=named, labels=given.labels)


def causes(run: Lived) -> set[str | None]:
    with run.crew.db.snapshot() as conn:
        return {row.cause for row in store.select(conn, IncidentRow, model=run.recording.spec.model)}


def test_a_change_of_the_world_is_found_and_answered_by_a_promotion(tmp_path: Path) -> None:
    run = files(turns=True).lived(tmp_path)
    judged = judge(run, progress=no_progress)

    assert causes(run)
    assert int(run.world.model(run.recording.spec.model).aliases["champion"]) > 1
    assert judged.overall.served is not None and judged.overall.never is not None
    assert judged.overall.served < judged.overall.never
    assert judged.overall.always is not None and judged.overall.classic is not None
    run.close()


def test_a_healthy_model_is_left_alone(tmp_path: Path) -> None:
    run = files().lived(tmp_path)

    assert causes(run) == set()
    run.close()


def test_predicted_classes_alone_are_watched(tmp_path: Path) -> None:
    healthy, turned = called(files(metric="accuracy")), called(files(metric="accuracy", turns=True))
    quiet, loud = healthy.lived(tmp_path / "quiet"), turned.lived(tmp_path / "loud")

    assert causes(quiet) == set()
    assert causes(loud)
    assert not loud.recording.can_train
    quiet.close()
    loud.close()


def said(run: Lived, folder: Path, until: date) -> list[str]:
    end = datetime(until.year, until.month, until.day, tzinfo=UTC) + timedelta(days=1)
    with run.crew.db.snapshot() as conn:
        entries = log.read(conn, model=run.recording.spec.model)
    return [e.decision.model_dump_json().replace(str(folder), "") for e in entries if e.decision.at <= end]


def test_a_class_that_comes_later_changes_no_decision_before_it(tmp_path: Path) -> None:
    whole = files(turns=True)
    day = FIRST_LIVE + timedelta(days=12)
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    later = pl.col("available_at") > end + timedelta(days=3)
    # A name that sorts before the others: an index by the alphabet would shift every class.
    renamed = pl.when(later & (pl.col("label") == "red")).then(pl.lit("amber")).otherwise(pl.col("label"))
    grown = Files(
        spec=whole.spec, predictions=whole.predictions, labels=whole.labels.with_columns(renamed.alias("label"))
    )
    cut = Files(
        spec=whole.spec, predictions=whole.predictions.filter(pl.col("event_time") < end),
        labels=whole.labels.filter(pl.col("available_at") <= end),
    )  # fmt: skip

    first, second = grown.lived(tmp_path / "grown"), cut.lived(tmp_path / "cut")

    assert first.recording.classes == ("red", "green", "blue", "amber")
    assert said(first, tmp_path / "grown", day) == said(second, tmp_path / "cut", day)
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda f: f.with_columns(pl.col("score_red") * 3 - 2), "score_red that is no probability", id="range"),
        pytest.param(lambda f: f.with_columns(pl.lit(0.9).alias("score_red")), "do not sum to 1", id="sum"),
        pytest.param(lambda f: f.drop("score_red", "score_blue"), "only one column, 'score_green'", id="one-class"),
        pytest.param(
            lambda f: f.with_columns(pl.when(pl.col("x") < 0).then(pl.col("score_red")).alias("score_red")),
            "has no score_red beside", id="a-gap",
        ),
        pytest.param(
            lambda f: f.rename({f"score_{name}": f"score_{name.upper()}" for name in NAMES}), "Spell|no label is one", id="case"
        ),
        pytest.param(
            lambda f: f.select("request_id", "event_time", "x", "z", pl.col("score_red").alias("score")),
            "does not say of which class", id="a-number",
        ),
        pytest.param(
            lambda f: f.select("request_id", "event_time", pl.lit("red").alias("predicted_class")),
            "name a class and no probability", id="called",
        ),
    ],
)  # fmt: skip
def test_scores_that_do_not_fit_several_classes_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    given = files(n_days=5, per_day=20)

    with pytest.raises(InputError, match=message) as refused:
        Files(spec=given.spec, predictions=change(given.predictions), labels=given.labels).read(tmp_path / "files")

    assert refused.value.remedy
