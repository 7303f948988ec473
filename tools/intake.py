"""Rows of source files as the workspace stores them: checked, typed, identified, staged in bounded parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import polars as pl

from state.errors import InputError
from state.spec import FilesData, ModelSpec
from tools.coerce import coerce, to_numbers, to_text
from tools.sources import Batch, SourceFile, read_batches
from tools.times import detect_time_format, parse_times, zones_of

Progress = Callable[[int], None]
_SAMPLE_ROWS = 10_000
REJECT_SCHEMA = pl.Schema({"source": pl.String, "row": pl.Int64, "reason": pl.String, "value": pl.String})


@dataclass(slots=True)
class Tally:
    """What was read so far; nothing of it is kept but counts."""

    days: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    later_labels: Counter[str] = field(default_factory=Counter)
    rejects: list[pl.DataFrame] = field(default_factory=list)
    unparsable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    n_read: int = 0
    n_outside: int = 0
    n_filled: Counter[str] = field(default_factory=Counter)
    zones: Counter[str] = field(default_factory=Counter)
    """Times that name a zone, by zone; `""` for those that name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How rows are read, settled before the first batch."""

    spec: ModelSpec
    data: FilesData
    time_reading: str
    until: datetime | None
    start: datetime | None


def wanted_columns(spec: ModelSpec) -> list[tuple[str, str]]:
    """Every (field of the spec, column of the source) that the spec names."""
    wanted = [("data.time", spec.data.time), ("data.label.column", spec.data.label.column)]
    wanted += [(f"data.entity[{index}]", name) for index, name in enumerate(spec.data.entity)]
    return wanted + [(f"features[{index}].name", name) for index, name in enumerate(spec.feature_names())]


def stage(sources: Sequence[SourceFile], reading: Reading, staging: Path, progress: Progress | None) -> Tally:
    tally = Tally()
    columns = list(dict.fromkeys(column for _, column in wanted_columns(reading.spec)))
    n_parts = 0
    for source in sources:
        n_malformed = 0
        for batch in read_batches(source, columns):
            rows = _normalise(source, batch, reading, tally)
            if rows.height:
                rows.sort("event_time").write_parquet(staging / f"{n_parts:06}.parquet", compression="lz4")
                n_parts += 1
            n_malformed = batch.n_malformed
            if progress:
                progress(tally.n_read)
        if n_malformed:
            lines = {"source": [source.name] * n_malformed, "row": [None] * n_malformed}
            told = {"reason": ["fields do not match the header"] * n_malformed, "value": [None] * n_malformed}
            tally.rejects.append(pl.DataFrame({**lines, **told}, schema=REJECT_SCHEMA))
    return tally


def _normalise(source: SourceFile, batch: Batch, reading: Reading, tally: Tally) -> pl.DataFrame:
    raw, data = batch.rows, reading.data
    tally.n_read += raw.height
    tally.zones.update(zones_of(raw[data.time]))
    columns: list[pl.Series] = [parse_times(raw[data.time], reading.time_reading).alias("event_time")]
    for feature in reading.spec.features:
        read = coerce(raw[feature.name], feature.type, decimal_comma=source.decimal_comma)
        columns.append(read.values.alias(feature.name))
        tally.n_filled[feature.name] += len(read.values) - read.values.null_count()
        if read.n_unparsable:
            tally.unparsable[feature.name] += read.n_unparsable
            tally.examples.setdefault(feature.name, f"{read.example!r} in {source.path}")
    rows = pl.DataFrame(columns)
    entity = entity_of(raw, data.entity)
    rows = rows.with_columns(pl.Series("request_id", _request_ids(source.name, batch.first_row, rows, entity)))
    rows = rows.with_columns(pl.coalesce(entity, pl.col("request_id")).alias("entity"))
    # Text until every file is read: only then are the classes, and with them the indices, known.
    rows = rows.with_columns(to_text(raw[data.label.column]).alias("label"))
    rows = rows.with_columns(pl.int_range(batch.first_row, batch.first_row + raw.height).alias("row"))
    rows = _set_aside(rows, raw[data.time], source, reading, tally)
    return _within(rows, reading, tally).select(
        "request_id", "entity", "event_time", *reading.spec.feature_names(), "label"
    )


def entity_of(raw: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """The entity of each row, its columns joined by `|`; null where all are empty or none is named."""
    if not columns:
        return pl.Series("entity", [None] * raw.height, dtype=pl.String)
    parts = pl.DataFrame([to_text(raw[name]).alias(name) for name in columns])
    joined = parts.select(pl.concat_str(pl.all().fill_null(""), separator="|").alias("entity"))["entity"]
    empty = parts.select(pl.all_horizontal(pl.all().is_null()))[:, 0]
    return pl.select(pl.when(~empty).then(joined).alias("entity")).to_series()


def _request_ids(source: str, first_row: int, rows: pl.DataFrame, entity: pl.Series) -> list[str]:
    """SHA-256 of source, position and content. The label is no part of it: it may come later."""
    content = rows.with_columns(pl.col("event_time").dt.epoch("us"), entity.alias("entity"))
    texts = content.select(pl.struct(pl.all()).struct.json_encode().alias("text"))["text"]
    prefix = hashlib.sha256(f"{source}\n".encode())
    ids: list[str] = []
    for position, text in enumerate(texts, start=first_row):
        hasher = prefix.copy()
        hasher.update(f"{position}\n{text}".encode())
        ids.append(hasher.hexdigest()[:32])
    return ids


def _set_aside(
    rows: pl.DataFrame, raw_times: pl.Series, source: SourceFile, reading: Reading, tally: Tally
) -> pl.DataFrame:
    unreadable = pl.when(pl.col("event_time").is_null()).then(pl.lit("time unreadable"))
    reason = unreadable.otherwise(None)
    checked = rows.with_columns(to_text(raw_times).alias("raw_time"))
    if reading.spec.task == "regression":
        number = to_numbers(rows["label"], decimal_comma=source.decimal_comma)
        bad = pl.col("label").is_not_null() & pl.Series("bad", number.is_null())
        reason = unreadable.when(bad).then(pl.lit("label is not a number")).otherwise(None)
        checked = checked.with_columns(pl.coalesce(number.cast(pl.String), pl.col("label")).alias("label"))
    checked = checked.with_columns(reason.alias("reason"))
    refused = checked.filter(pl.col("reason").is_not_null())
    if refused.height:
        value = pl.when(pl.col("event_time").is_null()).then("raw_time").otherwise("label")
        tally.rejects.append(
            refused.select(
                pl.lit(source.name).alias("source"), pl.col("row").cast(pl.Int64), "reason", value.alias("value")
            ).cast(REJECT_SCHEMA)
        )
    return checked.filter(pl.col("reason").is_null())


def _within(rows: pl.DataFrame, reading: Reading, tally: Tally) -> pl.DataFrame:
    if reading.start is not None:
        kept = rows.filter(pl.col("event_time") >= reading.start)
        tally.n_outside += rows.height - kept.height
        rows = kept
    days = rows.group_by(pl.col("event_time").dt.date().cast(pl.String).alias("day")).len()
    tally.days.update(dict(days.iter_rows()))
    later = pl.lit(False) if reading.until is None else pl.col("event_time") >= reading.until
    counted = rows.filter(pl.col("label").is_not_null())
    if reading.spec.task == "regression":  # as many labels as rows: only whether there are any matters
        counted = counted.with_columns(pl.lit("a number").alias("label"))
    for label, is_later, count in counted.group_by("label", later.alias("later")).len().iter_rows():
        (tally.later_labels if is_later else tally.labels)[label] += count
    return rows


def find_time_reading(sources: Sequence[SourceFile], column: str, field_name: str = "data.time") -> str:
    """How the files spell the times of `column`, which `field_name` of the spec names.

    Raises:
        InputError: most of its values are no times.
    """
    samples = [_head(source, column) for source in sources]
    joined = pl.concat([sample.cast(pl.String) if len(samples) > 1 else sample for sample in samples])
    found = detect_time_format(joined)
    if found is None:
        values = joined.drop_nulls()
        first = f"{sources[0].path}, first value {str(values[0])!r}" if len(values) else f"{sources[0].path}, all empty"
        raise InputError(
            f"column {column!r} does not read as a time ({first})",
            remedy=f"Set {field_name} to a column of timestamps, dates or epochs, best as 2026-01-31T12:00:00Z",
        )
    return found.name


def _head(source: SourceFile, column: str) -> pl.Series:
    """Values spread over the file: the day of a date tells itself from the month only after the 12th."""
    parts: list[pl.Series] = []
    for batch in read_batches(source, [column]):
        values = batch.rows[column]
        parts.append(values.gather_every(max(1, len(values) // _SAMPLE_ROWS)))
        if sum(len(part) for part in parts) > 10 * _SAMPLE_ROWS:
            break
    return pl.concat(parts) if parts else pl.Series(column, [], dtype=pl.String)
