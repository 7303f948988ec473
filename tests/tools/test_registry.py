"""Versions, aliases and packages on a real MLflow store: what is tampered with is refused, what was cut short goes on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_metric_name
from pydantic import JsonValue

from state.contract import Contract
from state.errors import ToolRejected, ToolUnavailable
from tests.tools.training_support import candidate_of, make_rows, make_spec
from tools.estimators import FittedModel, fit_model
from tools.fits import few_threads
from tools.onnx_export import export_onnx
from tools.packaging import check_package, write_package
from tools.registry import MlflowModels, register_package
from tools.tracking import TrackedRun, Tracking, _numbers, embedded_uri

pytestmark = pytest.mark.xdist_group("mlflow")

OUTPUTS: dict[str, JsonValue] = {
    "metrics": {"roc_auc": 0.81, "f1": 0.7},
    "cv": {"metric": "roc_auc", "value": 0.8, "loss": 0.2, "n_blocks": 9},
    "gates": [
        {"metric": "roc_auc", "op": ">=", "value": 0.81, "bound": 0.8, "passed": True},
        {"metric": "f1", "op": ">=", "value": 0.7, "bound": 0.75, "passed": False},
    ],
    "importance": {"amount": 0.2},
    "n_rows": 1_200,
}


@pytest.fixture(scope="module")
def model() -> FittedModel:
    spec = make_spec()
    with few_threads():
        return fit_model(make_rows(spec), candidate_of(spec), task="binary", declared=spec.features, seed=1)


@pytest.fixture
def package(model: FittedModel, tmp_path: Path) -> Path:
    return write(tmp_path / "made", model)


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose MLflow has its tables: making them takes seconds."""
    root = tmp_path_factory.mktemp("mlflow")
    assert list(MlflowModels.open(root).versions("demo")) == []
    return root


@pytest.fixture
def root(empty_root: Path, tmp_path: Path) -> Path:
    (tmp_path / "root" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_root / "mlflow" / "mlflow.db", tmp_path / "root" / "mlflow" / "mlflow.db")
    return tmp_path / "root"


def write(directory: Path, model: FittedModel, *, profile: bytes = b"profile") -> Path:
    contract = Contract(
        model="demo",
        task="binary",
        features=model.features,
        classes=("no", "yes"),
        profile_sha256=hashlib.sha256(profile).hexdigest(),
    )
    return write_package(directory, model=export_onnx(model), contract=contract, profile=profile).directory


def tracked(package: Path, key: str = "train-1") -> TrackedRun:
    return TrackedRun(model="demo", key=key, params={"candidate": "boosting"}, outputs=OUTPUTS, package=package)


def test_a_kill_while_the_store_is_made_leaves_nothing_that_stands_in_the_way(tmp_path: Path) -> None:
    code = "import sys, pathlib; from tools.tracking import Tracking; Tracking.embedded(pathlib.Path(sys.argv[1]))"
    making = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    while not any(path.stat().st_size > 50_000 for path in tmp_path.rglob("mlflow.db")):  # 400 kB when it is done
        assert making.poll() is None
    making.kill()
    making.wait()

    assert list(MlflowModels.open(tmp_path).versions("demo")) == []
    assert not list((tmp_path / "mlflow").glob(".making-*/"))


def stored_package(root: Path, run_id: str) -> Path:
    return root / "mlflow" / "artifacts" / "demo" / run_id / "artifacts" / "package"


