"""The controls: the first champion frozen, and refits that know nothing from after their time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import accuracy_score, mean_absolute_error, roc_auc_score

from state.errors import ToolRejected
from tests.tools.control_rows import DELAY, START, Task, candidates, package_of, rows_of, spec_of
from tools.controls import ControlScores, Schedule, compare, refit_times, score_controls
from tools.estimators import fit_model
from tools.evaluation import metric_loss
from tools.packaging import PackageScorer
from tools.training_rows import labelled_rows

WEEK = timedelta(days=7)
END = START + 3 * WEEK
TURN = START + timedelta(days=5)
TASKS: list[Task] = ["binary", "multiclass", "regression"]


class Known:
    """Training rows with labels `DELAY` after the event; remembers what was asked."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self.rows = rows
        self.asked: list[dict[str, Any]] = []

    def __call__(
        self, *, start: datetime | None, end: datetime, as_of: datetime, excluded_days: Collection[str]
    ) -> pl.DataFrame:
        self.asked.append({"start": start, "end": end, "as_of": as_of, "excluded": list(excluded_days)})
        day = pl.col("event_time").dt.strftime("%Y-%m-%d")
        rows = self.rows.filter(
            pl.col("event_time") + DELAY <= as_of, pl.col("event_time") < end, ~day.is_in(list(excluded_days))
        )
        return rows if start is None else rows.filter(pl.col("event_time") >= start)


class Bench:
    """History, traffic that turns over, the first package, and what it answered."""

    def __init__(self, folder: Path, task: Task, **changes: Any) -> None:
        self.spec = spec_of(task, **changes)
        self.history = rows_of(task, START - 20 * timedelta(days=1), 20)
        self.live = rows_of(task, START, 21, turn=TURN, seed=6)
        self.package = package_of(self.spec, self.history.filter(pl.col("event_time") + DELAY <= START), folder / "v1")
        self.frozen = PackageScorer(self.package).score(self.live)
        scores = self.frozen.tolist()
        self.answered = self.live.with_columns(pl.Series("score", scores), pl.lit("1").alias("version"))
        self.known = Known(pl.concat([self.history, self.live]))

    def labelled(self, start: datetime, end: datetime) -> pl.DataFrame:
        return self.answered.filter(pl.col("event_time") >= start, pl.col("event_time") < end)

    def scores(self, excluded: Callable[[datetime], Collection[str]] = lambda at: [], **schedule: Any) -> ControlScores:
        made = Schedule(**{"every": WEEK, "rows": self.known, "excluded_days": excluded, **schedule})
        return score_controls(
            self.spec, package=self.package, start=START, end=END, labelled=self.labelled, schedule=made
        )


@pytest.mark.parametrize("task", TASKS)
def test_never_retrain_is_the_first_package_on_every_row(task: Task, tmp_path: Path) -> None:
    bench = Bench(tmp_path, task)

    found = bench.scores()

    assert np.array_equal(found.never, bench.frozen)
    assert np.array_equal(found.served, bench.frozen)
    assert np.array_equal(found.label, bench.live["label"].to_numpy())


@pytest.mark.parametrize("task", TASKS)
def test_always_retrain_serves_the_first_package_and_then_each_refit_on_the_labels_known_at_its_time(
    task: Task, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, task)
    n_classes = {"binary": 2, "multiclass": 3, "regression": 0}[task]
    everything = pl.concat([bench.history, bench.live]).sort("event_time")
    parts = [bench.frozen[: 7 * 40]]
    for week in (1, 2):
        at = START + week * WEEK
        past = everything.filter(pl.col("event_time") <= at - DELAY)
        model = fit_model(
            labelled_rows(past, bench.spec, n_classes=n_classes), candidates(bench.spec)[0], task=task,
            declared=bench.spec.features, seed=42,
        )  # fmt: skip
        ahead = bench.live.filter(pl.col("event_time") >= at, pl.col("event_time") < at + WEEK)
        parts.append(model.score(labelled_rows(ahead, bench.spec, n_classes=n_classes, for_fitting=False)))

    found = bench.scores()

    assert found.always is not None
    assert np.allclose(found.always, np.concatenate(parts), atol=1e-9)
    n_known = [len(bench.history) + 40 * (7 * week - DELAY.days) for week in (1, 2)]
    assert [(refit.at, refit.n_rows, refit.error) for refit in found.refits] == [
        (START + week * WEEK, n, "") for week, n in zip((1, 2), n_known, strict=True)
    ]


def test_a_refit_asks_for_nothing_from_after_its_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary")
    bad = {"2026-03-04": START + timedelta(days=9)}

    bench.scores(lambda at: [day for day, since in bad.items() if since <= at])

    asked = sorted(bench.known.asked, key=lambda request: request["as_of"])
    assert [request["as_of"] for request in asked] == [START + WEEK, START + 2 * WEEK]
    assert [request["end"] for request in asked] == [request["as_of"] for request in asked]
    # The fault was found on day 9: the refit of day 7 cannot know it.
    assert [request["excluded"] for request in asked] == [[], ["2026-03-04"]]


