"""The pipeline's last step: the model package, tracked in MLflow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from state.bins import fit_bins
from state.contract import Contract
from state.profile import Profile, write_reference
from state.spec import ManagedServing, ModelSpec
from tools.evaluation import decision_threshold
from tools.onnx_session import OPSET
from tools.packaging import write_package
from tools.pipelines.step_files import FACTS, load_features, load_rows, read_json
from tools.tracking import TrackedRun, Tracking
from tools.training_rows import recipe_of, recipe_sha256


def package_model(
    *,
    root: str,
    spec: str,
    key: str,
    tracking_uri: str,
    rows: str,
    features: str,
    model: str,
    evaluation: str,
    out: str,
) -> str:
    """The package at `out`, tracked under `key`; the pipeline's outputs as JSON, the same ones for the same key.

    Raises:
        ToolUnavailable: MLflow gives no answer.
    """
    declared = ModelSpec.model_validate_json(spec)
    tracking = Tracking(tracking_uri) if tracking_uri else Tracking.embedded(Path(root))
    stored = tracking.finished_outputs(declared.model, key=key, package=Path(out))
    if stored is not None:
        return json.dumps({**stored, "package": out})
    facts, training = read_json(Path(rows) / FACTS), read_json(Path(model) / "training.json")
    evaluated = read_json(Path(evaluation) / "evaluation.json")
    lineage = {
        **{name: facts[name] for name in ("data_sha256", "trained_from", "trained_until")},
        "recipe_sha256": recipe_sha256(declared),
        "key": key,
    }
    package = _write_package(declared, rows=rows, features=features, model=model, lineage=lineage, out=out)
    outputs = {**_outputs(facts, training, evaluated), "package_sha256": package}
    params = _parameters(declared, facts, training)
    tracked = TrackedRun(model=declared.model, key=key, params=params, outputs=outputs, package=Path(out))
    return json.dumps({**outputs, "mlflow_run_id": tracking.track(tracked), "package": out})


def _outputs(facts: dict[str, Any], training: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: facts[name] for name in ("n_rows", "data_sha256", "trained_from", "trained_until")},
        **{name: training[name] for name in ("candidates", "chosen", "cv", "importance", "onnx_parity_error")},
        "reference_blocks": training["reference_blocks"],
        **{name: evaluated[name] for name in ("metrics", "gates", "holdout_rows")},
    }


def _write_package(spec: ModelSpec, *, rows: str, features: str, model: str, lineage: dict[str, Any], out: str) -> str:
    data, facts = load_rows(rows, spec), read_json(Path(rows) / FACTS)
    bins = fit_bins(
        {feature.name: (feature.type, data.columns[feature.name]) for feature in spec.features},
        bounds={feature.name: (feature.low, feature.high) for feature in spec.features},
    )
    profile = write_reference(Profile.count(bins, data.columns, data.blocks.tolist()))
    contract = Contract(
        model=spec.model,
        task=spec.task,
        features=load_features(features),
        classes=tuple(facts["classes"]) or None,
        decision_threshold=decision_threshold(spec),
        out_of_range=spec.serving.out_of_range if isinstance(spec.serving, ManagedServing) else "flag",
        time=spec.data.time,
        entity=tuple(spec.data.entity),
        output_prefix=spec.serving.output_prefix if isinstance(spec.serving, ManagedServing) else None,
        lineage=lineage,
        profile_sha256=hashlib.sha256(profile).hexdigest(),
        opset=OPSET,
    )
    exported = (Path(model) / "model.onnx").read_bytes()
    return write_package(Path(out), model=exported, contract=contract, profile=profile).sha256


def _parameters(spec: ModelSpec, facts: dict[str, Any], training: dict[str, Any]) -> dict[str, str]:
    named = {
        "candidate": training["chosen"],
        "estimator": training["estimator"],
        "seed": training["seed"],
        "task": spec.task,
        "objective": spec.objective.metric,
        "folds": recipe_of(spec).folds,
        "holdout": str(recipe_of(spec).holdout),
        "decision_threshold": decision_threshold(spec),
        **{name: facts[name] for name in ("n_rows", "data_sha256", "trained_from", "trained_until")},
        **{f"params.{name}": json.dumps(value) for name, value in training["params"].items()},
    }
    return {name: str(value) for name, value in named.items()}
