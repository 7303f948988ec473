"""A bad release, made for real: a very wide network fitted on shuffled labels is slow, and knows nothing.

Run as `python -m examples.flights.bad_release WORKSPACE`; it registers a version of `flights` in MLflow, as a team with
its own training script would. Nothing in the server slows it down: its size does.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml
from pydantic import JsonValue
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from state.contract import Contract, Encoder, fit_encoder
from state.profile import Profile, fit_bins, write_reference
from state.spec import ModelSpec
from tools.data import WorkspaceData, training_window
from tools.estimators import FittedModel
from tools.onnx_export import export_onnx
from tools.packaging import write_package
from tools.registry import MlflowModels
from tools.tracking import TrackedRun, Tracking
from tools.training_rows import Rows, labelled_rows

KEY = "example/flights/bad-release"
WIDTH = 5_000
"""Units of both hidden layers: 25 million weights, so one row costs milliseconds rather than microseconds."""
N_ROWS = 2_000
SEED = 20130805


def register_bad_release(home: Path, spec: ModelSpec, tracking_uri: str | None = None) -> str:
    """Train, package and register the bad release once; returns its version."""
    registry = MlflowModels.open(home, tracking_uri)
    found = registry.find(KEY)
    if found is not None:
        return found.version
    package = home / "demo" / "bad_release"
    trained_until = _write_package(home, spec, package)
    tracking = Tracking(tracking_uri) if tracking_uri else Tracking.embedded(home)
    outputs: dict[str, JsonValue] = {"trained_until": trained_until, "n_rows": N_ROWS, "metrics": {}, "gates": []}
    run_id = tracking.track(
        TrackedRun(
            model=spec.model,
            key=KEY,
            params={"estimator": "mlp", "width": str(WIDTH)},
            outputs=outputs,
            package=package,
        )
    )
    return registry.register(model=spec.model, mlflow_run_id=run_id, tags={"example": "bad release"}, key=KEY).version


def _write_package(home: Path, spec: ModelSpec, package: Path) -> str:
    last = datetime.fromisoformat(WorkspaceData(home).days(spec.model)[-1]).replace(tzinfo=UTC) + timedelta(days=1)
    frame = training_window(
        home, spec.model, start=last - timedelta(days=7), end=last, as_of=last + spec.data.label.delay, max_rows=N_ROWS
    )
    classes = list(WorkspaceData(home).classes(spec.model))
    rows = labelled_rows(frame, spec, n_classes=len(classes))
    model = _fit(rows, spec)
    bins = fit_bins({f.name: (f.type, rows.columns[f.name]) for f in spec.features})
    profile = write_reference(Profile.count(bins, rows.columns, rows.blocks.tolist()))
    contract = Contract(
        model=spec.model,
        task=spec.task,
        features=model.features,
        classes=tuple(classes) or None,
        decision_threshold=0.5,
        out_of_range="flag",
        time=spec.data.time,
        entity=tuple(spec.data.entity),
        lineage={"trained_until": frame["event_time"][-1].isoformat(), "key": KEY},
        profile_sha256=hashlib.sha256(profile).hexdigest(),
    )
    write_package(package, model=export_onnx(model), contract=contract, profile=profile)
    return str(frame["event_time"][-1].isoformat())


def _fit(rows: Rows, spec: ModelSpec) -> FittedModel:
    features = fit_encoder(rows.columns, rows.label, spec.features, task=spec.task)
    matrix = Encoder(features).encode(rows.columns)
    label = np.random.default_rng(SEED).permutation(rows.label.astype(np.int64))
    network = MLPClassifier(
        hidden_layer_sizes=(WIDTH, WIDTH), max_iter=2, tol=1.0, n_iter_no_change=1, random_state=SEED
    )
    estimator = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), network)
    with warnings.catch_warnings():
        # Two passes are enough for a model that is meant to know nothing.
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(matrix, label)
    return FittedModel(task=spec.task, n_classes=rows.n_classes, features=features, estimator=estimator)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: the workspace and the spec."""
    parser = argparse.ArgumentParser(description="Register a slow and wrong version of the flights model.")
    parser.add_argument("workspace", type=Path)
    options = parser.parse_args(arguments)
    document = yaml.safe_load(Path(__file__).with_name("flights.yaml").read_text())
    spec = ModelSpec.model_validate(document)
    print(register_bad_release(options.workspace, spec))


if __name__ == "__main__":
    main()
