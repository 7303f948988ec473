"""What a model expects of its input, and the one encoder that training and serving share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np

from state.encoding import (
    Boolean,
    Codec,
    Column,
    FeatureContract,
    FeatureType,
    Floats,
    HashedBag,
    Matrix,
    Number,
    OneHot,
    Values,
    codec_for,
    levels_of,
    numbers_of,
    parse_number,
)
from state.errors import TerminalError

__all__ = ["Contract", "EncodedRow", "Encoder", "FeatureContract", "fit_encoder"]

Task: TypeAlias = Literal["binary", "multiclass", "regression"]
Scalar: TypeAlias = str | int | float | bool | None

ONE_HOT_LEVELS = 12
MAX_LEVELS = 10_000
SMOOTHING_ROWS = 50.0
"""Rows of the overall mean that are added to every level of a target mean."""
TEXT_DIMENSIONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """`contract.json` of a model package."""

    format: Literal[1] = 1
    model: str
    task: Task
    features: tuple[FeatureContract, ...]
    classes: tuple[str, ...] | None = None
    """Class names by label index; None for regression."""
    decision_threshold: float = 0.5
    """Score from which a binary model predicts class 1."""
    out_of_range: Literal["flag", "refuse"] = "flag"
    time: str | None = None
    """Body field that carries the event time."""
    entity: tuple[str, ...] = ()
    """Body fields that together name the entity."""
    output_prefix: str | None = None
    """`fraud` adds `fraud_probability` and `fraud_prediction` to every answer."""
    lineage: dict[str, Scalar] = field(default_factory=dict)
    """data_sha256, trained_from, trained_until, recipe_sha256, key."""
    profile_sha256: str | None = None
    opset: int | None = None

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated or not names:
            raise TerminalError(
                f"contract of {self.model!r}: features {', '.join(repeated) or 'none'} repeated or empty"
            )
        n_classes = len(self.classes or ())
        wanted = {"binary": n_classes == 2, "multiclass": n_classes >= 2, "regression": n_classes == 0}
        if not wanted[self.task]:
            raise TerminalError(f"contract of {self.model!r}: {n_classes} classes do not fit task {self.task!r}")

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces.

        Raises:
            TerminalError: a bound or an encoded value is not finite.
        """
        try:
            text = json.dumps(
                msgspec.to_builtins(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
            )
        except ValueError as exc:
            raise TerminalError(f"contract of {self.model!r}: {exc}") from exc
        return text.encode()

    @classmethod
    def from_json(cls, data: bytes) -> Contract:
        """The contract stored in `data`.

        Raises:
            TerminalError: not a contract of format 1; the message names the field.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise TerminalError(f"contract.json: {exc}") from exc


class FeatureLike(Protocol):
    """What `fit_encoder` reads of a declared feature; `state.spec.Feature` has it."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> FeatureType: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


class EncodedRow(NamedTuple):
    vector: Matrix
    """Shape `(n_columns,)`."""
    flags: list[str]
    """`missing:`, `unparsable:`, `text_number:`, `out_of_range:` or `unknown_level:` and the feature's name."""


class Encoder:
    """Turns rows into the model's float32 input; a batch and its rows one by one give the same bits."""

    def __init__(self, features: Sequence[FeatureContract]) -> None:
        self._features = {feature.name: feature for feature in features}
        self._codecs: list[tuple[str, Codec]] = [(feature.name, codec_for(feature)) for feature in features]
        self.column_features: tuple[str, ...] = tuple(name for name, codec in self._codecs for _ in range(codec.width))
        """The feature behind each encoded column."""

    @property
    def width(self) -> int:
        return len(self.column_features)

    def encode(self, columns: Mapping[str, Column]) -> Matrix:
        """Encode whole columns; shape `(n_rows, width)`.

        Raises:
            TerminalError: a feature has no column, or columns differ in length.
        """
        absent = [name for name, _ in self._codecs if name not in columns]
        if absent:
            raise TerminalError(f"no column for feature {', '.join(absent)}")
        lengths = {name: len(columns[name]) for name, _ in self._codecs}
        if len(set(lengths.values())) > 1:
            raise TerminalError(f"columns differ in length: {lengths}")
        out = np.empty((next(iter(lengths.values())), self.width), dtype=np.float32)
        at = 0
        for name, codec in self._codecs:
            codec.batch(columns[name], out[:, at : at + codec.width])
            at += codec.width
        return out

    def encode_row(self, row: Mapping[str, object]) -> EncodedRow:
        """Encode one row and say what was odd about it; nothing a client sends raises."""
        out: list[float] = []
        flags: list[str] = []
        get = row.get
        for name, codec in self._codecs:
            codec.row(get(name), out, flags)
        return EncodedRow(np.array(out, dtype=np.float32), flags)

    def refusal(self, row: Mapping[str, object]) -> str | None:
        """Why a row breaks a declared bound; None where it keeps them all."""
        for name, feature in self._features.items():
            number = parse_number(row.get(name)).value
            if feature.low_declared and feature.low is not None and number < feature.low:
                return f"{name} is {number:g}: the smallest admissible value is {feature.low:g}"
            if feature.high_declared and feature.high is not None and number > feature.high:
                return f"{name} is {number:g}: the largest admissible value is {feature.high:g}"
        return None


def fit_encoder(
    columns: Mapping[str, Column],
    label: Floats,
    features: Sequence[FeatureLike],
    *,
    task: Task,
    min_count: int = 1,
    smoothing: float = SMOOTHING_ROWS,
) -> tuple[FeatureContract, ...]:
    """Choose each feature's encoding and bounds from the training rows.

    `label` has shape `(n_rows,)`: class index or number, NaN where unknown. Levels seen fewer than `min_count`
    times count as unknown. More than `ONE_HOT_LEVELS` levels become their target mean, shrunk towards the
    overall mean by `smoothing` rows; for several classes, their rank by frequency.

    Raises:
        TerminalError: a feature has no column.
    """
    absent = [feature.name for feature in features if feature.name not in columns]
    if absent:
        raise TerminalError(f"no column for feature {', '.join(absent)}")
    fitted = []
    for feature in features:
        values = columns[feature.name]
        if feature.type == "numeric":
            fitted.append(_fit_number(feature, values))
        elif feature.type == "categorical":
            encoding = _fit_levels(levels_of(values), label, task=task, min_count=min_count, smoothing=smoothing)
            fitted.append(FeatureContract(name=feature.name, type=feature.type, encoding=encoding))
        else:
            plain = Boolean() if feature.type == "boolean" else HashedBag(TEXT_DIMENSIONS)
            fitted.append(FeatureContract(name=feature.name, type=feature.type, encoding=plain))
    return tuple(fitted)


def _fit_number(feature: FeatureLike, values: Column) -> FeatureContract:
    numbers = numbers_of(values, parse_number)
    seen = numbers[~np.isnan(numbers)]
    low, high = feature.low, feature.high
    # One float32 step wider: rows may have been stored as float32 before we saw them.
    if low is None and seen.size:
        low = float(np.nextafter(np.float32(seen.min()), np.float32(-np.inf)))
    if high is None and seen.size:
        high = float(np.nextafter(np.float32(seen.max()), np.float32(np.inf)))
    return FeatureContract(
        name=feature.name,
        type="numeric",
        encoding=Number(),
        low=low,
        high=high,
        low_declared=feature.low is not None,
        high_declared=feature.high is not None,
    )


def _fit_levels(
    levels: list[str | None], label: Floats, *, task: Task, min_count: int, smoothing: float
) -> OneHot | Values:
    counts = Counter(levels)
    n_missing = counts.pop(None, 0)
    # Ties in count are broken by name, so that the same rows in another order give the same contract.
    frequent = [level for _, level in sorted((-n, lv) for lv, n in counts.items() if lv is not None)]
    kept = [level for level in frequent if counts[level] >= min_count][:MAX_LEVELS]
    if len(kept) <= ONE_HOT_LEVELS:
        return OneHot(tuple(sorted(kept)))
    if task == "multiclass":
        return Values(
            {level: float(rank) for rank, level in enumerate(kept)}, unknown=float(len(kept)), missing=float(len(kept))
        )
    known = ~np.isnan(label)
    prior = float(label[known].mean()) if known.any() else 0.0
    index = {level: rank for rank, level in enumerate(kept)}
    rows = np.array([len(kept) if lv is None else index.get(lv, -1) for lv in levels], dtype=np.intp)
    used = known & (rows >= 0)
    n_rows = np.bincount(rows[used], minlength=len(kept) + 1)
    total = np.bincount(rows[used], weights=label[used], minlength=len(kept) + 1)
    means = ((total + smoothing * prior) / (n_rows + smoothing)).tolist()
    missing = means[-1] if n_missing >= min_count else prior
    return Values(dict(zip(kept, means[:-1], strict=True)), unknown=prior, missing=missing)
