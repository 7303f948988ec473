"""A team's predictions: read in bounded batches, checked, and staged as parquet parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from evals.backtest.columns import (
    PredictionColumns,
    ids_of,
    prediction_columns,
    sources_of,
    time_reading,
)
from state.errors import InputError
from state.spec import ModelSpec
from tools.coerce import coerce, to_numbers, to_text
from tools.sources import Batch, SourceFile, read_batches
from tools.times import EVENT_TIME, mixed_zones, parse_times, zones_of

Progress = Callable[[str], None]
SCORE = "recorded_score"
"""Column of stored rows: what the team's own model answered."""
CALLED, CONFIDENCE = "recorded_class", "recorded_confidence"
"""Columns of stored rows without features: the class of the largest recorded probability, and that probability."""
SUM_ERROR = 0.05
"""Probabilities of several classes that were rounded one by one need not sum to 1."""
FLAGS = "flags"
_SEED = 20_250_106
"""Of the hash of ids, which lives in this process only."""
ID, TIME, ENTITY, ROW, FILE = "request_id", "event_time", "entity", "row", "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Event times by hashed id: 16 bytes a prediction, where ids as text take a hundred."""

    keys: npt.NDArray[np.uint64]
    """Ascending. Two ids of a million share one with a chance of 3e-8; rows are joined by the id itself afterwards."""
    times_us: npt.NDArray[np.int64]
    unscored: npt.NDArray[np.uint64]
    """Ascending, of predictions that were left out because they have no score."""

    def are_unscored(self, ids: pl.Series) -> pl.Series:
        """Whether each id is of a prediction without a score."""
        return pl.Series("unscored", np.isin(ids.hash(_SEED).to_numpy(), self.unscored), dtype=pl.Boolean)

    def times_of(self, ids: pl.Series) -> pl.Series:
        """The event time of each prediction, null where there is none of that id."""
        wanted = ids.hash(_SEED).to_numpy()
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        times = pl.Series(self.times_us[at]).cast(EVENT_TIME)
        return pl.select(pl.when(pl.Series(self.keys[at] == wanted)).then(times).alias(TIME)).to_series()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A version of the team's own model, by what it answered."""

    version: str
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPredictions:
    parts: tuple[Path, ...]
    """`request_id, event_time, row, file`, entity, features and score, as they stand in the files."""
    index: Index
    sources: tuple[SourceFile, ...]
    has_scores: bool
    has_features: bool
    score_type: pl.DataType
    """Float64, or of a multiclass model List(Float64) of probabilities or String, the predicted class."""
    classes: tuple[str, ...]
    """Of a multiclass model, those with a column of probabilities, in order."""
    called: dict[str, datetime]
    """Predicted class -> when it was first predicted, where only the class was recorded."""
    releases: tuple[Release, ...]
    """In order of their first answers; empty where no column tells versions."""
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Tally:
    n_read: int = 0
    n_unscored: int = 0
    unscored: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    """Hashed ids of those."""
    n_malformed: int = 0
    unparsable: dict[str, str]
    """Feature -> an example of a value that does not fit its type."""
    filled: dict[str, int]
    zones: Counter[str] = field(default_factory=Counter)
    called: dict[str, datetime] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)


def stage_predictions(path: Path, spec: ModelSpec, folder: Path, progress: Progress) -> StagedPredictions:
    """Read every file of predictions at `path` into parts below `folder`.

    Raises:
        InputError: a column, a time, a score or an id is missing or wrong; the message names file, row and remedy.
    """
    for own in {SCORE, CALLED, CONFIDENCE} & set(spec.feature_names()):
        raise InputError(f"a feature is called {own!r}, which a backtest uses itself", remedy="Rename it in the data")
    sources = sources_of(path, "--predictions")
    columns = [prediction_columns(source, spec) for source in sources]
    _same_shape(sources, columns)
    reading = time_reading([(s, c.time) for s, c in zip(sources, columns, strict=True)], "the event time")
    tally = _Tally(unparsable={}, filled=dict.fromkeys(columns[0].features, 0))
    parts: list[Path] = []
    keys: list[npt.NDArray[np.uint64]] = []
    times: list[npt.NDArray[np.int64]] = []
    for source, named in zip(sources, columns, strict=True):
        n_malformed = 0
        for batch in read_batches(source, named.wanted()):
            rows = _normalised(source, batch, named, spec, reading, tally)
            n_malformed = batch.n_malformed
            keys.append(rows[ID].hash(_SEED).to_numpy())
            times.append(rows[TIME].dt.epoch("us").to_numpy())
            parts.append(folder / f"{len(parts):06}.parquet")
            rows = rows.with_columns(pl.lit(str(source.path)).cast(pl.Categorical).alias(FILE))
            rows.write_parquet(parts[-1], compression="lz4")
            progress(f"read {tally.n_read} predictions")
        tally.n_malformed += n_malformed
    index = _indexed(keys, times, tally.unscored)
    _refuse_useless(path, index, parts, tally, spec)
    return StagedPredictions(
        parts=tuple(parts), index=index, sources=tuple(sources), has_scores=columns[0].scored,
        has_features=bool(columns[0].features), score_type=score_type(spec, columns[0]), classes=columns[0].classes,
        called=tally.called, releases=tuple(sorted(tally.releases.values(), key=lambda r: (r.first, r.version))),
        notes=tuple(_notes(path, spec, columns[0], tally)),
    )  # fmt: skip


