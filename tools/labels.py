"""Which column of an unknown file is the outcome, and what kind of task it makes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from state.errors import InputError
from state.spec import CLASSIFICATION_METRICS, REGRESSION_METRICS, Metric
from tools.coerce import TRUE_SPELLINGS, binary_labels, to_numbers, to_text
from tools.columns import Column, Sample, is_numeric_text, said, words
from tools.rhythm import Rhythm

Task = Literal["binary", "multiclass", "regression"]
Floats = npt.NDArray[np.float64]
MAX_CLASSES = 50
_LABEL_WORDS = frozenset(
    words(
        "label target y class outcome response truth churn churned attrition exited fraud fraudulent default defaulted "
        "converted conversion clicked click survived late delayed readmitted failure failed cancelled canceled purchased "
        "subscribed spam approved risk diagnosis species income defect anomaly"
    )
)
_NUMBER_WORDS = frozenset(
    words("price sales demand revenue load consumption fare cnt count quantity value rating score")
)
_POSITIVE_WORDS = frozenset(
    (*TRUE_SPELLINGS, "positive", "pos", "churn", "churned", "fraud", "default", "late", "failed", "failure", "fail",
     "bad", "spam", "high", "won", "win", "malignant", "attrited", "exited", "sick", "delayed", "converted", "abnormal",
     "defect", "yes.", "true.", "1", "anomaly", "attack", "dead", "died", ">50k", ">50k.")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelProposal:
    column: str
    task: Task
    positive: str | int | float | bool | None
    """As the spec spells it; None unless binary."""
    classes: tuple[str, ...]
    """Values by number of rows; empty for numbers."""
    positive_ratio: float | None
    delay: timedelta
    why: str
    why_delay: str
    others: tuple[str, ...]
    """Columns that could be the label instead."""


def choose_label(
    columns: dict[str, Column], sample: Sample, when: Column, given: str | None, metric: Metric | None, path: Path
) -> Column:
    if given is not None:
        if columns[given].n_distinct < 2:
            raise InputError(
                f"--label {given}: the column is {columns[given].why}", remedy="Give the column of the outcome"
            )
        return columns[given]
    names = list(columns)
    scored = {
        name: _label_score(columns[name], sample.rows[name], is_last=name == names[-1], metric=metric)
        for name in names
        if name != when.name and columns[name].time is None and columns[name].n_distinct > 1
    }
    best = max(scored, key=lambda name: scored[name], default=None)
    if best is None or scored[best] < 40:
        likely = sorted(scored, key=lambda name: -scored[name])[:4]
        raise InputError(
            f"{path} names no column that is plainly the outcome",
            remedy=f"Give it with --label COLUMN, for instance --label {' or --label '.join(likely)}" if likely else "",
        )
    return columns[best]


def _label_score(column: Column, values: pl.Series, *, is_last: bool, metric: Metric | None) -> float:
    tokens = words(column.name)
    two = column.n_distinct == 2
    few = column.n_distinct <= MAX_CLASSES
    numeric = is_numeric_text(to_text(values).drop_nulls())
    if not numeric and not few:
        return 0.0
    if metric is not None and metric in REGRESSION_METRICS and (not numeric or column.n_distinct <= 2):
        return 0.0
    if metric is not None and metric in CLASSIFICATION_METRICS and not few:
        return 0.0
    score = 0.0
    if _LABEL_WORDS & set(tokens):
        score += 100.0 if len(tokens) == 1 or tokens[0] in ("is", "has", "was", "will") else 60.0
    elif _NUMBER_WORDS & set(tokens) and numeric and not two:
        score += 35.0 if len(tokens) == 1 else 25.0
    elif tokens[:1] and tokens[0] in ("is", "has", "was", "will") and two:
        score += 15.0
    return score + (10.0 if two else 0.0) + (30.0 if is_last and (two or few or numeric) else 0.0)


def propose_label(
    values: pl.Series,
    column: Column,
    columns: dict[str, Column],
    metric: Metric | None,
    times: pl.Series,
    rhythm: Rhythm,
    *,
    named: bool,
) -> LabelProposal:
    text = to_text(values)
    counts = text.drop_nulls().value_counts(sort=True, name="n")
    classes = tuple(str(name) for name in counts[values.name])
    task = _task(column, text, classes, metric)
    positive = _positive(classes, values) if task == "binary" else None
    ratio = binary_labels(values, positive).mean() if task == "binary" else None
    delay, why_delay = _delay(text, times, rhythm)
    others = [
        name for name, other in columns.items() if name != column.name and other.time is None and other.n_distinct == 2
    ]
    return LabelProposal(
        column=column.name,
        task=task,
        positive=positive,
        classes=() if task == "regression" else classes,
        positive_ratio=float(ratio) if isinstance(ratio, int | float) else None,
        delay=delay,
        why="given" if named else "its name and values read like an outcome",
        why_delay=why_delay,
        others=tuple(others[:5]),
    )


def _task(column: Column, text: pl.Series, classes: tuple[str, ...], metric: Metric | None) -> Task:
    numeric = is_numeric_text(text.drop_nulls())
    if metric is not None and metric in REGRESSION_METRICS:
        if not numeric:
            raise InputError(
                f"label {column.name!r} is no number ({said(classes[0])}), and {metric} measures numbers",
                remedy=f"Give one of {', '.join(sorted(CLASSIFICATION_METRICS))} with --metric",
            )
        return "regression"
    if len(classes) == 2:
        return "binary"
    counted = bool(_NUMBER_WORDS & set(words(column.name)))
    whole = numeric and bool((to_numbers(text.drop_nulls()).drop_nulls() % 1 == 0).all())
    few = len(classes) <= (MAX_CLASSES if not numeric or metric is not None else 10)
    if few and (not numeric or metric is not None or (whole and not counted)):
        return "multiclass"
    if not numeric:
        raise InputError(
            f"label {column.name!r} has {len(classes)} different texts, too many for classes",
            remedy="Give another column with --label",
        )
    if metric is not None:
        raise InputError(
            f"label {column.name!r} has {len(classes)} different numbers, and {metric} measures classes",
            remedy=f"Give {' or '.join(sorted(REGRESSION_METRICS))} with --metric, or another column with --label",
        )
    return "regression"


def _positive(classes: tuple[str, ...], values: pl.Series) -> str | int | float | bool:
    """The value that reads like a yes; else the larger number; else the rarer value."""
    yes = [name for name in classes if name.lower() in _POSITIVE_WORDS]
    numbers = to_numbers(pl.Series(classes))
    if values.dtype == pl.Boolean:
        return True
    if not numbers.null_count():
        chosen = max(classes, key=float)
    elif len(yes) == 1:
        chosen = yes[0]
    else:
        chosen = classes[-1]
    if numbers.null_count():
        return chosen
    return int(float(chosen)) if float(chosen).is_integer() else float(chosen)


def _delay(text: pl.Series, times: pl.Series, rhythm: Rhythm) -> tuple[timedelta, str]:
    labelled = times.filter(text.is_not_null())
    newest = labelled.max()
    silent = rhythm.last - newest if isinstance(newest, datetime) else timedelta(0)
    if silent >= rhythm.block and text.null_count():
        days = -(-silent // timedelta(days=1))
        return timedelta(days=days), f"measured: the newest {days} days hold no label yet"
    return rhythm.block, "not to be seen in the data: set how long after the event the label is known"


def default_metric(label: LabelProposal) -> Metric:
    if label.task == "regression":
        return "mae"
    return "roc_auc" if label.task == "binary" else "accuracy"


def n_classes_of(label: LabelProposal) -> int:
    return {"binary": 2, "multiclass": len(label.classes), "regression": 0}[label.task]


def target_of(values: pl.Series, label: LabelProposal) -> tuple[Floats, pl.Series]:
    """Known labels as numbers, and which rows have one."""
    if label.task == "binary":
        encoded = binary_labels(values, label.positive)
    elif label.task == "regression":
        encoded = to_numbers(values)
    else:
        index = {name: float(at) for at, name in enumerate(label.classes)}
        encoded = to_text(values).replace_strict(index, default=None, return_dtype=pl.Float64)
    known = encoded.is_not_null()
    return encoded.filter(known).to_numpy(), known
