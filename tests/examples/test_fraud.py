"""The fraud example: a known truth, no look into the future, and faults that touch only their own days."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from console.specs import load_spec
from examples.fraud.generate import FAULTS, START, Fault, FaultKind, parse_fault, transactions
from state.errors import InputError
from tools.importer import import_files

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "examples/fraud/fraud.yaml"
SIZE: dict[str, Any] = {"n_rows": 6_000, "n_days": 60}


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return transactions(**SIZE)


def on_days(rows: pl.DataFrame, first: int, last: int) -> pl.DataFrame:
    day = (pl.col("timestamp") - START).dt.total_days()
    return rows.filter(day.is_between(first, last))


def test_the_same_seed_gives_the_same_rows_and_another_one_others(rows: pl.DataFrame) -> None:
    assert_frame_equal(rows, transactions(**SIZE))
    assert not rows["amount"].equals(transactions(**SIZE, seed=1)["amount"])
    assert rows["timestamp"].is_sorted()
    assert rows["transaction_id"].n_unique() == 6_000
    assert rows["is_fraud"].mean() == pytest.approx(0.06, abs=0.01)


def test_past_columns_hold_the_users_past_only(rows: pl.DataFrame) -> None:
    user = rows["user_id"].value_counts(sort=True)["user_id"][0]
    own = rows.filter(pl.col("user_id") == user)
    now = own.row(40, named=True)
    before = own.head(40)
    month = before.filter(pl.col("timestamp") >= now["timestamp"] - timedelta(days=30))
    assert now["transaction_count_30d"] == month.height
    assert now["avg_transaction_amount_30d"] == pytest.approx(month["amount"].mean())
    assert now["total_spend_90d"] == pytest.approx(before["amount"].sum())
    gap = (now["timestamp"] - before["timestamp"][-1]).total_seconds() / 86_400
    assert now["days_since_last_transaction"] == pytest.approx(gap, abs=1e-4)


def test_a_row_keeps_its_values_when_the_file_grows(rows: pl.DataFrame) -> None:
    # Bins and encodings computed over the file as a whole would differ between the two.
    grown = transactions(**SIZE, faults=[Fault(kind="covariate_shift", first=50)])
    assert_frame_equal(on_days(rows, 0, 49), on_days(grown, 0, 49))
    assert set(rows["amount_bin"]) <= {str(number) for number in range(10)}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_leaves_the_days_before_and_the_healthy_rows_alone(rows: pl.DataFrame, kind: FaultKind) -> None:
    faulty = transactions(**SIZE, faults=[Fault(kind=kind, first=20, last=22)])
    assert_frame_equal(on_days(faulty, 0, 19), on_days(rows, 0, 19))
    if kind in ("unit_change", "nulls", "new_category", "label_flip", "label_gap", "missing_day"):
        assert_frame_equal(on_days(faulty, 23, 59), on_days(rows, 23, 59))
    assert not on_days(faulty, 20, 22).equals(on_days(rows, 20, 22))


def test_each_fault_is_what_its_name_says(rows: pl.DataFrame) -> None:
    def hit(kind: FaultKind) -> pl.DataFrame:
        return on_days(transactions(**SIZE, faults=[Fault(kind=kind, first=20)]), 20, 59)

    healthy = on_days(rows, 20, 59)
    assert hit("unit_change")["amount"].to_list() == pytest.approx([100 * value for value in healthy["amount"]])
    assert hit("nulls")["merchant_risk_score"].null_count() / healthy.height == pytest.approx(0.3, abs=0.03)
    assert (hit("new_category")["merchant_category"] == "crypto").mean() == pytest.approx(0.1, abs=0.02)
    assert (hit("label_flip")["is_fraud"] != healthy["is_fraud"]).mean() == pytest.approx(0.15, abs=0.02)
    assert hit("label_gap")["is_fraud"].null_count() == healthy.height
    assert hit("missing_day").height == 0
    shifted = hit("covariate_shift").sort("transaction_id")["amount"] / healthy.sort("transaction_id")["amount"]
    assert shifted.median() == pytest.approx(1.4, abs=0.01)
    drifted = hit("concept_drift").filter(pl.col("is_fraud"))
    # Large foreign purchases before, small domestic ones after: the old pattern misses most of them.
    assert drifted["amount"].median() < 10 < healthy.filter(pl.col("is_fraud"))["amount"].median()  # type: ignore[operator]
    assert drifted["international"].mean() < 0.2  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "drift:1", "nulls", "nulls:x", "nulls:1:2:3", "nulls:-1"])
def test_a_fault_that_is_none_is_refused_with_the_kinds(text: str) -> None:
    with pytest.raises(InputError, match="concept_drift"):
        parse_fault(text)


def test_one_command_writes_a_file_that_the_spec_imports(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "examples.fraud.generate",
        str(tmp_path / "data"),
        "--rows",
        "3000",
        "--days",
        "40",
    ]
    subprocess.run([*command, "--fault", "nulls:30:31"], cwd=ROOT, check=True)
    loaded = load_spec(SPEC)
    assert [(gate.metric, gate.value) for gate in loaded.spec.gates] == [
        ("f1", 0.75), ("precision", 0.70), ("recall", 0.60), ("roc_auc", 0.85),
    ]  # fmt: skip

    manifest = import_files(tmp_path / "ws", loaded.spec, tmp_path, until=START + timedelta(days=30)).manifest

    assert (manifest.n_rows, manifest.rejects, manifest.unparsable) == (3_000, {}, {})
    assert manifest.first_replay_day == "2025-01-31"
