"""What the deployment agent does to servers and routes: one committed intent at a time, read back before it counts."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from agents.base import done, failed, text_arg
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from tools.ports import Platform, Route, ServiceSample

_Sample = dict[str, JsonValue]


def begun(intent: CommittedIntent, platform: Platform) -> bool:
    """Whether the route, a server or an alias bears the key: then the effect exists, at least in part, and is completed."""
    if platform.mesh.find(intent.key) is not None:
        return True
    if intent.kind in ("stage_version", "retire_version", "restart_server"):
        return platform.servers.find(intent.key) is not None
    return platform.registry.find(intent.key) is not None


def perform(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Carry out one committed deployment action under its key, and read the outside world back."""
    match intent.kind:
        case "stage_version":
            return _stage(intent, platform)
        case "shift_traffic" | "run_ab_test" | "promote" | "rollback":
            return _set_weights(intent, platform)
        case "retire_version":
            version = text_arg(intent, "version")
            route = platform.mesh.read(intent.model)
            if route is not None and version in route.weights:
                platform.mesh.retire(model=intent.model, version=version, key=intent.key)
            platform.servers.stop(model=intent.model, version=version, key=intent.key)
            return done({"retired": version})
        case "restart_server":
            version = text_arg(intent, "version")
            package = platform.registry.package(intent.model, version)
            platform.servers.stop(model=intent.model, version=version, key=intent.key)
            endpoint = platform.servers.start(model=intent.model, version=version, package=package, key=intent.key)
            platform.mesh.stage(endpoint=endpoint, key=intent.key)
            return done({"version": version, "ready": endpoint.ready, "port": endpoint.port})
        case _:
            return failed(f"the deployment agent cannot carry out {intent.kind}")


def _stage(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    version = text_arg(intent, "version")
    package = platform.registry.package(intent.model, version)
    endpoint = platform.servers.find(intent.key) or platform.servers.start(
        model=intent.model, version=version, package=package, key=intent.key
    )
    route = platform.mesh.stage(endpoint=endpoint, key=intent.key)
    return done(
        {"version": version, "ready": endpoint.ready, "weights": dict(route.weights), "revision": route.revision}
    )


def _set_weights(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    wanted = {str(v): int(w) for v, w in intent.args["weights"].items()}  # type: ignore[union-attr,arg-type]
    route = platform.mesh.find(intent.key)
    # Our write is there and somebody edited it since: the action is done, and the edit is judged at the next look.
    edited = route is not None and dict(route.weights) != wanted
    if route is None or not (edited or route.served):
        route = platform.mesh.set_weights(model=intent.model, weights=wanted, key=intent.key)
    if intent.kind == "rollback":
        champion = _alias_holder(platform, intent.model)
        if champion != text_arg(intent, "to"):
            platform.registry.set_alias(
                model=intent.model, alias="champion", version=text_arg(intent, "to"), key=intent.key
            )
    observed = route if edited else confirm(platform, intent.model, wanted)
    if observed is None:
        return ActionOutcome(status="unknown", message="the data plane does not confirm the weights that were written")
    if intent.kind == "promote":
        # Only what serves is called champion: where the weights are never taken, nothing has to be taken back but them.
        platform.registry.set_alias(
            model=intent.model, alias="champion", version=text_arg(intent, "version"), key=intent.key
        )
    return done(
        {
            "weights": dict(wanted),
            "revision": observed.revision,
            "samples": samples(platform, intent.model, list(wanted)),
        }
    )


def _alias_holder(platform: Platform, model: str) -> str | None:
    return next((v.version for v in platform.registry.versions(model) if "champion" in v.aliases), None)


def confirm(platform: Platform, model: str, wanted: dict[str, int]) -> Route | None:
    """The route, if the data plane serves exactly `wanted`."""
    route = platform.mesh.read(model)
    return route if route is not None and route.served and dict(route.weights) == wanted else None


def samples(platform: Platform, model: str, versions: list[str]) -> dict[str, JsonValue]:
    """Service counters now, by version, as JSON; a version without data is left out."""
    found: dict[str, JsonValue] = {}
    for version in versions:
        sample = platform.metrics.sample(model, version)
        if sample is not None:
            found[version] = sample_json(sample)
    return found


def sample_json(sample: ServiceSample) -> _Sample:
    return {
        "n_requests": sample.n_requests,
        "n_errors": sample.n_errors,
        "buckets": [[str(bound), count] for bound, count in sorted(sample.latency_buckets_ms.items())],
        "source": sample.source,
    }


def sample_from(value: Any) -> ServiceSample:
    return ServiceSample(
        n_requests=int(value["n_requests"]),
        n_errors=int(value["n_errors"]),
        latency_buckets_ms={float(bound): int(count) for bound, count in value["buckets"]},
        source=str(value["source"]),
    )
