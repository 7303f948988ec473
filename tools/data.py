"""Rows to train on and rows to replay: the Data port over the workspace's files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from state.clock import utc
from tools.datastore import Manifest, day_files, days_between, read_day, read_manifest, require_manifest, schema_of
from tools.drift.performance import due_at
from tools.outcomes import available_labels, captured_rows, label_statements
from tools.training_rows import WHEN_DUE

_ONE_DAY = timedelta(days=1)
_KNOWN = "available_at"
"""While a window is put together: the label known by then, under a name that no feature may have."""


class WorkspaceData:
    """The Data port on `history/<model>/day=*.parquet`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def days(self, model: str) -> Sequence[str]:
        """ISO dates that hold history rows, ascending."""
        return list(day_files(self._root, "history", model))

    def history(self, model: str, *, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        """Rows of the history with event time in [start, end), whether labelled or not.

        Raises:
            ToolUnavailable: nothing was imported yet.
        """
        return _stored(self._root, require_manifest(self._root, model), start=start, end=end)

    def digest(self, model: str) -> str:
        """SHA-256 over the imported files' digests and the way they were read.

        Raises:
            ToolUnavailable: nothing was imported yet.
        """
        return require_manifest(self._root, model).sha256

    def traffic_end(self, model: str) -> datetime | None:
        """End of the last day that can be replayed; None where every row is history."""
        files = day_files(self._root, "replay", model)
        return utc(datetime.fromisoformat(max(files))) + _ONE_DAY if files else None

    def classes(self, model: str) -> Sequence[str]:
        """Class names by label index; empty for regression, and before the first import."""
        manifest = read_manifest(self._root, model)
        return manifest.classes if manifest else []


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficBlock:
    """The live rows of one block of domain time; empty where the source has none."""

    start: datetime
    end: datetime
    rows: pl.DataFrame
    """Columns of the history; `label` is what will become known, and null where it never does."""


def traffic(
    root: Path, model: str, *, start: datetime, end: datetime, block: timedelta = _ONE_DAY
) -> Iterator[TrafficBlock]:
    """The rows to replay in [start, end), block by block in time order, one block in memory at a time.

    Raises:
        ToolUnavailable: nothing was imported yet.
    """
    manifest = require_manifest(root, model)
    files = day_files(root, "replay", model)
    start, end = utc(start), utc(end)
    while start < end:
        stop = min(start + block, end)
        near = [files[day] for day in days_between(list(files), start, stop)]
        rows = pl.concat([read_day(path) for path in near]) if near else pl.DataFrame(schema=_schema(manifest))
        inside = rows.filter(pl.col("event_time") >= start, pl.col("event_time") < stop)
        yield TrafficBlock(start=start, end=stop, rows=inside.sort("event_time", "request_id"))
        start = stop


def training_window(
    root: Path,
    model: str,
    *,
    start: datetime | None,
    end: datetime | None,
    as_of: datetime,
    excluded_days: Collection[str] = (),
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
    block: timedelta | None = None,
) -> pl.DataFrame:
    """Labelled rows with event time in [start, end), oldest first, once per request id.

    History and captured predictions together. A label counts if it was known at `as_of`: recorded by then, or,
    in the history, at least the label delay old. `excluded_days` are ISO dates; `columns` the features to read.
    Above `max_rows`, those with the smallest hash of the request id stay, so that a larger limit keeps them too.
    With `block`, the period of monitoring, `label_when_due` stands beside the label.

    Raises:
        ToolUnavailable: nothing was imported yet.
    """
    manifest = require_manifest(root, model)
    features = list(manifest.features) if columns is None else list(columns)
    wanted = ["request_id", "entity", "event_time", *features]
    as_of = utc(as_of)
    history = _stored(root, manifest, start=start, end=end)
    matured = pl.when(pl.col("event_time") + manifest.delay <= as_of).then("label")
    history = history.with_columns(matured.alias(_KNOWN)).select(*wanted, _KNOWN)
    captured = captured_rows(root, model, start=start, end=end, features=features)
    schema = _schema(manifest)
    captured = captured.select(wanted).cast({name: schema[name] for name in wanted})
    rows = pl.concat([history, captured.with_columns(pl.lit(None, pl.Float64).alias(_KNOWN))])
    rows = rows.filter(~pl.col("event_time").dt.date().cast(pl.String).is_in(list(excluded_days)))
    if block is not None:
        rows = _with_label_when_due(root, model, rows, block=block, delay=manifest.delay, as_of=as_of, since=start)
        wanted.append(WHEN_DUE)
    labels = available_labels(root, model, as_of=as_of, since=start)
    if labels is not None:
        # A recorded label wins over the imported one: it is the restated one.
        rows = rows.join(labels, on="request_id", how="left").with_columns(pl.coalesce("label", _KNOWN).alias(_KNOWN))
    rows = rows.filter(pl.col(_KNOWN).is_not_null()).select(*wanted, pl.col(_KNOWN).alias("label"))
    if max_rows is not None:
        keep = smallest_hashes(rows.select("request_id").collect(engine="streaming")["request_id"], max_rows)
        if keep is not None:
            rows = rows.join(keep.lazy(), on="request_id", how="semi")
    found = rows.collect(engine="streaming").sort("event_time", "request_id", maintain_order=True)
    return found.unique("request_id", keep="first", maintain_order=True)


def _with_label_when_due(
    root: Path, model: str, rows: pl.LazyFrame, *, block: timedelta, delay: timedelta, as_of: datetime,
    since: datetime | None,
) -> pl.LazyFrame:  # fmt: skip
    """`rows` with `label_when_due`: the label recorded by then, else that of the history, which has had its delay."""
    stated = label_statements(root, model, as_of=as_of, since=since)
    if stated is None:
        return rows.with_columns(pl.col(_KNOWN).alias(WHEN_DUE))
    due = rows.select("request_id", due_at(block, delay).alias("due"))
    come = stated.join(due, on="request_id", how="inner").filter(pl.col("available_at") <= pl.col("due"))
    then = come.unique("request_id", keep="last", maintain_order=True)
    rows = rows.join(then.select("request_id", pl.col("label").alias(WHEN_DUE)), on="request_id", how="left")
    return rows.with_columns(pl.coalesce(WHEN_DUE, _KNOWN).alias(WHEN_DUE))


def _schema(manifest: Manifest) -> dict[str, pl.DataType]:
    return schema_of(manifest.features)


def _stored(root: Path, manifest: Manifest, *, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    files = day_files(root, "history", manifest.model)
    near = [files[day] for day in days_between(list(files), start, end)]
    if not near:
        return pl.LazyFrame(schema=_schema(manifest))
    rows = pl.scan_parquet(near, schema=_schema(manifest))
    if start is not None:
        rows = rows.filter(pl.col("event_time") >= utc(start))
    if end is not None:
        rows = rows.filter(pl.col("event_time") < utc(end))
    return rows


def smallest_hashes(request_ids: pl.Series, n_rows: int) -> pl.DataFrame | None:
    """The `n_rows` ids with the smallest hash; None where there are no more than that."""
    ids = request_ids.unique()
    if len(ids) <= n_rows:
        return None
    hashes = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids)
    smallest = np.argpartition(np.frombuffer(hashes, dtype=">u8"), n_rows)[:n_rows]
    return pl.DataFrame({"request_id": ids[smallest]})