def test_a_run_is_tracked_once_per_key_with_everything_about_it(root: Path, package: Path) -> None:
    first, again = (Tracking.embedded(root).track(tracked(package)) for _ in range(2))

    run = MlflowClient(embedded_uri(root)).get_run(first)
    assert first == again
    assert run.info.status == "FINISHED"
    assert run.data.params == {"candidate": "boosting"}
    assert {
        "roc_auc": 0.81,
        "cv_roc_auc": 0.8,
        "cv_loss": 0.2,
        "importance.amount": 0.2,
        "n_rows": 1_200.0,
    }.items() <= (run.data.metrics.items())
    assert run.data.tags["steadyhand.key"] == "train-1"
    assert run.data.tags["gate.0.roc_auc"] == "passed: 0.81 >= 0.8"
    assert run.data.tags["gate.1.f1"] == "failed: 0.7 >= 0.75"
    assert check_package(stored_package(root, first)).sha256 == check_package(package).sha256


def test_a_run_that_was_cut_short_is_resumed(root: Path, package: Path) -> None:
    tracking = Tracking.embedded(root)
    begun = tracking.client.create_run(tracking.experiment("demo"), tags={"steadyhand.key": "train-1"})
    tracking.client.log_param(begun.info.run_id, "candidate", "boosting")
    assert tracking.finished_outputs("demo", key="train-1", package=package) is None

    run_id = Tracking.embedded(root).track(tracked(package))

    assert run_id == begun.info.run_id
    assert tracking.client.get_run(run_id).info.status == "FINISHED"
    assert len(tracking.client.search_runs([tracking.experiment("demo")])) == 1


def test_outputs_and_package_of_a_finished_run_come_back(root: Path, package: Path, tmp_path: Path) -> None:
    run_id = Tracking.embedded(root).track(tracked(package))

    outputs = Tracking.embedded(root).finished_outputs("demo", key="train-1", package=tmp_path / "again")

    assert outputs == {**OUTPUTS, "mlflow_run_id": run_id}
    assert check_package(tmp_path / "again").sha256 == check_package(package).sha256


def test_mlflow_itself_can_load_what_was_tracked(root: Path, package: Path, model: FittedModel) -> None:
    run_id = Tracking.embedded(root).track(tracked(package))

    description = mlflow.models.Model.load(str(stored_package(root, run_id)))
    loaded = mlflow.onnx.load_model(str(stored_package(root, run_id)))

    width = model.encode(make_rows(make_spec())).shape[1]
    assert description.signature.inputs.inputs[0].shape == (-1, width)
    assert description.signature.inputs.inputs[0].type == np.dtype(np.float32)
    assert [put.name for put in loaded.graph.input] == ["features"]


def test_a_package_registered_by_plain_mlflow_calls_is_read_like_our_own(root: Path, package: Path) -> None:
    client = MlflowClient(embedded_uri(root))
    location = (root / "elsewhere").as_uri()
    run = client.create_run(client.create_experiment("other team", artifact_location=location))
    client.log_artifacts(run.info.run_id, str(package), "deep/package")
    client.create_registered_model("demo")
    client.create_model_version("demo", f"{run.info.artifact_uri}/deep", run_id=run.info.run_id)
    registry = MlflowModels.open(root)

    [version] = registry.versions("demo")

    assert (version.version, version.key, version.mlflow_run_id) == ("1", None, run.info.run_id)
    assert check_package(registry.package("demo", "1")).sha256 == check_package(package).sha256
    assert registry.metrics("demo", "1") == {}
    assert register_package(package, model="demo", root=root) == "2"
    assert check_package(registry.package("demo", "2")).contract.model == "demo"


def test_a_version_without_a_package_is_refused_by_name(root: Path) -> None:
    client = MlflowClient(embedded_uri(root))
    run = client.create_run(client.create_experiment("other team", artifact_location=(root / "elsewhere").as_uri()))
    client.log_text(run.info.run_id, "pickled", "model/model.pkl")
    client.create_registered_model("demo")
    for folder in ("model", "nothing"):
        client.create_model_version("demo", f"{run.info.artifact_uri}/{folder}", run_id=run.info.run_id)

    for version in ("1", "2"):
        with pytest.raises(ToolRejected):
            MlflowModels.open(root).package("demo", version)


