from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import JsonValue

from evals.world.fitting import block_losses
from evals.world.package import model_bytes
from evals.world.platform import build, example_spec, serve_first_version
from evals.world.records import Condition
from evals.world.release import train_by_hand
from evals.world.truth import Day, Drift, DriftKind, Truth
from evals.world.world import World
from state.contract import Contract
from state.errors import InputError, ToolRejected
from state.profile import read_reference
from tools.ports import PipelineRequest, PipelineRun, Platform

SMALL = Truth(rows_per_day=120, history_days=40)


def live(folder: Path, *drifts: Drift, seed: int = 1, truth: Truth = SMALL) -> tuple[World, Platform]:
    """A world with one served champion, version 1 of `churn`."""
    world = World(folder, seed=seed)
    world.add(example_spec(), truth)
    world.drift("churn", *drifts)
    platform = build(world)
    serve_first_version(platform, world, "churn")
    return world, platform


def finished(platform: Platform, request: PipelineRequest, key: str) -> PipelineRun:
    run = platform.pipelines.submit(request, key=key)
    while run.status == "running":
        found = platform.pipelines.find(key)
        assert found is not None
        run = found
    return run


def spec_json(world: World) -> str:
    return world.specs["churn"].model_dump_json()


def train(world: World, platform: Platform, key: str) -> PipelineRun:
    end = world.clock.now().isoformat()
    parameters: dict[str, JsonValue] = {"spec": spec_json(world), "end": end, "as_of": end, "seed": 0}
    return finished(platform, PipelineRequest(pipeline="train", model="churn", parameters=parameters), key)


def backtest(world: World, platform: Platform, key: str, compare_days: int) -> tuple[float, float, PipelineRun]:
    """Mean block loss of champion and challenger over the newest labelled days."""
    until = world.clock.now() - timedelta(days=3)
    start = until - timedelta(days=compare_days)
    run = finished(
        platform,
        PipelineRequest(
            pipeline="backtest",
            model="churn",
            parameters={
                "spec": spec_json(world),
                "seed": 0,
                "fit_until": start.isoformat(),
                "compare_from": start.isoformat(),
                "compare_until": until.isoformat(),
                "as_of": world.clock.now().isoformat(),
                "excluded_days": [],
                "champion_package": str(platform.registry.package("churn", "1")),
            },
        ),
        key,
    )
    blocks = run.outputs["blocks"]
    assert isinstance(blocks, list)
    pairs = [(b["champion_loss"], b["challenger_loss"]) for b in blocks if isinstance(b, dict)]
    assert len(pairs) == compare_days
    return sum(float(str(a)) for a, _ in pairs) / len(pairs), sum(float(str(b)) for _, b in pairs) / len(pairs), run


def add_second_version(world: World, platform: Platform, percent: int) -> None:
    run_id = str(train(world, platform, "t2").outputs["mlflow_run_id"])
    platform.registry.register(model="churn", mlflow_run_id=run_id, tags={}, key="r2")
    package = platform.registry.package("churn", "2")
    endpoint = platform.servers.start(model="churn", version="2", package=package, key="s2")
    platform.mesh.stage(endpoint=endpoint, key="s2")
    platform.mesh.set_weights(model="churn", weights={"1": 100 - percent, "2": percent}, key=f"w{percent}")


def day_loss(world: World, platform: Platform, day: date) -> float:
    start = world.clock.now() - timedelta(days=400)
    rows = platform.outcomes.labelled("churn", start=start, end=world.clock.now(), as_of=world.clock.now())
    return block_losses(world.specs["churn"], rows, rows["score"].to_numpy())[day.isoformat()].loss


