"""Model packages of the simulated world: everything of a real one that the crew reads, without ONNX."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl

from state.clock import utc
from state.contract import Contract, fit_encoder
from state.encoding import Column
from state.errors import ToolRejected
from state.profile import Profile, fit_bins, write_reference
from state.spec import ManagedServing, ModelSpec

MODEL_FILE = "model.json"


def write_package(folder: Path, *, spec: ModelSpec, model: bytes, rows: pl.DataFrame, lineage: dict[str, str]) -> Path:
    """Write the package into `folder` as a whole, in the place of one that is there."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    profile = _profile(spec, rows)
    contract = replace(_contract(spec, rows, lineage), profile_sha256=hashlib.sha256(profile).hexdigest())
    files = {MODEL_FILE: model, "contract.json": contract.to_json(), "profile.bin": profile}
    for name, data in files.items():
        (temporary / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    (temporary / "SHA256SUMS").write_text(sums)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def verified(folder: Path) -> Path:
    """`folder`, if every file in it has the digest that SHA256SUMS states.

    Raises:
        ToolRejected: a file is missing or was changed.
    """
    try:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, name = line.split("  ", 1)
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ToolRejected(f"{folder}: {name} does not have the digest in SHA256SUMS")
    except OSError as exc:
        raise ToolRejected(f"{folder}: not a whole model package: {exc}") from exc
    return folder


def model_bytes(folder: Path) -> bytes:
    """The model file of a package.

    Raises:
        ToolRejected: not a whole package.
    """
    return (verified(folder) / MODEL_FILE).read_bytes()


def package_sha256(folder: Path) -> str:
    """Digest of SHA256SUMS, and so of the whole package."""
    return hashlib.sha256((verified(folder) / "SHA256SUMS").read_bytes()).hexdigest()


def trained_until(folder: Path) -> datetime:
    """Event time of the newest row that the package's model was fitted on."""
    lineage = Contract.from_json((verified(folder) / "contract.json").read_bytes()).lineage
    return utc(datetime.fromisoformat(str(lineage["trained_until"])))


def _profile(spec: ModelSpec, rows: pl.DataFrame) -> bytes:
    columns = {feature.name: _values(rows[feature.name]) for feature in spec.features}
    bins = fit_bins(
        {feature.name: (feature.type, columns[feature.name]) for feature in spec.features},
        bounds={feature.name: (feature.low, feature.high) for feature in spec.features},
    )
    days = rows["event_time"].dt.strftime("%Y-%m-%d").to_list()
    return write_reference(Profile.count(bins, columns, days))


def _values(series: pl.Series) -> Column:
    return series.fill_null(math.nan).to_numpy() if series.dtype.is_float() else series.to_list()


def _classes(spec: ModelSpec, label: pl.Series) -> tuple[str, ...] | None:
    """The indices of the classes that the rows hold, as names."""
    if spec.task == "regression":
        return None
    n_classes = 2 if spec.task == "binary" else max(2, int(label.cast(pl.Int64).max() or 0) + 1)  # type: ignore[arg-type]
    return tuple(str(index) for index in range(n_classes))


def _contract(spec: ModelSpec, rows: pl.DataFrame, lineage: dict[str, str]) -> Contract:
    columns = {feature.name: _values(rows[feature.name]) for feature in spec.features}
    label = rows["label"].to_numpy()
    return Contract(
        model=spec.model,
        task=spec.task,
        classes=_classes(spec, rows["label"]),
        features=fit_encoder(columns, label, spec.features, task=spec.task),
        decision_threshold=spec.serving.decision_threshold if isinstance(spec.serving, ManagedServing) else 0.5,
        time=spec.data.time,
        entity=tuple(spec.data.entity),
        lineage=dict(lineage),
    )
