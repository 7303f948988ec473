"""Write card transactions with a known truth: who is fraudulent, why, and what goes wrong on which day.

    python -m examples.fraud.generate DIRECTORY [--rows N] [--days N] [--seed N] [--fault KIND:FIRST[:LAST]] ...

The same arguments write the same rows. A fault changes the rows of its days and, where amounts change, the averages
that look back on them; days count from 0. Engineered columns are computed from the past and from fixed edges, never
from the file as a whole: a row has the same values whenever it is computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from state.errors import InputError
from tools.datastore import replace_parquet

FILE_NAME = "transactions.parquet"
START = datetime(2025, 1, 1, tzinfo=UTC)
FaultKind: TypeAlias = Literal[
    "concept_drift", "covariate_shift", "unit_change", "nulls", "new_category", "label_flip", "label_gap", "missing_day"
]
FAULTS: tuple[FaultKind, ...] = get_args(FaultKind)
CATEGORY_RISK = {
    "grocery": 0.05, "fuel": 0.10, "restaurant": 0.12, "travel": 0.45, "electronics": 0.60, "gaming": 0.55,
    "gift_cards": 0.70, "pharmacy": 0.08,
}  # fmt: skip
"""Merchant category -> risk score of its merchants."""
AMOUNT_EDGES = (5.0, 10.0, 16.0, 23.0, 32.0, 45.0, 65.0, 100.0, 180.0)
"""Fixed edges of ten bins: computed afresh on each file, training and serving would disagree."""
FRAUD_RATIO = 0.06
DRIFTED_SHARE = 0.7
"""Of the fraud under concept drift: the rest goes on as before."""
ROWS_PER_USER = 60
_DAY_US = 86_400_000_000
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong from day `first` to day `last`, both included; `last` None is to the end.

    concept_drift: most fraud moves from large foreign purchases at night to small domestic ones by day;
    covariate_shift: everybody pays 40 % more, and fraud stays what it was; unit_change: amounts arrive in cents;
    nulls: the merchant's risk is missing in 30 % of the rows; new_category: a tenth of the rows is `crypto`;
    label_flip: 15 % of the labels are wrong; label_gap: labels never come; missing_day: no rows at all.
    """

    kind: FaultKind
    first: int
    last: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Habit:
    """How one kind of transaction looks."""

    hour_mean: float
    hour_spread: float
    log_amount: float
    log_spread: float
    categories: tuple[float, ...]
    """Shares, in the order of `CATEGORY_RISK`."""
    present: float
    abroad: float


HONEST = _Habit(
    hour_mean=14, hour_spread=4.5, log_amount=3.2, log_spread=0.9, present=0.78, abroad=0.05,
    categories=(0.30, 0.15, 0.20, 0.06, 0.07, 0.06, 0.02, 0.14),
)  # fmt: skip
FRAUD = _Habit(
    hour_mean=2, hour_spread=3.0, log_amount=4.8, log_spread=0.8, present=0.20, abroad=0.45,
    categories=(0.03, 0.04, 0.04, 0.22, 0.42, 0.08, 0.15, 0.02),
)  # fmt: skip
DRIFTED_FRAUD = _Habit(
    hour_mean=14, hour_spread=3.5, log_amount=1.3, log_spread=0.5, present=0.20, abroad=0.02,
    categories=(0.02, 0.02, 0.02, 0.02, 0.02, 0.44, 0.44, 0.02),
)  # fmt: skip


def parse_fault(text: str) -> Fault:
    """`unit_change:100:104` as a fault.

    Raises:
        InputError: another spelling; the remedy lists the known kinds.
    """
    name, *days = text.split(":")
    known = [kind for kind in FAULTS if kind == name]
    if not known or not 1 <= len(days) <= 2 or not all(day.isdecimal() for day in days):
        raise InputError(f"{text!r} is no fault", remedy=f"Write KIND:FIRST[:LAST], KIND one of {', '.join(FAULTS)}")
    return Fault(kind=known[0], first=int(days[0]), last=int(days[1]) if len(days) == 2 else None)


