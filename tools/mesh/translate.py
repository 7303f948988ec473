"""From Istio documents to Envoy's xDS resources. Pure.

What the documents say and Envoy would silently ignore is refused here.
"""

from __future__ import annotations

import re
from typing import Any

from state.errors import ToolRejected
from tools.mesh.documents import managed_route, validate
from tools.mesh.patch import Document
from tools.mesh.store import Documents

TYPE = "type.googleapis.com/envoy."
HASH_HEADERS = ("x-steady-entity", "x-request-id")
"""The entity decides the arm; a request without one is its own entity."""
DEFAULT_TIMEOUT = "10s"
IDLE_TIMEOUT = "30s"  # shorter than the server keeps a connection, so that no request meets one that just closed
SHADOW = "shadow"
TRANSLATED = frozenset(
    {"name", "match", "route", "timeout", "retries", "mirror", "mirrorPercentage", "corsPolicy", "headers"}
)
"""`corsPolicy` and `headers` are kept for the cluster; they do not change who answers."""
_DURATION = re.compile(r"\d+(\.\d+)?s")


def cluster_name(model: str, version: str) -> str:
    return f"{model}.v{version}"


def stat_name(model: str, version: str) -> str:
    """Name of the cluster in statistics: a dot would end it there."""
    return f"{model}__v{version}".replace(".", "_").replace(":", "_")


def address_of(documents: Documents) -> tuple[str, int]:
    """Host and port where requests for the model are sent."""
    return "127.0.0.1", int(documents.service_entry["spec"]["ports"][0]["number"])


def endpoints_of(documents: Documents) -> dict[str, tuple[str, int]]:
    """Version -> host and port of its server."""
    entry = documents.service_entry["spec"]
    port_name = entry["ports"][0]["name"]
    return {
        item["labels"]["version"]: (item["address"], int(item["ports"][port_name]))
        for item in entry.get("endpoints") or []
    }


def clusters(model: str, documents: Documents) -> list[Document]:
    """A cluster for every version, and one of its own for shadows: they must not count among its requests.

    Raises:
        ToolRejected: the documents contradict themselves.
    """
    validate(documents.virtual_service, documents.destination_rule)
    endpoints = endpoints_of(documents)
    managed = managed_route(documents.virtual_service)
    for version in managed.versions:
        if version not in endpoints:
            raise ToolRejected(f"ServiceEntry {model}: no endpoint for version {version}, which the route sends to")
    made = [_cluster(model, version, *endpoints[version]) for version in managed.versions]
    mirror = managed.route.get("mirror")
    if mirror:
        version = str(mirror["subset"]).removeprefix("v")
        if version not in endpoints:
            raise ToolRejected(f"ServiceEntry {model}: no endpoint for version {version}, which is mirrored to")
        made.append(_cluster(model, version, *endpoints[version], suffix=SHADOW))
    return made


