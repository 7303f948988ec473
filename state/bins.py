"""Reference bins: what every profile of a model counts into, fitted on reference rows and stored with the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from state.canonical import canonical_json, sha256_hex
from state.cells import (
    FeatureBins,
    LevelBins,
    NumericBins,
    TextBins,
    boolean_bins,
    fit_feature,
    level_bins,
)
from state.columns import N_STATUSES
from state.encoding import Column, FeatureType
from state.errors import TerminalError

FORMAT = 1
_PAIRED_FEATURES = 40
"""Correlations are kept among this many features, in the order of the contract."""

_NUMERIC_FIELDS = ("transform", "low", "high", "declared_low", "declared_high", "n_grid", "decimals")
_NUMERIC_ARRAYS = ("edges", "values", "low_tail", "high_tail")


@dataclass(frozen=True, kw_only=True, eq=False)
class Bins:
    """The reference bins of all features of a model, in contract order."""

    features: tuple[FeatureBins, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each feature's statuses and cells stand in a block's vector."""
        found, at = {}, 1
        for feature in self.features:
            width = N_STATUSES + feature.n_cells
            found[feature.name] = slice(at, at + width)
            at += width
        return found

    @cached_property
    def scored(self) -> tuple[NumericBins | LevelBins, ...]:
        """Features whose correlations are kept."""
        numeric = [f for f in self.features if isinstance(f, NumericBins) or (f.type == "boolean")]
        return tuple(f for f in numeric[:_PAIRED_FEATURES] if not isinstance(f, TextBins))

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple(combinations((feature.name for feature in self.scored), 2))

    @cached_property
    def width(self) -> int:
        """Length of a block's vector."""
        return 1 + sum(N_STATUSES + feature.n_cells for feature in self.features) + len(self.pairs)

    @cached_property
    def sha256(self) -> str:
        return sha256_hex(self.to_json())

    def feature(self, name: str) -> FeatureBins:
        return self.features[self.names.index(name)]

    def to_json(self) -> bytes:
        """Canonical JSON; `from_json` gives the same bins and the same digest."""
        return canonical_json({"format": FORMAT, "features": [_feature_to_json(f) for f in self.features]})

    @classmethod
    def from_json(cls, data: bytes) -> Bins:
        """Raises TerminalError where `data` is not bins of this format."""
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise TerminalError(f"reference bins have format {document['format']}, this version reads {FORMAT}")
            return cls(features=tuple(_feature_from_json(item) for item in document["features"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise TerminalError(f"not reference bins: {exc!r}") from exc


def fit_bins(
    columns: Mapping[str, tuple[FeatureType, Column]],
    *,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
) -> Bins:
    """Reference bins from reference rows: feature name -> (type, values), in contract order.

    `bounds` are the declared `low` and `high`; rows outside them are counted apart.
    """
    declared = bounds or {}
    return Bins(
        features=tuple(
            fit_feature(name, kind, values, declared.get(name, (None, None)))
            for name, (kind, values) in columns.items()
        )
    )


def _feature_to_json(feature: FeatureBins) -> dict[str, object]:
    document: dict[str, object] = {"name": feature.name, "type": feature.type}
    if isinstance(feature, NumericBins):
        document |= {field: getattr(feature, field) for field in _NUMERIC_FIELDS}
        document |= {field: getattr(feature, field).tolist() for field in (*_NUMERIC_ARRAYS, "scores")}
    elif isinstance(feature, LevelBins) and feature.type == "categorical":
        document |= {
            "levels": list(feature.levels),
            "others": list(feature.others),
            "unseen_ratio": feature.unseen_ratio,
        }
    return document


def _feature_from_json(item: dict[str, Any]) -> FeatureBins:
    name = item["name"]
    match item["type"]:
        case "numeric":
            fields: dict[str, Any] = {field: item[field] for field in _NUMERIC_FIELDS}
            fields |= {field: np.array(item[field], dtype=np.float64) for field in _NUMERIC_ARRAYS}
            return NumericBins(name=name, **fields, scores=np.array(item["scores"], dtype=np.int64))
        case "boolean":
            return boolean_bins(name)
        case "categorical":
            return level_bins(
                name=name, levels=item["levels"], others=item["others"], unseen_ratio=item["unseen_ratio"]
            )
        case "text":
            return TextBins(name=name)
        case kind:
            raise TerminalError(f"reference bins of {name!r} have the unknown type {kind!r}")
