"""Istio documents of one model as plain dicts, and the patches that change them. Pure: nothing here reads or writes.

One subset per version, `v<version>`; a shift writes the weights and our annotation, nothing else. Plain dicts and
patches, because a typed model would drop the fields that it does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from state.errors import ToolRejected
from tools.mesh.patch import Document, Operation, pointer

API_VERSION = "networking.istio.io/v1"
ROUTE = "primary"
KEY_ANNOTATION = "steadyhand.io/action-key"
INHERITED = ("timeout", "retries", "corsPolicy", "headers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedRoute:
    """The route of a VirtualService that we write to."""

    index: int
    """Its place in `spec.http`."""
    route: Document
    versions: tuple[str, ...]
    """Versions in route order."""

    @property
    def weights(self) -> dict[str, int]:
        """Version -> percent, in route order. Source: Istio - a sole destination without a weight gets everything."""
        sole = 100 if len(self.versions) == 1 else 0
        return {
            version: destination.get("weight", sole)
            for version, destination in zip(self.versions, self.route["route"], strict=True)
        }


def subset(version: str) -> str:
    return f"v{version}"


def virtual_service(name: str, *, host: str, version: str, key: str) -> Document:
    """A VirtualService that sends everything to `version`."""
    return {
        "apiVersion": API_VERSION,
        "kind": "VirtualService",
        "metadata": {"name": name, "annotations": {KEY_ANNOTATION: key}},
        "spec": {"hosts": [host], "http": [{"name": ROUTE, "route": [_destination(host, version, 100)]}]},
    }


def destination_rule(name: str, *, host: str, version: str) -> Document:
    return {
        "apiVersion": API_VERSION,
        "kind": "DestinationRule",
        "metadata": {"name": name},
        "spec": {"host": host, "subsets": [_subset(version)]},
    }


def _destination(host: str, version: str, weight: int) -> Document:
    return {"destination": {"host": host, "subset": subset(version)}, "weight": weight}


def _subset(version: str) -> Document:
    return {"name": subset(version), "labels": {"version": version}}


def managed_route(service: Document, *, name: str = ROUTE) -> ManagedRoute:
    """The route called `name`; a sole route without a name is taken for it.

    Raises:
        ToolRejected: no such route, or several without a name, or a destination in it that is not ours.
    """
    where = _where(service)
    routes = service["spec"].get("http") or []
    named = [index for index, route in enumerate(routes) if route.get("name") == name]
    if len(named) > 1:
        raise ToolRejected(f"{where} has {len(named)} routes named {name!r}: a managed route has a name of its own")
    if not named:
        if len(routes) != 1 or routes[0].get("name"):
            names = ", ".join(repr(route.get("name", "(no name)")) for route in routes)
            raise ToolRejected(f"{where} has no route named {name!r}, only {names or 'none'}")
        named = [0]
    route = routes[named[0]]
    host = service["spec"]["hosts"][0]
    versions = tuple(_version(item.get("destination", {}), host=host, where=where) for item in route.get("route") or [])
    return ManagedRoute(index=named[0], route=route, versions=versions)


def _version(destination: Mapping[str, Any], *, host: str, where: str) -> str:
    name = destination.get("subset", "")
    if destination.get("host") != host or not name.startswith("v") or len(name) == 1:
        said = f"host {destination.get('host')!r} subset {name!r}"
        raise ToolRejected(f"{where} sends to {said}, which is not managed: move it to a route of its own")
    return str(name[1:])


def weight_operations(service: Document, weights: Mapping[str, int], *, name: str = ROUTE) -> list[Operation]:
    """Tests of what was read, and the weights that differ; empty where all are as wanted.

    Raises:
        ToolRejected: a version without a destination, or left out, or weights that are no percentages of one whole.
    """
    managed = managed_route(service, name=name)
    where = f"{_where(service)} route {managed.route.get('name', '(no name)')!r}"
    absent = [version for version in weights if version not in managed.versions]
    unnamed = [version for version in managed.versions if version not in weights]
    if absent or unnamed:
        problem = f"no destination for version {absent[0]}" if absent else f"no weight given for version {unnamed[0]}"
        raise ToolRejected(f"{where}: {problem}; it has {', '.join(managed.versions)}")
    _check_weights(weights, where)
    changed = [
        (index, version)
        for index, version in enumerate(managed.versions)
        if managed.weights[version] != weights[version]
    ]
    if not changed:
        return []
    operations = route_tests(service, managed)
    for index, version in changed:
        path = pointer("spec", "http", managed.index, "route", index, "weight")
        # `add` replaces a member that is there, and makes the one that a sole destination may leave out.
        operations.append({"op": "add", "path": path, "value": weights[version]})
    return operations


def _check_weights(weights: Mapping[str, int], where: str) -> None:
    for version, weight in weights.items():
        if type(weight) is not int or not 0 <= weight <= 100:
            raise ToolRejected(f"{where}: weight of version {version} is {weight!r}, not a whole percentage")
    if sum(weights.values()) != 100:
        raise ToolRejected(f"{where}: weights {dict(weights)} sum to {sum(weights.values())}, not 100")


def route_tests(service: Document, managed: ManagedRoute) -> list[Operation]:
    """Tests that fail where revision, route name or destinations are no longer those that were read."""
    tests: list[Operation] = []
    if "resourceVersion" in service["metadata"]:
        tests.append(_test(service["metadata"]["resourceVersion"], "metadata", "resourceVersion"))
    base = ("spec", "http", managed.index)
    if "name" in managed.route:
        tests.append(_test(managed.route["name"], *base, "name"))
    for index, item in enumerate(managed.route.get("route") or []):
        tests.append(_test(item["destination"]["host"], *base, "route", index, "destination", "host"))
        tests.append(_test(item["destination"]["subset"], *base, "route", index, "destination", "subset"))
    return tests


def _test(value: Any, *parts: str | int) -> Operation:
    return {"op": "test", "path": pointer(*parts), "value": value}


def key_of(service: Document) -> str | None:
    key = (service["metadata"].get("annotations") or {}).get(KEY_ANNOTATION)
    return None if key is None else str(key)


def key_operations(service: Document, key: str) -> list[Operation]:
    """Writes our annotation and no other; empty where it stands already."""
    if key_of(service) == key:
        return []
    if not service["metadata"].get("annotations"):
        return [{"op": "add", "path": "/metadata/annotations", "value": {KEY_ANNOTATION: key}}]
    return [{"op": "add", "path": pointer("metadata", "annotations", KEY_ANNOTATION), "value": key}]


def stage_operations(service: Document, version: str, *, name: str = ROUTE) -> list[Operation]:
    """Adds the version's destination at 0, last, because only the last can grow without moving an entity out of it."""
    managed = managed_route(service, name=name)
    if version in managed.versions:
        return []
    host = service["spec"]["hosts"][0]
    destination = _destination(host, version, 0)
    port = (managed.route.get("route") or [{}])[0].get("destination", {}).get("port")
    if port is not None:
        destination["destination"]["port"] = port
    path = pointer("spec", "http", managed.index, "route", "-")
    return [*route_tests(service, managed), {"op": "add", "path": path, "value": destination}]