def _indexed(
    keys: list[npt.NDArray[np.uint64]], times: list[npt.NDArray[np.int64]], unscored: list[npt.NDArray[np.uint64]]
) -> Index:
    every = np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64)
    order = np.argsort(every, kind="stable")
    moments = np.concatenate(times) if times else np.zeros(0, dtype=np.int64)
    left_out = np.sort(np.concatenate(unscored)) if unscored else np.zeros(0, dtype=np.uint64)
    return Index(keys=every[order], times_us=moments[order], unscored=left_out)


def _same_shape(sources: Sequence[SourceFile], columns: Sequence[PredictionColumns]) -> None:
    for source, named in zip(sources, columns, strict=True):
        first = columns[0]
        alike = (named.scored, named.classes, named.features) == (first.scored, first.classes, first.features)
        if not alike:
            raise InputError(
                f"{source.path} and {sources[0].path} do not have the same columns of scores and features",
                remedy="Write all files of predictions with the same columns",
            )


def _normalised(
    source: SourceFile, batch: Batch, named: PredictionColumns, spec: ModelSpec, reading: str, tally: _Tally
) -> pl.DataFrame:
    raw = batch.rows
    tally.n_read += raw.height
    row = pl.Series(ROW, range(batch.first_row + 1, batch.first_row + raw.height + 1), dtype=pl.Int64)
    tally.zones.update(zones_of(raw[named.time]))
    ids = ids_of(raw[named.request_id]).alias(ID)
    times = parse_times(raw[named.time], reading).cast(EVENT_TIME).alias(TIME)
    _refuse_first(source, ids.is_null(), row, ids, f"has no {named.request_id}", raw[named.request_id])
    _refuse_first(source, times.is_null(), row, ids, f"has no readable {named.time}", raw[named.time])
    columns: list[pl.Series] = [ids, times, row, *_features(source, raw, named, spec, tally)]
    if named.class_scores:
        columns += _probabilities(source, raw, named, row, ids)
    elif named.score is not None:
        columns.append(_scores(source, raw, named.score, spec, row, ids).alias(SCORE))
    rows = pl.DataFrame(columns)
    rows = rows.with_columns(_entity(raw, named.entity, ids))
    if named.scored:
        without = rows.filter(pl.col(SCORE).is_null())
        if without.height:
            rows = rows.drop_nulls(SCORE)
            tally.unscored.append(without[ID].hash(_SEED).to_numpy())
            tally.n_unscored += without.height
    if rows.schema.get(SCORE) == pl.String():
        _note_called(rows, tally)
    if named.version is not None and named.scored:
        _note_releases(ids_of(raw[named.version]), times, tally)
    return rows


def score_type(spec: ModelSpec, named: PredictionColumns) -> pl.DataType:
    """How `recorded_score` is stored."""
    if spec.task != "multiclass":
        return pl.Float64()
    return pl.List(pl.Float64()) if named.class_scores else pl.String()


def _note_releases(versions: pl.Series, times: pl.Series, tally: _Tally) -> None:
    found = pl.DataFrame({"version": versions, TIME: times}).drop_nulls().group_by("version")
    for version, first, last in found.agg(
        pl.col(TIME).min().alias("first"), pl.col(TIME).max().alias("last")
    ).iter_rows():
        known = tally.releases.get(version, Release(version=version, first=first, last=last))
        tally.releases[version] = Release(version=version, first=min(first, known.first), last=max(last, known.last))


def _note_called(rows: pl.DataFrame, tally: _Tally) -> None:
    for name, first in rows.group_by(SCORE).agg(pl.col(TIME).min()).iter_rows():
        tally.called[name] = min(first, tally.called.get(name, first))


def _refuse_first(
    source: SourceFile, wrong: pl.Series, row: pl.Series, ids: pl.Series, what: str, values: pl.Series,
    remedy: str = "Correct or remove these rows",
) -> None:  # fmt: skip
    """Raise for the first row where `wrong` holds."""
    if not wrong.any():
        return
    at = int(wrong.arg_max() or 0)
    value = values[at]
    shown = "it is empty" if value is None or str(value).strip() == "" else f"it is {str(value)!r}"
    name = f" (id {ids[at]})" if ids[at] is not None else ""
    raise InputError(
        f"{source.path}: row {row[at]}{name} {what}: {shown}; so do {int(wrong.sum())} of {len(wrong)} rows read with it",
        remedy=remedy,
    )


