from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue

from evals.world.platform import build
from state.errors import ToolRejected
from tests.contract.support import MODEL, Side, new_world, served_package
from tools.ports import PipelineRequest, Registry
from tools.registry import MlflowModels
from tools.tracking import TrackedRun, Tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    side: Side[Registry]
    train: Callable[[str], str]
    """Track a trained package under a key; the MLflow run id."""


def world_store(folder: Path) -> Store:
    world = new_world(folder)
    spec, end = world.specs[MODEL].model_dump_json(), world.clock.now().isoformat()

    def train(key: str) -> str:
        pipelines = build(world).pipelines
        parameters: dict[str, JsonValue] = {"spec": spec, "end": end, "as_of": end, "seed": 0}
        pipelines.submit(PipelineRequest(pipeline="train", model=MODEL, parameters=parameters), key=key)
        run = pipelines.find(key)
        assert run is not None
        return str(run.outputs["mlflow_run_id"])

    return Store(side=Side(open=lambda: build(world).registry), train=train)


def laptop_store(folder: Path, empty: Path) -> Store:
    (folder / "root" / "mlflow").mkdir(parents=True)
    shutil.copy(empty / "mlflow" / "mlflow.db", folder / "root" / "mlflow" / "mlflow.db")
    package = served_package(folder / "trained")

    def train(key: str) -> str:
        outputs: dict[str, JsonValue] = {"metrics": {"roc_auc": 0.75}, "gates": []}
        tracked = TrackedRun(model=MODEL, key=key, params={"seed": "0"}, outputs=outputs, package=package)
        return Tracking.embedded(folder / "root").track(tracked)

    return Store(side=Side(open=lambda: MlflowModels.open(folder / "root")), train=train)


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose MLflow has its tables and nothing in them: making them takes seconds."""
    root = tmp_path_factory.mktemp("mlflow")
    assert list(MlflowModels.open(root).versions(MODEL)) == []
    return root


@pytest.fixture(params=["world", pytest.param("laptop", marks=pytest.mark.xdist_group("mlflow"))])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "world":
        return world_store(tmp_path)
    return laptop_store(tmp_path, request.getfixturevalue("empty_mlflow"))


def register(store: Store, key: str) -> str:
    run_id = store.train(f"train-{key}")
    return store.side.open().register(model=MODEL, mlflow_run_id=run_id, tags={"why": key}, key=key).version


def test_a_version_is_registered_once_per_key_and_found_by_a_new_process(store: Store) -> None:
    run_id = store.train("t")
    first, again = (
        store.side.open().register(model=MODEL, mlflow_run_id=run_id, tags={"why": "drift"}, key="k") for _ in range(2)
    )
    found = store.side.open().find("k")

    assert first == again == found
    assert [version.version for version in store.side.open().versions(MODEL)] == ["1"]
    assert (first.model, first.key, first.mlflow_run_id, first.aliases) == (MODEL, "k", run_id, ())
    assert {"why": "drift", "steadyhand.key": "k"}.items() <= dict(first.tags).items()


def test_different_keys_are_different_versions_oldest_first(store: Store) -> None:
    assert [register(store, key) for key in ("k1", "k2")] == ["1", "2"]

    assert [(v.version, v.key) for v in store.side.open().versions(MODEL)] == [("1", "k1"), ("2", "k2")]


def test_what_nobody_made_is_not_found(store: Store) -> None:
    register(store, "k")
    registry = store.side.open()

    assert registry.find("other") is None
    assert registry.get(MODEL, "9") is None
    assert list(registry.versions("nobody")) == []


def test_a_run_that_was_never_tracked_is_refused(store: Store) -> None:
    store.train("t")
    with pytest.raises(ToolRejected):
        store.side.open().register(model=MODEL, mlflow_run_id="0" * 32, tags={}, key="k")

    assert list(store.side.open().versions(MODEL)) == []


def test_an_alias_moves_and_stands_at_one_version(store: Store) -> None:
    register(store, "k1")
    register(store, "k2")
    for version, key in (("1", "a1"), ("2", "a2"), ("2", "a2")):
        store.side.open().set_alias(model=MODEL, alias="champion", version=version, key=key)

    registry = store.side.open()
    assert [(v.version, v.aliases) for v in registry.versions(MODEL)] == [("1", ()), ("2", ("champion",))]
    assert [found.version if (found := registry.find(key)) else None for key in ("a1", "a2")] == [None, "2"]


def test_a_version_can_have_several_aliases_and_lose_one(store: Store) -> None:
    register(store, "k1")
    for alias in ("champion", "challenger"):
        store.side.open().set_alias(model=MODEL, alias=alias, version="1", key=alias)
    for _ in range(2):
        store.side.open().delete_alias(model=MODEL, alias="challenger", key="d")

    found = store.side.open().get(MODEL, "1")
    assert found is not None
    assert found.aliases == ("champion",)


def test_an_alias_for_a_version_that_is_not_there_is_refused(store: Store) -> None:
    register(store, "k1")
    with pytest.raises(ToolRejected):
        store.side.open().set_alias(model=MODEL, alias="champion", version="7", key="a")

    assert [v.aliases for v in store.side.open().versions(MODEL)] == [()]


def test_a_package_is_a_local_folder_whose_digests_hold(store: Store) -> None:
    register(store, "k1")
    package = store.side.open().package(MODEL, "1")

    lines = [line.split("  ") for line in (package / "SHA256SUMS").read_text().splitlines()]
    assert {"contract.json", "profile.bin"} <= {name for _, name in lines}
    assert all(hashlib.sha256((package / name).read_bytes()).hexdigest() == digest for digest, name in lines)
    with pytest.raises(ToolRejected):
        store.side.open().package(MODEL, "9")


def test_metrics_are_those_of_the_tracked_run(store: Store) -> None:
    register(store, "k1")

    metrics = store.side.open().metrics(MODEL, "1")

    assert 0.5 < metrics["roc_auc"] < 1.0
    assert all(isinstance(value, float) for value in metrics.values())
