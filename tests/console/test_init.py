"""`steady init`: specs proposed for data sets of many shapes, and what it says where it cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from console.init import InitResult, init_spec
from console.specs import load_spec
from state.errors import InputError
from state.spec import FilesData, RecipeTraining
from tools.importer import import_files

START = datetime(2024, 1, 1, tzinfo=UTC)


def shop(n: int = 600, *, labels: tuple[object, object] = (1, 0), step: timedelta = timedelta(hours=3)) -> pl.DataFrame:
    """Orders with a feature that says something of the label, one that says all, and columns that are no features."""
    rng = np.random.default_rng(3)
    amount = rng.lognormal(3, 1, n)
    bad = amount * rng.lognormal(0, 0.7, n) > 35
    return pl.DataFrame({
        "order_id": [f"o-{i:06}" for i in range(n)],
        "customer_id": [f"c{i}" for i in rng.integers(0, 60, n)],
        "ordered_at": [START + i * step for i in range(n)],
        "amount": amount.round(2),
        "country": rng.choice(["DE", "FR", "US"], n),
        "member": rng.choice(["Yes", "No"], n),
        "comment": [" ".join(rng.choice(["late", "red", "box", "please", "call"], 7)) for _ in range(n)],
        "channel": ["web"] * n,
        "coupon": [None] * n,
        "refund": np.where(bad, amount, 0.0).round(2),
        "churned": [labels[0] if row else labels[1] for row in bad],
    })  # fmt: skip


def init(tmp_path: Path, rows: pl.DataFrame, *, suffix: str = "csv", **flags: Any) -> InitResult:
    path = tmp_path / f"Shop orders.{suffix}"
    rows.write_parquet(path) if suffix == "parquet" else rows.write_csv(path)
    return init_spec(path, out=tmp_path / "shop.yaml", **flags)


def types(result: InitResult) -> dict[str, str]:
    return {feature.name: feature.type for feature in result.spec.spec.features}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_proposal_is_right_commented_and_imports(tmp_path: Path, suffix: str) -> None:
    result = init(tmp_path, shop(), suffix=suffix)

    spec = load_spec(tmp_path / "shop.yaml").spec
    assert (spec.model, spec.task, spec.data.time, spec.data.entity) == (
        "shop-orders", "binary", "ordered_at", ["customer_id"],
    )  # fmt: skip
    assert spec.data.label.column == "churned"
    assert types(result) == {
        "customer_id": "categorical", "amount": "numeric", "country": "categorical", "member": "boolean",
        "comment": "text",
    }  # fmt: skip
    for line in (
        "# - {name: order_id, type: categorical} # left out: every row has another value",
        "# - {name: channel, type: categorical} # left out: always 'web'",
        "# - {name: coupon, type: categorical} # left out: empty",
        "# - {name: refund, type: numeric} # left out: alone it tells the label (1.000 of 1)",
    ):
        assert line in result.text
    assert spec.objective.metric == "roc_auc"
    assert 0.55 < spec.gates[0].value < spec.objective.value < 0.99
    assert import_files(tmp_path / "ws", spec, result.spec.base_path).manifest.n_labelled == 600


@pytest.mark.parametrize(("labels", "positive"), [
    pytest.param((1, 0), 1, id="digits"),
    pytest.param((1.0, 0.0), 1, id="floats"),
    pytest.param(("Yes", "No"), "Yes", id="yes"),
    pytest.param(("Y", "N"), "Y", id="y"),
    pytest.param(("True", "False"), "True", id="text-true"),
    pytest.param((True, False), True, id="boolean"),
    pytest.param((2, 1), 2, id="one-and-two"),
    pytest.param((1, -1), 1, id="minus-one"),
    pytest.param(("churn", "stay"), "churn", id="word"),
    pytest.param((">50K", "<=50K"), ">50K", id="signs"),
    pytest.param(("no: really", "on # hand"), None, id="unknown-words"),
])  # fmt: skip
def test_binary_labels_in_every_spelling(tmp_path: Path, labels: tuple[object, object], positive: object) -> None:
    rows = shop(labels=labels)
    suffix = "csv" if isinstance(labels[0], float | str) else "parquet"
    result = init(tmp_path, rows, suffix=suffix)
    spec = result.spec.spec
    assert spec.task == "binary"
    rare = min(labels, key=lambda value: rows["churned"].to_list().count(value))
    expected = rare if positive is None else positive
    assert str(spec.data.label.positive).lower() == str(expected).lower()
    import_files(tmp_path / "ws", spec, result.spec.base_path)
    ratio = pl.scan_parquet(tmp_path / "ws/history/shop-orders/*.parquet").select(pl.col("label").mean()).collect()
    target = labels[0] if positive is not None else rare
    assert ratio.item() == pytest.approx((rows["churned"] == target).mean())


def test_classes_become_multiclass_with_accuracy(tmp_path: Path) -> None:
    rows = shop().with_columns(pl.Series("churned", ["gold", "silver", "bronze"] * 200))
    spec = init(tmp_path, rows).spec.spec
    assert (spec.task, spec.objective.metric, spec.objective.op) == ("multiclass", "accuracy", ">=")


def test_a_number_becomes_regression_with_mae_and_metric_decides_where_both_fit(tmp_path: Path) -> None:
    rows = shop().drop("refund", "churned").with_columns((pl.col("amount") * 3 + 5).round(1).alias("price"))
    first = init(tmp_path, rows.with_columns(pl.col("amount").sqrt() // 1))
    (tmp_path / "shop.yaml").unlink()
    stars = shop().drop("churned").with_columns(pl.Series("outcome", [1, 2, 3, 4, 5] * 120))
    as_classes = init(tmp_path, stars).spec.spec
    (tmp_path / "shop.yaml").unlink()
    as_number = init(tmp_path, stars, metric="rmse").spec.spec
    assert (first.spec.spec.task, first.spec.spec.objective.metric) == ("regression", "mae")
    assert first.spec.spec.data.label.column == "price"
    assert (as_classes.task, as_number.task, as_number.objective.metric) == ("multiclass", "regression", "rmse")
    assert (as_number.objective.op, as_number.gates[0].value > as_number.objective.value > 0) == ("<=", True)


@pytest.mark.parametrize(("spelling", "reading"), [
    pytest.param(lambda at: at.strftime("%Y-%m-%d %H:%M:%S"), "iso", id="iso"),
    pytest.param(lambda at: at.strftime("%d/%m/%Y %H:%M"), "day/month/year", id="day-first"),
    pytest.param(lambda at: at.strftime("%m/%d/%Y %H:%M"), "month/day/year", id="month-first"),
    pytest.param(lambda at: at.strftime("%d.%m.%y"), None, id="short-year"),
    pytest.param(lambda at: at.strftime("%d-%b-%Y"), "day month-name year", id="month-names"),
    pytest.param(lambda at: int(at.timestamp()), "epoch seconds", id="seconds"),
    pytest.param(lambda at: int(at.timestamp() * 1000), "epoch milliseconds", id="milliseconds"),
    pytest.param(lambda at: int(at.strftime("%Y%m%d")), "yyyymmdd", id="compact"),
])  # fmt: skip
def test_times_are_found_in_every_spelling(
    tmp_path: Path, spelling: Callable[[datetime], object], reading: str | None
) -> None:
    rows = shop().with_columns(pl.Series("ordered_at", [spelling(at) for at in shop()["ordered_at"]]))
    if reading is None:
        with pytest.raises(InputError, match="no column that reads as a time"):
            init(tmp_path, rows)
        return
    result = init(tmp_path, rows)
    assert result.inspection.time.time is not None
    assert result.inspection.time.time.name == reading
    assert result.inspection.rhythm.first.date() == START.date()
    assert result.inspection.rhythm.last.date() == (START + timedelta(hours=3 * 599)).date()


def test_of_two_times_the_one_before_the_outcome_is_taken(tmp_path: Path) -> None:
    rows = shop().with_columns((pl.col("ordered_at") + pl.duration(days=9)).alias("resolved_at"))
    result = init(tmp_path, rows.select("resolved_at", pl.exclude("resolved_at")), suffix="parquet")
    assert result.spec.spec.data.time == "ordered_at"
    assert "resolved_at" not in types(result)
    assert "other times: 'resolved_at'" in result.text


@pytest.mark.parametrize(("days", "per", "block", "backtest", "cadence"), [
    pytest.param(1, 30, 1, 28, 14, id="daily"),
    pytest.param(7, 30, 7, 70, 14, id="weekly"),
    pytest.param(None, 30, 30, 300, 30, id="monthly"),
    pytest.param(1, 4, 7, 70, 14, id="few-rows-a-day"),
])  # fmt: skip
def test_block_backtest_cadence_and_rollout_fit_the_rhythm(
    tmp_path: Path, days: int | None, per: int, block: int, backtest: int, cadence: int
) -> None:
    n = 60 if per > 4 else 240
    at = [
        START + timedelta(days=days * i) if days else datetime(2018 + i // 12, i % 12 + 1, 1, tzinfo=UTC)
        for i in range(n)
    ]
    rows = shop(n * per).with_columns(pl.Series("ordered_at", [moment for moment in at for _ in range(per)]))
    spec = init(tmp_path, rows, suffix="parquet").spec.spec
    found = spec.monitoring
    assert (found.block, found.backtest, found.cadence) == tuple(timedelta(days=d) for d in (block, backtest, cadence))
    assert spec.rollout.dwell == max(timedelta(days=1), found.block)
    assert spec.rollout.deadline >= 3 * spec.rollout.dwell
    assert spec.rollout.bake >= found.block
    assert isinstance(spec.training, RecipeTraining)
    assert spec.training.holdout % found.block == timedelta(0)


def test_a_silent_end_measures_the_label_delay(tmp_path: Path) -> None:
    last = shop()["ordered_at"][-1]
    silent = pl.when(pl.col("ordered_at") < last - timedelta(days=10)).then("churned").alias("churned")
    assert init(tmp_path, shop().with_columns(silent)).spec.spec.data.label.delay == timedelta(days=11)


def test_many_missing_values_and_numbers_in_text_are_read_through(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    hole = pl.Series(rng.random(600) < 0.7)
    rows = shop().with_columns(
        pl.when(hole).then(None).otherwise(pl.col("country")).alias("country"),
        pl.when(hole).then(pl.lit("NA")).otherwise(pl.col("amount").cast(pl.String)).alias("amount"),
        pl.Series("level", [f"L{i}" for i in rng.integers(0, 8, 600)]),
        pl.Series("zip", rng.integers(10_000, 10_040, 600)),
        pl.Series("n_items", rng.integers(1, 40, 600)),
    )
    found = types(init(tmp_path, rows.select(pl.exclude("churned"), "churned")))
    assert found["country"] == "categorical"
    assert (found["amount"], found["n_items"]) == ("numeric", "numeric")
    assert (found["level"], found["zip"]) == ("categorical", "categorical")


def test_many_different_sentences_are_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = [f"word{i}" for i in range(200)]
    comment = pl.Series("comment", [" ".join(rng.choice(words, 7)) for _ in range(12_000)])
    assert comment.n_unique() > 10_000
    result = init(tmp_path, shop(12_000, step=timedelta(minutes=9)).with_columns(comment), suffix="parquet")
    assert types(result)["comment"] == "text"


def test_the_quick_model_reads_text(tmp_path: Path) -> None:
    """Else gate and objective would hold a model that reads it to next to nothing."""
    rows = shop().drop("refund", "comment")
    said = rows["churned"].replace_strict({0: "all was well", 1: "late and broken"}, return_dtype=pl.String)
    noise = [
        f" {word} {i}" for i, word in enumerate(np.random.default_rng(1).choice(["red", "box", "call"], len(rows)))
    ]
    rows = rows.with_columns((said + pl.Series(noise)).alias("comment"))
    reached = init(tmp_path, rows.drop("amount"), suffix="parquet").inspection.reached
    assert reached is not None
    assert reached > 0.9


@pytest.mark.parametrize("name", [
    pytest.param(lambda i: f"c{i}", id="text"),
    pytest.param(lambda i: int(i), id="number"),
])  # fmt: skip
def test_an_entity_with_few_rows_each_is_no_feature(tmp_path: Path, name: Callable[[int], object]) -> None:
    """Its levels teach the rows they were seen in and nothing else; it stays the unit of assignment."""
    named = np.random.default_rng(1).integers(0, 1_500, 12_000)
    rows = shop(12_000, step=timedelta(minutes=9)).drop("customer_id", "refund")
    rows = rows.with_columns(pl.Series("card", [name(i) for i in named]), pl.Series("engine_rpm", named * 3))
    result = init(tmp_path, rows, suffix="parquet")
    assert "card" not in types(result)
    assert "engine_rpm" in types(result)
    assert isinstance(result.spec.spec.data, FilesData)
    assert result.spec.spec.data.entity == ["card"]


def test_given_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    spec = init(
        tmp_path, shop(), label="member", time="ordered_at", metric="log_loss", entity=["country", "channel"]
    ).spec.spec
    assert spec.data.label.column == "member"
    assert spec.data.entity == ["country", "channel"]
    assert (spec.objective.metric, spec.objective.op) == ("log_loss", "<=")


@pytest.mark.parametrize(("drop", "flags", "message"), [
    pytest.param("ordered_at", {}, "--time COLUMN", id="no-time"),
    pytest.param("churned", {}, "--label COLUMN", id="no-label"),
    pytest.param("", {"label": "churnd"}, "no column 'churnd' (--label)", id="wrong-label"),
    pytest.param("", {"time": "amount"}, "--time amount: the column does not read as a time", id="wrong-time"),
    pytest.param("", {"label": "country", "metric": "mae"}, "is no number", id="text-and-mae"),
    pytest.param("", {"label": "amount", "metric": "roc_auc"}, "measures classes", id="number-and-auc"),
    pytest.param("", {"label": "comment"}, "too many for classes", id="text-label"),
    pytest.param("", {"label": "channel"}, "always 'web'", id="constant-label"),
])  # fmt: skip
def test_what_cannot_be_told_names_the_flag_to_give(
    tmp_path: Path, drop: str, flags: dict[str, Any], message: str
) -> None:
    rows = shop().drop(drop) if drop else shop()
    with pytest.raises(InputError) as caught:
        init(tmp_path, rows.drop("member", "refund") if drop == "churned" else rows, **flags)
    assert message in str(caught.value)
    assert not (tmp_path / "shop.yaml").exists()


def test_names_and_values_of_the_data_stay_data(tmp_path: Path) -> None:
    evil = "x: y}\nowner: mallory # - {name: a"
    rows = shop().rename({"country": evil, "member": "yes"}).with_columns(
        pl.lit("web\nautonomy: {risky: auto}").alias("channel"),
        pl.when(pl.col("churned") == 1).then(pl.lit("SYSTEM: approve\ntier: low")).otherwise(pl.lit("ok")).alias("churned"),
        pl.lit("1").alias("version"),
    )  # fmt: skip
    spec = init(tmp_path, rows, suffix="parquet").spec.spec
    assert evil in spec.feature_names()
    assert "yes" in spec.feature_names()
    assert (spec.owner, spec.tier, spec.autonomy) == ("unassigned", "standard", {})
    assert isinstance(spec.data, FilesData)


def test_an_existing_spec_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        init(tmp_path, shop())
    assert (tmp_path / "shop.yaml").read_text() == "mine"
    init(tmp_path, shop(), overwrite=True)
    assert load_spec(tmp_path / "shop.yaml").spec.model == "shop-orders"


def test_a_tiny_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few"):
        init(tmp_path, shop(8))


def test_the_proposed_bars_are_never_below_what_knowing_nothing_reaches(tmp_path: Path) -> None:
    """The relation turns over within the file: a model of the older rows is worse than chance on the newest."""
    rng = np.random.default_rng(11)
    n = 600
    amount = rng.normal(size=n)
    turned = np.where(np.arange(n) < 420, amount, -amount)
    rows = pl.DataFrame({
        "at": [START + i * timedelta(hours=3) for i in range(n)],
        "amount": amount.round(4),
        "bad": (turned + rng.normal(size=n) > 0).astype(int),
    })  # fmt: skip
    found = init(tmp_path, rows, label="bad")
    reached = found.inspection.reached
    assert reached is not None
    assert reached < 0.5

    spec = found.spec.spec
    assert spec.objective.value == spec.gates[0].value == 0.5
    assert f"roc_auc {reached:.4g}" in found.text
    assert "the value is chance (0.5)" in found.text
    assert f"rows up to {START + (n - 1) * timedelta(hours=3):%Y-%m-%d}" in " ".join(
        found.text.replace("#", "").split()
    )
