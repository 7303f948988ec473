"""The inbox of live operation: files with outcomes that a team drops beside the workspace, taken in once each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from state.canonical import sha256_hex
from state.errors import InputError
from tools.ports import Outcomes

COLUMNS = ("request_id", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenIn:
    n_new: int
    """Labels that were not known before."""
    refused: tuple[InputError, ...]
    """One for each file that could not be read; it stays where it is, and the others are taken in all the same."""


def take_in(folder: Path, model: str, outcomes: Outcomes, *, classes: list[str], now: datetime) -> TakenIn:
    """Record every parquet or CSV file in `folder`, then move it to `folder/done`.

    A file holds `request_id` (as `/predict` answered it), `label`, and optionally `available_at`; a class is given by
    its name or its index. The key is the digest of the file, so a file taken in twice counts once.
    """
    n_new, refused = 0, []
    done = folder / "done"
    for path in sorted(p for p in folder.glob("*") if p.suffix in (".parquet", ".csv")):
        try:
            labels = _labels(path, classes, now)
            n_new += outcomes.record(model, labels, key=sha256_hex(path.read_bytes()))
        except InputError as exc:
            refused.append(exc)
            continue
        done.mkdir(exist_ok=True)
        path.rename(done / path.name)
    return TakenIn(n_new=n_new, refused=tuple(refused))


def _labels(path: Path, classes: list[str], now: datetime) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise InputError(
            f"{path}: {str(exc).splitlines()[0]}", remedy="Write a parquet or CSV file, then move it here"
        ) from exc
    absent = [name for name in COLUMNS if name not in frame.columns]
    if absent:
        raise InputError(
            f"{path} has no column {', '.join(absent)}",
            remedy=f"Give the columns {', '.join(COLUMNS)} and available_at",
        )
    known = {name: float(index) for index, name in enumerate(classes)}
    text = frame["label"].cast(pl.String)
    label = pl.Series("label", [known.get(value, _number(value)) if value is not None else None for value in text])
    wrong = text.filter(label.is_null() & text.is_not_null())
    if wrong.len():
        raise InputError(
            f"{path}: label {wrong[0]!r} is neither a number nor one of {', '.join(classes) or 'no classes'}",
            remedy="Give the class's name or index, or the number",
        )
    return pl.DataFrame(
        {
            "request_id": frame["request_id"].cast(pl.String),
            "label": label.cast(pl.Float64),
            "available_at": _times(frame, path, now),
        }
    ).drop_nulls("label")


def _times(frame: pl.DataFrame, path: Path, now: datetime) -> pl.Series:
    if "available_at" not in frame.columns:
        return pl.Series("available_at", [now.astimezone(UTC)] * frame.height, dtype=pl.Datetime("us", "UTC"))
    column = frame["available_at"]
    if isinstance(column.dtype, pl.Datetime):
        return (
            column.dt.replace_time_zone("UTC") if column.dtype.time_zone is None else column.dt.convert_time_zone("UTC")
        )
    try:
        return column.cast(pl.String).str.to_datetime(time_zone="UTC", time_unit="us")
    except pl.exceptions.PolarsError as exc:
        raise InputError(
            f"{path}: available_at holds a value that is no time", remedy="Write ISO times in UTC"
        ) from exc


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
