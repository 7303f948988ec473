"""The world's servers, route and service metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evals.world.faults import port_call
from evals.world.package import model_bytes
from evals.world.records import LATENCY_BOUNDS_MS, Counters, RouteDocument, Server
from evals.world.world import World
from state.errors import ToolRejected, ToolUnavailable
from tools.ports import Endpoint, Route, ServiceSample

HOST = "127.0.0.1"
FIRST_PORT = 20_000


class WorldServers:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("servers.start", effect=True)
    def start(self, *, model: str, version: str, package: Path, key: str) -> Endpoint:
        state = self.world.state.models.get(model)
        if state is None:
            raise ToolRejected(f"{model}: no such model")
        digest = self.world.load_model(model_bytes(package))
        known = state.servers.get(version)
        if known is not None and known.alive:
            if known.digest != digest:
                raise ToolRejected(f"{model} version {version} already runs from another package: stop it first")
            known.keys = [*known.keys, key] if key not in known.keys else known.keys
            return _endpoint(model, known, key=key)
        self.world.state.n_started += 1
        generation = self.world.state.n_started
        # A server that died gets its old port again, so that routes to it stay right.
        port = known.port if known is not None else FIRST_PORT + generation
        if known is None:
            for condition in [c for c in state.conditions if c.version is None][-1:]:
                state.conditions.insert(0, replace(condition, version=version))
        server = Server(version=version, keys=[key], digest=digest, port=port, generation=generation)
        state.servers[version] = server
        self.world.effect("servers.start", model=model, key=key, args={"version": version, "generation": generation})
        endpoint = _endpoint(model, server, key=key)
        server.alive = not self.world.condition(model, version).dead
        return endpoint

    @port_call("servers.find")
    def find(self, key: str) -> Endpoint | None:
        """The server that `key` started or adopted; not ready where `key` stopped it."""
        for model, state in self.world.state.models.items():
            for server in state.servers.values():
                if (key in server.keys and server.alive) or server.stopped_by == key:
                    return _endpoint(model, server, key=key)
        return None

    @port_call("servers.get")
    def get(self, model: str, version: str) -> Endpoint | None:
        state = self.world.state.models.get(model)
        server = state.servers.get(version) if state is not None else None
        return _endpoint(model, server) if server is not None and server.alive else None

    @port_call("servers.list")
    def list(self, model: str) -> Sequence[Endpoint]:
        state = self.world.state.models.get(model)
        servers = state.servers.values() if state is not None else ()
        return [_endpoint(model, server) for server in servers if server.alive]

    @port_call("servers.stop", effect=True)
    def stop(self, *, model: str, version: str, key: str) -> None:
        state = self.world.state.models.get(model)
        server = state.servers.get(version) if state is not None else None
        # A restart stops and starts under one key: said again, it must not stop what it started.
        if server is None or server.stopped_by is not None or key in server.keys:
            return
        server.alive, server.stopped_by = False, key
        self.world.effect("servers.stop", model=model, key=key, args={"version": version})

    @port_call("servers.flush")
    def flush(self, model: str) -> None:
        """Predictions of this world can be read as soon as they were answered."""


class WorldMesh:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("mesh.read")
    def read(self, model: str) -> Route | None:
        state = self.world.state.models.get(model)
        return _route(model, state.route) if state is not None and state.route is not None else None

    @port_call("mesh.stage", effect=True)
    def stage(self, *, endpoint: Endpoint, key: str) -> Route:
        state = self.world.state.models.get(endpoint.model)
        if state is None:
            raise ToolRejected(f"{endpoint.model}: no such model")
        route = state.route
        if route is not None and key == route.key and endpoint.version in route.weights:
            return _route(endpoint.model, route)
        # A version that is there already gets its new address and keeps its weight.
        before = route.weights if route is not None else {}
        weights = {**before, endpoint.version: before.get(endpoint.version, 0 if before else 100)}
        return self._write("mesh.stage", endpoint.model, weights, key)

    @port_call("mesh.set_weights", effect=True)
    def set_weights(self, *, model: str, weights: Mapping[str, int], key: str, revision: str | None = None) -> Route:
        route = self._document(model)
        if route.key == key:
            # Said again: the data plane gets the stored document once more; other weights are somebody's later edit.
            self._apply("mesh.set_weights", model, route)
            return _route(model, route)
        if revision is not None and revision != str(route.revision):
            raise ToolUnavailable(f"{model}: the route is at revision {route.revision}, not {revision}")
        if set(weights) != set(route.weights):
            raise ToolRejected(f"{model}: weights for {sorted(weights)}, but the route has {sorted(route.weights)}")
        if sum(weights.values()) != 100 or min(weights.values()) < 0:
            raise ToolRejected(f"{model}: weights {dict(weights)} are not percentages that sum to 100")
        # The order of the route stays: it is what keeps assignment sticky.
        return self._write("mesh.set_weights", model, {version: weights[version] for version in route.weights}, key)

    @port_call("mesh.retire", effect=True)
    def retire(self, *, model: str, version: str, key: str) -> Route:
        route = self._document(model)
        if version not in route.weights:
            return _route(model, route)
        if route.weights[version] != 0:
            raise ToolRejected(f"{model}: version {version} still has {route.weights[version]} % of the traffic")
        weights = {name: weight for name, weight in route.weights.items() if name != version}
        return self._write("mesh.retire", model, weights, key)

    @port_call("mesh.find")
    def find(self, key: str) -> Route | None:
        """The route whose stored document bears `key`: a later write takes its place."""
        for model, state in self.world.state.models.items():
            if state.route is not None and state.route.key == key:
                return _route(model, state.route)
        return None

    def _document(self, model: str) -> RouteDocument:
        state = self.world.state.models.get(model)
        if state is None or state.route is None:
            raise ToolRejected(f"{model}: no route")
        return state.route

    def _write(self, method: str, model: str, weights: dict[str, int], key: str) -> Route:
        state = self.world.model(model)
        self.world.state.n_writes += 1
        before = state.route
        route = RouteDocument(
            weights=dict(weights),
            applied=dict(before.applied) if before is not None else {},
            revision=self.world.state.n_writes,
            key=key,
        )
        misrouted = before.misrouted if before is not None else None
        state.counters = {version: state.counters.get(version, Counters()) for version in weights}
        route.misrouted = misrouted if misrouted is not None and set(misrouted) == set(weights) else None
        state.route = route
        self.world.effect(method, model=model, key=key, args={"weights": dict(weights)})
        self._apply(method, model, route)
        return _route(model, route)

    def _apply(self, method: str, model: str, route: RouteDocument) -> None:
        if route.applied and self.faults.take(method, "not_applied", model):
            return
        route.applied = dict(route.weights)


class WorldMetrics:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("metrics.sample")
    def sample(self, model: str, version: str) -> ServiceSample | None:
        state = self.world.state.models.get(model)
        counters = state.counters.get(version) if state is not None else None
        if counters is None:
            return None
        bounds = (*LATENCY_BOUNDS_MS, math.inf)
        return ServiceSample(
            n_requests=counters.n_requests,
            n_errors=counters.n_errors,
            latency_buckets_ms=dict(zip(bounds, itertools.accumulate(counters.latency), strict=True)),
            source=f"proxy-{self.world.state.n_proxy_starts}",
        )


def _endpoint(model: str, server: Server, *, key: str | None = None) -> Endpoint:
    return Endpoint(
        model=model,
        version=server.version,
        key=key if key is not None else server.keys[0],
        host=HOST,
        port=server.port,
        ready=server.alive,
        pid=None,
    )


def _route(model: str, route: RouteDocument) -> Route:
    return Route(
        model=model,
        weights=dict(route.weights),
        revision=str(route.revision),
        key=route.key,
        served=route.applied == route.weights,
        address=f"http://{HOST}:{FIRST_PORT}",
    )
