"""MLflow tracking: one run per ledger key, found again by its tag. Embedded by default; no server is ever started."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from state.contract import Encoder
from state.errors import ToolRejected, ToolUnavailable
from tools.packaging import check_package

# MLflow reads this at import and has no other switch: without it a process on a laptop reports to its vendor.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow.artifacts import download_artifacts
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking import MlflowClient
    from mlflow.types import Schema, TensorSpec

import numpy as np

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)

KEY_TAG = "steadyhand.key"
PACKAGE_TAG = "steadyhand.package_sha256"
PACKAGE = "package"
OUTPUTS = "outputs.json"
_TRANSIENT = frozenset({"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "INTERNAL_ERROR"})


def embedded_uri(root: Path) -> str:
    """Tracking URI of the MLflow that lives in workspace `root`.

    Raises:
        ToolRejected: its database is damaged; restore it from a backup.
    """
    database = (root / "mlflow" / "mlflow.db").absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    if database.exists():
        _refuse_damaged(database)
    return f"sqlite:///{database}"


def _make(database: Path, artifacts: Path) -> None:
    """Make the database in one step: MLflow takes seconds for its tables, and half of them no later start repairs."""
    if database.exists():
        return
    with (database.parent / ".making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if database.exists():
            return
        for left in database.parent.glob(".making-*/"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=database.parent) as folder:
            fresh = Path(folder) / database.name
            with mlflow_errors(str(database)):
                store = SqlAlchemyStore(f"sqlite:///{fresh}", str(artifacts))  # type: ignore[no-untyped-call]
            store.engine.dispose()
            fresh.rename(database)


def _refuse_damaged(database: Path) -> None:
    """MLflow itself would end with an error of its own database library."""
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.DatabaseError as exc:
            if exc.sqlite_errorname in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
                raise ToolRejected(f"{database}: {exc}: restore it from a backup") from exc


@contextmanager
def mlflow_errors(target: str) -> Iterator[None]:
    """Translate MLflow's errors about `target`, and keep its warnings out of our output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except MlflowException as exc:
            message = f"mlflow, {target}: {str(exc).strip().splitlines()[0][:500]}"
            if exc.error_code in _TRANSIENT:
                raise ToolUnavailable(message) from exc
            raise ToolRejected(message) from exc
        except OSError as exc:
            raise ToolUnavailable(f"mlflow, {target}: {exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What is tracked of one training."""

    model: str
    key: str
    params: Mapping[str, str]
    outputs: Mapping[str, JsonValue]
    """Outputs of the pipeline: `metrics`, `cv`, `gates` and `importance` are also logged one by one."""
    package: Path


class Tracking:
    """Runs of one tracking store."""

    def __init__(self, uri: str, *, artifacts: Path | None = None) -> None:
        """`artifacts` is where a store without an artifact root of its own keeps files."""
        self.uri = uri
        self._artifacts = artifacts
        with mlflow_errors(uri):
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @classmethod
    def embedded(cls, root: Path) -> Tracking:
        """The store in workspace `root`: SQLite and a folder; made where there is none."""
        uri, artifacts = embedded_uri(root), root.absolute() / "mlflow" / "artifacts"
        _make(root.absolute() / "mlflow" / "mlflow.db", artifacts)
        return cls(uri, artifacts=artifacts)

    def finished_outputs(self, model: str, *, key: str, package: Path) -> dict[str, Any] | None:
        """Outputs of the run that `key` finished, its package copied to `package`; None where there is none.

        Raises:
            ToolUnavailable: MLflow gives no answer.
            ToolRejected: the tracked package is damaged.
        """
        run = self._find(model, key)
        if run is None or run.info.status != "FINISHED":
            return None
        with mlflow_errors(f"run {run.info.run_id}"), tempfile.TemporaryDirectory() as folder:
            path = download_artifacts(
                run_id=run.info.run_id, artifact_path=OUTPUTS, dst_path=folder, tracking_uri=self.uri
            )
            outputs: dict[str, Any] = json.loads(Path(path).read_bytes())
            fetched = self.fetch(f"{run.info.artifact_uri}/{PACKAGE}", Path(folder) / "fetched")
            shutil.rmtree(package, ignore_errors=True)
            shutil.copytree(fetched, package)
        check_package(package)
        return {**outputs, "mlflow_run_id": run.info.run_id}

    def track(self, tracked: TrackedRun) -> str:
        """Track the training under its key, resuming a run that was cut short; returns the MLflow run id.

        Raises:
            ToolUnavailable: MLflow gives no answer; repeating resumes the run.
        """
        with mlflow_errors(f"experiment {tracked.model}"):
            run = self._find(tracked.model, tracked.key)
            if run is None:
                tags = {KEY_TAG: tracked.key, PACKAGE_TAG: check_package(tracked.package).sha256}
                run = self.client.create_run(self.experiment(tracked.model), tags=tags, run_name=tracked.key[:12])
            run_id: str = run.info.run_id
            if run.info.status != "FINISHED":
                self._fill(run_id, tracked)
                # Last: a finished run is complete.
                self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def fetch(self, uri: str, directory: Path) -> Path:
        """A local copy of the folder of artifacts at `uri`, below `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        with mlflow_errors(uri):
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(directory), tracking_uri=self.uri))

    def _fill(self, run_id: str, tracked: TrackedRun) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in _numbers(tracked.outputs).items()]
        params = [Param(name, value[:5_000]) for name, value in tracked.params.items()]
        tags = [RunTag(name, value) for name, value in _gate_tags(tracked.outputs).items()]
        for start in range(0, max(len(metrics), len(params), len(tags)), 100):
            part = slice(start, start + 100)
            self.client.log_batch(run_id, metrics=metrics[part], params=params[part], tags=tags[part])
        with tempfile.TemporaryDirectory() as folder:
            staged = Path(folder) / PACKAGE
            shutil.copytree(tracked.package, staged)
            write_mlmodel(staged, run_id=run_id)
            self.client.log_artifacts(run_id, str(staged), PACKAGE)
            outputs = Path(folder) / OUTPUTS
            outputs.write_text(json.dumps(dict(tracked.outputs), sort_keys=True))
            self.client.log_artifact(run_id, str(outputs))

    def _find(self, model: str, key: str) -> Any:
        with mlflow_errors(f"experiment {model}"):
            experiment = self.client.get_experiment_by_name(model)
            if experiment is None:
                return None
            found = self.client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0] if found else None

    def experiment(self, model: str) -> str:
        experiment = self.client.get_experiment_by_name(model)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = (self._artifacts / model).as_uri() if self._artifacts is not None else None
        try:
            return str(self.client.create_experiment(model, artifact_location=location))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.experiment(model)  # another process was faster


def write_mlmodel(package: Path, *, run_id: str | None = None) -> None:
    """Add MLflow's own description, so that its tools can load the package as an ONNX model."""
    contract = check_package(package).contract
    regression = contract.task == "regression"
    n_outputs = 1 if regression else len(contract.classes or ())
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, Encoder(contract.features).width), "features")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, n_outputs), "value" if regression else "probabilities")]),
    )
    model = Model(run_id=run_id, artifact_path=PACKAGE, signature=signature)
    model.add_flavor("onnx", onnx_version="", data="model.onnx", providers=["CPUExecutionProvider"], code=None)
    model.save(str(package / "MLmodel"))


def _numbers(outputs: Mapping[str, Any]) -> dict[str, float]:
    cv = outputs.get("cv", {})
    numbers = {
        **outputs.get("metrics", {}),
        **{
            f"importance.{_tracked_name(name, at)}": value
            for at, (name, value) in enumerate(outputs.get("importance", {}).items())
        },
        **({f"cv_{cv['metric']}": cv["value"], "cv_loss": cv["loss"]} if cv else {}),
        **{name: outputs[name] for name in ("n_rows", "holdout_rows", "onnx_parity_error") if name in outputs},
    }
    return {name: float(value) for name, value in numbers.items()}


def _tracked_name(feature: str, at: int) -> str:
    """The feature's name where MLflow takes it as a key, else what it takes of it and the feature's place."""
    kept = re.sub(r"[^\w\-. :]", "_", feature)[:200]
    return feature if kept == feature else f"{kept}.{at}"


def _gate_tags(outputs: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"gate.{index}.{gate['metric']}": f"{'passed' if gate['passed'] else 'failed'}: "
        f"{gate['value']} {gate['op']} {gate['bound']}"
        for index, gate in enumerate(outputs.get("gates", []))
    }
