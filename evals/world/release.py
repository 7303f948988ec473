"""A version that a team trains and registers by hand, without the crew."""

from __future__ import annotations

from datetime import datetime

from pydantic import JsonValue

from evals.world.pipelines import WorldPipelines
from evals.world.registry import WorldRegistry
from evals.world.world import World
from state.canonical import digest
from state.errors import ToolUnavailable
from tools.ports import PipelineRequest

SETUP = "setup"
"""How keys of effects begin that no control plane made."""


def train_by_hand(
    world: World, model: str, *, end: datetime, start: datetime | None = None, shuffled: bool = False
) -> str:  # fmt: skip
    """Train on labelled rows before `end`, from `start` on or as the recipe has it, and register; return the version. Faults
    of the platform do not hit it, and its export is the team's own.

    Raises:
        ToolUnavailable: the rows allow no training.
    """
    spec = world.specs[model]
    parameters: dict[str, JsonValue] = {
        "spec": spec.model_dump_json(), "end": end.isoformat(), "as_of": world.clock.now().isoformat(), "seed": 0,
    }  # fmt: skip
    if start is not None:
        parameters["start"] = start.isoformat()
    key = SETUP + digest([model, parameters, shuffled])
    in_force, world.faults.active = world.faults.active, []
    state = world.model(model)
    difference, state.export_difference = state.export_difference, 0.0
    try:
        pipelines = WorldPipelines(world)
        pipelines.submit(PipelineRequest(pipeline="train", model=model, parameters=parameters), key=key)
        world.state.runs[key].shuffled = shuffled
        run = pipelines.find(key)
        if run is None or run.status != "succeeded":
            raise ToolUnavailable(f"{model}: training by hand failed: {run.error if run else 'no run'}")
        registry = WorldRegistry(world)
        return registry.register(model=model, mlflow_run_id=str(run.outputs["mlflow_run_id"]), tags={}, key=key).version
    finally:
        world.faults.active, state.export_difference = in_force, difference
