"""Dumb policies in the place of the crew: a suite that one of them passes measures nothing.

Each acts once a day, straight on the ports of the world, and is graded by the gates that look at the world alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from pydantic import JsonValue

from evals.graders import Gate, grade_world
from evals.scenario import Scenario
from evals.scene import Scene
from evals.stage import Stage, set_stage
from evals.twins import Twin
from evals.view import View
from evals.world.platform import build, serve_first_version
from state.canonical import digest
from state.errors import SteadyError
from tools.ports import PipelineRequest, Platform

Act: TypeAlias = Callable[[Scene, Platform, str, int], None]


def do_nothing(scene: Scene, platform: Platform, model: str, day: int) -> None:
    """Never acts."""


def always_retrain(scene: Scene, platform: Platform, model: str, day: int) -> None:
    """Every fifth day a new version takes all traffic, whatever anything says."""
    if day % 5 == 4:
        _replace(scene, platform, model, day)


def always_roll_back(scene: Scene, platform: Platform, model: str, day: int) -> None:
    """Every day all traffic goes to the oldest version in the route."""
    route = platform.mesh.read(model)
    if route is not None:
        oldest = min(route.weights, key=int)
        key = _key("roll-back", model, day)
        platform.mesh.set_weights(model=model, weights={v: 100 * (v == oldest) for v in route.weights}, key=key)
        platform.registry.set_alias(model=model, alias="champion", version=oldest, key=key)


def always_ask(scene: Scene, platform: Platform, model: str, day: int) -> None:
    """Every day a person is asked what to do."""
    platform.notifier.send(title=f"{model}: what now?", text=f"day {day}", key=_key("ask", model, day))


def at_random(scene: Scene, platform: Platform, model: str, day: int) -> None:
    """Every day one of the others, or a quarantine, by lot."""
    lot = random.Random(f"{scene.seed}/{model}/{day}").randrange(8)  # noqa: S311  # a baseline, not a secret
    if lot == 0:
        _replace(scene, platform, model, day)
    elif lot == 1:
        always_roll_back(scene, platform, model, day)
    elif lot == 2:
        always_ask(scene, platform, model, day)
    elif lot == 3:
        today = scene.date_of(day).isoformat()
        platform.outcomes.quarantine(model, [today], reason="by lot", key=_key("quarantine", model, day))


BASELINES: Mapping[str, Act] = {
    "do-nothing": do_nothing,
    "always-retrain": always_retrain,
    "always-roll-back": always_roll_back,
    "always-ask": always_ask,
    "random": at_random,
}


def play_baseline(name: str, scenario: Scenario, *, seed: int, folder: Path) -> list[Gate]:
    """The gates of a dumb policy on the scenario, its twin included."""
    stage, unmet = _play(name, scenario, seed=seed, folder=folder / "run", twin=False)
    if not scenario.twin:
        return grade_world(stage.scene, unmet, twin=None)
    healthy = _play(name, scenario, seed=seed, folder=folder / "twin", twin=True)[0].scene
    return grade_world(stage.scene, unmet, twin=Twin.of(healthy))


def _play(name: str, scenario: Scenario, *, seed: int, folder: Path, twin: bool) -> tuple[Stage, list[list[str]]]:
    stage = set_stage(scenario, seed=seed, folder=folder, twin=twin)
    scene, platform = stage.scene, build(stage.scene.world)
    for model in scene.models:
        serve_first_version(platform, scene.world, model)
    unmet = []
    for day in range(scenario.days):
        stage.happenings.morning(scene, day)
        scene.world.advance()
        for model in scene.models:
            try:
                BASELINES[name](scene, platform, model, day)
            except SteadyError:
                continue  # a call failed: a dumb policy does not try again
        unmet.append(View.of(scene).unmet(scenario.wanted))
    scene.crew.db.close()
    return stage, unmet


def _replace(scene: Scene, platform: Platform, model: str, day: int) -> None:
    spec = scene.world.specs[model]
    key = _key("retrain", model, day)
    now = scene.world.clock.now().isoformat()
    parameters: dict[str, JsonValue] = {"spec": spec.model_dump_json(), "end": now, "as_of": now, "seed": 0}
    platform.pipelines.submit(PipelineRequest(pipeline="train", model=model, parameters=parameters), key=key)
    run = platform.pipelines.find(key)
    if run is None or run.status != "succeeded":
        return
    mlflow_run_id = str(run.outputs["mlflow_run_id"])
    version = platform.registry.register(model=model, mlflow_run_id=mlflow_run_id, tags={}, key=key).version
    package = platform.registry.package(model, version)
    endpoint = platform.servers.start(model=model, version=version, package=package, key=key)
    route = platform.mesh.stage(endpoint=endpoint, key=key)
    weights = {v: 100 * (v == version) for v in route.weights}
    platform.mesh.set_weights(model=model, weights=weights, key=_key("shift", model, day))
    platform.registry.set_alias(model=model, alias="champion", version=version, key=key)


def _key(what: str, model: str, day: int) -> str:
    return digest(["baseline", what, model, day])
