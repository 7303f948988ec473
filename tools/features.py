"""Offline feature values of a laptop: a team's files, read anew whenever they change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from state.errors import InputError, ToolRejected, ToolUnavailable
from state.spec import ModelSpec, OfflineFiles
from tools.coerce import coerce
from tools.intake import entity_of, find_time_reading
from tools.ports import FeatureView
from tools.sources import SourceFile, column_names, list_sources, read_batches, require_columns
from tools.times import parse_times


class FileFeatures:
    """The port over the files that specs name under `offline`. They hold values and no releases."""

    def __init__(self, specs: Mapping[str, ModelSpec], base_path: Path) -> None:
        """Relative paths of the specs start from `base_path`."""
        self._specs, self._base_path = dict(specs), base_path
        self._read: dict[str, tuple[dict[str, str], pl.DataFrame]] = {}

    def offline(self, model: str, keys: pl.DataFrame) -> pl.DataFrame:
        spec = self._specs.get(model)
        if spec is None or spec.offline is None:
            return keys.select("request_id").clear()
        try:
            sources = list_sources((self._base_path / spec.offline.path).resolve())
            files = {source.name: source.sha256 for source in sources}
            if model not in self._read or self._read[model][0] != files:
                self._read[model] = files, _values(spec, spec.offline, sources)
        except InputError as exc:
            raise ToolUnavailable(f"{model}: the offline values cannot be read: {exc}") from exc
        # Two rows of one entity and time say nothing about which of them was served.
        known = self._read[model][1].unique(["entity", "event_time"], keep="none")
        found = keys.join(known, on=["entity", "event_time"], how="inner", maintain_order="left")
        return found.select("request_id", pl.exclude("request_id", "entity", "event_time"))

    def read(self, model: str) -> FeatureView | None:  # noqa: ARG002 - the port's signature
        return None

    def rollback(self, *, model: str, revision: str, key: str) -> FeatureView:  # noqa: ARG002 - the port's signature
        raise ToolRejected(f"{model}: files of offline values have no revision {revision} to return to")

    def find(self, key: str) -> FeatureView | None:  # noqa: ARG002 - the port's signature
        return None


def check_offline(spec: ModelSpec, base_path: Path) -> None:
    """Whether the files under `offline` can be read; does nothing where the spec names none.

    Raises:
        InputError: no file, no column of the key, or no feature in it.
    """
    if spec.offline is None:
        return
    sources = list_sources((base_path / spec.offline.path).resolve())
    _columns(spec, spec.offline, sources)
    find_time_reading(sources, _time(spec, spec.offline), "offline.time")


def _values(spec: ModelSpec, offline: OfflineFiles, sources: list[SourceFile]) -> pl.DataFrame:
    """`entity, event_time` and the features that the files have, rows without a readable time left out."""
    names, time = _columns(spec, offline, sources), _time(spec, offline)
    reading = find_time_reading(sources, time, "offline.time")
    types = {feature.name: feature.type for feature in spec.features if feature.name in names}
    frames = [
        pl.DataFrame([
            entity_of(batch.rows, spec.data.entity),
            parse_times(batch.rows[time], reading).alias("event_time"),
            *(coerce(batch.rows[n], t, decimal_comma=source.decimal_comma).values.alias(n) for n, t in types.items()),
        ])
        for source in sources
        for batch in read_batches(source, names)
    ]  # fmt: skip
    return pl.concat(frames).drop_nulls(["entity", "event_time"])


def _columns(spec: ModelSpec, offline: OfflineFiles, sources: list[SourceFile]) -> list[str]:
    """The key's columns and the features that every file has."""
    key = [("offline.time", _time(spec, offline))]
    key += [(f"data.entity[{index}]", name) for index, name in enumerate(spec.data.entity)]
    for source in sources:
        require_columns(source, key)
    present = set.intersection(*(set(column_names(source)) for source in sources))
    features = [name for name in spec.feature_names() if name in present]
    if not features:
        raise InputError(
            f"{sources[0].path} holds none of the features {', '.join(spec.feature_names())}",
            remedy="Name the file with the values that training reads under offline.path, or leave `offline` out",
        )
    return [*dict.fromkeys([name for _, name in key]), *features]


def _time(spec: ModelSpec, offline: OfflineFiles) -> str:
    return offline.time or spec.data.time
