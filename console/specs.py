"""Model specs from YAML files, with errors that name the file, the line, the field, its value and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from state.canonical import sha256_hex
from state.errors import InputError
from state.spec import ModelSpec
from tools.datastore import RESERVED_COLUMNS
from tools.yaml_documents import Document, Kind, read_document

_SPEC = Kind(name="model spec", first_line="model: <name>", written_by="steady init FILE")
STEP, CRITICAL_STEP = 50, 25
"""Percentage points of `step-size` and `step-size-critical` in `policies/rollout.cedar`."""
_NOT_YET = {
    "data": {"query": "rows from a SQL query are not read yet; export them to parquet files (data.kind: files)"},
    "training": {
        "command": "a training command is not run yet; the model is watched and advised upon (training.kind: recipe)",
        "pipeline": "an own pipeline is not run yet; the model is watched and advised upon (training.kind: recipe)",
    },
    "serving": {"endpoint": "an own endpoint is not called yet; the model is not served (serving.kind: managed)"},
    "delivery": {"git": "changes are not delivered as pull requests yet (delivery.kind: direct)"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSpec:
    spec: ModelSpec
    path: Path
    base_path: Path
    """Folder that the spec's relative paths start from."""
    sha256: str
    """Digest of the file's bytes."""
    notes: tuple[str, ...]
    """What is valid and does not work as written: parts that are not served yet, steps that policy denies."""


def load_spec(path: Path) -> LoadedSpec:
    """The model spec in the YAML file `path`.

    Raises:
        InputError: not a readable spec; every fault is named with line, field, value and remedy.
    """
    document = read_document(path, ModelSpec, _SPEC)
    _refuse_reserved(path, document)
    return LoadedSpec(
        spec=document.value,
        path=path,
        base_path=path.resolve().parent,
        sha256=sha256_hex(document.content),
        notes=tuple(_notes(document.value)),
    )


def _refuse_reserved(path: Path, document: Document[ModelSpec]) -> None:
    spec = document.value
    for index, feature in enumerate(spec.features):
        where = f"{path}:{document.line('features', index, 'name')}: features[{index}].name is {feature.name!r}"
        if feature.name in RESERVED_COLUMNS:
            raise InputError(
                f"{where}, a column of every stored row",
                remedy=f"Rename that column in the data; reserved are {', '.join(RESERVED_COLUMNS)}",
            )
        if feature.name == spec.data.time:
            raise InputError(
                f"{where}, the event time", remedy="Derive a number from it, such as the hour, in the data"
            )


def _step_notes(spec: ModelSpec) -> Iterator[str]:
    """Steps that the shipped policy denies: the rollout would wait at the one before for ever."""
    largest = CRITICAL_STEP if spec.tier == "critical" else STEP
    shares = [0, *spec.rollout.steps, spec.rollout.ab_test.percent]
    for before, after in pairwise(shares):
        if after - before > largest:
            yield (
                f"rollout: from {before} to {after} % is more than the {largest} points that the shipped policy allows in one "
                f"step on a model of tier {spec.tier}; add a step to rollout.steps, or the rollout waits there"
            )


def _notes(spec: ModelSpec) -> Iterator[str]:
    yield from _step_notes(spec)
    for part, kinds in _NOT_YET.items():
        kind = getattr(spec, part).kind
        if kind in kinds:
            yield f"{part}.kind {kind}: {kinds[kind]}"
