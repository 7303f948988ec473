"""A team's predictions: read in bounded batches, checked, and staged as parquet parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from evals.backtest.columns import PredictionColumns, ids_of, prediction_columns, time_reading
from state.errors import InputError
from state.spec import ModelSpec
from tools.coerce import coerce, to_numbers, to_text
from tools.sources import Batch, SourceFile, list_sources, read_batches
from tools.times import EVENT_TIME, mixed_zones, parse_times, zones_of

Progress = Callable[[str], None]
SCORE = "recorded_score"
"""Column of stored rows: what the team's own model answered."""
FLAGS = "flags"
ID, TIME, ENTITY, ROW, FILE = "request_id", "event_time", "entity", "row", "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPredictions:
    parts: tuple[Path, ...]
    index: pl.DataFrame
    """`request_id, event_time, row, file` of every prediction, oldest first."""
    sources: tuple[SourceFile, ...]
    has_scores: bool
    has_features: bool
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Tally:
    n_read: int = 0
    n_unscored: int = 0
    n_malformed: int = 0
    zones: Counter[str] = field(default_factory=Counter)
    unparsable: dict[str, str]
    """Feature -> an example of a value that does not fit its type."""
    filled: dict[str, int]


def stage_predictions(path: Path, spec: ModelSpec, folder: Path, progress: Progress) -> StagedPredictions:
    """Read every file of predictions at `path` into parts below `folder`.

    Raises:
        InputError: a column, a time, a score or an id is missing or wrong; the message names file, row and remedy.
    """
    if SCORE in spec.feature_names():
        raise InputError(f"a feature is called {SCORE!r}, which a backtest uses itself", remedy="Rename it in the data")
    sources = list_sources(path)
    columns = [prediction_columns(source, spec) for source in sources]
    _same_shape(sources, columns)
    reading = time_reading([(s, c.time) for s, c in zip(sources, columns, strict=True)], "the event time")
    tally = _Tally(unparsable={}, filled=dict.fromkeys(columns[0].features, 0))
    parts: list[Path] = []
    index: list[pl.DataFrame] = []
    for source, named in zip(sources, columns, strict=True):
        n_malformed = 0
        for batch in read_batches(source, named.wanted()):
            rows = _normalised(source, batch, named, spec, reading, tally)
            n_malformed = batch.n_malformed
            index.append(rows.select(ID, TIME, ROW, pl.lit(str(source.path)).cast(pl.Categorical).alias(FILE)))
            parts.append(folder / f"{len(parts):06}.parquet")
            rows.drop(ROW).write_parquet(parts[-1], compression="lz4")
            progress(f"read {tally.n_read} predictions")
        tally.n_malformed += n_malformed
    found = pl.concat(index) if index else pl.DataFrame()
    _refuse_useless(path, found, tally, spec)
    return StagedPredictions(
        parts=tuple(parts), index=found.sort(TIME, ID), sources=tuple(sources), has_scores=columns[0].score is not None,
        has_features=bool(columns[0].features), notes=tuple(_notes(path, spec, columns[0], tally)),
    )  # fmt: skip


def _same_shape(sources: Sequence[SourceFile], columns: Sequence[PredictionColumns]) -> None:
    for source, named in zip(sources, columns, strict=True):
        if (named.score is None) != (columns[0].score is None) or named.features != columns[0].features:
            raise InputError(
                f"{source.path} and {sources[0].path} do not have the same columns of scores and features",
                remedy="Write all files of predictions with the same columns",
            )


def _normalised(
    source: SourceFile, batch: Batch, named: PredictionColumns, spec: ModelSpec, reading: str, tally: _Tally
) -> pl.DataFrame:
    raw = batch.rows
    tally.n_read += raw.height
    tally.zones.update(zones_of(raw[named.time]))
    row = pl.Series(ROW, range(batch.first_row + 1, batch.first_row + raw.height + 1), dtype=pl.Int64)
    ids = ids_of(raw[named.request_id]).alias(ID)
    times = parse_times(raw[named.time], reading).cast(EVENT_TIME).alias(TIME)
    _refuse_first(source, ids.is_null(), row, ids, f"has no {named.request_id}", raw[named.request_id])
    _refuse_first(source, times.is_null(), row, ids, f"has no readable {named.time}", raw[named.time])
    columns: list[pl.Series] = [ids, times, row, *_features(source, raw, named, spec, tally)]
    if named.score is not None:
        columns.append(_scores(source, raw, named.score, spec, row, ids).alias(SCORE))
    rows = pl.DataFrame(columns)
    rows = rows.with_columns(_entity(raw, named.entity, ids))
    if named.score is not None:
        n_before = rows.height
        rows = rows.drop_nulls(SCORE)
        tally.n_unscored += n_before - rows.height
    return rows


