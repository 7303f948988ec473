"""The patches to a VirtualService: what they change, what they leave, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from state.errors import ToolRejected, ToolUnavailable
from tools.mesh.documents import (
    KEY_ANNOTATION,
    destination_rule,
    header_operations,
    header_removal,
    key_of,
    key_operations,
    managed_route,
    mirror_operations,
    retire_operations,
    stage_operations,
    subset_operations,
    subset_removal,
    validate,
    virtual_service,
    weight_operations,
)
from tools.mesh.patch import Document, apply_patch, pointer

HOST = "web"


def destination(version: str, weight: int | None, **more: Any) -> Document:
    item: Document = {"destination": {"host": HOST, "subset": f"v{version}", **more}}
    return item if weight is None else {**item, "weight": weight}


def web(*routes: Document, **metadata: Any) -> Document:
    """The fixture of the conformance cases: `primary` with retries and cors, then `other`, unrelated."""
    primary = {
        "name": "primary",
        "route": list(routes) or [destination("1", 100), destination("2", 0)],
        "retries": {"attempts": 3},
        "timeout": "5s",
        "corsPolicy": {"allowOrigins": [{"exact": "https://a"}]},
        "futureField": {"deep": [1]},
    }
    other = {"name": "other", "route": [{"destination": {"host": "elsewhere"}}]}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": "ml", "annotations": {"team": "a/b"}, **metadata},
        "spec": {"hosts": [HOST], "gateways": ["g"], "exportTo": ["."], "tls": [], "http": [primary, other]},
    }


def without_managed_parts(service: Document) -> Document:
    rest = copy.deepcopy(service)
    rest["metadata"].get("annotations", {}).pop(KEY_ANNOTATION, None)
    for item in rest["spec"]["http"][0]["route"]:
        item.pop("weight", None)
    return rest


def shift(service: Document, weights: dict[str, int], key: str = "k1") -> Document:
    return apply_patch(service, [*weight_operations(service, weights), *key_operations(service, key)])


def test_c31_a_shift_changes_the_weights_and_the_key_and_nothing_else() -> None:
    service = web(resourceVersion="7")
    before = copy.deepcopy(service)
    shifted = shift(service, {"1": 90, "2": 10})

    assert managed_route(shifted).weights == {"1": 90, "2": 10}
    assert shifted["metadata"]["annotations"] == {"team": "a/b", KEY_ANNOTATION: "k1"}
    assert without_managed_parts(shifted) == without_managed_parts(service)
    assert service == before


def test_c31_the_same_weights_under_the_same_key_are_no_write() -> None:
    shifted = shift(web(), {"1": 90, "2": 10})

    assert weight_operations(shifted, {"1": 90, "2": 10}) == []
    assert key_operations(shifted, "k1") == []


def test_c31_a_shift_tests_revision_name_and_hosts_before_it_writes() -> None:
    operations = weight_operations(web(resourceVersion="7"), {"1": 90, "2": 10})
    tested = {item["path"]: item["value"] for item in operations if item["op"] == "test"}

    assert tested == {
        "/metadata/resourceVersion": "7",
        "/spec/http/0/name": "primary",
        "/spec/http/0/route/0/destination/host": HOST,
        "/spec/http/0/route/0/destination/subset": "v1",
        "/spec/http/0/route/1/destination/host": HOST,
        "/spec/http/0/route/1/destination/subset": "v2",
    }
    assert [item["op"] for item in operations] == ["test"] * 6 + ["add"] * 2


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda s: s["metadata"].update(resourceVersion="8"), id="another-revision"),
        pytest.param(lambda s: s["spec"]["http"][0].update(name="main"), id="renamed-route"),
        pytest.param(lambda s: s["spec"]["http"][0]["route"].reverse(), id="reordered-destinations"),
        pytest.param(lambda s: s["spec"]["http"][0]["route"].pop(), id="removed-destination"),
        pytest.param(lambda s: s["spec"]["http"].insert(0, {"route": []}), id="route-put-above"),
    ],
)
def test_c39_an_edit_between_read_and_write_fails_a_test_and_writes_nothing(edit: Any) -> None:
    read = web(resourceVersion="7")
    operations = weight_operations(read, {"1": 90, "2": 10})
    edited = copy.deepcopy(read)
    edit(edited)
    before = copy.deepcopy(edited)

    with pytest.raises(ToolUnavailable):
        apply_patch(edited, operations)
    assert edited == before


def named(*names: str | None) -> Document:
    service = web()
    service["spec"]["http"] = [
        {**({"name": name} if name else {}), "route": [destination("1", 100), destination("2", 0)]} for name in names
    ]
    return service


@pytest.mark.parametrize(
    ("service", "weights", "message"),
    [
        pytest.param(named("main"), {"1": 90, "2": 10}, "ml/web has no route named 'primary', only 'main'", id="name"),
        pytest.param(named(None, None), {"1": 90, "2": 10}, "ml/web has no route named 'primary'", id="two-unnamed"),
        pytest.param(named("primary", "primary"), {"1": 90, "2": 10}, "2 routes named 'primary'", id="name-twice"),
        pytest.param(web(), {"1": 90, "3": 10}, "no destination for version 3; it has 1, 2", id="no-canary"),
        pytest.param(web(), {"1": 100}, "no weight given for version 2", id="version-left-out"),
        pytest.param(web(), {"1": 90, "2": 11}, "sum to 101, not 100", id="sum-of-101"),
        pytest.param(web(), {"1": 101, "2": -1}, "weight of version 1 is 101", id="outside-0-to-100"),
        pytest.param(web(), {"1": 99.5, "2": 0.5}, "weight of version 1 is 99.5", id="not-an-integer"),
        pytest.param(web(), {"1": True, "2": 99}, "weight of version 1 is True", id="boolean"),
    ],
)
def test_c32_what_cannot_be_written_is_refused_by_name(service: Document, weights: Any, message: str) -> None:
    with pytest.raises(ToolRejected, match=message):
        weight_operations(service, weights)


def test_c32_a_sole_route_without_a_name_is_taken_for_ours() -> None:
    shifted = shift(named(None), {"1": 90, "2": 10})

    assert managed_route(shifted).weights == {"1": 90, "2": 10}
    assert "name" not in shifted["spec"]["http"][0]


def test_a_sole_destination_without_a_weight_has_everything() -> None:
    service = web(destination("1", None))

    assert managed_route(service).weights == {"1": 100}
    assert weight_operations(service, {"1": 100}) == []


def test_c34_an_extra_arm_comes_and_goes_and_leaves_the_others() -> None:
    rule = destination_rule("web", host=HOST, version="1")
    service = shift(web(), {"1": 90, "2": 10})
    extended = apply_patch(service, stage_operations(service, "3"))
    assert managed_route(extended).weights == {"1": 90, "2": 10, "3": 0}
    three = shift(extended, {"1": 70, "2": 10, "3": 20})
    assert managed_route(three).weights == {"1": 70, "2": 10, "3": 20}

    back = shift(three, {"1": 90, "2": 10, "3": 0})
    removed = apply_patch(back, retire_operations(back, "3"))

    assert [item["weight"] for item in removed["spec"]["http"][0]["route"]] == [90, 10]
    assert removed == service
    with_subset = apply_patch(rule, subset_operations(rule, "3"))
    assert apply_patch(with_subset, subset_removal(with_subset, "3")) == rule


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param({"destination": {"host": "elsewhere", "subset": "v9"}, "weight": 0}, id="another-host"),
        pytest.param({"destination": {"host": HOST, "subset": "blue"}, "weight": 0}, id="another-subset"),
        pytest.param({"destination": {"host": HOST}, "weight": 0}, id="no-subset"),
    ],
)
def test_c34_a_destination_that_we_do_not_manage_is_refused_and_never_deleted(foreign: Document) -> None:
    service = web(destination("1", 100), destination("2", 0), foreign)

    refused = pytest.raises(ToolRejected, match="is not managed: move it to a route of its own")
    with refused:
        weight_operations(service, {"1": 90, "2": 10})
    with refused:
        stage_operations(service, "3")
    with refused:
        retire_operations(service, "2")


def test_staging_is_last_at_zero_once_and_inherits_the_port() -> None:
    service = web(destination("1", 100, port={"number": 8000}))
    staged = apply_patch(service, stage_operations(service, "2"))

    assert staged["spec"]["http"][0]["route"][1] == destination("2", 0, port={"number": 8000})
    assert stage_operations(staged, "2") == []
    rule = destination_rule("web", host=HOST, version="1")
    assert apply_patch(rule, subset_operations(rule, "2"))["spec"]["subsets"][1] == {
        "name": "v2",
        "labels": {"version": "2"},
    }


def test_a_version_with_traffic_is_not_retired() -> None:
    service = shift(web(), {"1": 90, "2": 10})

    with pytest.raises(ToolRejected, match="version 2 still has 10 % of the traffic"):
        retire_operations(service, "2")
    assert retire_operations(service, "9") == []


def header(service: Document, version: str = "2") -> list[Any]:
    return list(header_operations(service, header="x-model-version", value=f"v{version}", version=version))


def test_c35_a_header_route_stands_first_goes_to_the_canary_and_leaves_the_order() -> None:
    service = web(destination("1", 100, port={"number": 8000}), destination("2", 0, port={"number": 8000}))
    once = apply_patch(service, header(service))

    assert [route.get("name") for route in once["spec"]["http"]] == ["primary-header-v2", "primary", "other"]
    first = once["spec"]["http"][0]
    assert first["match"] == [{"headers": {"x-model-version": {"exact": "v2"}}}]
    assert first["route"] == [destination("2", 100, port={"number": 8000})]
    assert (first["timeout"], first["retries"]) == ("5s", {"attempts": 3})
    assert first["corsPolicy"] == service["spec"]["http"][0]["corsPolicy"]
    assert header(once) == []
    assert apply_patch(once, header_removal(once, "2")) == service
    assert header_removal(service, "2") == []


def test_c35_a_header_route_that_was_moved_down_comes_back_to_the_top_once() -> None:
    service = web()
    moved = apply_patch(service, header(service))
    moved["spec"]["http"].append(moved["spec"]["http"].pop(0))
    again = apply_patch(moved, header(moved))

    assert [route.get("name") for route in again["spec"]["http"]] == ["primary-header-v2", "primary", "other"]


def test_c36_a_header_route_keeps_the_prefix_of_its_base() -> None:
    service = web()
    service["spec"]["http"][0]["match"] = [{"uri": {"prefix": "/api"}}, {"headers": {"a": {"exact": "b"}}}]
    routes = apply_patch(service, header(service))["spec"]["http"]

    wanted = {"x-model-version": {"exact": "v2"}}
    assert routes[0]["match"] == [
        {"uri": {"prefix": "/api"}, "headers": wanted},
        {"headers": {"a": {"exact": "b"}, **wanted}},
    ]
    assert routes[1] == service["spec"]["http"][0]


def test_c35_a_header_route_needs_its_destination() -> None:
    with pytest.raises(ToolRejected, match="no destination for version 3 to send x-model-version to"):
        header(web(), "3")


def test_c38_a_mirror_comes_and_goes() -> None:
    service = web()
    mirrored = apply_patch(service, mirror_operations(service, "2", 25))

    assert mirrored["spec"]["http"][0]["mirror"] == {"host": HOST, "subset": "v2"}
    assert mirrored["spec"]["http"][0]["mirrorPercentage"] == {"value": 25.0}
    assert mirror_operations(mirrored, "2", 25) == []
    assert apply_patch(mirrored, mirror_operations(mirrored, None, 0)) == service
    assert mirror_operations(service, None, 0) == []
    assert apply_patch(mirrored, retire_operations(mirrored, "2"))["spec"]["http"][0].get("mirror") is None


@pytest.mark.parametrize("percent", [-1, 101, 2.5])
def test_c38_a_mirror_outside_0_to_100_is_refused(percent: Any) -> None:
    with pytest.raises(ToolRejected, match="is not a whole percentage"):
        mirror_operations(web(), "2", percent)
    with pytest.raises(ToolRejected, match="no destination for version 3 to mirror to"):
        mirror_operations(web(), "3", 5)


def test_a_new_service_is_valid_and_carries_its_key() -> None:
    service = virtual_service("web", host=HOST, version="1", key="k")
    rule = destination_rule("web", host=HOST, version="1")

    validate(service, rule)
    assert key_of(service) == "k" and managed_route(service).weights == {"1": 100}
    assert service["apiVersion"] == rule["apiVersion"] == "networking.istio.io/v1"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda s: s["spec"]["http"][0]["route"][0].update(weight=90), "sum to 90, not 100", id="sum"),
        pytest.param(lambda s: s["spec"]["http"][0]["route"].clear(), "'primary' has no destination", id="empty"),
        pytest.param(
            lambda s: s["spec"]["http"][0]["route"].append(destination("1", 0)), "'1' stands there more", id="twice"
        ),
        pytest.param(lambda s: s["spec"]["http"][1].update(name="primary"), "2 routes named 'primary'", id="name"),
        pytest.param(
            lambda s: s["spec"]["http"][0]["route"].append(destination("3", 0)),
            "subset 'v3' is not in DestinationRule 'web'",
            id="subset",
        ),
    ],
)
def test_documents_that_a_proxy_would_serve_wrongly_are_refused(edit: Any, message: str) -> None:
    service = web()
    rule = destination_rule("web", host=HOST, version="1")
    rule = apply_patch(rule, subset_operations(rule, "2"))
    validate(service, rule)
    edit(service)

    with pytest.raises(ToolRejected, match=message):
        validate(service, rule)


def test_the_annotation_is_written_where_there_is_none_yet() -> None:
    service = web()
    del service["metadata"]["annotations"]

    assert key_of(apply_patch(service, key_operations(service, "k"))) == "k"


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        pytest.param({"op": "add", "path": "/a/1", "value": 9}, {"a": [1, 9, 2]}, id="insert"),
        pytest.param({"op": "add", "path": "/a/-", "value": 9}, {"a": [1, 2, 9]}, id="append"),
        pytest.param({"op": "remove", "path": "/a/0"}, {"a": [2]}, id="remove"),
        pytest.param({"op": "replace", "path": "/a", "value": 3}, {"a": 3}, id="replace"),
        pytest.param({"op": "add", "path": "/b~1c~0d", "value": 1}, {"a": [1, 2], "b/c~d": 1}, id="escapes"),
    ],
)
def test_json_patch_operations(operation: Any, result: Document) -> None:
    assert apply_patch({"a": [1, 2]}, [operation]) == result
    assert pointer("b/c~d") == "/b~1c~0d"


@pytest.mark.parametrize(
    "operation",
    [{"op": "replace", "path": "/b", "value": 1}, {"op": "remove", "path": "/a/7"}, {"op": "add", "path": "/a/x/y"}],
)
def test_json_patch_refuses_paths_that_lead_nowhere(operation: Any) -> None:
    with pytest.raises(ToolRejected, match="no such place"):
        apply_patch({"a": [1, 2]}, [operation])
