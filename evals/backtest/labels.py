"""A team's labels with the time at which each became available, late and restated ones included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from evals.backtest.columns import LabelColumns, ids_of, label_columns, sources_of, time_reading
from evals.backtest.predictions import FILE, ID, ROW, TIME, Progress, StagedPredictions
from state.errors import InputError
from state.spec import ModelSpec
from tools.coerce import FALSE_SPELLINGS, TRUE_SPELLINGS, label_indices, to_numbers, to_text
from tools.labels import MAX_CLASSES
from tools.sources import SourceFile, read_batches
from tools.times import EVENT_TIME, mixed_zones, parse_times, zones_of

LABEL, AVAILABLE = "label", "available_at"
_TEXT, _BARE = "text", "bare"
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedLabels:
    parts: tuple[Path, ...]
    """`request_id, label, available_at, event_time, row`: statements about known predictions, as they stand in the files."""
    classes: tuple[str, ...]
    """Of a multiclass task: the name of each label."""
    sources: tuple[SourceFile, ...]
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Tally:
    n_read: int = 0
    n_known: int = 0
    n_unknown: int = 0
    n_left_out: int = 0
    """Labels of predictions without a score."""
    unknown: list[str] = field(default_factory=list)
    """The first few labels of no prediction."""
    bare: bool = True
    """Whether every time of availability is a date without a time of day."""
    zones: Counter[str] = field(default_factory=Counter)
    """What the times of availability say of their zone."""
    values: Counter[str] = field(default_factory=Counter)
    """Labels as written, of a classification."""
    first: dict[str, datetime] = field(default_factory=dict)
    """Label as written -> when it first became available, of several classes."""
    file: str = ""


def stage_labels(
    path: Path, spec: ModelSpec, predictions: StagedPredictions, folder: Path, progress: Progress
) -> StagedLabels:
    """Read every file of labels at `path`, give each the time of its prediction, and write parts below `folder`.

    Raises:
        InputError: a column, a time or a label is missing or wrong, or a label was available before its prediction;
            the message names file, row, id and remedy.
    """
    sources = sources_of(path, "--labels")
    columns = [label_columns(source, spec) for source in sources]
    dated = [(s, c.available_at) for s, c in zip(sources, columns, strict=True) if c.available_at is not None]
    if dated and len(dated) < len(sources):
        raise InputError(
            f"{path}: some files say when a label became available and some do not",
            remedy="Add available_at to all of them, or leave it out everywhere",
        )
    reading = time_reading(dated, "when the label became available") if dated else ""
    tally = _Tally()
    parts: list[Path] = []
    for source, named in zip(sources, columns, strict=True):
        for batch in read_batches(source, named.wanted()):
            tally.n_read += batch.rows.height
            if named.available_at is not None:
                tally.zones.update(zones_of(batch.rows[named.available_at]))
            rows = _normalised(source, batch.first_row, batch.rows, named, reading).drop_nulls(_TEXT)
            parts.append(folder / f"labels-{len(parts):06}.parquet")
            _noted(_known(rows, predictions, tally), spec, tally).write_parquet(parts[-1], compression="lz4")
            progress(f"read {tally.n_read} labels")
    notes = _unknown(path, predictions, tally, columns[0].label)
    if dated and (mixed := mixed_zones(dated[0][1], tally.zones)) is not None:
        notes.append(f"{path}: {mixed}.")
    remedy = _remedy(spec)
    _refuse_values(spec, tally, remedy)
    classes = _classes(spec, predictions, tally, path)
    comma = any(source.decimal_comma for source in sources)
    for part in parts:
        rows = _typed(spec, pl.read_parquet(part), classes, tally, decimal_comma=comma)
        rows = rows.with_columns(_available(spec, dated=bool(dated), bare=tally.bare).alias(AVAILABLE))
        _refuse_early(rows)
        rows.select(ID, LABEL, AVAILABLE, TIME, ROW).write_parquet(part, compression="lz4")
    notes += _unscored(predictions, classes, tally)
    notes += _time_notes(spec, dated=bool(dated), bare=tally.bare)
    return StagedLabels(parts=tuple(parts), classes=classes, sources=tuple(sources), notes=tuple(notes))


def in_order(statements: pl.DataFrame) -> pl.DataFrame:
    """Statements in the order in which they count; of two about a row at one time the later in the file."""
    ordered = statements.sort(AVAILABLE, ROW, maintain_order=True).select(ID, LABEL, AVAILABLE, TIME)
    return ordered.unique([ID, AVAILABLE], keep="last", maintain_order=True)


def _normalised(
    source: SourceFile, first_row: int, raw: pl.DataFrame, named: LabelColumns, reading: str
) -> pl.DataFrame:
    row = pl.Series(ROW, range(first_row + 1, first_row + raw.height + 1), dtype=pl.Int64)
    ids, text = ids_of(raw[named.request_id]).alias(ID), to_text(raw[named.label]).alias(_TEXT)
    columns = [ids, text, row]
    if named.available_at is not None:
        values = raw[named.available_at]
        columns.append(parse_times(values, reading).cast(EVENT_TIME).alias(AVAILABLE))
        timed = isinstance(values.dtype, pl.Datetime) or reading.startswith("epoch")
        bare = not timed and not values.cast(pl.String).str.contains(":").any()
        columns.append(pl.Series(_BARE, [bare], dtype=pl.Boolean).new_from_index(0, raw.height))
    rows = pl.DataFrame(columns).with_columns(pl.lit(str(source.path)).cast(pl.Categorical).alias(FILE))
    _refuse(rows.filter(pl.col(ID).is_null()), f"has no {named.request_id}")
    if named.available_at is not None:
        undated = rows.filter(pl.col(AVAILABLE).is_null() & pl.col(_TEXT).is_not_null())
        _refuse(undated, f"has no readable {named.available_at}")
    return rows


def _refuse(wrong: pl.DataFrame, what: str, remedy: str = "Correct or remove these rows") -> None:
    """Raise for the first of the rows in `wrong`."""
    if wrong.is_empty():
        return
    first = wrong.row(0, named=True)
    name = f" (id {first[ID]})" if first[ID] is not None else ""
    more = f"; {wrong.height} such rows among those read with it" if wrong.height > 1 else ""
    raise InputError(f"{first[FILE]}: row {first[ROW]}{name} {what}{more}", remedy=remedy)


def _known(rows: pl.DataFrame, predictions: StagedPredictions, tally: _Tally) -> pl.DataFrame:
    """Statements about predictions that are there, with their event time."""
    rows = rows.with_columns(predictions.index.times_of(rows[ID]).alias(TIME))
    absent = rows.filter(pl.col(TIME).is_null())
    unscored = predictions.index.are_unscored(absent[ID])
    tally.n_left_out += int(unscored.sum())
    unknown = absent.filter(~unscored)
    room = max(0, 3 - len(tally.unknown))
    tally.unknown += [f"{name} (row {row})" for name, row in unknown.select(ID, ROW).head(room).iter_rows()]
    tally.n_unknown += unknown.height
    tally.n_known += rows.height - absent.height
    return rows.drop_nulls(TIME)


def _noted(rows: pl.DataFrame, spec: ModelSpec, tally: _Tally) -> pl.DataFrame:
    tally.file = tally.file or (str(rows[FILE][0]) if rows.height else "")
    tally.bare = tally.bare and (_BARE not in rows.columns or bool(rows[_BARE].all()))
    if spec.task == "multiclass":
        rows = rows.with_columns(ids_of(rows[_TEXT]))
        since = pl.col(AVAILABLE if AVAILABLE in rows.columns else TIME).min()
        for name, first in rows.group_by(_TEXT).agg(since).iter_rows():
            tally.first[name] = min(first, tally.first.get(name, first))
    if spec.task != "regression":
        tally.values.update(dict(rows[_TEXT].value_counts().iter_rows()))
    return rows


def _unknown(path: Path, predictions: StagedPredictions, tally: _Tally, column: str) -> list[str]:
    n_labels = tally.n_known + tally.n_unknown + tally.n_left_out
    if not n_labels:
        raise InputError(
            f"{path} holds no label: column {column!r} is empty in all of {tally.n_read} rows",
            remedy="Give the outcomes; without any, nothing can be judged",
        )
    if not tally.n_known and not tally.n_unknown:
        raise InputError(
            f"{path}: all of {n_labels} labels are of predictions without a score",
            remedy="Give the labels of what your model answered",
        )
    notes = (
        [f"{path}: {tally.n_left_out} of {n_labels} labels are of predictions without a score, and were left out."]
        if tally.n_left_out else []
    )  # fmt: skip
    if not tally.n_unknown:
        return notes
    first = ", ".join(tally.unknown)
    said = f"{path}: {tally.n_unknown} of {n_labels} labels are of no prediction that is given, the first {first}"
    if not tally.n_known:
        called = ", ".join(pl.scan_parquet(predictions.parts[0]).select(ID).head(3).collect()[ID])
        raise InputError(f"{said}; predictions are called {called}", remedy="Use the same ids in both files")
    return [*notes, f"{said}; they were left out."]


def _remedy(spec: ModelSpec) -> str:
    column = spec.data.label.column
    if spec.task != "binary":
        return f"Correct the labels, or data.label.column ({column!r}) and task ({spec.task}) of the spec"
    return f"Correct the labels, or data.label (column {column!r}, positive {spec.data.label.positive!r}) of the spec"


def _refuse_values(spec: ModelSpec, tally: _Tally, remedy: str) -> None:
    """Labels of one class, or of too many."""
    if spec.task == "regression":
        return
    shown = ", ".join(repr(name) for name, _ in tally.values.most_common(5))
    numbers = pl.Series(list(tally.values), dtype=pl.String)
    n_classes = len(numbers) if spec.task == "multiclass" else label_indices(spec, (), numbers).n_unique()
    # A foreign spelling is told by its row, where it stands.
    if n_classes < 2 and (spec.task == "multiclass" or len(numbers) < 2 or spec.data.label.positive is not None):
        which = f"; none of them is the positive {spec.data.label.positive!r}" if len(numbers) > 1 else ""
        raise InputError(f"{tally.file}: every label is of one class (values: {shown}{which})", remedy=remedy)
    if spec.task == "multiclass" and n_classes > MAX_CLASSES:
        raise InputError(
            f"{tally.file}: the labels have {n_classes} values ({shown}, ...), and a multiclass task has at most {MAX_CLASSES}",
            remedy=remedy,
        )


def _classes(spec: ModelSpec, predictions: StagedPredictions, tally: _Tally, path: Path) -> tuple[str, ...]:
    """Names by index: what the scores name, then what came to be known, in order of time.

    So an index means the same whatever comes later, and nothing is known of a class before it was seen.
    """
    if spec.task != "multiclass":
        return ()
    scored = {*predictions.classes, *predictions.called}
    if scored and not scored & set(tally.first):
        raise InputError(
            f"{path}: no label is one of the classes that were predicted: labels are {', '.join(sorted(tally.first)[:5])}; "
            f"predicted were {', '.join(sorted(scored)[:5])}",
            remedy="Spell the classes alike in both files",
        )
    first = dict(tally.first)
    for name, at in predictions.called.items():
        first[name] = min(at, first.get(name, at))
    later = sorted(set(first) - set(predictions.classes), key=lambda name: (first[name], name))
    return (*predictions.classes, *later)


def _unscored(predictions: StagedPredictions, classes: Sequence[str], tally: _Tally) -> list[str]:
    """Classes that came true and that the recorded probabilities have no column for."""
    absent = (
        [name for name in classes[len(predictions.classes) :] if name in tally.first] if predictions.classes else []
    )
    if not absent:
        return []
    n_labels = sum(tally.values[name] for name in absent)
    return [
        f"No column of probabilities for {', '.join(absent)} ({n_labels} labels): the recorded model counts as having "
        "given it none."
    ]


def _typed(
    spec: ModelSpec, known: pl.DataFrame, classes: Sequence[str], tally: _Tally, *, decimal_comma: bool
) -> pl.DataFrame:
    """With the label as a number: class 1 or 0, the index of a class, or the number itself."""
    text, remedy = known[_TEXT], _remedy(spec)
    if spec.task == "regression":
        label = to_numbers(text, decimal_comma=decimal_comma).alias(LABEL)
        wrong = known.filter(label.is_null())
        _refuse(wrong, f"has the label {_first(wrong)!r}, which is no number", remedy)
        return known.with_columns(label)
    counts = [name for name, _ in tally.values.most_common()]
    shown = ", ".join(repr(value) for value in counts[:5])
    if spec.task == "multiclass":
        pass
    elif spec.data.label.positive is None:
        foreign = known.filter(~text.str.to_lowercase().is_in([*TRUE_SPELLINGS, *FALSE_SPELLINGS]))
        _refuse(
            foreign, f"has the label {_first(foreign)!r}, which is neither true nor false (values: {shown})", remedy
        )
    elif len(counts) > 2:
        foreign = known.filter(~text.is_in(counts[:2]))
        _refuse(foreign, f"has the label {_first(foreign)!r}, a third value of a binary task ({shown})", remedy)
    return known.with_columns(label_indices(spec, classes, text).alias(LABEL))


def _first(rows: pl.DataFrame) -> str:
    return str(rows[_TEXT][0]) if rows.height else ""


def _available(spec: ModelSpec, *, dated: bool, bare: bool) -> pl.Expr:
    """When a label counts as known: a date without a time of day means the end of that day."""
    if not dated:
        return pl.col(TIME) + spec.data.label.delay
    return pl.col(AVAILABLE) + _DAY if bare else pl.col(AVAILABLE)


def _time_notes(spec: ModelSpec, *, dated: bool, bare: bool) -> list[str]:
    if not dated:
        return [
            f"The labels do not say when they became available: the spec's delay of {_days(spec.data.label.delay)} after "
            "the event is assumed. Add a column available_at to see late and restated labels as they came."
        ]
    if bare:
        return [
            "Labels say the date on which they became available and no time of day: they count from the end of that day."
        ]
    return []


def _refuse_early(known: pl.DataFrame) -> None:
    early = known.filter(pl.col(AVAILABLE) < pl.col(TIME))
    if early.height:
        first = early.row(0, named=True)
        what = (
            f"was available at {first[AVAILABLE]:%Y-%m-%d %H:%M}, before its prediction at {first[TIME]:%Y-%m-%d %H:%M}"
        )
        _refuse(early, what, "Correct available_at: it is when the outcome came to be known")


def _days(delay: timedelta) -> str:
    days = delay / _DAY
    return f"{days:g} day{'' if days == 1 else 's'}"


def label_counts(spec: ModelSpec, statements: pl.DataFrame) -> tuple[int, int, int]:
    """Labelled rows; of those, whose first label came after the spec's delay, and whose label was changed later.

    A day's labels are due when the delay has passed since the end of that day, as the loop reads them.
    """
    due = pl.col(TIME).dt.truncate("1d") + _DAY + spec.data.label.delay
    rows = statements.group_by(ID).agg(
        (pl.col(AVAILABLE).min() > due.first()).alias("late"), (pl.col(LABEL).n_unique() > 1).alias("restated")
    )
    return rows.height, int(rows["late"].sum()), int(rows["restated"].sum())


def usual_delay(statements: pl.DataFrame, *, known_by: datetime) -> timedelta | None:
    """The delay within which 95 % of the labels known by then came first; None where there are none."""
    first = statements.filter(pl.col(AVAILABLE) <= known_by).unique(ID, keep="first", maintain_order=True)
    found = (first[AVAILABLE] - first[TIME]).quantile(0.95)
    return found if isinstance(found, timedelta) else None
