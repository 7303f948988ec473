"""A team's recorded rows in the place of simulated ones, moved to the days of a scenario."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from state.errors import InputError
from state.spec import FilesData, ModelSpec
from tools.datastore import day_files, read_day, row_schema
from tools.importer import import_files
from tools.yaml_documents import Kind, read_document

_SPEC = Kind(name="model spec", first_line="model: <name>", written_by="steady init DATA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Where the rows of a model come from."""

    spec: str
    """The team's model spec, which names the files and their columns: an absolute path."""
    shift_days: int
    """From the day of a record to the day on which it is served here."""

    def rows(self, day: date) -> pl.DataFrame:
        """What was recorded for `day`, oldest first: `event_time`, `entity`, features and `label`, which may be null."""
        recorded = recorded_days(self.spec)
        shift = timedelta(days=self.shift_days)
        rows = recorded.get(day - shift)
        if rows is None:
            return next(iter(recorded.values())).clear()
        return rows.with_columns(pl.col("event_time") + shift)


@functools.lru_cache(maxsize=16)
def team_spec(path: str) -> ModelSpec:
    """The spec that a replay names.

    Raises:
        InputError: no readable spec, or one whose rows cannot be replayed.
    """
    spec = read_document(Path(path), ModelSpec, _SPEC).value
    if not isinstance(spec.data, FilesData):
        raise InputError(f"{path}: data.kind {spec.data.kind!r} cannot be replayed", remedy="Export the rows to files")
    if spec.task == "multiclass":
        raise InputError(
            f"{path}: task multiclass is not simulated",
            remedy="Replay a binary or a regression task, or use a backtest",
        )
    return spec


@functools.lru_cache(maxsize=4)
def recorded_days(path: str) -> dict[date, pl.DataFrame]:
    """The rows that the spec at `path` names, by UTC day, oldest first; read as `steady up` reads them.

    Raises:
        InputError: the files cannot be used as the spec says; names file, column or record and the remedy.
    """
    spec = team_spec(path)
    with tempfile.TemporaryDirectory(prefix="steady-replay-") as folder:
        import_files(Path(folder), spec, Path(path).parent)
        days = day_files(Path(folder), "history", spec.model)
        columns = list(row_schema(spec.features))
        return {date.fromisoformat(day): read_day(file).select(columns) for day, file in days.items()}
