"""One column of raw values to what a spec declares: number, boolean, category, text, label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from state.spec import ModelSpec

MISSING_SPELLINGS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A")
"""Text that stands for no value, as pandas reads it."""
TRUE_SPELLINGS = ("true", "1", "1.0", "yes", "y", "t", "on")
FALSE_SPELLINGS = ("false", "0", "0.0", "no", "n", "f", "off")
_DECIMAL_COMMA = r"^([-+]?\d+),(\d+)$"
_THOUSANDS = r"^[-+]?\d{1,3}(,\d{3})+(\.\d+)?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coerced:
    values: pl.Series
    n_unparsable: int
    """Values that were there and do not fit the type; they became null."""
    example: str = ""
    """The first of them."""


def to_text(values: pl.Series) -> pl.Series:
    """Values as text, null where missing; whole floats read like integers, booleans as true and false."""
    if values.dtype.is_float():
        whole = values.is_finite() & (values == values.floor()) & (values.abs() < 1e15)
        as_int = pl.select(pl.when(whole).then(values)).to_series().cast(pl.Int64).cast(pl.String)
        as_float = pl.select(pl.when(values.is_not_nan()).then(values)).to_series().cast(pl.String)
        return pl.select(pl.coalesce(as_int, as_float).alias(values.name)).to_series()
    if values.dtype == pl.Binary:
        return values.bin.encode("hex")
    if values.dtype.is_nested() or values.dtype == pl.Null:
        return pl.Series(values.name, [None] * len(values), dtype=pl.String)
    text = values.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(~text.is_in(MISSING_SPELLINGS)).then(text).alias(values.name)).to_series()


def coerce(values: pl.Series, kind: str, *, decimal_comma: bool = False) -> Coerced:
    """`values` as the feature type `kind`: Float32 for numbers and booleans, text otherwise."""
    if kind in ("categorical", "text"):
        return Coerced(values=to_text(values), n_unparsable=0)
    numbers = _booleans(values) if kind == "boolean" else _numbers(values, decimal_comma=decimal_comma)
    text = to_text(values)
    # A float out of Float32's range overflows to infinity, which no model can use either.
    narrow = numbers.cast(pl.Float32)
    finite = pl.select(pl.when(narrow.is_finite()).then(narrow).alias(values.name)).to_series()
    lost = text.filter(finite.is_null() & text.is_not_null())
    return Coerced(values=finite, n_unparsable=len(lost), example=str(lost[0]) if len(lost) else "")


def to_numbers(values: pl.Series, *, decimal_comma: bool = False) -> pl.Series:
    """`values` as finite Float64; null where they are not numbers."""
    numbers = _numbers(values, decimal_comma=decimal_comma)
    return pl.select(pl.when(numbers.is_finite()).then(numbers).alias(values.name)).to_series()


def binary_labels(values: pl.Series, positive: str | int | float | bool | None) -> pl.Series:
    """1.0 where the value is the positive one, 0.0 for any other value, null where there is none."""
    text = to_text(values)
    if positive is None or isinstance(positive, bool):
        # YAML reads an unquoted yes as true, so a boolean means its spellings.
        spellings = FALSE_SPELLINGS if positive is False else TRUE_SPELLINGS
        hit = text.str.to_lowercase().is_in(spellings)
    elif isinstance(positive, str):
        hit = text == positive.strip()
    else:
        # A number is the same number however the file writes it: 1, 1.0, "1.00".
        hit = text.is_not_null() & (to_numbers(text) == positive).fill_null(value=False)
        hit = pl.select(pl.when(text.is_not_null()).then(hit)).to_series()
    return hit.cast(pl.Float64).alias(values.name)


def label_indices(spec: ModelSpec, classes: Sequence[str], values: pl.Series) -> pl.Series:
    """Raw labels as the stored Float64: 1.0 for positive, the index into `classes`, or the number itself."""
    if spec.task == "binary":
        return binary_labels(values, spec.data.label.positive)
    if spec.task == "regression":
        return to_numbers(values)
    positions = {name: float(index) for index, name in enumerate(classes)}
    return to_text(values).replace_strict(positions, default=None, return_dtype=pl.Float64)


def _numbers(values: pl.Series, *, decimal_comma: bool) -> pl.Series:
    if values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null):
        return values.cast(pl.Float64)
    if values.dtype == pl.Duration:
        return values.dt.total_microseconds() / 1e6
    if values.dtype.is_temporal() or values.dtype.is_nested():
        return pl.Series(values.name, [None] * len(values), dtype=pl.Float64)
    text = to_text(values)
    if decimal_comma:
        text = text.str.replace(_DECIMAL_COMMA, "${1}.${2}")
    else:
        grouped = text.str.contains(_THOUSANDS)
        text = pl.select(pl.when(grouped).then(text.str.replace_all(",", "")).otherwise(text)).to_series()
    return text.cast(pl.Float64, strict=False)


def _booleans(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Boolean:
        return values.cast(pl.Float64)
    lowered = to_text(values).str.to_lowercase()
    mapping = {**dict.fromkeys(TRUE_SPELLINGS, 1.0), **dict.fromkeys(FALSE_SPELLINGS, 0.0)}
    return lowered.replace_strict(mapping, default=None, return_dtype=pl.Float64)