def subset_operations(rule: Document, version: str) -> list[Operation]:
    if any(item["name"] == subset(version) for item in rule["spec"]["subsets"]):
        return []
    return [{"op": "add", "path": "/spec/subsets/-", "value": _subset(version)}]


def retire_operations(service: Document, version: str, *, name: str = ROUTE) -> list[Operation]:
    """Removes the version's destination, its mirror included; empty where it is not there.

    Raises:
        ToolRejected: it still has a share of the traffic.
    """
    managed = managed_route(service, name=name)
    if version not in managed.versions:
        return []
    weight = managed.weights[version]
    if weight != 0:
        raise ToolRejected(f"{_where(service)}: version {version} still has {weight} % of the traffic")
    path = pointer("spec", "http", managed.index, "route", managed.versions.index(version))
    removal: Operation = {"op": "remove", "path": path}
    mirrored = (managed.route.get("mirror") or {}).get("subset") == subset(version)
    return [*route_tests(service, managed), removal, *(_unmirror(managed) if mirrored else [])]


def subset_removal(rule: Document, version: str) -> list[Operation]:
    names = [item["name"] for item in rule["spec"]["subsets"]]
    if subset(version) not in names:
        return []
    at = names.index(subset(version))
    return [_test(subset(version), "spec", "subsets", at, "name"), {"op": "remove", "path": f"/spec/subsets/{at}"}]