def register(root: Path, package: Path, key: str = "register-1") -> str:
    run_id = Tracking.embedded(root).track(tracked(package))
    MlflowModels.open(root).register(model="demo", mlflow_run_id=run_id, tags={}, key=key)
    return run_id


@pytest.mark.parametrize("part", ["model.onnx", "contract.json", "profile.bin", "SHA256SUMS"])
def test_a_package_damaged_in_the_store_is_neither_registered_nor_handed_out(
    part: str, root: Path, package: Path
) -> None:
    run_id = register(root, package)
    path = stored_package(root, run_id) / part
    path.write_bytes(path.read_bytes() + b"\x00")

    with pytest.raises(ToolRejected):
        MlflowModels.open(root).package("demo", "1")
    with pytest.raises(ToolRejected):
        MlflowModels.open(root).register(model="demo", mlflow_run_id=run_id, tags={}, key="register-2")
    assert len(MlflowModels.open(root).versions("demo")) == 1


def test_a_package_replaced_whole_is_refused_although_its_sums_agree(
    root: Path, package: Path, model: FittedModel
) -> None:
    run_id = register(root, package)
    write(stored_package(root, run_id), model, profile=b"another")

    with pytest.raises(ToolRejected, match="not the one that was registered"):
        MlflowModels.open(root).package("demo", "1")
    with pytest.raises(ToolRejected, match="not the one that was tracked"):
        MlflowModels.open(root).register(model="demo", mlflow_run_id=run_id, tags={}, key="register-2")


def test_a_damaged_local_copy_is_fetched_again(root: Path, package: Path) -> None:
    register(root, package)
    copy = MlflowModels.open(root).package("demo", "1")
    (copy / "model.onnx").write_bytes(b"damaged")

    assert check_package(MlflowModels.open(root).package("demo", "1")).sha256 == check_package(package).sha256


def test_the_local_copy_serves_while_the_store_s_files_are_away(root: Path, package: Path) -> None:
    run_id = register(root, package)
    MlflowModels.open(root).package("demo", "1")
    shutil.rmtree(stored_package(root, run_id))

    assert check_package(MlflowModels.open(root).package("demo", "1")).sha256 == check_package(package).sha256


def test_an_alias_whose_second_write_was_cut_off_is_not_found_and_is_repeated(root: Path, package: Path) -> None:
    register(root, package)
    MlflowClient(embedded_uri(root)).set_registered_model_alias("demo", "champion", "1")
    registry = MlflowModels.open(root)
    assert registry.find("promote-1") is None

    registry.set_alias(model="demo", alias="champion", version="1", key="promote-1")

    found = registry.find("promote-1")
    assert found is not None
    assert (found.version, found.aliases) == ("1", ("champion",))
    assert found.tags["steadyhand.alias.champion.key"] == "promote-1"


def test_a_server_that_does_not_answer_is_a_reason_to_try_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowModels.open(tmp_path, "http://127.0.0.1:9")

    with pytest.raises(ToolUnavailable):
        registry.versions("demo")


def test_nothing_is_printed_and_nothing_phones_home(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from tools.registry import MlflowModels; from mlflow.telemetry import get_telemetry_client;"
        "MlflowModels.open(pathlib.Path(sys.argv[1])).versions('demo'); assert get_telemetry_client() is None"
    )
    done = subprocess.run(
        ["env", "-u", "PYTEST_CURRENT_TEST", "-u", "CI", sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importance_is_tracked_whatever_the_features_are_called() -> None:
    names = ["plain", "größe", "価格", "price (EUR)", "price [EUR]", "a/../b", "/x", "100%", "x" * 400]
    numbers = _numbers({"importance": {name: float(at) for at, name in enumerate(names)}})
    assert sorted(numbers.values()) == [float(at) for at in range(len(names))]
    assert "importance.größe" in numbers
    for name in numbers:
        _validate_metric_name(name)  # type: ignore[no-untyped-call]  # MLflow has no annotations here