def test_the_same_seed_gives_the_same_world_and_another_seed_another(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        world, platform = live(tmp_path / name, seed=seed)
        world.advance(3)
        rows = platform.outcomes.predictions(
            "churn", start=world.clock.now() - timedelta(days=3), end=world.clock.now()
        )
        digests.append((platform.data.digest("churn"), rows["score"].to_list()))

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_healthy_twin_has_the_same_rows_but_for_the_fault(tmp_path: Path) -> None:
    healthy, _ = live(tmp_path / "healthy")
    faulty, _ = live(tmp_path / "faulty", Drift(kind="unit", start="2026-03-04", magnitude=1000.0, features=("spend",)))

    ours, theirs = healthy.rows("churn", date(2026, 3, 5)), faulty.rows("churn", date(2026, 3, 5))

    assert ours.frame.drop("spend").equals(theirs.frame.drop("spend"))
    assert ours.outcome.tolist() == theirs.outcome.tolist()
    assert theirs.frame["spend"].mean() == pytest.approx(1000 * float(str(ours.frame["spend"].mean())), rel=1e-4)


def test_a_turned_concept_hurts_the_champion_and_a_backtest_finds_the_remedy(tmp_path: Path) -> None:
    world, platform = live(tmp_path, Drift(kind="concept", start="2026-03-05", magnitude=0.7))
    world.advance(35)

    champion, challenger, _ = backtest(world, platform, "b", compare_days=14)

    assert champion > 0.27
    assert challenger < champion - 0.04


def test_a_team_can_fit_a_version_of_the_changed_world_alone(tmp_path: Path) -> None:
    world, platform = live(tmp_path, Drift(kind="concept", start="2026-03-05", magnitude=0.7))
    world.advance(40)
    end, changed = world.clock.now() - timedelta(days=8), datetime(2026, 3, 5, tzinfo=UTC)

    mixed = train_by_hand(world, "churn", end=end)
    of_now = train_by_hand(world, "churn", start=changed, end=end)

    packages = [platform.registry.package("churn", version) for version in ("1", mixed, of_now)]
    rows = platform.outcomes.labelled("churn", start=end, end=world.clock.now(), as_of=world.clock.now())
    scores = [world.models.decode(model_bytes(package)).score(rows) for package in packages]
    losses = [block_losses(world.specs["churn"], rows, score) for score in scores]
    first, second, third = [np.mean([block.loss for block in found.values()]) for found in losses]
    assert third < second - 0.02 < first - 0.04


def test_lost_signal_hurts_the_champion_and_no_fit_helps(tmp_path: Path) -> None:
    world, platform = live(tmp_path, Drift(kind="signal_loss", start="2026-03-05", magnitude=0.8))
    world.advance(35)

    champion, challenger, _ = backtest(world, platform, "b", compare_days=14)

    assert champion > 0.3
    assert challenger > champion - 0.02


def test_a_shift_of_the_inputs_leaves_the_loss_alone(tmp_path: Path) -> None:
    world, platform = live(tmp_path, Drift(kind="covariate", start="2026-03-05", magnitude=1.0, features=("visits",)))
    healthy, theirs = live(tmp_path / "healthy")
    last, _ = world.advance(20), healthy.advance(20)

    shifted, _, _ = backtest(world, platform, "b", compare_days=10)
    usual, _, _ = backtest(healthy, theirs, "b", compare_days=10)

    spread = healthy.rows("churn", last).frame["visits"].std()
    moved = float(str(world.rows("churn", last).frame["visits"].mean())) - float(
        str(healthy.rows("churn", last).frame["visits"].mean())
    )
    assert moved == pytest.approx(float(str(spread)), rel=0.2)
    assert shifted == pytest.approx(usual, abs=0.03)


def null_ratio(day: Day) -> float:
    return float(day.frame["spend"].null_count() / day.frame.height)


def new_level_ratio(day: Day) -> float:
    return day.frame.filter(day.frame["plan"] == "new").height / day.frame.height


def wrong_label_ratio(day: Day) -> float:
    truth = [float(day.outcome[int(request_id[-6:])]) for request_id in day.labels["request_id"]]
    return float((day.labels["label"] != pl.Series(truth)).sum() / day.labels.height)


def unlabelled_ratio(day: Day) -> float:
    return 1 - day.labels.height / day.frame.height


def repeated_ratio(day: Day) -> float:
    return 1 - day.frame.drop("request_id").n_unique() / day.frame.height


def late_ratio(day: Day) -> float:
    newest = pl.col("event_time").max()
    return day.frame.filter(pl.col("event_time") < newest - pl.duration(days=20)).height / day.frame.height


def label_age_days(day: Day) -> float:
    rows = day.labels.join(day.frame, on="request_id")
    return float(np.median((rows["available_at"] - rows["event_time"]).dt.total_days().to_numpy()))


@pytest.mark.parametrize(
    ("kind", "magnitude", "measured", "low", "high"),
    [
        pytest.param("no_rows", 1.0, lambda day: day.frame.height, 0, 0, id="a-hole"),
        pytest.param("volume", 3.0, lambda day: day.frame.height, 300, 420, id="three-times-the-rows"),
        pytest.param("missing", 0.5, null_ratio, 0.35, 0.65, id="missing-values"),
        pytest.param("new_level", 0.3, new_level_ratio, 0.15, 0.45, id="a-new-level"),
        pytest.param("label_flip", 0.5, wrong_label_ratio, 0.35, 0.65, id="flipped-labels"),
        pytest.param("label_lost", 1.0, lambda day: day.labels["label"].mean(), 0, 0, id="lost-labels"),
        pytest.param("label_missing", 0.5, unlabelled_ratio, 0.35, 0.65, id="missing-labels"),
        pytest.param("late_labels", 10.0, label_age_days, 12, 12, id="late-labels"),
        pytest.param("repeated", 0.5, repeated_ratio, 0.25, 0.4, id="rows-sent-twice"),
        pytest.param("late_rows", 0.5, late_ratio, 0.35, 0.65, id="rows-of-three-weeks-ago"),
        pytest.param("extra", 0.5, lambda day: day.extra.mean(), 0.35, 0.65, id="an-unknown-column"),
        pytest.param("prior", 2.0, lambda day: day.outcome.mean(), 0.5, 0.9, id="a-shifted-prior"),
    ],
)
def test_a_fault_shows_in_the_rows_from_its_first_day_to_its_last(
    kind: DriftKind, magnitude: float, measured: Callable[[Day], float], low: float, high: float, tmp_path: Path
) -> None:
    fault = Drift(kind=kind, start="2026-03-03", until="2026-03-05", magnitude=magnitude)
    world, _ = live(tmp_path, fault)

    shown = [low <= measured(world.rows("churn", date(2026, 3, day))) <= high for day in (2, 3, 4, 5)]

    assert shown == [False, True, True, False]


def test_weather_that_lasts_has_the_size_and_the_memory_that_were_asked_for(tmp_path: Path) -> None:
    truth = Truth(rows_per_day=2_000, history_days=400, signal=0.1, intercept=0.0, day_sd=0.5, day_rho=0.7)
    world = World(tmp_path, seed=4)
    world.add(example_spec(), truth)
    rate = np.array([world.rows("churn", day).outcome.mean() for day in world.history_days("churn")])
    shift = np.log(rate / (1 - rate))

    assert 0.4 < shift.std() < 0.6
    assert 0.55 < np.corrcoef(shift[1:], shift[:-1])[0, 1] < 0.8


def test_a_segment_collapses_while_the_others_stay(tmp_path: Path) -> None:
    broken = Drift(kind="segment", start="2026-03-02", magnitude=1.0, features=("plan",), level="a")
    world, platform = live(tmp_path, broken)
    world.advance(15)
    end = world.clock.now()
    rows = platform.outcomes.labelled("churn", start=end - timedelta(days=15), end=end, as_of=end)

    inside, outside = rows.filter(rows["plan"] == "a"), rows.filter(rows["plan"] != "a")
    losses = [
        sum(found.loss * found.n for found in blocks.values()) / sum(found.n for found in blocks.values())
        for blocks in (block_losses(world.specs["churn"], part, part["score"].to_numpy()) for part in (inside, outside))
    ]
    assert losses[0] > 0.5
    assert losses[1] < 0.3


def test_an_entity_keeps_its_version_and_a_larger_share_moves_nobody_back(tmp_path: Path) -> None:
    world, platform = live(tmp_path, truth=Truth(rows_per_day=400, history_days=30))
    world.advance(1)
    add_second_version(world, platform, 20)
    arms = []
    for percent in (20, 50):
        platform.mesh.set_weights(model="churn", weights={"1": 100 - percent, "2": percent}, key=f"w{percent}")
        world.advance(3)
        end = world.clock.now()
        rows = platform.outcomes.predictions("churn", start=end - timedelta(days=3), end=end)
        versions = rows.group_by("entity").agg("version")
        arms.append({e: set(v) for e, v in versions.iter_rows()})

    assert all(len(versions) == 1 for arm in arms for versions in arm.values())
    first, second = ({e for e, v in arm.items() if v == {"2"}} for arm in arms)
    assert len(first) / len(arms[0]) == pytest.approx(0.2, abs=0.07)
    assert len(second) / len(arms[1]) == pytest.approx(0.5, abs=0.08)
    assert first & set(arms[1]) <= second


def test_labels_are_known_only_after_their_delay(tmp_path: Path) -> None:
    world, platform = live(tmp_path)
    world.advance(4)
    end = world.clock.now()

    known = platform.outcomes.labelled("churn", start=end - timedelta(days=4), end=end, as_of=end + timedelta(days=9))

    assert known.filter(pl.col("available_at") > end).is_empty()
    assert known.filter(pl.col("event_time") > end - timedelta(days=2)).is_empty()
    assert set(known["event_time"].dt.date()) == {date(2026, 3, 2), date(2026, 3, 3)}


def test_a_trained_package_is_whole_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    world, platform = live(tmp_path)
    package = platform.registry.package("churn", "1")
    run = next(iter(world.state.runs.values()))

    contract = Contract.from_json((package / "contract.json").read_bytes())
    profile = read_reference((package / "profile.bin").read_bytes())

    assert [f.name for f in contract.features] == world.specs["churn"].feature_names()
    assert contract.lineage["data_sha256"] == run.outputs["data_sha256"]
    assert int(profile.n_rows.sum()) == run.outputs["n_rows"]
    (package / "contract.json").write_bytes(b"{}")
    with pytest.raises(ToolRejected, match=r"contract\.json"):
        platform.registry.package("churn", "1")


def test_a_training_run_reports_what_the_laptop_reports(tmp_path: Path) -> None:
    _, platform = live(tmp_path)
    world, platform = live(tmp_path / "two")
    outputs = train(world, platform, "t").outputs

    assert {
        "mlflow_run_id", "package", "metrics", "cv", "gates", "candidates", "chosen", "n_rows", "data_sha256",
        "trained_from", "trained_until", "reference_blocks", "importance",
    } <= set(outputs)  # fmt: skip
    assert json.loads(json.dumps(outputs)) == outputs
    assert outputs["gates"] == [
        {"metric": "roc_auc", "op": ">=", "value": outputs["metrics"]["roc_auc"], "bound": 0.65, "passed": True}  # type: ignore[index,call-overload]
    ]


def test_excluded_days_and_rows_after_the_end_do_not_reach_training(tmp_path: Path) -> None:
    world, platform = live(tmp_path)
    end = world.clock.now() - timedelta(days=5)
    sizes = {}
    for key, excluded in (("all", ()), ("less", ("2026-02-10", "2026-02-11"))):
        parameters: dict[str, JsonValue] = {
            "spec": spec_json(world),
            "seed": 0,
            "end": end.isoformat(),
            "as_of": end.isoformat(),
            "excluded_days": list(excluded),
        }
        run = finished(platform, PipelineRequest(pipeline="train", model="churn", parameters=parameters), key)
        sizes[key] = int(str(run.outputs["n_rows"]))
        # The label of a row of the last two days is not known at `end`.
        assert str(run.outputs["trained_until"]) <= (end - timedelta(days=2)).isoformat()

    out = [world.rows("churn", day).labels.height for day in (date(2026, 2, 10), date(2026, 2, 11))]
    assert sizes["all"] - sizes["less"] == sum(out)


def test_errors_latency_and_a_dead_server_show_in_the_counters(tmp_path: Path) -> None:
    world, platform = live(tmp_path)
    world.advance(1)
    world.degrade("churn", Condition(version=None, error_ratio=0.3, latency_ratio=20.0))
    add_second_version(world, platform, 50)
    world.advance(3)

    good, bad = platform.metrics.sample("churn", "1"), platform.metrics.sample("churn", "2")
    assert good is not None
    assert bad is not None
    assert good.n_errors == 0
    assert 0.15 < bad.n_errors / bad.n_requests < 0.45
    assert bad.latency_buckets_ms[25.0] < 0.2 * bad.n_requests
    assert good.latency_buckets_ms[25.0] > 0.9 * good.n_requests

    world.degrade("churn", Condition(version="2", dead=True))
    assert platform.servers.get("churn", "2") is None
    world.advance(1)
    after = platform.metrics.sample("churn", "2")
    assert after is not None
    assert after.n_errors - bad.n_errors == after.n_requests - bad.n_requests > 0


@pytest.mark.parametrize(("capacity", "fast"), [(10_000, 0.99), (120, 0.7), (30, 0.0)])
def test_a_server_near_its_capacity_is_slow_and_beyond_it_refuses(tmp_path: Path, capacity: int, fast: float) -> None:
    world, platform = live(tmp_path)
    world.advance(1)
    world.degrade("churn", Condition(version=None, capacity=capacity))
    add_second_version(world, platform, 50)  # about 60 requests a day
    world.advance(3)

    seen = platform.metrics.sample("churn", "2")
    assert seen is not None
    beyond = max(0.0, 1.0 - 3 * capacity / seen.n_requests)
    assert seen.n_errors / seen.n_requests == pytest.approx(beyond, abs=0.1)
    quick = seen.latency_buckets_ms[10.0] / seen.n_requests
    assert quick == pytest.approx(fast, abs=0.15)


def test_harm_grows_when_the_served_model_is_wrong(tmp_path: Path) -> None:
    world, _ = live(tmp_path)
    world.advance(3)
    world.degrade("churn", Condition(version="1", score_shift=0.5))
    world.advance(3)

    harm = list(world.harm("churn").values())

    assert max(harm[:3]) < 10 < min(harm[3:])


def test_an_edit_by_hand_has_a_new_revision_and_a_repeated_key_does_not_undo_it(tmp_path: Path) -> None:
    world, platform = live(tmp_path)
    add_second_version(world, platform, 25)
    before = platform.mesh.read("churn")
    world.foreign_edit("churn", {"1": 90, "2": 10})
    platform.mesh.set_weights(model="churn", weights={"1": 75, "2": 25}, key="w25")
    after = platform.mesh.read("churn")

    assert before is not None
    assert after is not None
    assert (after.key, dict(after.weights)) == ("w25", {"1": 90, "2": 10})
    assert after.revision != before.revision


def test_a_loaded_world_is_the_saved_one_and_goes_on_alike(tmp_path: Path) -> None:
    world, platform = live(tmp_path, Drift(kind="concept", start="2026-03-10", magnitude=0.5))
    add_second_version(world, platform, 25)
    world.advance(3)
    platform.outcomes.quarantine("churn", ["2026-03-03"], reason="unit", key="q")
    world.save()

    loaded = World.load(tmp_path)
    assert loaded.state == world.state
    assert loaded.clock.now() == world.clock.now()
    world.advance(9)
    loaded.advance(9)

    window = {"start": world.clock.now() - timedelta(days=30), "end": world.clock.now(), "as_of": world.clock.now()}
    ours = platform.outcomes.labelled("churn", **window)
    assert ours.height > 0
    assert build(loaded).outcomes.labelled("churn", **window).equals(ours)
    assert loaded.state == world.state


def test_a_drift_cannot_rewrite_days_that_were_served(tmp_path: Path) -> None:
    world, _ = live(tmp_path)
    world.advance(5)

    with pytest.raises(InputError, match="were served"):
        world.drift("churn", Drift(kind="prior", start="2026-03-04"))


def test_a_regression_is_fitted_and_served_as_well(tmp_path: Path) -> None:
    world = World(tmp_path)
    spec = example_spec(
        task="regression",
        objective={"metric": "rmse", "op": "<=", "value": 2.0},
        gates=[{"metric": "rmse", "op": "<=", "value": 1.5}],
        training={"kind": "recipe", "candidates": [{"name": "ridge", "estimator": "ridge"}]},
    )
    world.add(spec, SMALL)
    platform = build(world)
    serve_first_version(platform, world, "churn")
    world.advance(6)

    assert day_loss(world, platform, date(2026, 3, 3)) == pytest.approx(1.0, abs=0.35)
