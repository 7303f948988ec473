from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from evals.world.platform import build
from state.errors import ToolRejected, ToolUnavailable
from tests.contract.support import MODEL, Side, new_world
from tools.mesh.envoy import EnvoyMesh
from tools.ports import Endpoint, Mesh, Route


@pytest.fixture(params=["world", pytest.param("laptop", marks=pytest.mark.xdist_group("envoy"))])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side[Mesh]]:
    if request.param == "world":
        world = new_world(tmp_path)
        yield Side(open=lambda: build(world).mesh)
        return
    yield Side(open=lambda: EnvoyMesh(tmp_path, concurrency=1))
    EnvoyMesh(tmp_path).stop()


def endpoint(version: str, *, port: int = 0) -> Endpoint:
    place = port or 40_000 + int(version)
    return Endpoint(model=MODEL, version=version, key=f"s{version}", host="127.0.0.1", port=place, ready=True)


def stage(side: Side[Mesh], *versions: str) -> Route:
    return [side.open().stage(endpoint=endpoint(version), key=f"s{version}") for version in versions][-1]


def shift(side: Side[Mesh], weights: Mapping[str, int], key: str, revision: str | None = None) -> Route:
    return side.open().set_weights(model=MODEL, weights=weights, key=key, revision=revision)


def stored(side: Side[Mesh]) -> Route:
    route = side.open().read(MODEL)
    assert route is not None
    return route


def test_a_model_that_was_never_staged_has_no_route(side: Side[Mesh]) -> None:
    assert side.open().read(MODEL) is None
    assert side.open().find("k") is None
    with pytest.raises(ToolRejected):
        shift(side, {"1": 100}, "k")


def test_the_first_version_gets_everything_and_later_ones_stand_last_with_nothing(side: Side[Mesh]) -> None:
    assert list(stage(side, "1").weights.items()) == [("1", 100)]
    assert list(stage(side, "2", "10").weights.items()) == [("1", 100), ("2", 0), ("10", 0)]

    route = stored(side)
    assert (route.model, route.key, route.served) == (MODEL, "s10", True)
    assert route.address.startswith("http://")


def test_staging_said_again_writes_nothing(side: Side[Mesh]) -> None:
    route = stage(side, "1", "2")

    assert stage(side, "2") == route == stored(side)


def test_a_restarted_version_keeps_its_weight_and_its_place(side: Side[Mesh]) -> None:
    stage(side, "1", "2")
    shift(side, {"1": 70, "2": 30}, "k")

    route = side.open().stage(endpoint=replace(endpoint("1", port=41_111), key="r"), key="r")

    assert list(route.weights.items()) == [("1", 70), ("2", 30)]


def test_weights_are_stored_confirmed_and_found_by_a_new_process(side: Side[Mesh]) -> None:
    before = stage(side, "1", "2")
    route = shift(side, {"2": 5, "1": 95}, "k")

    assert list(route.weights.items()) == [("1", 95), ("2", 5)]
    assert (route.key, route.served) == ("k", True)
    assert route.revision != before.revision
    assert stored(side) == route == side.open().find("k")
    assert side.open().find("other") is None


def test_a_key_writes_once_and_another_key_writes_again(side: Side[Mesh]) -> None:
    stage(side, "1", "2")
    first = shift(side, {"1": 95, "2": 5}, "k1")
    again = shift(side, {"1": 95, "2": 5}, "k1")
    other = shift(side, {"1": 95, "2": 5}, "k2")

    assert again == first
    assert other.revision != first.revision
    assert other.key == "k2"


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({"1": 60, "2": 30}, id="sum-below-100"),
        pytest.param({"1": 60, "2": 60}, id="sum-above-100"),
        pytest.param({"1": 110, "2": -10}, id="negative"),
        pytest.param({"1": 50, "3": 50}, id="a-version-that-is-not-in-the-route"),
        pytest.param({"1": 100}, id="a-version-left-out"),
    ],
)
def test_weights_that_are_no_split_of_the_route_are_refused_and_nothing_is_written(
    weights: dict[str, int], side: Side[Mesh]
) -> None:
    route = stage(side, "1", "2")
    with pytest.raises(ToolRejected):
        shift(side, weights, "k")

    assert stored(side) == route
    assert side.open().find("k") is None


def test_a_decision_on_a_stale_revision_writes_nothing(side: Side[Mesh]) -> None:
    stale = stage(side, "1", "2").revision
    route = shift(side, {"1": 90, "2": 10}, "k1", revision=stale)
    with pytest.raises(ToolUnavailable):
        shift(side, {"1": 50, "2": 50}, "k2", revision=stale)

    assert stored(side) == route
    assert shift(side, {"1": 50, "2": 50}, "k2", revision=route.revision).weights == {"1": 50, "2": 50}


def test_a_version_is_retired_once_it_has_no_traffic(side: Side[Mesh]) -> None:
    stage(side, "1", "2")
    route = shift(side, {"1": 99, "2": 1}, "k1")
    with pytest.raises(ToolRejected):
        side.open().retire(model=MODEL, version="2", key="r")
    assert stored(side) == route

    shift(side, {"1": 100, "2": 0}, "k2")
    first = side.open().retire(model=MODEL, version="2", key="r")
    again = side.open().retire(model=MODEL, version="2", key="r")

    assert dict(first.weights) == {"1": 100}
    assert again == first == stored(side) == side.open().find("r")
