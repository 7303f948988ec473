from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from agents.skew import compare
from evals.world.faults import Fault
from evals.world.platform import build, example_spec
from evals.world.truth import Drift
from evals.world.world import World
from state.errors import InputError, ToolRejected, ToolUnavailable
from state.spec import OfflineFiles
from tests.contract.support import MODEL, START, Side, at, served_world
from tools.features import FileFeatures, check_offline
from tools.ports import Features, FeatureView


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A served model whose feature view was released anew before the first live day: a tenth of `spend` is wrong."""
    world, _ = served_world(tmp_path)
    skew = Drift(kind="skew", start=START.isoformat(), magnitude=0.1, features=("spend",))
    world.release_features(MODEL, skew, keep_previous=True)
    world.advance(2)
    return world


@pytest.fixture
def side(world: World) -> Side[Features]:
    """The world's store, which keeps releases."""
    return Side(open=lambda: opened(world))


@pytest.fixture(params=["world", "laptop"])
def values(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Side[Features]:
    """Every store of offline values."""
    if request.param == "world":
        return Side(open=lambda: opened(world))
    rows = pl.concat([exported(world, day) for day in days_of(world)])
    rows.rename({"entity": "customer", "event_time": "at"}).write_csv(tmp_path / "offline.csv")
    spec = world.specs[MODEL].model_copy(update={"offline": OfflineFiles(path="offline.csv", time="at")})
    return Side(open=lambda: FileFeatures({MODEL: spec}, tmp_path))


def opened(world: World) -> Features:
    features = build(world).features
    assert features is not None
    return features


def exported(world: World, day: date) -> pl.DataFrame:
    """A day of the offline store as a team would write it to a file."""
    rows = world.rows(MODEL, day)
    return (
        rows.frame.select("request_id", "entity", "event_time").join(rows.offline, on="request_id").drop("request_id")
    )


def days_of(world: World) -> list[date]:
    return [date.fromisoformat(served.day) for served in world.model(MODEL).days]


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


def test_offline_values_are_those_of_the_rows_that_were_asked_for(world: World, values: Side[Features]) -> None:
    keys = served_keys(world, 0).drop("spend")
    some = keys.head(3)
    unknown = some.with_columns(pl.lit("nobody").alias("request_id"), pl.lit("nobody").alias("entity"))

    found = values.open().offline(MODEL, pl.concat([some, unknown]))

    assert found["request_id"].to_list() == some["request_id"].to_list()
    assert set(found.columns) == {"request_id", "tenure", "spend", "visits", "plan", "mobile"}
    assert values.open().offline(MODEL, some.clear()).height == 0


def test_served_and_offline_values_differ_where_the_release_is_wrong_and_nowhere_else(
    world: World, values: Side[Features]
) -> None:
    rows = build(world).outcomes.predictions(MODEL, start=at(0), end=at(2))

    found = compare(values.open(), rows, world.specs[MODEL])

    assert found.n_keys == rows.height
    assert set(found.by_feature) == {"spend"}
    assert 0.03 < found.n_differ / found.n_keys < 0.2


def test_files_that_keep_no_releases_have_none_to_return_to(tmp_path: Path) -> None:
    features = FileFeatures({}, tmp_path)

    assert features.read(MODEL) is None
    assert features.find("k") is None
    with pytest.raises(ToolRejected):
        features.rollback(model=MODEL, revision="1", key="k")


@pytest.mark.parametrize(
    ("path", "columns", "message"),
    [
        pytest.param("other.csv", {}, "other.csv does not exist", id="no-file"),
        pytest.param("offline.csv", {"customer": "who"}, "has no column 'customer' (data.entity[0])", id="no-entity"),
        pytest.param("offline.csv", {"at": "when"}, "has no column 'at' (offline.time)", id="no-time"),
        pytest.param("offline.csv", {"spend": "x"}, "holds none of the features", id="no-feature"),
    ],
)
def test_files_that_cannot_be_read_are_an_error_at_the_start_and_no_data_later(
    tmp_path: Path, path: str, columns: dict[str, str], message: str
) -> None:
    row = {"customer": ["e1"], "at": ["2026-03-02T10:00:00Z"], "spend": [1.0]}
    pl.DataFrame(row).rename(columns).write_csv(tmp_path / "offline.csv")
    spec = example_spec(MODEL, offline={"path": path, "time": "at"})
    keys = pl.DataFrame({"request_id": ["r"], "entity": ["e1"], "event_time": [at(0)]})

    with pytest.raises(InputError) as caught:
        check_offline(spec, tmp_path)
    with pytest.raises(ToolUnavailable, match="cannot be read"):
        FileFeatures({MODEL: spec}, tmp_path).offline(MODEL, keys)

    assert message in str(caught.value)


def test_values_that_are_added_are_seen_and_twice_told_ones_are_not_believed(tmp_path: Path) -> None:
    spec = example_spec(MODEL, offline={"path": "offline.csv", "time": "at"})
    keys = pl.DataFrame({"request_id": ["r"], "entity": ["e1"], "event_time": [at(0)]})
    features = FileFeatures({MODEL: spec}, tmp_path)

    found = []
    for spends in ([1.0], [2.0], [2.0, 3.0]):
        times = [at(0).isoformat()] * len(spends)
        frame = pl.DataFrame({"customer": ["e1"] * len(spends), "at": times, "spend": spends})
        frame.write_csv(tmp_path / "offline.csv")
        found.append(features.offline(MODEL, keys)["spend"].to_list())

    assert found == [[1.0], [2.0], []]


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
