"""Training/serving skew: served feature values held against the offline values of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from state.errors import ToolUnavailable
from state.spec import ModelSpec
from tools.ports import Features
from tools.steps import step_beyond

MAX_KEYS = 2_000
"""Rows of a block that are compared, spread evenly over it: enough to see half a percent."""
TOLERANCE = 1e-5
"""Relative difference of two numbers that rounding to float32 on the way explains."""
SKEWED = 0.005
"""Share of keys that differ, beyond what earlier blocks had, from which on it is skew."""

_OFFLINE = ":offline"


class Comparison(BaseModel):
    """What one block's comparison found; JSON only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_keys: int = 0
    """Compared rows; 0 is no data."""
    n_differ: int = 0
    """Rows of which at least one value differs."""
    by_feature: dict[str, int] = {}
    """Feature -> rows in which it differs, features that agree left out."""
    no_data: str = ""
    """Why nothing was compared, where a store should have answered."""


def compare(features: Features | None, frame: pl.DataFrame, spec: ModelSpec) -> Comparison:
    """Compare a sample of the served rows in `frame` with their offline values.

    A store that does not answer is no data: the rest of the look goes on, and the next block is compared again.
    """
    if features is None or not frame.height:
        return Comparison()
    sample = frame.gather_every(-(-frame.height // MAX_KEYS))
    try:
        offline = features.offline(spec.model, sample.select("request_id", "entity", "event_time"))
    except ToolUnavailable as exc:
        return Comparison(no_data=str(exc))
    names = [name for name in spec.feature_names() if name in offline.columns]
    if sample["request_id"].equals(offline["request_id"]):  # the store has them all, in our order: no join
        n_keys, pairs = sample.height, {name: (sample[name], offline[name]) for name in names}
    else:
        both = sample.join(offline, on="request_id", how="inner", suffix=_OFFLINE, maintain_order="left")
        n_keys, pairs = both.height, {name: (both[name], both[name + _OFFLINE]) for name in names}
    if not names or not n_keys:
        return Comparison()
    differs = {name: _differ(*pair) for name, pair in pairs.items()}
    counts = {name: int(wrong.sum()) for name, wrong in differs.items() if wrong.any()}
    n_differ = int(np.logical_or.reduce([*differs.values()]).sum())
    return Comparison(n_keys=n_keys, n_differ=n_differ, by_feature=counts)


def _differ(served: pl.Series, offline: pl.Series) -> npt.NDArray[np.bool_]:
    """Which rows differ, shape (n_rows,); a value that one side lacks differs, two missing ones do not."""
    if served.dtype == offline.dtype and served.equals(offline):
        return np.zeros(len(served), dtype=np.bool_)
    if not served.dtype.is_numeric():
        return served.cast(pl.Utf8).ne_missing(offline.cast(pl.Utf8)).to_numpy()
    a, b = (column.cast(pl.Float64).fill_null(float("nan")).to_numpy() for column in (served, offline))
    return np.asarray(~np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * TOLERANCE, equal_nan=True))


def find_skew(found: Comparison, before: list[dict[str, int]]) -> dict[str, Any] | None:
    """The signal of a block whose values differ beyond the tolerance; None for a block that agrees, or for no data.

    `before` holds `n_keys` and `n_differ` of earlier good blocks: a store in which some values are restated, or joined
    a little late, differs a little every day, and that is its tolerance.
    """
    if not found.n_keys:
        return None
    hits, keys = (np.array([value], dtype=np.int64) for value in (found.n_differ, found.n_keys))
    earlier = np.array([[one["n_differ"], one["n_keys"]] for one in before], dtype=np.int64).reshape(-1, 2)
    if step_beyond(hits, keys, earlier[:, 0], earlier[:, 1]) < SKEWED:
        return None
    share = found.n_differ / found.n_keys
    # A feature that differs now and then beside one that is wrong is not what the skew is about.
    most = max(found.by_feature.values())
    features = [
        name for name, n in sorted(found.by_feature.items(), key=lambda pair: (-pair[1], pair[0])) if 5 * n >= most
    ]
    usual = float(earlier[:, 0].sum() / earlier[:, 1].sum()) if earlier[:, 1].sum() else 0.0
    text = (
        f"{', '.join(features)}: served and offline values differ on {share:.1%} of {found.n_keys} keys, "
        f"usual are {usual:.1%}"
    )
    return {"name": "skew", "text": text, "size": share, "skewed": features}
