"""How one feature becomes float32 columns: the stored encodings, the tolerant parsers and the codecs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

FeatureType: TypeAlias = Literal["numeric", "categorical", "boolean", "text"]
Matrix: TypeAlias = npt.NDArray[np.float32]
Floats: TypeAlias = npt.NDArray[np.float64]


class ArrayLike(Protocol):
    """A polars or pandas series."""

    def __array__(self) -> npt.NDArray[Any]: ...
    def __len__(self) -> int: ...


Column: TypeAlias = Sequence[Any] | npt.NDArray[Any] | ArrayLike

FLOAT32_MAX = float(np.finfo(np.float32).max)
_WORD = re.compile(r"\w+")
_TRUE = frozenset({"true", "1", "yes", "t", "y"})
_FALSE = frozenset({"false", "0", "no", "f", "n"})


class Number(msgspec.Struct, frozen=True, tag_field="kind", tag="number"):
    """The value as float32; NaN where missing."""


class Boolean(msgspec.Struct, frozen=True, tag_field="kind", tag="boolean"):
    """1, 0, or NaN where missing."""


class OneHot(msgspec.Struct, frozen=True, tag_field="kind", tag="one_hot"):
    """One column a level; all zero for an unknown or missing one."""

    levels: tuple[str, ...]


class Values(msgspec.Struct, frozen=True, tag_field="kind", tag="values"):
    """One number a level: its smoothed target mean, or its rank by frequency."""

    map: dict[str, float]
    unknown: float
    missing: float


class HashedBag(msgspec.Struct, frozen=True, tag_field="kind", tag="hashed_bag"):
    """Counts of lower-cased words, hashed with a sign and scaled to length 1."""

    dimensions: int


Encoding: TypeAlias = Number | Boolean | OneHot | Values | HashedBag


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureContract:
    name: str
    type: FeatureType
    encoding: Encoding
    low: float | None = None
    """Values below are flagged: the declared bound, else the smallest one trained on."""
    high: float | None = None
    low_declared: bool = False
    """Only a declared bound refuses, and only where the contract says `refuse`."""
    high_declared: bool = False


class Parsed(NamedTuple):
    value: float
    flag: str | None = None


def parse_number(value: object) -> Parsed:
    flag = None
    if isinstance(value, str):
        if not value.strip():
            return Parsed(math.nan, "missing")
        flag = "text_number"
    elif isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return Parsed(math.nan, "missing")
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever a client sent; the error below is the answer
    except (TypeError, ValueError):
        return Parsed(math.nan, "unparsable")
    except OverflowError:
        return Parsed(math.nan, "out_of_range")
    if not math.isfinite(number):
        return Parsed(math.nan, "missing")
    if abs(number) > FLOAT32_MAX:
        return Parsed(math.nan, "out_of_range")
    return Parsed(number, flag)


def parse_boolean(value: object) -> Parsed:
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return Parsed(float(text in _TRUE))
        return Parsed(math.nan, "unparsable")
    parsed = parse_number(value)
    if parsed.flag is None and parsed.value not in (0.0, 1.0):
        return Parsed(math.nan, "unparsable")
    return parsed


def level_text(value: object) -> str | None:
    """The level that a raw value names, alike for JSON and for columns; None where it names none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else None
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1 << 64 else repr(value)
    return None


def _array_or_list(values: Column) -> list[Any] | npt.NDArray[Any]:
    if isinstance(values, list | np.ndarray):
        return values
    # A tuple of mixed types must not pass through numpy, which would turn 1 into "1" beside "a".
    return np.asarray(values) if hasattr(values, "__array__") else list(values)


def _items(values: Column) -> list[Any]:
    array = _array_or_list(values)
    return array if isinstance(array, list) else array.tolist()


