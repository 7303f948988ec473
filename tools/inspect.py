"""A proposal for a model spec, from nothing but the rows: label, time, entity, features, metric and rhythm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from state.errors import InputError
from state.spec import Metric
from tools.columns import ENTITY_WORDS, Column, Sample, describe_column, said, take_sample, words
from tools.labels import LabelProposal, choose_label, default_metric, n_classes_of, propose_label, target_of
from tools.power import LEAK_POWER, quick_metric, single_power
from tools.rhythm import Rhythm, find_rhythm
from tools.sources import list_sources
from tools.times import parse_times

_LATER_WORDS = frozenset(
    words("birth dob expiry expires expiration end ended closed resolved updated modified delivered due until reg last")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureProposal:
    column: Column
    power: float
    """What it says of the label on its own, see `single_power`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Everything a spec needs, each with the reason for it."""

    path: Path
    n_rows: int
    n_sampled: int
    time: Column
    other_times: tuple[str, ...]
    entity: tuple[str, ...]
    other_entities: tuple[str, ...]
    label: LabelProposal
    features: tuple[FeatureProposal, ...]
    left_out: tuple[tuple[Column, str], ...]
    """Columns that are proposed as no features, and why."""
    metric: Metric
    reached: float | None
    """The metric of a quick model on the newest 30 % of the sample."""
    rhythm: Rhythm


def inspect_file(
    path: Path,
    *,
    label: str | None = None,
    time: str | None = None,
    metric: Metric | None = None,
    entity: Sequence[str] | None = None,
) -> Inspection:
    """Read parquet or CSV at `path` and propose what a model spec says; what is given is taken as it is.

    Raises:
        InputError: no time or label can be told, or what was given does not fit; names the flag to give.
    """
    sample = take_sample(list_sources(path))
    if sample.rows.height < 20:
        raise InputError(f"{path} has {sample.n_rows} rows: too few to propose anything", remedy="Give at least 20")
    for flag, names in (("--label", [label]), ("--time", [time]), ("--entity", list(entity or ()))):
        for name in names:
            _require(sample, name, flag, path)
    columns = {name: describe_column(sample.rows[name]) for name in sample.rows.columns}
    when, other_times = _choose_time(columns, sample, time, path)
    chosen = choose_label(columns, sample, when, label, metric, path)
    rows, times = _in_order(sample, when)
    rhythm = find_rhythm(times, stride=sample.stride)
    proposal = propose_label(rows[chosen.name], chosen, columns, metric, times, rhythm, named=label is not None)
    entities, other_entities = _choose_entity(columns, {chosen.name, when.name}, entity)
    scale = metric or default_metric(proposal)
    features, left_out = _features(columns, rows, proposal, taken={chosen.name, when.name})
    target, known = target_of(rows[chosen.name], proposal)
    reached = quick_metric(
        rows.filter(known),
        {feature.column.name: str(feature.column.type) for feature in features},
        target,
        n_classes=n_classes_of(proposal),
        metric=scale,
    )
    return Inspection(
        path=path,
        n_rows=sample.n_rows,
        n_sampled=sample.rows.height,
        time=when,
        other_times=other_times,
        entity=entities,
        other_entities=other_entities,
        label=proposal,
        features=features,
        left_out=left_out,
        metric=scale,
        reached=reached,
        rhythm=rhythm,
    )


def _require(sample: Sample, name: str | None, flag: str, path: Path) -> None:
    if name is not None and name not in sample.rows.columns:
        raise InputError(
            f"{path} has no column {name!r} ({flag})", remedy=f"Its columns are {', '.join(sample.rows.columns)}"
        )


def _choose_time(
    columns: dict[str, Column], sample: Sample, given: str | None, path: Path
) -> tuple[Column, tuple[str, ...]]:
    times = [column for column in columns.values() if column.time is not None and column.missing_ratio < 0.5]
    if given is not None:
        column = columns[given]
        if column.time is None:
            forced = describe_column(sample.rows[given].alias("time"))
            if forced.time is None:
                raise InputError(
                    f"--time {given}: the column does not read as a time, it holds {_examples(sample, given)}",
                    remedy="Give a column of timestamps, dates or epochs, best as 2026-01-31T12:00:00Z",
                )
            column = Column(
                name=given, type=None, why=forced.why, time=forced.time, n_distinct=column.n_distinct,
                missing_ratio=column.missing_ratio,
            )  # fmt: skip
        return column, tuple(other.name for other in times if other.name != given)
    if not times:
        raise InputError(
            f"{path} has no column that reads as a time (columns: {', '.join(columns)})",
            remedy="Give it with --time COLUMN; where year, month and day stand apart, join them into one column first",
        )
    best = min(times, key=lambda column: _time_rank(column, sample))
    return best, tuple(column.name for column in times if column is not best)


def _time_rank(column: Column, sample: Sample) -> tuple[bool, bool, float]:
    """Complete columns first, then those not named like an end, then the earliest: what comes later may be outcome."""
    assert column.time is not None
    middle = parse_times(sample.rows[column.name], column.time.name).dt.epoch("us").median()
    later = bool(_LATER_WORDS & set(words(column.name)))
    return column.missing_ratio > 0.01, later, float(middle) if isinstance(middle, int | float) else 0.0


def _in_order(sample: Sample, when: Column) -> tuple[pl.DataFrame, pl.Series]:
    assert when.time is not None
    times = parse_times(sample.rows[when.name], when.time.name).alias("__time")
    # A later column of that name would be the user's own, so the helper column is dropped at once.
    order = times.arg_sort(nulls_last=True)[: len(times) - times.null_count()]
    return sample.rows[order], times[order]


def _choose_entity(
    columns: dict[str, Column], taken: set[str], given: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if given is not None:
        return tuple(given), ()
    candidates = [
        column
        for column in columns.values()
        if column.name not in taken and column.mean_repeats >= 1.5 and column.n_distinct >= 10
        and column.missing_ratio < 0.2 and column.time is None
        and (column.is_identifier or (column.type == "categorical" and ENTITY_WORDS & set(words(column.name))))
    ]  # fmt: skip
    ranked = sorted(
        candidates, key=lambda c: (not ENTITY_WORDS & set(words(c.name)), not c.is_identifier, -c.n_distinct)
    )
    names = [column.name for column in ranked]
    return tuple(names[:1]), tuple(names[1:5])


def _features(
    columns: dict[str, Column], rows: pl.DataFrame, label: LabelProposal, *, taken: set[str]
) -> tuple[tuple[FeatureProposal, ...], tuple[tuple[Column, str], ...]]:
    target, known = target_of(rows[label.column], label)
    labelled = rows.filter(known)
    features: list[FeatureProposal] = []
    left_out: list[tuple[Column, str]] = []
    for name, column in columns.items():
        if name in taken:
            continue
        if column.type is None:
            left_out.append((column, column.why))
            continue
        power = single_power(labelled[name], column.type, target, n_classes=n_classes_of(label))
        if power > LEAK_POWER:
            left_out.append((column, f"alone it tells the label ({power:.3f} of 1): known before the event?"))
            continue
        features.append(FeatureProposal(column=column, power=power))
    if not features:
        raise InputError("no column is left to learn from", remedy="Give --label and --time, or more columns")
    return tuple(features), tuple(left_out)


def _examples(sample: Sample, name: str) -> str:
    return ", ".join(said(value) for value in sample.rows[name].drop_nulls().head(3)) or "nothing"
