"""The pipelines' steps on data: ingest, validate, engineer features, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from state.clock import utc
from state.contract import fit_encoder
from state.errors import InputError
from state.spec import ModelSpec
from tools.data import training_window
from tools.datastore import require_manifest
from tools.evaluation import Scored, check_gates, measure
from tools.pipelines.step_files import FACTS, ROWS, folder, load_rows, read_json, write_json
from tools.training_rows import check_frame, frame_sha256, labelled_rows, recipe_of


def ingest_rows(
    *, root: str, spec: str, start: str, end: str, as_of: str, excluded_days: Sequence[str], out: str
) -> None:
    """`rows.parquet` and `facts.json` (`n_rows`, `data_sha256`, `trained_from`, `trained_until`, `classes`).

    Raises:
        InputError: a feature that was not imported, or no labelled row.
    """
    model = ModelSpec.model_validate_json(spec)
    manifest = require_manifest(Path(root), model.model)
    absent = sorted(set(model.feature_names()) - set(manifest.features))
    if absent:
        raise InputError(f"{model.model}: feature {', '.join(absent)} was not imported", remedy="Import the data again")
    frame = training_window(
        Path(root),
        model.model,
        start=_window_start(model, start, end, as_of),
        end=utc(datetime.fromisoformat(end)) if end else None,
        as_of=utc(datetime.fromisoformat(as_of)),
        excluded_days=list(excluded_days),
        columns=model.feature_names(),
        max_rows=recipe_of(model).max_rows,
        block=model.monitoring.block,
    )
    classes = list(manifest.classes) if model.task != "regression" else []
    labelled_rows(frame, model, n_classes=len(classes))  # refuses an empty window before anything is written
    times = frame["event_time"]
    facts = {
        "classes": classes,
        "data_sha256": frame_sha256(frame),
        "n_rows": len(frame),
        "trained_from": times[0].isoformat(),
        "trained_until": times[-1].isoformat(),
    }
    directory = folder(out)
    frame.write_parquet(directory / ROWS)
    write_json(directory / FACTS, facts)


def validate_rows(*, spec: str, rows: str, out: str) -> None:
    """`report.json`: counts by what was checked.

    Raises:
        InputError: rows that no model should be fitted on.
    """
    model, facts = ModelSpec.model_validate_json(spec), read_json(Path(rows) / FACTS)
    frame = pl.read_parquet(Path(rows) / ROWS)
    write_json(folder(out) / "report.json", check_frame(frame, model, n_classes=len(facts["classes"])))


def engineer_features(*, spec: str, rows: str, report: str, out: str) -> None:
    """`features.json`: the encoding of every feature, fitted on all rows."""
    model = ModelSpec.model_validate_json(spec)
    checked = read_json(Path(report) / "report.json")
    data = load_rows(rows, model)
    if len(data) != checked["n_rows"]:
        raise InputError(
            f"{model.model}: {checked['n_rows']} rows were validated and {len(data)} are to be encoded",
            remedy="Run the pipeline again",
        )
    fitted = fit_encoder(data.columns, data.label, model.features, task=model.task)
    folder(out).joinpath("features.json").write_bytes(msgspec.json.encode(fitted))


def evaluate_gates(*, spec: str, model: str, out: str) -> None:
    """`evaluation.json`: metrics and gates of the holdout; a failing gate is no error."""
    declared = ModelSpec.model_validate_json(spec)
    with np.load(Path(model) / "holdout.npz") as arrays:
        held = Scored(label=arrays["label"], score=arrays["score"], blocks=arrays["blocks"])
    metrics = measure(held, declared)
    write_json(
        folder(out) / "evaluation.json",
        {
            "metrics": metrics,
            "gates": [asdict(gate) for gate in check_gates(metrics, declared.gates)],
            "holdout_rows": len(held.label),
        },
    )


def _window_start(spec: ModelSpec, start: str, end: str, as_of: str) -> datetime | None:
    """`start` where it is given, else the recipe's window before the end."""
    if start:
        return utc(datetime.fromisoformat(start))
    window = recipe_of(spec).window
    return utc(datetime.fromisoformat(end or as_of)) - window if window is not None else None