def mirror_operations(service: Document, version: str | None, percent: int, *, name: str = ROUTE) -> list[Operation]:
    """Copies `percent` of the requests to `version`, whose answers nobody sees; None ends it.

    Raises:
        ToolRejected: a percentage outside 0 to 100, or a version without a destination.
    """
    managed = managed_route(service, name=name)
    if version is None:
        return [*route_tests(service, managed), *_unmirror(managed)] if "mirror" in managed.route else []
    if type(percent) is not int or not 0 <= percent <= 100:
        raise ToolRejected(f"{_where(service)}: mirror of {percent!r} % is not a whole percentage")
    if version not in managed.versions:
        raise ToolRejected(f"{_where(service)}: no destination for version {version} to mirror to")
    wanted = {"host": service["spec"]["hosts"][0], "subset": subset(version)}
    share = {"value": float(percent)}
    if managed.route.get("mirror") == wanted and managed.route.get("mirrorPercentage") == share:
        return []
    base = ("spec", "http", managed.index)
    return [
        *route_tests(service, managed),
        {"op": "add", "path": pointer(*base, "mirror"), "value": wanted},
        {"op": "add", "path": pointer(*base, "mirrorPercentage"), "value": share},
    ]


def _unmirror(managed: ManagedRoute) -> list[Operation]:
    return [
        {"op": "remove", "path": pointer("spec", "http", managed.index, name)}
        for name in ("mirror", "mirrorPercentage")
        if name in managed.route
    ]


def header_route_name(version: str, *, name: str = ROUTE) -> str:
    return f"{name}-header-{subset(version)}"


def header_operations(
    service: Document, *, header: str, value: str, version: str, name: str = ROUTE
) -> list[Operation]:
    """Sends requests with `header: value` to `version`, above every other route. Setting it twice leaves one.

    It carries the match, timeout, retries and cors of the route that it stands above, and its port.
    """
    managed = managed_route(service, name=name)
    if version not in managed.versions:
        raise ToolRejected(f"{_where(service)}: no destination for version {version} to send {header} to")
    condition = {"headers": {header: {"exact": value}}}
    matches = managed.route.get("match") or [{}]
    destination = dict(managed.route["route"][managed.versions.index(version)]["destination"])
    wanted = {
        "name": header_route_name(version, name=name),
        "match": [{**match, "headers": {**match.get("headers", {}), **condition["headers"]}} for match in matches],
        "route": [{"destination": destination, "weight": 100}],
        **{field: managed.route[field] for field in INHERITED if field in managed.route},
    }
    if service["spec"]["http"][0] == wanted:
        return []
    removal = header_removal(service, version, name=name)
    tests = [] if removal else route_tests(service, managed)
    return [*tests, *removal, {"op": "add", "path": "/spec/http/0", "value": wanted}]


def header_removal(service: Document, version: str, *, name: str = ROUTE) -> list[Operation]:
    """Removes the header route of `version`; empty where there is none."""
    wanted = header_route_name(version, name=name)
    places = [index for index, route in enumerate(service["spec"]["http"]) if route.get("name") == wanted]
    if not places:
        return []
    test = _test(wanted, "spec", "http", places[0], "name")
    tests = [*route_tests(service, managed_route(service, name=name)), test]
    return [*tests, {"op": "remove", "path": pointer("spec", "http", places[0])}]


def validate(service: Document, rule: Document, *, name: str = ROUTE) -> None:
    """Refuse documents that a proxy would take and then serve wrongly.

    Raises:
        ToolRejected: names the object and what is wrong with it.
    """
    where = _where(service)
    managed = managed_route(service, name=name)
    if not managed.versions:
        raise ToolRejected(f"{where}: route {name!r} has no destination")
    repeated = _repeated([route["name"] for route in service["spec"]["http"] if "name" in route])
    repeated += _repeated(managed.versions)
    if repeated:
        raise ToolRejected(f"{where}: {repeated[0]!r} stands there more than once")
    _check_weights(managed.weights, where)
    subsets = {item["name"] for item in rule["spec"]["subsets"]}
    for route in service["spec"]["http"]:
        for item in route.get("route") or []:
            wanted = item.get("destination", {}).get("subset")
            if wanted is not None and wanted not in subsets:
                raise ToolRejected(f"{where}: subset {wanted!r} is not in DestinationRule {rule['metadata']['name']!r}")


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _where(service: Document) -> str:
    metadata = service["metadata"]
    namespace = metadata.get("namespace")
    return f"VirtualService {namespace + '/' if namespace else ''}{metadata['name']}"
