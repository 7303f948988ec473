"""Labelled rows in time order, as the encoder, the estimators and the losses take them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from state.canonical import digest
from state.errors import InputError
from state.spec import ModelSpec, RecipeTraining
from tools.drift.performance import block_of

Floats = npt.NDArray[np.float64]
Values: TypeAlias = list[Any] | npt.NDArray[Any]

WHEN_DUE = "label_when_due"
"""Column of training rows: the label as it stood when its block was first to be judged (`due_at`)."""
MAX_NULL_RATIO = 0.999
"""A feature with more nulls than this over the whole window is an import fault, not a feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one stretch of time, oldest first."""

    columns: dict[str, Values]
    """One entry a feature: a float array with NaN, or a list of strings with None."""
    label: Floats
    """Shape `(n_rows,)`: class index or number."""
    blocks: npt.NDArray[np.str_]
    """The name of each row's block, ascending."""
    n_classes: int
    """0 for regression."""
    due: Floats | None = None
    """Each row's label as it stood when its block was first to be judged, NaN where it had not come; None: not recorded."""

    def __len__(self) -> int:
        return len(self.label)

    def between(self, start: int, stop: int) -> Rows:
        """Rows `start` up to `stop`, in time order."""
        return Rows(
            columns={name: values[start:stop] for name, values in self.columns.items()},
            label=self.label[start:stop],
            blocks=self.blocks[start:stop],
            n_classes=self.n_classes,
            due=self.due[start:stop] if self.due is not None else None,
        )

    def block_starts(self) -> list[int]:
        """The row at which each block begins, and the number of rows at the end."""
        changes = np.flatnonzero(self.blocks[1:] != self.blocks[:-1]) + 1
        return [0, *changes.tolist(), len(self)] if len(self) else [0]


def labelled_rows(frame: pl.DataFrame, spec: ModelSpec, *, n_classes: int, for_fitting: bool = True) -> Rows:
    """`frame` (see `Data.history` for its columns) in time order; `n_classes` is 0 for regression.

    `for_fitting` refuses rows of a single class, from which nothing can be learned.

    Raises:
        InputError: no rows, a missing column, or labels that the task cannot have.
    """
    absent = [name for name in [*spec.feature_names(), "label", "event_time"] if name not in frame.columns]
    if absent:
        raise InputError(
            f"{spec.model}: the rows have no column {', '.join(absent)}",
            remedy="Import the data again, or correct `features` in the model spec",
        )
    if frame.is_empty():
        raise InputError(
            f"{spec.model}: the window holds no labelled rows",
            remedy="Widen the window, wait for labels, or release quarantined days",
        )
    frame = frame.sort("event_time", maintain_order=True)
    label = frame["label"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    _check_labels(label, spec, n_classes=n_classes, for_fitting=for_fitting)
    return Rows(
        columns=encoder_columns(frame, spec.feature_names()),
        label=label,
        blocks=np.array(block_of(frame["event_time"], spec.monitoring.block).to_list(), dtype=np.str_),
        n_classes=n_classes,
        due=frame[WHEN_DUE].fill_null(np.nan).to_numpy() if WHEN_DUE in frame.columns else None,
    )


def encoder_columns(frame: pl.DataFrame, names: Iterable[str]) -> dict[str, Values]:
    """Columns of `frame` as the encoder takes them: float arrays with NaN where null, anything else as a list."""
    columns: dict[str, Values] = {}
    for name in names:
        series = frame[name]
        if series.dtype == pl.Float32 or series.dtype == pl.Boolean:
            columns[name] = series.cast(pl.Float32).fill_null(np.nan).to_numpy()
        elif series.dtype.is_numeric():
            columns[name] = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
        else:
            columns[name] = series.to_list()
    return columns


def recipe_of(spec: ModelSpec) -> RecipeTraining:
    """The spec's recipe.

    Raises:
        InputError: the spec trains by a command or a pipeline of its own.
    """
    if isinstance(spec.training, RecipeTraining):
        return spec.training
    raise InputError(
        f"{spec.model}: training.kind is {spec.training.kind!r}", remedy="Only `recipe` trains in this pipeline"
    )


def recipe_sha256(spec: ModelSpec) -> str:
    """Digest of what training does: the recipe, the features and the objective."""
    return digest(
        {
            "training": spec.training.model_dump(mode="json"),
            "features": [feature.model_dump(mode="json") for feature in spec.features],
            "objective": spec.objective.model_dump(mode="json"),
        }
    )


def frame_sha256(frame: pl.DataFrame) -> str:
    """Digest of the rows of `frame` in their order, alike whatever wrote the file that held them."""
    hasher = hashlib.sha256()
    for name in sorted(frame.columns):
        series = frame[name]
        hasher.update(f"{name}\n".encode())
        if series.dtype.is_temporal():
            hasher.update(series.cast(pl.Datetime("us", "UTC")).to_physical().to_numpy().tobytes())
        elif series.dtype.is_numeric() or series.dtype == pl.Boolean:
            hasher.update(series.cast(pl.Float64).fill_null(np.nan).to_numpy().tobytes())
        else:
            hasher.update("\x02".join(series.cast(pl.Utf8).fill_null("\x00").to_list()).encode())
    return hasher.hexdigest()


def check_frame(frame: pl.DataFrame, spec: ModelSpec, *, n_classes: int) -> dict[str, int | float]:
    """Counts of what was found in training rows that are fit for use.

    Raises:
        InputError: rows that no model should be fitted on; the message names the column.
    """
    rows = labelled_rows(frame, spec, n_classes=n_classes)
    repeated = int(frame["request_id"].is_duplicated().sum())
    if repeated:
        raise InputError(f"{spec.model}: {repeated} rows share a request id", remedy="Remove the repeated rows")
    found: dict[str, int | float] = {"n_rows": len(rows), "n_blocks": len(rows.block_starts()) - 1}
    for feature in spec.features:
        ratio = float(frame[feature.name].null_count() / len(rows))
        if ratio > MAX_NULL_RATIO:
            raise InputError(
                f"{spec.model}: feature {feature.name!r} is empty in {ratio:.1%} of {len(rows)} rows",
                remedy="Correct its source, or remove it from `features`",
            )
        found[f"null_ratio.{feature.name}"] = ratio
    return found


def _check_labels(label: Floats, spec: ModelSpec, *, n_classes: int, for_fitting: bool) -> None:
    remedy = "Correct `data.label` in the model spec, or the rows"
    n_bad = int((~np.isfinite(label)).sum())
    if n_bad:
        raise InputError(f"{spec.model}: {n_bad} of {len(label)} training labels are not finite numbers", remedy=remedy)
    if spec.task == "regression":
        return
    seen = np.unique(label)
    foreign = [value for value in seen if value not in range(n_classes)]
    if foreign:
        raise InputError(f"{spec.model}: label {foreign[0]:g} is not an index of {n_classes} classes", remedy=remedy)
    if for_fitting and len(seen) < 2:
        raise InputError(
            f"{spec.model}: all {len(label)} training labels are class {seen[0]:g}",
            remedy="Widen the window until it holds every class, or correct `data.label.positive`",
        )