def _features(
    source: SourceFile, raw: pl.DataFrame, named: PredictionColumns, spec: ModelSpec, tally: _Tally
) -> list[pl.Series]:
    """The features, and the flags of values that do not fit their type, as a server would have set them."""
    found: list[pl.Series] = []
    flags: list[pl.Series] = []
    for feature in spec.features if named.features else []:
        values = raw[feature.name]
        if values.dtype.is_nested():
            raise InputError(
                f"{source.path}: feature {feature.name!r} holds lists or records, and is declared {feature.type}",
                remedy="Write one value a row, or leave the feature out of the spec",
            )
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
    if spec.task == "multiclass":
        return ids_of(raw[column])
    scores = _numbers(source, raw, column, row, ids)
    if spec.task == "binary":
        _refuse_outside(source, scores, raw[column], row, ids)
    return scores


def _numbers(source: SourceFile, raw: pl.DataFrame, column: str, row: pl.Series, ids: pl.Series) -> pl.Series:
    values = raw[column]
    scores = to_numbers(values, decimal_comma=source.decimal_comma)
    there = to_text(values).is_not_null() if not values.dtype.is_nested() else values.is_not_null()
    _refuse_first(source, scores.is_null() & there, row, ids, f"has a {column} that is no number", values)
    return scores


def _refuse_outside(source: SourceFile, scores: pl.Series, values: pl.Series, row: pl.Series, ids: pl.Series) -> None:
    outside = ((scores < 0) | (scores > 1)).fill_null(value=False)
    _refuse_first(
        source, outside, row, ids, f"has a {values.name} that is no probability from 0 to 1", values,
        remedy="Give probabilities: of log-odds z that is 1 / (1 + exp(-z))",
    )  # fmt: skip


def _probabilities(
    source: SourceFile, raw: pl.DataFrame, named: PredictionColumns, row: pl.Series, ids: pl.Series
) -> list[pl.Series]:
    """The recorded probabilities in the order of `named.classes`, the class of the largest, and that largest."""
    columns = []
    for column in named.class_scores:
        scores = _numbers(source, raw, column, row, ids)
        _refuse_outside(source, scores, raw[column], row, ids)
        columns.append(scores.alias(column))
    table = pl.DataFrame(columns)
    some, every = (table.select(how(pl.all().is_null()))[:, 0] for how in (pl.any_horizontal, pl.all_horizontal))
    for values in table if (some & ~every).any() else ():
        _refuse_first(
            source, values.is_null() & ~every, row, ids, f"has no {values.name} beside those of others", values
        )
    total = table.select(pl.sum_horizontal(pl.all()))[:, 0]
    wrong = ((total - 1).abs() > SUM_ERROR) & ~every
    what = f"has probabilities ({', '.join(named.class_scores[:5])}) that do not sum to 1"
    _refuse_first(source, wrong, row, ids, what, total)
    listed = table.select(pl.when(~every).then(pl.concat_list(pl.all())).alias(SCORE))[SCORE]
    place = listed.list.arg_max().cast(pl.Int64)
    names = pl.Series(named.classes)
    called = names.gather(place.fill_null(0)).alias(CALLED)
    return [listed, called, listed.list.max().cast(pl.Float32).alias(CONFIDENCE)]


def _entity(raw: pl.DataFrame, columns: Sequence[str], ids: pl.Series) -> pl.Series:
    if not columns:
        return ids.alias(ENTITY)
    parts = pl.DataFrame([to_text(raw[name]).alias(name) for name in columns])
    joined = parts.select(pl.concat_str(pl.all().fill_null(""), separator="|"))[:, 0]
    empty = parts.select(pl.all_horizontal(pl.all().is_null()))[:, 0]
    return pl.select(pl.when(empty).then(ids).otherwise(joined).alias(ENTITY)).to_series()


def _refuse_useless(path: Path, index: Index, parts: Sequence[Path], tally: _Tally, spec: ModelSpec) -> None:
    if not len(index.keys):
        raise InputError(
            f"{path} holds no prediction" + (" with a score" if tally.n_unscored else ""), remedy="Check the file"
        )
    repeated = _repeated(index, parts)
    if repeated.height:
        first = repeated.sort(ID, FILE, ROW).head(2)
        (one, other), name = first.select(FILE, ROW).rows(), first[ID][0]
        n_ids = repeated[ID].n_unique()
        raise InputError(
            f"{path}: {n_ids} prediction ids stand in more than one row: the first is {name!r}, in row {one[1]} of {one[0]} and "
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


def _repeated(index: Index, parts: Sequence[Path]) -> pl.DataFrame:
    """`request_id, file, row` of ids that stand in more than one row."""
    twice = np.unique(index.keys[1:][index.keys[1:] == index.keys[:-1]])
    schema = pl.Schema({ID: pl.String(), FILE: pl.String(), ROW: pl.Int64()})
    if not len(twice):
        return pl.DataFrame(schema=schema)
    suspects = [
        rows.filter(rows[ID].hash(_SEED).is_in(pl.Series(twice).implode()))
        for rows in (pl.read_parquet(part, columns=[ID, FILE, ROW]).cast({FILE: pl.String()}) for part in parts)
    ]
    found = pl.concat(suspects)
    return found.filter(found[ID].is_duplicated())


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