def transactions(
    *, n_rows: int = 60_000, n_days: int = 180, seed: int = 42, faults: Sequence[Fault] = ()
) -> pl.DataFrame:
    """Transactions in order of time: raw columns, engineered columns and `is_fraud`."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(0, n_days, n_rows))
    is_fraud = rng.random(n_rows) < FRAUD_RATIO
    drifted = is_fraud & (rng.random(n_rows) < DRIFTED_SHARE) & _on(day, faults, "concept_drift")
    # Every habit is drawn for every row, so that a fault leaves the rows of all other days as they were.
    habits = [_draw(rng, habit, day) for habit in (HONEST, FRAUD, DRIFTED_FRAUD)]
    columns = {
        name: np.select([drifted, is_fraud], [habits[2][name], habits[1][name]], habits[0][name]) for name in habits[0]
    }
    columns["amount"] = np.where(_on(day, faults, "covariate_shift"), columns["amount"] * 1.4, columns["amount"])
    users = rng.integers(0, max(1, n_rows // ROWS_PER_USER), n_rows)
    rows = pl.DataFrame({
        "timestamp": pl.Series(columns["micros"]).cast(pl.Duration("us")),
        "user_id": [f"u{user:05}" for user in users],
        "amount": columns["amount"].round(2),
        "merchant_category": columns["category"],
        "card_present": columns["present"],
        "international": columns["abroad"],
        "is_fraud": is_fraud,
        "day": day,
    })  # fmt: skip
    rows = rows.with_columns(pl.col("timestamp") + pl.lit(START, pl.Datetime("us", "UTC")))
    rows = rows.sort("timestamp", "user_id", "amount")
    rows = _look_back(rows.with_columns(pl.format("t{}", pl.int_range(pl.len())).alias("transaction_id")))
    return _engineer(_deliver(rows, faults, np.random.default_rng([seed, 1]))).drop("day")


def generate(
    directory: Path, *, n_rows: int = 60_000, n_days: int = 180, seed: int = 42, faults: Sequence[Fault] = ()
) -> Path:
    """Write `transactions.parquet` into `directory`."""
    path = directory / FILE_NAME
    replace_parquet(path, transactions(n_rows=n_rows, n_days=n_days, seed=seed, faults=faults))
    return path


def _on(day: npt.NDArray[np.int64], faults: Sequence[Fault], kind: FaultKind) -> Bools:
    hit = np.zeros(len(day), dtype=np.bool_)
    for fault in faults:
        if fault.kind == kind:
            hit |= (day >= fault.first) & (day <= (fault.last if fault.last is not None else day.max(initial=0)))
    return hit


def _draw(rng: np.random.Generator, habit: _Habit, day: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    n = len(day)
    hours = rng.normal(habit.hour_mean, habit.hour_spread, n) % 24
    return {
        "micros": day * _DAY_US + np.minimum(hours * 3.6e9, _DAY_US - 1).astype(np.int64),
        "amount": rng.lognormal(habit.log_amount, habit.log_spread, n),
        "category": rng.choice(np.array(list(CATEGORY_RISK)), n, p=habit.categories),
        "present": rng.random(n) < habit.present,
        "abroad": rng.random(n) < habit.abroad,
    }


def _look_back(rows: pl.DataFrame) -> pl.DataFrame:
    """Columns over each user's own past, the present transaction excluded."""

    def past(days: int) -> dict[str, Any]:
        return {"by": "timestamp", "window_size": f"{days}d", "closed": "left"}

    amount = pl.col("amount")
    since = (pl.col("timestamp") - pl.col("timestamp").shift()).over("user_id").dt.total_seconds() / 86_400
    return rows.with_columns(
        since.alias("days_since_last_transaction"),
        amount.rolling_mean_by(**past(30)).over("user_id").alias("avg_transaction_amount_30d"),
        (amount * 0 + 1).rolling_sum_by(**past(30)).over("user_id").fill_null(0.0).alias("transaction_count_30d"),
        amount.rolling_sum_by(**past(90)).over("user_id").fill_null(0.0).alias("total_spend_90d"),
        pl.col("merchant_category").replace_strict(CATEGORY_RISK).alias("merchant_risk_score"),
    )


def _deliver(rows: pl.DataFrame, faults: Sequence[Fault], rng: np.random.Generator) -> pl.DataFrame:
    """The rows as they arrive: with what went wrong on the way, while the user's averages come from elsewhere."""
    day = rows["day"].to_numpy()
    chance = {kind: rng.random(len(day)) for kind in FAULTS}

    def hit(kind: FaultKind, share: float = 1.0) -> pl.Series:
        return pl.Series(_on(day, faults, kind) & (chance[kind] < share))

    rows = rows.with_columns(
        pl.when(hit("unit_change")).then(pl.col("amount") * 100).otherwise("amount").alias("amount"),
        pl.when(hit("new_category", 0.10))
        .then(pl.lit("crypto"))
        .otherwise("merchant_category")
        .alias("merchant_category"),
        pl.when(~hit("nulls", 0.30)).then("merchant_risk_score").alias("merchant_risk_score"),
        (pl.col("is_fraud") ^ hit("label_flip", 0.15)).alias("is_fraud"),
    )
    rows = rows.with_columns(pl.when(~hit("label_gap")).then("is_fraud").alias("is_fraud"))
    return rows.filter(~hit("missing_day"))


def _engineer(rows: pl.DataFrame) -> pl.DataFrame:
    hour, weekday = pl.col("timestamp").dt.hour().cast(pl.Float64), pl.col("timestamp").dt.weekday()
    amount = pl.col("amount")
    return rows.select(
        "transaction_id",
        "user_id",
        "timestamp",
        "amount",
        "merchant_category",
        "card_present",
        "international",
        "days_since_last_transaction",
        "avg_transaction_amount_30d",
        "transaction_count_30d",
        "total_spend_90d",
        "merchant_risk_score",
        hour.alias("hour_of_day"),
        (weekday - 1).cast(pl.String).alias("day_of_week"),
        (weekday >= 6).alias("is_weekend"),
        ((hour >= 23) | (hour <= 5)).alias("is_night"),
        (1 + amount).log().alias("amount_log"),
        pl.sum_horizontal([(amount > edge).cast(pl.Int8) for edge in AMOUNT_EDGES]).cast(pl.String).alias("amount_bin"),
        (amount * hour).alias("amount_x_hour"),
        (amount * pl.col("merchant_risk_score")).alias("amount_x_merchant"),
        "is_fraud",
        "day",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: where to write, how much, and what goes wrong."""
    parser = argparse.ArgumentParser(description="Write the fraud example's data.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--days", type=int, default=180)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--fault", action="append", default=[], help=f"KIND:FIRST[:LAST], KIND one of {FAULTS}")
    options = parser.parse_args(arguments)
    faults = [parse_fault(text) for text in options.fault]
    print(generate(options.directory, n_rows=options.rows, n_days=options.days, seed=options.seed, faults=faults))


if __name__ == "__main__":
    main()