def test_a_recipe_with_a_window_reads_no_further_back(tmp_path: Path) -> None:
    recipe = spec_of().training.model_dump() | {"window": "P10D"}
    bench = Bench(tmp_path, "binary", training=recipe)

    found = bench.scores()

    assert sorted(request["start"] for request in bench.known.asked) == [
        START + week * WEEK - timedelta(days=10) for week in (1, 2)
    ]
    assert [refit.n_rows for refit in found.refits] == [7 * 40, 7 * 40]


def test_a_refit_that_cannot_be_fitted_is_reported_and_the_model_before_it_serves_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary")
    first = START + WEEK
    everything = bench.known

    def nothing_at_first(**request: Any) -> pl.DataFrame:
        found = everything(**request)
        return found.clear() if request["as_of"] == first else found

    found = bench.scores(rows=nothing_at_first)

    assert [bool(refit.error) for refit in found.refits] == [True, False]
    assert "no labelled rows" in found.refits[0].error
    assert found.always is not None
    assert np.array_equal(found.always[: 14 * 40], bench.frozen[: 14 * 40])
    assert not np.allclose(found.always[14 * 40 :], bench.frozen[14 * 40 :])


def test_after_the_truth_turned_refits_are_better_than_the_frozen_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary", training=spec_of().training.model_dump() | {"window": "P10D"})
    found = bench.scores()

    last_week = compare(bench.spec, found, found.between(END - WEEK, END))

    assert last_week.never is not None
    assert last_week.always is not None
    assert last_week.always > 0.8 > 0.3 > last_week.never


def test_a_candidate_that_training_chose_is_refitted(tmp_path: Path) -> None:
    two = [
        {"name": "linear", "estimator": "logistic_regression"},
        {"name": "strict", "estimator": "logistic_regression", "params": {"C": 1e-4}},
    ]
    bench = Bench(tmp_path, "binary")
    bench.spec = spec_of(training={"kind": "recipe", "candidates": two})

    default, strict = bench.scores(), bench.scores(candidate="strict")

    assert default.always is not None
    assert strict.always is not None
    assert strict.always[7 * 40 :].std() < default.always[7 * 40 :].std() / 5


def test_without_a_recipe_there_is_no_always_control(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary")
    bench.spec = spec_of(training={"kind": "command", "image": "trainer", "command": ["fit"]})

    found = bench.scores()

    assert found.always is None
    assert found.refits == ()
    assert bench.known.asked == []


def test_rows_without_a_score_or_a_label_are_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary")
    at = pl.int_range(pl.len())
    bench.answered = bench.answered.with_columns(
        pl.when(at % 3 == 0).then(None).otherwise("score").alias("score"),
        pl.when(at % 3 == 1).then(None).otherwise("label").alias("label"),
    )

    found = bench.scores()

    assert len(found.label) == len(bench.live) // 3
    assert np.array_equal(found.never, bench.frozen[2::3])


def test_a_window_without_labels_has_nothing_to_compare(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "multiclass")
    bench.answered = bench.answered.clear()

    found = bench.scores()
    compared = compare(bench.spec, found, found.between(START, END))

    assert (compared.n_rows, compared.served, compared.never, compared.always) == (0, None, None, None)


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_of_a_stretch_is_that_of_its_rows_together(task: Task, tmp_path: Path) -> None:
    bench = Bench(tmp_path, task)
    found = bench.scores()
    rows = slice(40, 3 * 40)
    label, score = bench.live["label"].to_numpy()[rows], bench.frozen[rows]
    expected = {
        "binary": lambda: roc_auc_score(label, score),
        "multiclass": lambda: accuracy_score(label, score.argmax(axis=1)),
        "regression": lambda: mean_absolute_error(label, score),
    }[task]()

    compared = compare(bench.spec, found, found.between(START + timedelta(days=1), START + timedelta(days=3)))

    assert compared.n_rows == 80
    assert compared.never == pytest.approx(expected, abs=1e-9)


def test_a_version_is_measured_on_the_rows_that_it_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary")
    second = pl.int_range(pl.len()) % 2 == 0
    bench.answered = bench.answered.with_columns(
        pl.when(second).then(pl.lit("2")).otherwise("version").alias("version")
    )

    found = bench.scores()
    rows = found.between(START, END, version="2")

    assert rows.tolist() == list(range(0, len(bench.live), 2))


def test_a_multiclass_record_from_before_a_class_was_seen_gives_it_no_probability(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "multiclass")
    scores = [row[:2] if i == 0 else row for i, row in enumerate(bench.frozen.tolist())]
    bench.answered = bench.answered.with_columns(pl.Series("score", scores))

    found = bench.scores()

    assert found.served.shape == (len(bench.live), 3)
    assert found.served[0].tolist() == [*bench.frozen[0, :2].tolist(), 0.0]
    assert metric_loss("log_loss", found.label, found.served, bench.spec) is not None


def test_a_package_without_a_recorded_feature_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "binary")
    bench.answered = bench.answered.drop("lane")

    with pytest.raises(ToolRejected, match="lane"):
        bench.scores()


@pytest.mark.parametrize(("n_days", "n_times"), [(21, 3), (22, 4), (7, 1), (3, 1)])
def test_refits_stand_at_every_cadence_before_the_end(n_days: int, n_times: int) -> None:
    found = refit_times(START, START + timedelta(days=n_days), WEEK)

    assert found == [START + i * WEEK for i in range(n_times)]
