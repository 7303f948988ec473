"""What the columns of an unknown file hold: features and their types, times, identifiers, and what is no feature."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from tools.coerce import FALSE_SPELLINGS, TRUE_SPELLINGS, to_numbers, to_text
from tools.datastore import RESERVED_COLUMNS
from tools.sources import SourceFile, column_names, read_batches
from tools.times import TimeFormat, detect_time_format

FeatureType = Literal["numeric", "categorical", "boolean", "text"]
SAMPLE_ROWS = 100_000
MAX_LEVELS = 10_000
_MIN_ROWS_FOR_DISTINCT = 30
"""Fewer rows are all different by chance."""


def words(name: str) -> list[str]:
    """The lower-case words of a column's name: `isFraud_2` gives is, fraud, 2."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^a-zA-Z0-9]+", split.lower()) if word]


_TIME_WORDS = frozenset(
    words("time timestamp ts date datetime day dt ds epoch created at month period week when year scheduled start")
)
_ID_WORDS = frozenset(words("id uuid guid key hash code zip zipcode postcode number no nr num index idx"))
ENTITY_WORDS = frozenset(
    words(
        "user customer client account card member patient person employee subscriber device machine sensor unit driver "
        "vehicle store shop merchant product sku item station household company seller flight engine asset meter"
    )
)
_MEASURE_WORDS = frozenset(words("of count total amount price age days per avg mean sum qty quantity rate ratio"))
"""`number_of_items` counts; it does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows spread evenly over the whole of the source."""

    rows: pl.DataFrame
    n_rows: int
    """Rows of the source."""
    stride: int
    """One row in so many was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    type: FeatureType | None
    """None: proposed as no feature, for the reason in `why`."""
    why: str
    n_distinct: int
    missing_ratio: float
    time: TimeFormat | None = None
    is_identifier: bool = False
    mean_repeats: float = 1.0
    """Rows per distinct value."""


def take_sample(sources: Sequence[SourceFile], *, limit: int = SAMPLE_ROWS) -> Sample:
    """Up to twice `limit` rows of all the files, every column, in bounded memory.

    Raises:
        InputError: a file breaks off or does not decode.
    """
    kept: list[pl.DataFrame] = []
    stride, n_rows = 1, 0
    for source in sources:
        for batch in read_batches(source, column_names(source)):
            first = -n_rows % stride
            taken = batch.rows[first::stride]
            kept.append(taken.with_columns(_decimal_points()) if source.decimal_comma else taken)
            n_rows += batch.rows.height
            while sum(part.height for part in kept) > 2 * limit:
                stride *= 2
                kept = [pl.concat(kept, how="diagonal_relaxed")[::2]]
    return Sample(
        rows=pl.concat(kept, how="diagonal_relaxed") if kept else pl.DataFrame(), n_rows=n_rows, stride=stride
    )


def describe_column(values: pl.Series) -> Column:
    """What the column holds, from its values first and its name second."""
    name = values.name
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        return _unfit(name, f"its values are {values.dtype}", 0, 0.0)
    text = to_text(values)
    present = text.drop_nulls()
    n_distinct, missing = present.n_unique(), 1.0 - len(present) / max(1, len(text))
    facts = {"n_distinct": n_distinct, "missing_ratio": missing}
    if missing >= 0.999:
        return _unfit(name, "empty", n_distinct, missing)
    if n_distinct == 1:
        return _unfit(name, f"always {said(present[0])}", n_distinct, missing)
    repeats = len(present) / n_distinct
    when = _time_format(values, present)
    if when is not None:
        why = f"a time ({when.name}): derive numbers from it, such as the hour, to use it"
        return Column(name=name, type=None, why=why, time=when, mean_repeats=repeats, **facts)  # type: ignore[arg-type]
    if name in RESERVED_COLUMNS:
        return _unfit(name, "a name that every stored row has: rename it in the data to use it", n_distinct, missing)
    identifier = _identifier(values, present, n_distinct)
    if identifier:
        return Column(
            name=name,
            type=None,
            why=identifier,
            is_identifier=True,
            mean_repeats=repeats,
            **facts,  # type: ignore[arg-type]
        )
    kind, why = _feature_type(values, present, n_distinct)
    return Column(
        name=name, type=kind, why=why, is_identifier=_names_things(name) and kind == "categorical",
        mean_repeats=repeats, **facts,  # type: ignore[arg-type]
    )  # fmt: skip


def _decimal_points() -> pl.Expr:
    return pl.col(pl.String).str.replace(r"^([-+]?\d+),(\d+)$", "${1}.${2}")


def said(value: object, *, limit: int = 40) -> str:
    """A value of the data as it may stand in a comment or a message: one line, escaped, short."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_numeric_text(present: pl.Series) -> bool:
    """Whether almost every value reads as a number."""
    return to_numbers(present).null_count() <= 0.02 * len(present)


