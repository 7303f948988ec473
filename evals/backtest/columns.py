"""Which column of a team's files is what, under the names that teams use."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from state.errors import InputError
from state.spec import ModelSpec
from tools.coerce import to_text
from tools.sources import SourceFile, column_names, read_batches
from tools.times import detect_time_format

IDS = ("request_id", "prediction_id", "id")
TIMES = ("event_time", "timestamp")
SCORES = ("score", "prediction_score", "probability")
AVAILABLE = ("available_at", "available_time", "availability_time", "labelled_at", "label_time")
_SAMPLE_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionColumns:
    """The columns of one file of predictions."""

    request_id: str
    time: str
    entity: tuple[str, ...]
    """Empty: every request is its own entity."""
    features: tuple[str, ...]
    """All of the spec's, or none."""
    score: str | None

    def wanted(self) -> list[str]:
        named = [self.request_id, self.time, *self.entity, *self.features, *([self.score] if self.score else [])]
        return list(dict.fromkeys(named))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelColumns:
    request_id: str
    label: str
    available_at: str | None
    """None: the file does not say when a label became available."""

    def wanted(self) -> list[str]:
        named = [self.request_id, self.label, *([self.available_at] if self.available_at else [])]
        return list(dict.fromkeys(named))


def prediction_columns(source: SourceFile, spec: ModelSpec) -> PredictionColumns:
    """Raises `InputError` where a needed column is missing."""
    present = column_names(source)
    scores = (*SCORES, "prediction") if spec.task == "regression" else SCORES
    score = _find(present, [name for name in scores if name not in spec.feature_names()])
    absent = [name for name in spec.feature_names() if name not in present]
    if absent and (score is None or len(absent) < len(spec.features)):
        near = difflib.get_close_matches(absent[0], present, n=3, cutoff=0.5)
        remedy = f"did you mean {', '.join(near)}?" if near else f"its columns are {', '.join(present)}."
        raise InputError(
            f"{source.path} has no column {', '.join(absent)} ({len(absent)} of {len(spec.features)} features)",
            remedy=f"Add it, or name the features in the spec as the file does: {remedy} A file with a score and no "
            "feature at all is watched by its scores",
        )
    entity = tuple(spec.data.entity)
    return PredictionColumns(
        request_id=_needed(source, present, IDS, "the id that labels are joined on"),
        time=_needed(source, present, (spec.data.time, *TIMES), "the event time"),
        entity=entity if all(name in present for name in entity) else (),
        features=() if absent else tuple(spec.feature_names()),
        score=score,
    )


def label_columns(source: SourceFile, spec: ModelSpec) -> LabelColumns:
    """Raises `InputError` where a needed column is missing."""
    present = column_names(source)
    return LabelColumns(
        request_id=_needed(source, present, IDS, "the id of the prediction"),
        label=_needed(source, present, (spec.data.label.column, "label"), "the outcome"),
        available_at=_find(present, AVAILABLE),
    )


def time_reading(columns: Sequence[tuple[SourceFile, str]], what: str) -> str:
    """How the columns spell their times, alike in all of them.

    Raises:
        InputError: they hold no times.
    """
    parts: list[pl.Series] = []
    for source, column in columns:
        n_rows = 0
        for batch in read_batches(source, [column]):
            values = batch.rows[column]
            parts.append(values.gather_every(max(1, len(values) // _SAMPLE_ROWS)))
            n_rows += len(values)
            if n_rows > 10 * _SAMPLE_ROWS:
                break
    kinds = {part.dtype for part in parts}
    parts = parts if len(kinds) == 1 else [part.cast(pl.String) for part in parts]
    values = pl.concat([part.alias("time") for part in parts]) if parts else pl.Series("time", [], dtype=pl.String)
    found = detect_time_format(values)
    if found is not None:
        return found.name
    source, column = columns[0]
    given = values.drop_nulls()
    first = f"the first value is {str(given[0])!r}" if len(given) else "it is empty"
    raise InputError(
        f"{source.path}: column {column!r} ({what}) does not read as a time: {first}",
        remedy="Write times as 2026-01-31T12:00:00Z, or as epoch seconds",
    )


def ids_of(values: pl.Series) -> pl.Series:
    """Ids as text. A column of whole numbers that went through floats reads `7.0`: it is id 7."""
    return to_text(values).str.replace(r"^(-?\d+)\.0$", "${1}")


def _needed(source: SourceFile, present: Sequence[str], names: Sequence[str], what: str) -> str:
    found = _find(present, names)
    if found is not None:
        return found
    raise InputError(
        f"{source.path} has no column for {what}: it has {', '.join(present)}",
        remedy=f"Name one of them {' or '.join(dict.fromkeys(names))}",
    )


def _find(present: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is there, in any case."""
    folded = {name.casefold(): name for name in reversed(present)}
    for name in names:
        if name in present:
            return name
        if name.casefold() in folded:
            return folded[name.casefold()]
    return None
