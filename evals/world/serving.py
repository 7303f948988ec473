"""The world's servers, route and service metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from evals.world.faults import port_call
from evals.world.package import read_fitted
from evals.world.records import LATENCY_BOUNDS_MS, Condition, RouteDocument, Server
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
        running = state.servers.get(version)
        if running is not None and running.alive:
            return _endpoint(model, running)
        digest = self.world.store_fitted(read_fitted(package))
        self.world.state.n_started += 1
        generation = self.world.state.n_started
        if version not in state.started:
            inherited = [c for c in state.conditions if c.version is None]
            state.started.append(version)
            for condition in inherited[-1:]:
                state.conditions.insert(0, _of_version(condition, version))
        server = Server(version=version, key=key, digest=digest, port=FIRST_PORT + generation, generation=generation)
        state.servers[version] = server
        self.world.effect("servers.start", model=model, key=key, args={"version": version, "generation": generation})
        endpoint = _endpoint(model, server)
        server.alive = not self.world.condition(model, version).dead
        return endpoint

    @port_call("servers.find")
    def find(self, key: str) -> Endpoint | None:
        for model, state in self.world.state.models.items():
            for server in state.servers.values():
                if server.key == key and server.alive:
                    return _endpoint(model, server)
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
        # Under one key a restart stops and starts: said again, it must not stop what it started.
        if state is None or version not in state.servers or self.world.done("servers.stop", key):
            return
        state.servers.pop(version)
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
        if route is not None and (key in route.keys or endpoint.version in route.weights):
            return _route(endpoint.model, route)
        weights = {endpoint.version: 100} if route is None else {**route.weights, endpoint.version: 0}
        return self._write("mesh.stage", endpoint.model, weights, key)

    @port_call("mesh.set_weights", effect=True)
    def set_weights(self, *, model: str, weights: Mapping[str, int], key: str, revision: str | None = None) -> Route:
        route = self._document(model)
        if key in route.keys:
            if route.key == key:
                # Said again: the data plane gets the stored document once more.
                self._apply(model, route)
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
        if key in route.keys or version not in route.weights:
            return _route(model, route)
        if route.weights[version] != 0:
            raise ToolRejected(f"{model}: version {version} still has {route.weights[version]} % of the traffic")
        weights = {name: weight for name, weight in route.weights.items() if name != version}
        return self._write("mesh.retire", model, weights, key)

    @port_call("mesh.find")
    def find(self, key: str) -> Route | None:
        for model, state in self.world.state.models.items():
            if state.route is not None and key in state.route.keys:
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
            keys=[*(before.keys if before is not None else []), key],
        )
        state.route = route
        self.world.effect(method, model=model, key=key, args={"weights": dict(weights)})
        self._apply(model, route)
        return _route(model, route)

    def _apply(self, model: str, route: RouteDocument) -> None:
        if route.applied and self.faults.take("mesh.set_weights", "not_applied", model):
            return
        route.applied = dict(route.weights)


class WorldMetrics:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("metrics.sample")
    def sample(self, model: str, version: str) -> ServiceSample | None:
        state = self.world.state.models.get(model)
        server = state.servers.get(version) if state is not None else None
        if server is None:
            return None
        bounds = (*LATENCY_BOUNDS_MS, math.inf)
        return ServiceSample(
            n_requests=server.n_requests,
            n_errors=server.n_errors,
            latency_buckets_ms=dict(zip(bounds, itertools.accumulate(server.latency), strict=True)),
            source=f"{model}/{version}/{server.generation}",
        )


def _endpoint(model: str, server: Server) -> Endpoint:
    return Endpoint(
        model=model, version=server.version, key=server.key, host=HOST, port=server.port, ready=True, pid=None
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


def _of_version(condition: Condition, version: str) -> Condition:
    return Condition(
        version=version,
        error_ratio=condition.error_ratio,
        latency_ratio=condition.latency_ratio,
        score_shift=condition.score_shift,
        dead=condition.dead,
    )
