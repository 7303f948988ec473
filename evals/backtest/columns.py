"""Which column of a team's files is what, under the names that teams use."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from state.errors import InputError
from state.spec import ModelSpec
from tools.coerce import to_text
from tools.sources import SourceFile, column_names, list_sources, read_batches
from tools.times import detect_time_format

IDS = ("request_id", "prediction_id", "id")
TIMES = ("event_time", "timestamp")
SCORES = ("score", "prediction_score", "probability", "predicted_probability", "y_pred_proba", "y_score")
NUMBERS = ("prediction", "predicted", "y_pred")
"""A regression's answer, beside `SCORES`."""
CALLED = ("predicted_class", "predicted_label", "predicted", "prediction", "y_pred")
"""A multiclass model's answer where only the class was recorded."""
LABELS = ("label", "y_true")
VERSIONS = ("model_version", "version")
CLASS_PREFIXES = ("score_", "probability_", "proba_", "prob_", "y_pred_proba_", "p_")
"""`score_red`: the probability that a multiclass model gave to class red."""
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
    """Of a multiclass model the predicted class, where there are no probabilities."""
    class_scores: tuple[str, ...] = ()
    """A multiclass model's columns of probabilities, one a class."""
    classes: tuple[str, ...] = ()
    """The class of each of them."""

    version: str | None = None
    """Which version of the team's model answered."""

    @property
    def scored(self) -> bool:
        return self.score is not None or bool(self.class_scores)

    def wanted(self) -> list[str]:
        scores = [self.score] if self.score else self.class_scores
        version = [self.version] if self.version else []
        return list(dict.fromkeys([self.request_id, self.time, *self.entity, *self.features, *scores, *version]))


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
    classes = _class_scores(source, present, spec) if spec.task == "multiclass" else {}
    names = {"binary": SCORES, "regression": (*SCORES, *NUMBERS), "multiclass": CALLED}[spec.task]
    free = [name for name in names if name not in spec.feature_names()]
    score = None if classes else _find(present, free)
    if spec.task == "multiclass" and not classes and score is None and (lone := _find(present, SCORES)):
        raise InputError(
            f"{source.path}: column {lone!r} does not say of which class it is, and task multiclass has a probability for "
            "every class",
            remedy="Write one column a class, named score_<class>, or predicted_class with the class that was answered",
        )
    absent = [name for name in spec.feature_names() if name not in present]
    if absent and (not (score or classes) or len(absent) < len(spec.features)):
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
        score=score, class_scores=tuple(classes.values()), classes=tuple(classes),
        version=_find(present, [name for name in VERSIONS if name not in (*spec.feature_names(), *entity)]),
    )  # fmt: skip


def _class_scores(source: SourceFile, present: Sequence[str], spec: ModelSpec) -> dict[str, str]:
    """Class -> column, of the first prefix under which two columns or more stand; empty where none does."""
    taken = {*spec.feature_names(), *spec.data.entity, spec.data.time, "prediction_id", *SCORES, *CALLED}
    for prefix in CLASS_PREFIXES:
        found = {
            name[len(prefix) :]: name for name in present
            if name.casefold().startswith(prefix) and len(name) > len(prefix) and name not in taken
        }  # fmt: skip
        if len(found) >= 2:
            return found
        if len(found) == 1 and prefix != "p_":
            raise InputError(
                f"{source.path}: only one column, {next(iter(found.values()))!r}, holds the probability of a class",
                remedy="Write one column for every class, named score_<class>",
            )
    return {}


def label_columns(source: SourceFile, spec: ModelSpec) -> LabelColumns:
    """Raises `InputError` where a needed column is missing."""
    present = column_names(source)
    return LabelColumns(
        request_id=_needed(source, present, IDS, "the id of the prediction"),
        label=_needed(source, present, (spec.data.label.column, *LABELS), "the outcome"),
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


def sources_of(path: Path, option: str) -> list[SourceFile]:
    """Raises `InputError` where there is nothing to read at the path that was given with `option`."""
    if not path.exists():
        raise InputError(f"{path} does not exist", remedy=f"Correct the path after {option}")
    return list_sources(path)


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