def _cluster(model: str, version: str, host: str, port: int, *, suffix: str = "") -> Document:
    name = cluster_name(model, version) + (f".{suffix}" if suffix else "")
    address = {"socket_address": {"address": host, "port_value": port}}
    endpoint = {"lb_endpoints": [{"endpoint": {"address": address}}]}
    limits = {"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024}
    return {
        "@type": f"{TYPE}config.cluster.v3.Cluster",
        "name": name,
        "alt_stat_name": stat_name(model, version) + (f"__{suffix}" if suffix else ""),
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": IDLE_TIMEOUT},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def route_configuration(model: str, documents: Documents) -> Document:
    """The model's routes, in the order of the VirtualService.

    Raises:
        ToolRejected: a field that this proxy would not honour.
    """
    routes = [
        route
        for item in documents.virtual_service["spec"]["http"]
        for route in _routes(model, documents.virtual_service["spec"]["hosts"][0], item)
    ]
    return {
        "@type": f"{TYPE}config.route.v3.RouteConfiguration",
        "name": model,
        # Envoy takes a route to a cluster that it does not know, and then answers 503, unless told to look.
        "validate_clusters": True,
        "virtual_hosts": [{"name": model, "domains": ["*"], "routes": routes}],
    }


def _routes(model: str, host: str, item: Document) -> list[Document]:
    where = f"VirtualService {model} route {item.get('name', '(no name)')!r}"
    unknown = sorted(set(item) - TRANSLATED)
    if unknown:
        raise ToolRejected(f"{where}: {unknown[0]} is not supported by the local proxy")
    action: Document = {
        "timeout": _duration(item.get("timeout", DEFAULT_TIMEOUT), where),
        "hash_policy": [{"header": {"header_name": name}, "terminal": True} for name in HASH_HEADERS],
        "weighted_clusters": {"clusters": _weighted(model, host, item, where), "use_hash_policy": True},
    }
    if item.get("retries"):
        action["retry_policy"] = _retries(item["retries"], where)
    if item.get("mirror"):
        version = str(item["mirror"]["subset"]).removeprefix("v")
        hundredths = round(float((item.get("mirrorPercentage") or {}).get("value", 100)) * 10_000)
        share = {"default_value": {"numerator": hundredths, "denominator": "MILLION"}}
        shadow = f"{cluster_name(model, version)}.{SHADOW}"
        action["request_mirror_policies"] = [{"cluster": shadow, "runtime_fraction": share}]
    name = item.get("name", "")
    return [{"name": name, "match": match, "route": action} for match in _matches(item.get("match"), where)]


def _weighted(model: str, host: str, item: Document, where: str) -> list[Document]:
    made = []
    for destination in item.get("route") or []:
        target = destination["destination"]
        if target.get("host") != host or not str(target.get("subset", "")).startswith("v"):
            raise ToolRejected(f"{where}: the local proxy serves versions of {host} only, not {target}")
        sole = 100 if len(item["route"]) == 1 else 0
        name = cluster_name(model, str(target["subset"])[1:])
        made.append({"name": name, "weight": destination.get("weight", sole)})
    if not made:
        raise ToolRejected(f"{where}: it has no destination")
    return made


def _matches(conditions: list[Document] | None, where: str) -> list[Document]:
    if not conditions:
        return [{"prefix": "/"}]
    made = []
    for condition in conditions:
        unknown = sorted(set(condition) - {"uri", "headers", "name"})
        if unknown:
            raise ToolRejected(f"{where}: match on {unknown[0]} is not supported by the local proxy")
        match = _uri(condition.get("uri"), where)
        if condition.get("headers"):
            match["headers"] = [
                {"name": name, "string_match": _string(value, f"{where}: header {name}")}
                for name, value in condition["headers"].items()
            ]
        made.append(match)
    return made


def _uri(uri: Document | None, where: str) -> Document:
    if uri is None:
        return {"prefix": "/"}
    if set(uri) == {"prefix"}:
        return {"prefix": uri["prefix"]}
    if set(uri) == {"exact"}:
        return {"path": uri["exact"]}
    raise ToolRejected(f"{where}: match on uri {uri} is not supported by the local proxy")


def _string(value: Any, where: str) -> Document:
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("exact", "prefix"):
        return dict(value)
    raise ToolRejected(f"{where}: match {value} is not supported by the local proxy")


def _duration(text: str, where: str) -> str:
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        raise ToolRejected(f"{where}: timeout {text!r} is not a number of seconds such as '10s'")
    return text


def _retries(retries: Document, where: str) -> Document:
    unknown = sorted(set(retries) - {"attempts", "perTryTimeout", "retryOn"})
    if unknown:
        raise ToolRejected(f"{where}: retries.{unknown[0]} is not supported by the local proxy")
    policy: Document = {
        "retry_on": retries.get("retryOn", "connect-failure,refused-stream"),
        "num_retries": retries.get("attempts", 2),
    }
    if "perTryTimeout" in retries:
        policy["per_try_timeout"] = _duration(retries["perTryTimeout"], where)
    return policy


def listener(model: str, documents: Documents, routes_file: str, routes_folder: str) -> Document:
    """The model's own port, with its routes read from `routes_file`."""
    host, port = address_of(documents)
    source = {"path_config_source": {"path": routes_file, "watched_directory": {"path": routes_folder}}}
    manager = {
        "@type": f"{TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": model,
        "rds": {"route_config_name": model, "config_source": {"resource_api_version": "V3", **source}},
        # The request id joins predictions with outcomes, so it has to arrive as it was sent.
        "preserve_external_request_id": True,
        "request_id_extension": {
            "typed_config": {
                "@type": f"{TYPE}extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
            }
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPE}extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "@type": f"{TYPE}config.listener.v3.Listener",
        "name": model,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [{"filters": filters}],
    }
