"""The fraud example, small: its rows imported and its recipe trained, packaged and tracked by the real steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from console.specs import load_spec
from examples.fraud.generate import START, generate
from state.spec import Candidate, ModelSpec, RecipeTraining
from tools.importer import import_files
from tools.pipelines.data_steps import engineer_features, evaluate_gates, ingest_rows, validate_rows
from tools.pipelines.package_step import package_model
from tools.pipelines.training_steps import train_candidates

SPEC = Path(__file__).resolve().parents[2] / "examples" / "fraud" / "fraud.yaml"
N_DAYS = 60


@dataclass(frozen=True)
class Packaged:
    root: Path
    spec: ModelSpec
    package: Path
    outputs: dict[str, Any]


def fraud_spec() -> ModelSpec:
    return load_spec(SPEC).spec


def recipe(spec: ModelSpec) -> RecipeTraining:
    assert isinstance(spec.training, RecipeTraining)
    return spec.training


def small(spec: ModelSpec) -> ModelSpec:
    """The same with the forest alone, of 25 trees and in two folds."""
    forest = recipe(spec).candidates[0]
    fewer = Candidate(name="forest", estimator="random_forest", params={**forest.params, "n_estimators": 25})
    training = recipe(spec).model_copy(update={"candidates": [fewer], "folds": 2})
    return spec.model_copy(update={"training": training})


def package_fraud(root: Path) -> Packaged:
    spec = small(fraud_spec())
    generate(root / "data", n_rows=5_000, n_days=N_DAYS)
    import_files(root, spec, root)
    text, until = spec.model_dump_json(), START + timedelta(days=N_DAYS + 10)
    at = {name: str(root / "steps" / name) for name in ("rows", "report", "features", "model", "evaluation", "package")}
    Path(root / "steps").mkdir()
    ingest_rows(root=str(root), spec=text, start="", end="", as_of=until.isoformat(), excluded_days=[], out=at["rows"])
    validate_rows(spec=text, rows=at["rows"], out=at["report"])
    engineer_features(spec=text, rows=at["rows"], report=at["report"], out=at["features"])
    train_candidates(spec=text, seed=recipe(spec).seed, rows=at["rows"], features=at["features"], out=at["model"])
    evaluate_gates(spec=text, model=at["model"], out=at["evaluation"])
    said = package_model(
        root=str(root), spec=text, key="fraud-1", tracking_uri="", rows=at["rows"], features=at["features"],
        model=at["model"], evaluation=at["evaluation"], out=at["package"],
    )  # fmt: skip
    return Packaged(root=root, spec=spec, package=Path(at["package"]), outputs=json.loads(said))