def _names_things(name: str) -> bool:
    tokens = set(words(name))
    return bool(tokens & (_ID_WORDS | ENTITY_WORDS)) and not tokens & _MEASURE_WORDS


def _unfit(name: str, why: str, n_distinct: int, missing: float) -> Column:
    return Column(name=name, type=None, why=why, n_distinct=n_distinct, missing_ratio=missing)


def _time_format(values: pl.Series, present: pl.Series) -> TimeFormat | None:
    raw = values if values.dtype.is_temporal() or values.dtype.is_numeric() else present
    found = detect_time_format(raw.drop_nulls().gather_every(max(1, len(raw) // 5_000)))
    if found is None or found.parsed_ratio < 0.95:
        return None
    if found.name.startswith(("epoch", "yyyy")):
        # 20130105 may be a price and 1357000000 a count, so the name has to agree.
        hinted = _TIME_WORDS & set(words(values.name))
        return found if hinted and found.parsed_ratio >= 0.99 and found.name != "yyyy" else None
    return found


def _identifier(values: pl.Series, present: pl.Series, n_distinct: int) -> str:
    """Why the column only names rows or things; empty where it does not."""
    n, tokens = len(present), set(words(values.name))
    named = bool(_ID_WORDS & tokens) and not _MEASURE_WORDS & tokens
    thinly = n_distinct > 1_000 and n / n_distinct < 20
    if n < _MIN_ROWS_FOR_DISTINCT:
        return ""
    numbers = to_numbers(present)
    numeric = numbers.null_count() <= 0.02 * n
    if numeric and numbers.drop_nulls().is_between(-1e15, 1e15).all() and (numbers.drop_nulls() % 1 == 0).all():
        whole = numbers.drop_nulls()
        if n_distinct >= 0.99 * n:
            spread = float(whole.max() or 0) - float(whole.min() or 0) + 1  # type: ignore[arg-type]
            ordered = whole.is_sorted() or whole.is_sorted(descending=True)
            if named or ordered or spread <= 1.05 * n:
                return "every row has another value: a row number"
        # An engine's speed is not the engine: without an id word, the name must say nothing but the thing.
        if thinly and (named or tokens <= ENTITY_WORDS):
            return f"a number that names things, {n_distinct} of them"
    if numeric or _mean_words(present) >= 3:
        return ""
    if n_distinct >= 0.98 * n:
        return "every row has another value"
    rare = n / n_distinct < 3 and n_distinct > 50
    if n_distinct > MAX_LEVELS or rare or (thinly and _names_things(values.name)):
        return f"{n_distinct} values, {n / n_distinct:.1f} rows each: too few rows to learn a level from"
    return ""


def _feature_type(values: pl.Series, present: pl.Series, n_distinct: int) -> tuple[FeatureType, str]:
    lowered = set(present.unique().str.to_lowercase()) if n_distinct == 2 else set()
    if values.dtype == pl.Boolean or (
        lowered and lowered <= {*TRUE_SPELLINGS, *FALSE_SPELLINGS} and len(lowered & set(TRUE_SPELLINGS)) == 1
    ):
        return "boolean", ""
    if is_numeric_text(present):
        whole = bool((to_numbers(present).drop_nulls() % 1 == 0).all())
        if _names_things(values.name) and whole and n_distinct <= MAX_LEVELS and len(present) >= 3 * n_distinct:
            return "categorical", f"numbers that name {n_distinct} things; numeric if their size means something"
        lost = to_numbers(present).null_count()
        return "numeric", f"{lost / len(present):.1%} of its values are no numbers and count as missing" if lost else ""
    if _mean_words(present) >= 3 and n_distinct > min(MAX_LEVELS, max(50, 0.05 * len(present))):
        return "text", f"sentences, {n_distinct} different ones; categorical if they are a fixed list"
    return "categorical", f"{n_distinct} levels" if n_distinct > 50 else ""


def _mean_words(present: pl.Series) -> float:
    count = present.head(2_000).str.count_matches(r"\S+").mean()
    return float(count) if isinstance(count, int | float) else 0.0
