"""Predictions that were served and the labels that came back: the Outcomes port over the workspace's files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import polars as pl
from polars.datatypes import DataType, DataTypeClass

from state.canonical import canonical_json
from state.clock import utc
from state.errors import InputError, ToolRejected
from tools.datastore import days_between, replace_bytes, replace_parquet
from tools.times import EVENT_TIME

PolarsDataType: TypeAlias = DataType | DataTypeClass
_LABEL_SCHEMA: dict[str, PolarsDataType] = {"request_id": pl.String, "label": pl.Float64, "available_at": EVENT_TIME}
_RECORD_SCHEMA: dict[str, PolarsDataType] = {
    "request_id": pl.String, "entity": pl.String, "event_time": EVENT_TIME, "version": pl.String,
    "mirrored": pl.Boolean, "score": pl.Float64, "flags": pl.List(pl.String),
    "recorded_at": EVENT_TIME,
}  # fmt: skip
_DATED_BACK = timedelta(days=2)
"""A label given with a bare date reads as midnight, before its own event."""


class WorkspaceOutcomes:
    """The Outcomes port on `predictions/<model>/day=*/*.parquet` and `outcomes/<model>/<key>.parquet`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def predictions(self, model: str, *, start: datetime, end: datetime) -> pl.DataFrame:
        """Prediction records with event time in [start, end), once per request id, oldest first; none mirrored.

        Of a request that was answered twice the first stored answer counts.

        Raises:
            ToolRejected: a record file is damaged; move it away.
        """
        return _collect(captured_rows(self._root, model, start=start, end=end), model).sort(
            "event_time", "request_id", maintain_order=True
        )

    def revisions(self, model: str) -> Mapping[str, int]:
        """The number of record files, by event day."""
        files = _record_files(self._root, model, start=None, end=None)
        folder = self._root / "predictions" / model
        return dict(Counter(path.relative_to(folder).parts[0].removeprefix("day=") for path in files))

    def record(self, model: str, labels: pl.DataFrame, *, key: str) -> int:
        """Store `request_id, label, available_at`, once per `key`; returns the number of rows that this call stored.

        A label given again later is a restatement: both stay, and the one known last counts.

        Raises:
            InputError: a column is missing, or a value is no number, no time or empty.
        """
        path = self._root / "outcomes" / model / f"{key}.parquet"
        if path.exists():
            return 0
        rows = _checked_labels(labels)
        replace_parquet(path, rows)
        return rows.height

    def labelled(self, model: str, *, start: datetime, end: datetime, as_of: datetime) -> pl.DataFrame:
        """`predictions` with the `label` known by `as_of` and its `available_at`; rows without one are left out.

        Raises:
            ToolRejected: a record file is damaged; move it away.
        """
        rows = self.predictions(model, start=start, end=end)
        labels = available_labels(self._root, model, as_of=as_of, since=start, with_time=True)
        if labels is None:
            return rows.clear().with_columns(
                pl.lit(None, pl.Float64).alias("label"), pl.lit(None, EVENT_TIME).alias("available_at")
            )
        wanted = labels.join(rows.lazy().select("request_id"), on="request_id", how="semi").collect()
        return rows.join(wanted, on="request_id", how="inner", maintain_order="left")

    def quarantine(self, model: str, days: Sequence[str], *, reason: str, key: str) -> None:
        """Take days out of training, evaluation and detectors. Idempotent; the first reason of a day stays.

        Raises:
            InputError: a day is not an ISO date.
        """
        for day in days:
            _check_day(day)
        held = self._quarantine(model)
        added = {day: {"reason": reason, "key": key} for day in days if day not in held}
        if added:
            replace_bytes(self._quarantine_path(model), canonical_json({"days": {**held, **added}}) + b"\n")

    def quarantined(self, model: str) -> Sequence[str]:
        """ISO dates, ascending."""
        return sorted(self._quarantine(model))

    def _quarantine_path(self, model: str) -> Path:
        return self._root / "quarantine" / f"{model}.json"

    def _quarantine(self, model: str) -> dict[str, dict[str, str]]:
        path = self._quarantine_path(model)
        try:
            content = json.loads(path.read_bytes())
            return {str(day): dict(why) for day, why in content["days"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            # Taken for empty, a damaged list would let quarantined days back into training.
            raise ToolRejected(f"{path} is damaged: restore it, or remove it to release every day") from exc


def captured_rows(
    root: Path,
    model: str,
    *,
    start: datetime | None,
    end: datetime | None,
    features: Sequence[str] | None = None,
) -> pl.LazyFrame:
    """Prediction records with event time in [start, end), once per request id, none mirrored; `features` None: all."""
    frames = [_record_file(path, features) for path in _record_files(root, model, start=start, end=end)]
    if not frames:
        empty = {**_RECORD_SCHEMA, **{name: pl.Null() for name in features or ()}}
        return pl.LazyFrame(schema=empty)
    rows = pl.concat(frames, how="diagonal_relaxed").filter(~pl.col("mirrored"))
    if start is not None:
        rows = rows.filter(pl.col("event_time") >= utc(start))
    if end is not None:
        rows = rows.filter(pl.col("event_time") < utc(end))
    present = rows.collect_schema()
    rows = rows.with_columns(
        pl.lit(None, EVENT_TIME if name == "recorded_at" else None).alias(name)
        for name in ("recorded_at", *(features or ()))
        if name not in present
    )
    return rows.sort("recorded_at", maintain_order=True).unique("request_id", keep="first", maintain_order=True)


def available_labels(
    root: Path, model: str, *, as_of: datetime, since: datetime | None, with_time: bool = False
) -> pl.LazyFrame | None:
    """`request_id, label` known by `as_of` for events from `since` on; the label known last wins. None: no labels.

    Of two labels known at the same moment the one of the file that sorts last wins, so that every read agrees.
    """
    labels = label_statements(root, model, as_of=as_of, since=since)
    if labels is None:
        return None
    labels = labels.unique("request_id", keep="last", maintain_order=True)
    return labels if with_time else labels.select("request_id", "label")


def label_statements(root: Path, model: str, *, as_of: datetime, since: datetime | None) -> pl.LazyFrame | None:
    """`request_id, label, available_at` of every label and restatement known by `as_of`, in the order in which they count."""
    files = sorted((root / "outcomes" / model).glob("*.parquet"))
    if not files:
        return None
    labels = pl.scan_parquet(files, schema=_LABEL_SCHEMA).filter(pl.col("available_at") <= utc(as_of))
    if since is not None:
        labels = labels.filter(pl.col("available_at") >= utc(since) - _DATED_BACK)
    return labels.sort("available_at", maintain_order=True)


def _record_files(root: Path, model: str, *, start: datetime | None, end: datetime | None) -> list[Path]:
    folders = {path.name[4:]: path for path in sorted((root / "predictions" / model).glob("day=*")) if path.is_dir()}
    found = [path for day in days_between(list(folders), start, end) for path in folders[day].rglob("*.parquet")]
    return sorted(path for path in found if not path.name.startswith((".", "_")))


def _record_file(path: Path, features: Sequence[str] | None) -> pl.LazyFrame:
    try:
        schema = pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.ComputeError) as exc:
        raise ToolRejected(f"{path} is not a readable parquet file: move it away ({exc})") from exc
    rows = pl.scan_parquet(path)
    if features is None:
        return rows
    return rows.select(name for name in (*_RECORD_SCHEMA, *features) if name in schema)


def _collect(rows: pl.LazyFrame, model: str) -> pl.DataFrame:
    try:
        return rows.collect()
    except (OSError, pl.exceptions.ComputeError) as exc:
        raise ToolRejected(f"a prediction record of {model!r} does not read: {exc}") from exc


def _checked_labels(labels: pl.DataFrame) -> pl.DataFrame:
    absent = [name for name in _LABEL_SCHEMA if name not in labels.columns]
    if absent:
        raise InputError(
            f"labels have no column {absent[0]!r} (they have {', '.join(labels.columns)})",
            remedy="Give request_id, label and available_at",
        )
    rows = labels.select(
        pl.col("request_id").cast(pl.String),
        pl.col("label").cast(pl.Float64, strict=False),
        pl.lit(_as_utc(labels["available_at"])).alias("available_at"),
    )
    bad = rows.with_row_index("row").filter(
        pl.any_horizontal(pl.col(*_LABEL_SCHEMA).is_null()) | ~pl.col("label").is_finite()
    )
    if bad.height:
        first = bad.row(0, named=True)
        raise InputError(
            f"{bad.height} of {rows.height} labels are unusable; the first is row {first['row']} "
            f"(request_id {first['request_id']!r}, label {labels['label'][first['row']]!r})",
            remedy="Every label needs a request id, a finite number and the time at which it was known",
        )
    return rows


def _as_utc(times: pl.Series) -> pl.Series:
    if not isinstance(times.dtype, pl.Datetime):
        raise InputError(f"available_at is {times.dtype}, not a timestamp", remedy="Give UTC timestamps")
    if times.dtype.time_zone is None:
        return times.cast(pl.Datetime("us")).dt.replace_time_zone(UTC.tzname(None))
    return times.dt.convert_time_zone("UTC").dt.cast_time_unit("us")


def _check_day(day: str) -> None:
    try:
        whole = date.fromisoformat(day).isoformat() == day
    except ValueError:
        whole = False
    if not whole:
        raise InputError(f"{day!r} is not a day", remedy="Write days as 2026-01-31")
