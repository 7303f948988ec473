"""The simulated platform behind the ports, and the small models that scenarios start from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from evals.world.data import WorldData, WorldOutcomes
from evals.world.features import WorldFeatures
from evals.world.notify import WorldNotifier
from evals.world.pipelines import WorldPipelines
from evals.world.registry import WorldRegistry
from evals.world.serving import WorldMesh, WorldMetrics, WorldServers
from evals.world.world import World, midnight
from state.canonical import digest
from state.errors import ToolUnavailable
from state.spec import ModelSpec
from tools.ports import PipelineRequest, Platform


def build(world: World) -> Platform:
    """The ports over `world`. Another one over the same world is a control plane that started again."""
    return Platform(
        pipelines=WorldPipelines(world),
        registry=WorldRegistry(world),
        servers=WorldServers(world),
        mesh=WorldMesh(world),
        metrics=WorldMetrics(world),
        data=WorldData(world),
        outcomes=WorldOutcomes(world),
        notifier=WorldNotifier(world),
        specs=world.specs,
        features=WorldFeatures(world),
    )


def example_spec(model: str = "churn", *, label_delay_days: int = 2, **changes: Any) -> ModelSpec:
    """A binary model with three numbers, a category and a flag; `changes` replace top-level parts of the spec."""
    numeric = [{"name": name, "type": "numeric"} for name in ("tenure", "spend", "visits")]
    spec: dict[str, Any] = {
        "model": model,
        "owner": "growth",
        "task": "binary",
        "data": {
            "path": "rows.parquet",
            "time": "event_time",
            "entity": ["customer"],
            "label": {"column": "churned", "delay": timedelta(days=label_delay_days)},
        },
        "features": [*numeric, {"name": "plan", "type": "categorical"}, {"name": "mobile", "type": "boolean"}],
        "training": {"candidates": [{"name": "logistic", "estimator": "logistic_regression"}]},
        "objective": {"metric": "roc_auc", "op": ">=", "value": 0.7},
        "gates": [{"metric": "roc_auc", "op": ">=", "value": 0.65}],
    }
    spec["data"]["kind"] = "files"
    spec["training"]["kind"] = "recipe"
    return ModelSpec.model_validate({**spec, **changes})


def serve_first_version(platform: Platform, world: World, model: str) -> str:
    """Train on the history, register, serve and promote a champion as a team would have done by hand; its version.

    The effects stand in the world's ledger under keys that start with `setup`.
    """
    spec = world.specs[model]
    end = midnight(world.clock.now().date()) - spec.data.label.delay
    parameters: dict[str, Any] = {
        "spec": spec.model_dump_json(), "end": end.isoformat(), "as_of": world.clock.now().isoformat(), "seed": 0,
    }  # fmt: skip
    key = "setup" + digest([model, parameters])
    run = platform.pipelines.submit(PipelineRequest(pipeline="train", model=model, parameters=parameters), key=key)
    while run.status == "running":
        found = platform.pipelines.find(key)
        if found is None:
            raise ToolUnavailable(f"{model}: the first training run is gone")
        run = found
    if run.status == "failed":
        raise ToolUnavailable(f"{model}: the first training run failed: {run.error}")
    mlflow_run_id = str(run.outputs["mlflow_run_id"])
    version = platform.registry.register(model=model, mlflow_run_id=mlflow_run_id, tags={}, key=key).version
    package = platform.registry.package(model, version)
    platform.mesh.stage(
        endpoint=platform.servers.start(model=model, version=version, package=package, key=key), key=key
    )
    platform.registry.set_alias(model=model, alias="champion", version=version, key=key)
    return version