def _refuse_first(
    source: SourceFile, wrong: pl.Series, row: pl.Series, ids: pl.Series, what: str, values: pl.Series
) -> None:
    """Raise for the first row where `wrong` holds."""
    if not wrong.any():
        return
    at = int(wrong.arg_max() or 0)
    value = values[at]
    shown = "it is empty" if value is None or str(value).strip() == "" else f"it is {str(value)!r}"
    name = f" (id {ids[at]})" if ids[at] is not None else ""
    raise InputError(
        f"{source.path}: row {row[at]}{name} {what}: {shown}; so do {int(wrong.sum())} of {len(wrong)} rows read with it",
        remedy="Correct or remove these rows",
    )


def _features(
    source: SourceFile, raw: pl.DataFrame, named: PredictionColumns, spec: ModelSpec, tally: _Tally
) -> list[pl.Series]:
    """The features, and the flags of values that do not fit their type, as a server would have set them."""
    found: list[pl.Series] = []
    flags: list[pl.Series] = []
    for feature in spec.features if named.features else []:
        values = raw[feature.name]
        read = coerce(values, feature.type, decimal_comma=source.decimal_comma)
        found.append(read.values.alias(feature.name))
        tally.filled[feature.name] += len(read.values) - read.values.null_count()
        if read.n_unparsable:
            tally.unparsable.setdefault(feature.name, read.example)
            lost = read.values.is_null() & to_text(values).is_not_null()
            flag = pl.when(lost).then(pl.lit(f"unparsable:{feature.name}"))
            flags.append(pl.select(flag.alias(feature.name)).to_series())
    if flags:
        joined = pl.DataFrame(flags).select(pl.concat_list(pl.all()).list.drop_nulls().alias(FLAGS)).to_series()
    else:
        joined = pl.Series(FLAGS, [[]], dtype=pl.List(pl.String)).new_from_index(0, raw.height)
    return [*found, joined]


def _scores(
    source: SourceFile, raw: pl.DataFrame, column: str, spec: ModelSpec, row: pl.Series, ids: pl.Series
) -> pl.Series:
    values = raw[column]
    scores = to_numbers(values, decimal_comma=source.decimal_comma)
    there = to_text(values).is_not_null()
    _refuse_first(source, scores.is_null() & there, row, ids, f"has a {column} that is no number", values)
    if spec.task == "binary":
        outside = ((scores < 0) | (scores > 1)).fill_null(value=False)
        _refuse_first(source, outside, row, ids, f"has a {column} that is no probability from 0 to 1", values)
    return scores


def _entity(raw: pl.DataFrame, columns: Sequence[str], ids: pl.Series) -> pl.Series:
    if not columns:
        return ids.alias(ENTITY)
    parts = pl.DataFrame([to_text(raw[name]).alias(name) for name in columns])
    joined = parts.select(pl.concat_str(pl.all().fill_null(""), separator="|"))[:, 0]
    empty = parts.select(pl.all_horizontal(pl.all().is_null()))[:, 0]
    return pl.select(pl.when(empty).then(ids).otherwise(joined).alias(ENTITY)).to_series()


def _refuse_useless(path: Path, index: pl.DataFrame, tally: _Tally, spec: ModelSpec) -> None:
    if index.is_empty():
        raise InputError(
            f"{path} holds no prediction" + (" with a score" if tally.n_unscored else ""), remedy="Check the file"
        )
    repeated = index.filter(index[ID].is_duplicated())
    if repeated.height:
        first = repeated.sort(ID, FILE, ROW).head(2)
        (one, other), name = first.select(FILE, ROW).rows(), first[ID][0]
        n_ids = repeated[ID].n_unique()
        raise InputError(
            f"{n_ids} prediction ids stand in more than one row: the first is {name!r}, in row {one[1]} of {one[0]} and "
            f"row {other[1]} of {other[0]}",
            remedy="Give every prediction an id of its own",
        )
    for feature in spec.features if tally.filled else []:
        if not tally.filled[feature.name] and feature.name in tally.unparsable:
            raise InputError(
                f"{path}: feature {feature.name!r} is declared {feature.type}, and none of its values is, for instance "
                f"{tally.unparsable[feature.name]!r}",
                remedy="Declare it categorical or text in the spec, or correct the column",
            )


def _notes(path: Path, spec: ModelSpec, named: PredictionColumns, tally: _Tally) -> list[str]:
    notes = []
    if tally.n_malformed:
        notes.append(f"{path}: {tally.n_malformed} lines have more or fewer fields than the header and were left out.")
    mixed = mixed_zones(named.time, tally.zones)
    if mixed is not None:
        notes.append(f"{path}: {mixed}.")
    if tally.n_unscored:
        notes.append(
            f"{tally.n_unscored} predictions have no score: nobody was served by them, and they were left out."
        )
    if spec.data.entity and not named.entity:
        notes.append(f"No column {', '.join(spec.data.entity)}: every request is taken for an entity of its own.")
    for name, example in tally.unparsable.items():
        notes.append(
            f"Feature {name}: some values do not fit its type, for instance {example!r}; they count as missing."
        )
    return notes
