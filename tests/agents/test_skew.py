from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from agents.skew import Comparison, compare, find_skew
from evals.world.platform import example_spec
from state.errors import ToolUnavailable
from tools.ports import FeatureView

SPEC = example_spec()
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def served(n_rows: int = 10, **changes: list[Any]) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "request_id": [f"r{i}" for i in range(n_rows)], "entity": ["e"] * n_rows,
        "event_time": [NOON + timedelta(seconds=i) for i in range(n_rows)],
        "tenure": [float(i) for i in range(n_rows)], "spend": [0.1 * i for i in range(n_rows)], "visits": [None] * n_rows,
        "plan": ["a"] * n_rows, "mobile": [1.0] * n_rows,
    }  # fmt: skip
    floats = dict.fromkeys(("tenure", "spend", "visits", "mobile"), pl.Float32)
    return pl.DataFrame({**columns, **changes}, schema_overrides=floats)


class Store:
    """Offline values as given; `down` answers nothing."""

    def __init__(self, values: pl.DataFrame, *, down: bool = False) -> None:
        self.values, self.down = values, down

    def offline(self, model: str, keys: pl.DataFrame) -> pl.DataFrame:
        if self.down:
            raise ToolUnavailable("connection refused")
        return self.values.join(keys.select("request_id"), on="request_id", how="semi")

    def read(self, model: str) -> FeatureView | None:
        return None

    def rollback(self, *, model: str, revision: str, key: str) -> FeatureView:
        raise AssertionError("nobody rolls back here")

    def find(self, key: str) -> FeatureView | None:
        return None


def offline(**changes: list[Any]) -> pl.DataFrame:
    doubles = served(10, **changes).drop("entity", "event_time")
    return doubles.with_columns(
        pl.col("tenure", "visits").cast(pl.Float64), pl.Series("spend", [0.1 * i for i in range(10)])
    )


@pytest.mark.parametrize(
    ("values", "n_differ", "by_feature"),
    [
        pytest.param({}, 0, {}, id="float32-and-float64-of-one-number"),
        pytest.param({"tenure": [9.0, 1.0, *range(2, 10)]}, 1, {"tenure": 1}, id="another-number"),
        pytest.param({"plan": ["b", None, *["a"] * 8]}, 2, {"plan": 2}, id="another-level-and-none"),
        pytest.param({"visits": [3.0, *[None] * 9]}, 1, {"visits": 1}, id="a-value-that-one-side-lacks"),
        pytest.param(
            {"tenure": [9.0, *range(1, 10)], "plan": ["b", *["a"] * 9]}, 1, {"tenure": 1, "plan": 1}, id="one-key-twice"
        ),
    ],
)
def test_values_are_compared_key_by_key(
    values: dict[str, list[Any]], n_differ: int, by_feature: dict[str, int]
) -> None:
    found = compare(Store(offline(**values)), served(), SPEC)

    assert (found.n_keys, found.n_differ, found.by_feature) == (10, n_differ, by_feature)


def test_no_store_no_answer_and_no_common_key_are_no_data() -> None:
    assert compare(None, served(), SPEC) == Comparison()
    assert compare(Store(offline().clear()), served(), SPEC) == Comparison()
    assert compare(Store(offline(), down=True), served(), SPEC) == Comparison(no_data="connection refused")
    assert find_skew(Comparison(no_data="connection refused"), []) is None


@pytest.mark.parametrize(
    ("n_differ", "before", "found"),
    [
        pytest.param(6, [0] * 10, True, id="two-percent-where-all-agreed"),
        pytest.param(1, [0] * 10, False, id="a-single-key"),
        pytest.param(6, [5, 7, 6, 4, 6, 5], False, id="a-store-that-always-differs-a-little"),
        pytest.param(40, [5, 7, 6, 4, 6, 5], True, id="and-then-a-lot"),
        pytest.param(6, [], True, id="skewed-from-the-first-day"),
    ],
)
def test_the_tolerance_is_what_earlier_blocks_had(n_differ: int, before: list[int], found: bool) -> None:
    now = Comparison(n_keys=300, n_differ=n_differ, by_feature={"spend": n_differ})

    signal = find_skew(now, [{"n_keys": 300, "n_differ": n} for n in before])

    assert (signal is not None) is found
    if signal is not None:
        assert signal["skewed"] == ["spend"]
        assert signal["text"].startswith("spend: served and offline values differ on")
