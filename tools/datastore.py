"""Where a model's rows lie in the workspace: one parquet file a day, and the manifest of what was imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from state.canonical import digest
from state.clock import utc
from state.errors import ToolRejected, ToolUnavailable
from state.spec import Feature
from tools.times import EVENT_TIME

Kind = Literal["history", "replay"]
RESERVED_COLUMNS = (
    "request_id", "entity", "event_time", "label", "available_at", "version", "arm", "mirrored", "score", "flags",
    "recorded_at",
)  # fmt: skip
"""Columns of stored rows that are not features."""


class Manifest(BaseModel):
    """What was imported for one model; `history/<model>/manifest.json`, written after everything it speaks of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    model: str
    files: dict[str, str]
    """Source name -> SHA-256."""
    reading_sha256: str
    """Digest of the parts of the spec that decide what the rows are."""
    time_reading: str
    """How the event times are spelled, for instance `iso` or `day/month/year`."""
    until: AwareDatetime | None
    """End of the history; later rows are traffic to replay."""
    delay_seconds: float
    """Time between a row's event and the moment its label is known."""
    task: Literal["binary", "multiclass", "regression"]
    classes: list[str]
    """Class names by label index; empty for regression. New classes are appended, an index never moves."""
    features: dict[str, Literal["numeric", "categorical", "boolean", "text"]]
    days: dict[str, int]
    """ISO date -> rows, history and replay together."""
    first_replay_day: str | None
    n_rows: int
    n_labelled: int
    """In the history."""
    n_labelled_replay: int
    n_outside: int
    """Rows older than the start asked for; they were left out."""
    rejects: dict[str, int]
    """Reason -> rows set aside in `rejects/<model>.parquet`."""
    zones: dict[str, int] = {}
    """Zone that an event time names -> rows; an empty name for those that name none."""
    unparsable: dict[str, int]
    """Feature -> values that did not fit its type and became missing."""

    @property
    def delay(self) -> timedelta:
        return timedelta(seconds=self.delay_seconds)

    @property
    def sha256(self) -> str:
        """Digest of the files and of how they were read."""
        return digest({"files": dict(self.files), "reading": self.reading_sha256})


def row_schema(features: Sequence[Feature]) -> dict[str, pl.DataType]:
    """Columns of a stored history row, in order."""
    return schema_of({feature.name: feature.type for feature in features})


def schema_of(features: dict[str, Literal["numeric", "categorical", "boolean", "text"]]) -> dict[str, pl.DataType]:
    """Columns of a stored history row, from feature names and types."""
    schema: dict[str, pl.DataType] = {"request_id": pl.String(), "entity": pl.String(), "event_time": EVENT_TIME}
    for name, kind in features.items():
        schema[name] = pl.Float32() if kind in ("numeric", "boolean") else pl.String()
    return {**schema, "label": pl.Float64()}


def day_path(root: Path, kind: Kind, model: str, day: str) -> Path:
    """File of one day's rows."""
    return root / kind / model / f"day={day}.parquet"


def day_files(root: Path, kind: Kind, model: str) -> dict[str, Path]:
    """ISO date -> file, ascending."""
    files = (root / kind / model).glob("day=*.parquet")
    return {path.name[4:-8]: path for path in sorted(files)}


def read_day(path: Path) -> pl.DataFrame:
    """The rows of one day.

    Raises:
        ToolRejected: the file is damaged; import again.
    """
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as exc:
        manifest = path.parents[2] / "history" / path.parent.name / "manifest.json"
        raise ToolRejected(
            f"{path} is not a readable parquet file ({str(exc).splitlines()[0]}): remove {manifest} and import again"
        ) from exc


def days_between(days: Sequence[str], start: datetime | None, end: datetime | None) -> list[str]:
    """The days that may hold times in [start, end)."""
    first = utc(start).date().isoformat() if start else ""
    last = (utc(end) - timedelta(microseconds=1)).date().isoformat() if end else "9999"
    return [day for day in days if first <= day <= last]


def read_manifest(root: Path, model: str) -> Manifest | None:
    """The manifest of `model`, or None before its first import has ended.

    Raises:
        ToolRejected: the file is damaged; import again.
    """
    path = root / "history" / model / "manifest.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        raise ToolRejected(f"{path} is damaged: remove it and import again ({exc.error_count()} fields)") from exc


def require_manifest(root: Path, model: str) -> Manifest:
    """The manifest of `model`.

    Raises:
        ToolUnavailable: nothing was imported yet, or an import was cut short; import first.
    """
    manifest = read_manifest(root, model)
    if manifest is None:
        raise ToolUnavailable(f"no imported rows of {model!r} in {root}: import its files first")
    return manifest


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Store the manifest; the import counts from here on."""
    path = root / "history" / manifest.model / "manifest.json"
    replace_bytes(path, (manifest.model_dump_json(indent=1) + "\n").encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def replace_parquet(path: Path, rows: pl.DataFrame) -> None:
    """Write the file whole or not at all: lz4, with row group statistics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    rows.write_parquet(draft, compression="lz4", statistics=True)
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
    draft.replace(path)