def numbers_of(values: Column, parse: Callable[[object], Parsed]) -> Floats:
    """Float64 of shape `(n_rows,)` with NaN for what `parse` refuses."""
    array = _array_or_list(values)
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        # Through float64 like a JSON number, so that large integers round as they do in `encode_row`.
        numbers = array.astype(np.float64)
    else:
        items = _items(array)
        if set(map(type, items)) <= {float, int, bool, type(None)}:
            try:
                numbers = np.array(items, dtype=np.float64)
            except OverflowError:
                numbers = np.array([parse(item).value for item in items], dtype=np.float64)
        else:
            numbers = np.array([parse(item).value for item in items], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        admissible = np.abs(numbers) <= FLOAT32_MAX
        if parse is parse_boolean:
            admissible &= (numbers == 0.0) | (numbers == 1.0)
    return np.where(admissible, numbers, np.nan)


def levels_of(values: Column) -> list[str | None]:
    items = _items(values)
    if set(map(type, items)) <= {str, type(None)}:
        return items
    return [level_text(item) for item in items]


class _Scalars:
    """Number or boolean: one column."""

    width = 1

    def __init__(self, feature: FeatureContract, parse: Callable[[object], Parsed]) -> None:
        self._name, self._parse = feature.name, parse
        self._plain = parse is parse_number
        self._low = -FLOAT32_MAX if feature.low is None else max(feature.low, -FLOAT32_MAX)
        self._high = FLOAT32_MAX if feature.high is None else min(feature.high, FLOAT32_MAX)

    def row(self, value: object, out: list[float], flags: list[str]) -> None:
        kind = type(value)
        if (kind is float or kind is int) and self._plain and self._low <= value <= self._high:  # type: ignore[operator]  # the check stands before it
            out.append(value)  # type: ignore[arg-type]  # likewise
            return
        number, flag = self._parse(value)
        out.append(number)
        if flag is not None:
            flags.append(f"{flag}:{self._name}")
        if number < self._low or number > self._high:
            flags.append(f"out_of_range:{self._name}")

    def batch(self, values: Column, out: Matrix) -> None:
        out[:, 0] = numbers_of(values, self._parse)


class _Levels:
    """Categorical: one number a level, or one column a level."""

    def __init__(self, feature: FeatureContract, encoding: OneHot | Values) -> None:
        self._name = feature.name
        if isinstance(encoding, OneHot):
            # Row i of the identity, and a last row of zeros for what is unknown or missing.
            n_levels = len(encoding.levels)
            self._index = {level: i for i, level in enumerate(encoding.levels)}
            self._table = np.eye(n_levels + 1, n_levels, dtype=np.float32)
            self._unknown = self._missing = n_levels
        else:
            self._index = {level: i for i, level in enumerate(encoding.map)}
            numbers = [*encoding.map.values(), encoding.unknown, encoding.missing]
            self._table = np.array(numbers, dtype=np.float32).reshape(-1, 1)
            self._unknown, self._missing = len(encoding.map), len(encoding.map) + 1
        self._rows: list[list[float]] = self._table.tolist()
        self.width = self._table.shape[1]

    def row(self, value: object, out: list[float], flags: list[str]) -> None:
        level = value if type(value) is str else level_text(value)
        if level is None:
            empty = value is None or (isinstance(value, float) and not math.isfinite(value))
            flags.append(f"{'missing' if empty else 'unparsable'}:{self._name}")
            out += self._rows[self._missing]
            return
        index = self._index.get(level)
        if index is None:
            flags.append(f"unknown_level:{self._name}")
            index = self._unknown
        out += self._rows[index]

    def batch(self, values: Column, out: Matrix) -> None:
        index: dict[str | None, int] = {None: self._missing}
        index.update(self._index)
        get, unknown = index.get, self._unknown
        rows = np.array([get(level, unknown) for level in levels_of(values)], dtype=np.intp)
        out[:] = self._table[rows]


class _Bag:
    """Text: a hashed bag of words."""

    def __init__(self, feature: FeatureContract, encoding: HashedBag) -> None:
        self._name, self.width = feature.name, encoding.dimensions
        self._slots: dict[str, tuple[int, float]] = {}

    def _slot(self, word: str) -> tuple[int, float]:
        slot = self._slots.get(word)
        if slot is None:
            hashed = int.from_bytes(
                hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, key=b"steadyhand").digest(), "big"
            )
            slot = (hashed >> 1) % self.width, 1.0 if hashed & 1 else -1.0
            if len(self._slots) < 100_000:  # words come from clients; the cache must not grow with them
                self._slots[word] = slot
        return slot

    def _vector(self, text: str) -> list[float]:
        counts = [0.0] * self.width
        for word in _WORD.findall(text.lower()):
            at, sign = self._slot(word)
            counts[at] += sign
        length = math.sqrt(sum(count * count for count in counts))
        return [count / length for count in counts] if length else counts

    def row(self, value: object, out: list[float], flags: list[str]) -> None:
        text = level_text(value)
        if text is None:
            flags.append(f"{'missing' if value is None else 'unparsable'}:{self._name}")
        out += self._vector(text or "")

    def batch(self, values: Column, out: Matrix) -> None:
        for at, text in enumerate(levels_of(values)):
            out[at] = self._vector(text or "")


Codec: TypeAlias = _Scalars | _Levels | _Bag


def codec_for(feature: FeatureContract) -> Codec:
    encoding = feature.encoding
    if isinstance(encoding, OneHot | Values):
        return _Levels(feature, encoding)
    if isinstance(encoding, HashedBag):
        return _Bag(feature, encoding)
    return _Scalars(feature, parse_boolean if isinstance(encoding, Boolean) else parse_number)
