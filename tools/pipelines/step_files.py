"""What pipeline steps hand to each other: rows as parquet, features and results as JSON. Never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from state.canonical import canonical_json
from state.contract import FeatureContract
from state.spec import ModelSpec
from tools.training_rows import Rows, labelled_rows

ROWS, FACTS = "rows.parquet", "facts.json"


def load_rows(rows: str, spec: ModelSpec) -> Rows:
    n_classes = len(read_json(Path(rows) / FACTS)["classes"])
    return labelled_rows(pl.read_parquet(Path(rows) / ROWS), spec, n_classes=n_classes)


def load_features(path: str) -> tuple[FeatureContract, ...]:
    return msgspec.json.decode((Path(path) / "features.json").read_bytes(), type=tuple[FeatureContract, ...])


def folder(path: str) -> Path:
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_json(path: Path, value: object) -> None:
    path.write_bytes(canonical_json(value))


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value
