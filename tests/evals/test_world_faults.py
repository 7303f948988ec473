from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from pydantic import JsonValue

from evals.world.faults import Fault, Killed
from evals.world.platform import build, example_spec, serve_first_version
from evals.world.release import train_by_hand
from evals.world.truth import Truth
from evals.world.world import World
from state.errors import ToolRejected, ToolUnavailable
from tools.ports import PipelineRequest, Platform

WEIGHTS = {"1": 60, "2": 40}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A champion at 100 and a second version, staged at 0."""
    world = World(tmp_path, seed=5)
    world.add(example_spec(), Truth(rows_per_day=60, history_days=30))
    platform = build(world)
    serve_first_version(platform, world, "churn")
    package = platform.registry.package("churn", "1")
    platform.mesh.stage(
        endpoint=platform.servers.start(model="churn", version="2", package=package, key="s2"), key="s2"
    )
    return world


@pytest.fixture
def platform(world: World) -> Platform:
    return build(world)


def shift(platform: Platform, key: str = "w") -> None:
    platform.mesh.set_weights(model="churn", weights=WEIGHTS, key=key)


def submit(platform: Platform, world: World, key: str) -> None:
    end = world.clock.now().isoformat()
    spec = world.specs["churn"].model_dump_json()
    parameters: dict[str, JsonValue] = {"spec": spec, "end": end, "as_of": end, "seed": 0}
    platform.pipelines.submit(PipelineRequest(pipeline="train", model="churn", parameters=parameters), key=key)


def shifts(world: World) -> int:
    return sum(effect.method == "mesh.set_weights" for effect in world.effects)


def test_an_export_that_differs_fails_its_training_and_tracks_no_model(world: World, platform: Platform) -> None:
    world.model("churn").export_difference = 0.2
    submit(platform, world, "differs")
    run = platform.pipelines.find("differs")
    assert run is not None
    assert (run.status, run.outputs) == ("failed", {})
    assert "the ONNX export of logistic_regression differs by 0.2, more than 0.0001" in run.error
    with pytest.raises(ToolRejected):
        platform.registry.register(model="churn", mlflow_run_id="run-differs", tags={}, key="r")

    assert train_by_hand(world, "churn", end=world.clock.now()) == "2", "a team exports its own model"
    world.model("churn").export_difference = 0.0
    submit(platform, world, "sound")
    sound = platform.pipelines.find("sound")
    assert sound is not None and sound.outputs["onnx_parity_error"] == 0.0


@pytest.mark.parametrize(
    ("kind", "error", "n_effects"),
    [
        pytest.param("outage", ToolUnavailable, 0, id="outage"),
        pytest.param("rejected", ToolRejected, 0, id="rejected"),
        pytest.param("timeout", ToolUnavailable, 1, id="done-but-timed-out"),
        pytest.param("crash_before", Killed, 0, id="killed-before"),
        pytest.param("crash_after", Killed, 1, id="killed-after"),
    ],
)
def test_a_failed_call_has_the_effect_that_its_kind_says_and_a_repeat_completes_it_once(
    kind: str, error: type[BaseException], n_effects: int, world: World, platform: Platform
) -> None:
    world.faults.add(Fault(method="mesh.set_weights", kind=kind))  # type: ignore[arg-type]  # parametrised
    with pytest.raises(error):
        shift(platform)
    assert shifts(world) == n_effects

    shift(build(world))
    assert shifts(world) == 1
    route = build(world).mesh.read("churn")
    assert route is not None
    assert dict(route.weights) == WEIGHTS


@pytest.mark.parametrize("kind", ["outage", "rejected"])
def test_who_makes_a_call_that_fails_can_be_killed_after_it(
    kind: Literal["outage", "rejected"], world: World, platform: Platform
) -> None:
    world.faults.add(Fault(method="mesh.set_weights", kind=kind), Fault(method="mesh.*", kind="crash_after"))
    with pytest.raises(Killed):
        shift(platform)
    assert shifts(world) == 0


def test_killed_is_no_ordinary_exception() -> None:
    assert not issubclass(Killed, Exception)


def test_a_fault_hits_the_nth_call_only(world: World, platform: Platform) -> None:
    world.faults.add(Fault(method="mesh.read", kind="outage", nth=2))

    platform.mesh.read("churn")
    with pytest.raises(ToolUnavailable):
        platform.mesh.read("churn")
    assert platform.mesh.read("churn") is not None


def test_the_nth_effect_of_any_port_can_be_the_last_thing_that_happens(world: World, platform: Platform) -> None:
    world.faults.add(Fault(method="*", kind="crash_before", nth=2, effects_only=True))

    platform.mesh.read("churn")
    shift(platform)
    platform.metrics.sample("churn", "1")
    with pytest.raises(Killed):
        platform.registry.set_alias(model="churn", alias="challenger", version="1", key="a")
    assert world.model("churn").aliases == {"champion": "1"}


def test_a_fault_for_ever_ends_when_it_is_cleared(world: World, platform: Platform) -> None:
    world.faults.add(Fault(method="registry.*", kind="outage", times=None))
    for _ in range(3):
        with pytest.raises(ToolUnavailable):
            platform.registry.versions("churn")

    world.faults.clear()
    assert len(platform.registry.versions("churn")) == 1


def test_metrics_can_have_no_data_and_numbers_can_be_nan(world: World, platform: Platform) -> None:
    world.advance(1)
    world.faults.add(
        Fault(method="metrics.sample", kind="no_data"),
        Fault(method="registry.metrics", kind="nan"),
        Fault(method="outcomes.predictions", kind="nan"),
    )

    assert platform.metrics.sample("churn", "1") is None
    assert platform.metrics.sample("churn", "1") is not None
    world.faults.add(Fault(method="metrics.sample", kind="nan"), Fault(method="outcomes.revisions", kind="nan"))
    with pytest.raises(ToolUnavailable, match="the counters are not numbers"):
        platform.metrics.sample("churn", "1")
    assert platform.outcomes.revisions("churn") != {}  # counts that nobody measured
    assert all(math.isnan(value) for value in platform.registry.metrics("churn", "1").values())
    end = world.clock.now()
    rows = platform.outcomes.predictions("churn", start=end - timedelta(days=1), end=end)
    assert rows["score"].is_nan().all()


def test_an_answer_without_content_is_what_a_client_makes_of_it(world: World, platform: Platform) -> None:
    world.advance(1)
    end = world.clock.now()
    world.faults.add(Fault(method="*", kind="no_data", times=None))

    assert platform.registry.get("churn", "1") is None
    assert platform.outcomes.labelled("churn", start=end - timedelta(days=1), end=end, as_of=end).is_empty()
    assert platform.data.history("churn", start=None, end=end).collect().is_empty()
    with pytest.raises(ToolUnavailable, match="the answer is empty"):
        platform.registry.versions("churn")


def test_a_slow_pipeline_stays_running_for_as_many_looks(world: World, platform: Platform) -> None:
    world.faults.add(Fault(method="pipelines.submit", kind="slow", polls=4))
    submit(platform, world, "slow")
    submit(platform, world, "usual")

    def looks(key: str) -> int:
        n_looks = 1
        while (run := platform.pipelines.find(key)) is not None and run.status == "running":
            n_looks += 1
        assert run is not None
        assert run.status == "succeeded"
        return n_looks

    assert (looks("slow"), looks("usual")) == (4, 1)


def test_a_failing_pipeline_says_why_and_tracks_no_model(world: World, platform: Platform) -> None:
    world.faults.add(Fault(method="pipelines.submit", kind="fails"))
    submit(platform, world, "bad")

    run = platform.pipelines.find("bad")

    assert run is not None
    assert (run.status, run.outputs) == ("failed", {})
    assert "out of memory" in run.error
    assert set(world.state.tracked.values()).isdisjoint({"bad"})


def test_weights_that_the_data_plane_did_not_take_are_not_confirmed_until_pushed_again(
    world: World, platform: Platform
) -> None:
    world.faults.add(Fault(method="mesh.set_weights", kind="not_applied"))
    shift(platform)
    world.advance(1)

    route, candidate = platform.mesh.read("churn"), platform.metrics.sample("churn", "2")
    assert route is not None
    assert candidate is not None
    assert (dict(route.weights), route.served, candidate.n_requests) == (WEIGHTS, False, 0)

    shift(platform)
    world.advance(1)
    route, candidate = platform.mesh.read("churn"), platform.metrics.sample("churn", "2")
    assert route is not None
    assert candidate is not None
    assert route.served
    assert candidate.n_requests > 0
    assert shifts(world) == 1


def test_a_lying_data_plane_confirms_the_weights_and_splits_by_others(world: World, platform: Platform) -> None:
    world.misroute("churn", {"1": 100, "2": 0})
    shift(platform)
    world.advance(2)

    route, candidate = platform.mesh.read("churn"), platform.metrics.sample("churn", "2")
    assert route is not None
    assert candidate is not None
    assert (dict(route.weights), route.served, candidate.n_requests) == (WEIGHTS, True, 0)


def test_a_killed_control_plane_loses_its_running_pipelines_but_no_server(world: World, platform: Platform) -> None:
    world.faults.add(Fault(method="pipelines.submit", kind="slow", polls=9))
    submit(platform, world, "p")
    world.kill()
    new = build(world)

    assert new.pipelines.find("p") is None
    assert [e.version for e in new.servers.list("churn")] == ["1", "2"]
    submit(new, world, "p")
    assert new.pipelines.find("p") is not None
    assert sum(effect.key == "p" for effect in world.effects) == 1


def test_a_fault_of_one_model_leaves_the_others_alone(world: World, platform: Platform) -> None:
    world.add(example_spec("fraud"), Truth(rows_per_day=60, history_days=30))
    platform = build(world)
    world.faults.add(Fault(method="mesh.stage", kind="outage", model="churn", times=None))
    world.faults.add(Fault(method="registry.set_alias", kind="outage", model="churn", times=None))

    serve_first_version(platform, world, "fraud")

    with pytest.raises(ToolUnavailable):
        platform.registry.set_alias(model="churn", alias="x", version="1", key="x")


@pytest.mark.parametrize(
    ("act", "why"),
    [
        pytest.param(lambda p: p.mesh.retire(model="churn", version="1", key="r"), "100 %", id="retire-with-traffic"),
        pytest.param(lambda p: p.registry.package("churn", "9"), "version 9", id="unknown-version"),
        pytest.param(lambda p: p.data.days("nobody"), "nobody", id="unknown-model"),
    ],
)
def test_a_refusal_names_its_target(act: Callable[[Platform], object], why: str, platform: Platform) -> None:
    with pytest.raises(ToolRejected, match=why):
        act(platform)
