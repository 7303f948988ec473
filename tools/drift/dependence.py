"""Whether labels follow the features in a way that the score does not: what a changed world does and broken labels cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import ndtri, stdtr

from tools.drift.labels import EDGES, MIN_ROWS

Floats: TypeAlias = npt.NDArray[np.float64]

SIGNIFICANT = 0.01
"""p-value, corrected over columns, from which a feature counts."""
FLOOR = 0.03
"""Change of the label's probability per standard deviation of a column that is worth a word."""
MIN_BLOCKS = 4
MAX_LEVELS = 8
MIN_LEVEL = 0.05
"""Share of the rows that a level needs for a column of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """The feature on which the label depends most beyond the score, compared with the reference."""

    feature: str
    effect: float
    """Change of the label's probability per standard deviation of the feature's column, at equal scores."""
    p_value: float
    """Over blocks, corrected over all columns."""

    @property
    def is_real(self) -> bool:
        return self.p_value < SIGNIFICANT and abs(self.effect) >= FLOOR


def depends_on(
    current: pl.DataFrame,
    reference: pl.DataFrame | None,
    *,
    curve: Floats,
    features: Mapping[str, str],
    kept: float = 1.0,
) -> Dependence | None:
    """Test every feature; None where too few blocks can be compared.

    Frames have `block`, `label`, `score` and the features; `features` gives their types, and text is passed over.
    `curve` is P(label 1) by score cell. Per block the label is regressed on the curve and the column; the coefficients'
    means are compared, with the variation of both windows' blocks. Labels that are wrong in a share of the rows,
    whatever the row, leave `kept` of what they depended on before and bring in no feature. A score that leaves something
    to its features has such a dependence always: labels that are all flipped turn it round, and follow nothing new.
    """
    frames = [current] if reference is None else [current, reference]
    columns = dict(_columns(pl.concat([f.select("label", *features) for f in frames]), features))
    rows = [frame.height for frame in frames]
    if not columns:
        return None
    matrix = np.column_stack(list(columns.values()))
    ours = _by_block(current, matrix[: rows[0]], curve)
    theirs = _by_block(reference, matrix[rows[0] :], curve) if reference is not None else np.zeros((0, len(columns)))
    if len(ours) + len(theirs) < MIN_BLOCKS + (1 if len(theirs) else 0) or not len(ours):
        return None
    found = [
        _test(name, ours[:, at], theirs[:, at], kept=kept, n_columns=len(columns)) for at, name in enumerate(columns)
    ]  # fmt: skip
    # A large effect that chance may show is no effect: the surest one that is large enough comes first.
    return min(found, key=lambda one: (not one.is_real, one.p_value))


def _test(column: str, ours: Floats, theirs: Floats, *, kept: float, n_columns: int) -> Dependence:
    ours, theirs = ours[np.isfinite(ours)], theirs[np.isfinite(theirs)]
    name = column.partition("=")[0]
    parts = [part for part in (ours, theirs) if len(part)]
    freedom = sum(len(part) - 1 for part in parts)
    if not len(ours) or freedom < MIN_BLOCKS - 1:
        return Dependence(feature=name, effect=0.0, p_value=1.0)
    effect = float(ours.mean()) - (kept * float(theirs.mean()) if len(theirs) else 0.0)
    pooled = sum(float(((part - part.mean()) ** 2).sum()) for part in parts) / freedom
    error = math.sqrt(pooled * (1 / len(ours) + (kept**2 / len(theirs) if len(theirs) else 0.0)))
    p = 2 * float(stdtr(freedom, -abs(effect) / max(error, 1e-12)))
    return Dependence(feature=name, effect=effect, p_value=min(1.0, p * n_columns))


def _columns(rows: pl.DataFrame, features: Mapping[str, str]) -> Iterator[tuple[str, Floats]]:
    """Numeric columns as normal scores of their ranks, levels and booleans as indicators; all standardised."""
    for name, kind in features.items():
        if kind == "numeric":
            values = rows[name].cast(pl.Float64).fill_nan(None)
            ranks = (values.rank("average") - 0.5) / max(values.len() - values.null_count(), 1)
            scores = ndtri(ranks.fill_null(0.5).to_numpy().astype(np.float64))
            yield from _standard(name, np.asarray(scores))
        elif kind == "boolean":
            yield from _standard(name, rows[name].cast(pl.Float64).fill_null(0.5).to_numpy())
        elif kind == "categorical":
            counts = rows[name].value_counts(sort=True).head(MAX_LEVELS)
            for level, n in counts.iter_rows():
                if level is not None and n >= MIN_LEVEL * rows.height:
                    hit = (rows[name] == level).fill_null(value=False).to_numpy()
                    yield from _standard(f"{name}={level}", hit.astype(np.float64))


def _standard(name: str, values: Floats) -> Iterator[tuple[str, Floats]]:
    sd = float(values.std())
    if sd > 1e-9:
        yield name, (values - values.mean()) / sd


def _by_block(rows: pl.DataFrame, matrix: Floats, curve: Floats) -> Floats:
    """Coefficient of every column by block, shape `(n_blocks, n_columns)`; NaN where a block cannot say."""
    label, score = rows["label"].to_numpy(), rows["score"].to_numpy()
    expected = curve[np.searchsorted(EDGES, score, side="right")]
    found: list[Floats] = []
    for at in _groups(rows["block"].to_list()):
        if len(at) >= MIN_ROWS:
            base = np.column_stack([np.ones(len(at)), expected[at]])
            left = _without(base, np.column_stack([label[at], matrix[at]]))
            spread = (left[:, 1:] ** 2).sum(axis=0)
            usable = spread > 0.05 * len(at)
            found.append(np.where(usable, left[:, 1:].T @ left[:, 0] / np.where(usable, spread, 1.0), np.nan))
    return np.array(found) if found else np.zeros((0, matrix.shape[1]))


def _without(base: Floats, columns: Floats) -> Floats:
    """The columns less what a linear function of `base` says of them."""
    return np.asarray(columns - base @ np.linalg.lstsq(base, columns, rcond=None)[0])


def _groups(blocks: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    names, index = np.unique(np.asarray(blocks, dtype=np.str_), return_inverse=True)
    return [np.flatnonzero(index == k) for k in range(len(names))]
