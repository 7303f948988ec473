"""Model specs from YAML files, with errors that name the file, the line, the field, its value and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from state.canonical import sha256_hex
from state.errors import InputError
from state.spec import ModelSpec
from tools.datastore import RESERVED_COLUMNS
from tools.yaml_documents import Document, Kind, read_document

_SPEC = Kind(name="model spec", first_line="model: <name>", written_by="steady init FILE")
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
    """Parts that are valid and not served yet, in plain sentences."""


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


def _notes(spec: ModelSpec) -> Iterator[str]:
    for part, kinds in _NOT_YET.items():
        kind = getattr(spec, part).kind
        if kind in kinds:
            yield f"{part}.kind {kind}: {kinds[kind]}"
