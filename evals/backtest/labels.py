"""A team's labels with the time at which each became available, late and restated ones included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from evals.backtest.columns import LabelColumns, ids_of, label_columns, time_reading
from evals.backtest.predictions import FILE, ID, ROW, TIME, Progress, StagedPredictions
from state.errors import InputError
from state.spec import ModelSpec
from tools.coerce import FALSE_SPELLINGS, TRUE_SPELLINGS, label_indices, to_numbers, to_text
from tools.sources import SourceFile, list_sources, read_batches
from tools.times import EVENT_TIME, mixed_zones, parse_times, zones_of

LABEL, AVAILABLE = "label", "available_at"
_TEXT = "text"
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedLabels:
    statements: pl.DataFrame
    """`request_id, label, available_at, event_time`: every statement about a known prediction, in order of time."""
    sources: tuple[SourceFile, ...]
    notes: tuple[str, ...]


def stage_labels(path: Path, spec: ModelSpec, predictions: StagedPredictions, progress: Progress) -> StagedLabels:
    """Read every file of labels at `path` and join them with the predictions.

    Raises:
        InputError: a column, a time or a label is missing or wrong, or a label was available before its prediction;
            the message names file, row, id and remedy.
    """
    sources = list_sources(path)
    columns = [label_columns(source, spec) for source in sources]
    dated = [(s, c.available_at) for s, c in zip(sources, columns, strict=True) if c.available_at is not None]
    if dated and len(dated) < len(sources):
        raise InputError(
            f"{path}: some files say when a label became available and some do not",
            remedy="Add available_at to all of them, or leave it out everywhere",
        )
    reading = time_reading(dated, "when the label became available") if dated else ""
    zones: Counter[str] = Counter()
    raw = _read(path, sources, columns, reading, progress, zones)
    known, notes = _known(path, raw, predictions)
    mixed = mixed_zones(dated[0][1], zones) if dated else None
    if mixed is not None:
        notes.append(f"{path}: {mixed}.")
    known = _typed(spec, known, decimal_comma=any(source.decimal_comma for source in sources))
    known, more = _whole_days(known) if dated else _assumed(spec, known)
    _refuse_early(known)
    statements = known.sort(AVAILABLE, ROW, maintain_order=True).select(ID, LABEL, AVAILABLE, TIME)
    return StagedLabels(
        statements=statements.unique([ID, AVAILABLE], keep="last", maintain_order=True),
        sources=tuple(sources), notes=(*notes, *more),
    )  # fmt: skip


def _read(
    path: Path, sources: Sequence[SourceFile], columns: Sequence[LabelColumns], reading: str, progress: Progress,
    zones: Counter[str],
) -> pl.DataFrame:  # fmt: skip
    """Every row that has a label; what their times say of their zone is counted in `zones`."""
    frames: list[pl.DataFrame] = []
    n_read = 0
    for source, named in zip(sources, columns, strict=True):
        for batch in read_batches(source, named.wanted()):
            n_read += batch.rows.height
            if named.available_at is not None:
                zones.update(zones_of(batch.rows[named.available_at]))
            frames.append(_normalised(source, batch.first_row, batch.rows, named, reading).drop_nulls(_TEXT))
            progress(f"read {n_read} labels")
    if not any(frame.height for frame in frames):
        raise InputError(
            f"{path} holds no label: column {columns[0].label!r} is empty in all of {n_read} rows",
            remedy="Give the outcomes; without any, nothing can be judged",
        )
    return pl.concat(frames)


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
        columns.append(pl.Series("bare", [bare], dtype=pl.Boolean).new_from_index(0, raw.height))
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
    more = f"; {wrong.height} rows in all" if wrong.height > 1 else ""
    raise InputError(f"{first[FILE]}: row {first[ROW]}{name} {what}{more}", remedy=remedy)


def _known(path: Path, raw: pl.DataFrame, predictions: StagedPredictions) -> tuple[pl.DataFrame, list[str]]:
    """Statements about predictions that are there, with their event time."""
    known = raw.join(predictions.index.select(ID, TIME), on=ID, how="inner", maintain_order="left")
    n_unknown = raw.height - known.height
    if not n_unknown:
        return known, []
    unknown = raw.join(predictions.index.select(ID), on=ID, how="anti", maintain_order="left")
    first = ", ".join(f"{name} (row {row})" for name, row in unknown.select(ID, ROW).head(3).iter_rows())
    said = f"{path}: {n_unknown} of {raw.height} labels are of no prediction that is given, the first {first}"
    if known.is_empty():
        raise InputError(
            f"{said}; predictions are called {', '.join(predictions.index[ID].head(3))}",
            remedy="Use the same ids in both files",
        )
    return known, [f"{said}; they were left out."]


def _typed(spec: ModelSpec, known: pl.DataFrame, *, decimal_comma: bool) -> pl.DataFrame:
    """With the label as a number: class 1 or 0, or the number itself."""
    text, column = known[_TEXT], spec.data.label.column
    remedy = f"Correct the labels, or data.label (column {column!r}, positive {spec.data.label.positive!r}) of the spec"
    if spec.task == "regression":
        label = to_numbers(text, decimal_comma=decimal_comma).alias(LABEL)
        wrong = known.filter(label.is_null())
        _refuse(wrong, f"has the label {_first(wrong)!r}, which is no number", remedy)
        return known.with_columns(label)
    counts = text.value_counts(sort=True)[_TEXT].to_list()
    shown = ", ".join(repr(value) for value in counts[:5])
    if spec.data.label.positive is None:
        foreign = known.filter(~text.str.to_lowercase().is_in([*TRUE_SPELLINGS, *FALSE_SPELLINGS]))
        _refuse(
            foreign, f"has the label {_first(foreign)!r}, which is neither true nor false (values: {shown})", remedy
        )
    elif len(counts) > 2:
        foreign = known.filter(~text.is_in(counts[:2]))
        _refuse(foreign, f"has the label {_first(foreign)!r}, a third value of a binary task ({shown})", remedy)
    label = label_indices(spec, (), text).alias(LABEL)
    if label.n_unique() < 2:
        raise InputError(f"{known[FILE][0]}: every label is of one class (values: {shown})", remedy=remedy)
    return known.with_columns(label)


def _first(rows: pl.DataFrame) -> str:
    return str(rows[_TEXT][0]) if rows.height else ""


def _assumed(spec: ModelSpec, known: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The spec's delay, where the file does not say when a label became available."""
    note = (
        f"The labels do not say when they became available: the spec's delay of {_days(spec.data.label.delay)} after "
        "the event is assumed. Add a column available_at to see late and restated labels as they came."
    )
    return known.with_columns((pl.col(TIME) + spec.data.label.delay).alias(AVAILABLE)), [note]


def _whole_days(known: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """A date without a time of day means that the label was known at the end of that day."""
    if not known["bare"].all():
        return known, []
    note = "Labels say the date on which they became available and no time of day: they count from the end of that day."
    return known.with_columns(pl.col(AVAILABLE) + _DAY), [note]


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
