from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from evals.world.faults import Fault
from evals.world.platform import build
from evals.world.truth import Drift
from evals.world.world import World
from state.errors import ToolRejected, ToolUnavailable
from tests.contract.support import MODEL, START, Side, at, served_world
from tools.ports import Features, FeatureView


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A served model whose feature view was released anew before the first live day: a tenth of `spend` is wrong."""
    world, _ = served_world(tmp_path)
    skew = Drift(kind="skew", start=START.isoformat(), magnitude=0.1, features=("spend",))
    world.release_features(MODEL, skew, keep_previous=True)
    world.advance(2)
    return world


@pytest.fixture(params=["world"])
def side(world: World) -> Side[Features]:
    return Side(open=lambda: opened(world))


def opened(world: World) -> Features:
    features = build(world).features
    assert features is not None
    return features


def served_keys(world: World, day: int) -> pl.DataFrame:
    rows = build(world).outcomes.predictions(MODEL, start=at(day), end=at(day + 1))
    return rows.select("request_id", "entity", "event_time", "spend")


def n_wrong(world: World, side: Side[Features], day: int) -> int:
    keys = served_keys(world, day)
    both = keys.join(side.open().offline(MODEL, keys.drop("spend")), on="request_id", suffix="_offline")
    assert both.height == keys.height
    return both.filter(pl.col("spend") != pl.col("spend_offline")).height


def stored(side: Side[Features]) -> FeatureView:
    view = side.open().read(MODEL)
    assert view is not None
    return view


def back(side: Side[Features], key: str = "k", revision: str = "1") -> FeatureView:
    return side.open().rollback(model=MODEL, revision=revision, key=key)


def test_offline_values_are_those_of_the_rows_that_were_asked_for(world: World, side: Side[Features]) -> None:
    keys = served_keys(world, 0).drop("spend")
    some = keys.head(3)
    unknown = some.with_columns(pl.lit("nobody").alias("request_id"))

    found = side.open().offline(MODEL, pl.concat([some, unknown]))

    assert found["request_id"].to_list() == some["request_id"].to_list()
    assert set(found.columns) == {"request_id", "tenure", "spend", "visits", "plan", "mobile"}
    assert side.open().offline(MODEL, some.clear()).height == 0


def test_a_release_that_skews_is_read_with_the_one_before_it(world: World, side: Side[Features]) -> None:
    view = stored(side)

    assert (view.revision, view.previous, view.key, view.served) == ("2", "1", None, True)
    assert n_wrong(world, side, 0) > 0


def test_a_rollback_is_stored_served_found_and_ends_the_skew(world: World, side: Side[Features]) -> None:
    assert side.open().find("k") is None

    view = back(side)

    assert (view.revision, view.key, view.served) == ("1", "k", True)
    assert stored(side) == view == side.open().find("k")
    world.advance(1)
    assert n_wrong(world, side, 2) == 0
    assert n_wrong(world, side, 1) > 0, "what was served stays what it was"


def test_a_rollback_said_again_is_one_rollback(world: World, side: Side[Features]) -> None:
    assert back(side) == back(side)
    assert [e.method for e in world.effects].count("features.rollback") == 1


def test_a_revision_that_the_store_lacks_is_rejected(side: Side[Features]) -> None:
    with pytest.raises(ToolRejected):
        back(side, revision="0")
    back(side)
    with pytest.raises(ToolRejected):
        back(side, key="other")
    assert stored(side).key == "k"


@pytest.mark.parametrize(
    ("kind", "is_done"), [("outage", False), ("timeout", True), ("not_applied", False), ("slow", False)]
)
def test_a_rollback_that_is_not_confirmed_is_completed_under_its_key(
    world: World, side: Side[Features], kind: str, is_done: bool
) -> None:
    """Nothing done; done without an answer; stored and not served; stored and served only after a while."""
    world.faults.add(Fault(method="features.rollback", kind=kind, polls=2))  # type: ignore[arg-type]  # literals

    with pytest.raises(ToolUnavailable):
        back(side)

    found = side.open().find("k")
    assert (found is not None and found.served) is is_done
    for _ in range(3 if kind == "slow" else 1):
        try:
            view = back(side)
        except ToolUnavailable:
            continue
    assert (view.revision, view.served) == ("1", True)
    assert [e.method for e in world.effects].count("features.rollback") == 1
    world.advance(1)
    assert n_wrong(world, side, 2) == 0
