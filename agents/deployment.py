"""Deployment: stage a version, walk the canary, run the A/B test, promote, roll back, retire."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
from pydantic import JsonValue

from agents import rollout as machine
from agents.base import Learned, Move, Situation, Wait, done, failed, matured_until, proposal, specialist, text_arg
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from tools.drift.performance import block_losses
from tools.experiment import ab_test, sample_ratio_check
from tools.metrics import window
from tools.ports import Platform, Route, ServiceSample

_Sample = dict[str, JsonValue]
HELD_BY_EDIT = "a person: somebody took traffic off the candidate by hand"
LOOK_AGAIN = timedelta(minutes=1)
"""A version under traffic is looked at this often: a fault or a foreign edit does not wait for the end of a dwell."""


def read(situation: Situation, platform: Platform) -> dict[str, Any]:
    """The route, the endpoints and, while a rollout runs, the counters and the labelled outcomes of both arms."""
    route = platform.mesh.read(situation.model)
    reading: dict[str, Any] = {
        "weights": dict(route.weights) if route else {},
        "revision": route.revision if route else "",
        "route_key": route.key if route else None,
        "endpoints": {e.version: e.ready for e in platform.servers.list(situation.model)},
        "samples": {},
    }
    rollout = situation.rollout
    if rollout is not None and rollout.body.get("samples") and route is not None:
        # Before the first shift there is nothing to compare: a metrics outage must not stop the staging.
        reading["samples"] = samples(platform, situation.model, list(route.weights))
    if rollout is not None and situation.step == "run_ab_test" and rollout.phase == "ab_test":
        reading["arms"] = read_arms(situation, platform)
    return reading


def judge(situation: Situation, reading: dict[str, Any]) -> Move:
    match situation.step:
        case "stage_version":
            args: dict[str, JsonValue] = {"version": situation.candidate, "rollout": _rollout_id(situation)}
            return proposal(situation, "deployment", args, f"start version {situation.candidate} warm, with no traffic")
        case "shift_traffic" | "run_ab_test" | "promote":
            return _judge_progress(situation, reading)
        case "rollback":
            return _judge_rollback(situation, reading)
        case "retire_version":
            version = situation.facts.get("retire") or situation.candidate
            args = {"version": version, "rollout": _rollout_id(situation), "after": situation.last_traffic_key}
            return proposal(situation, "deployment", args, f"version {version} has no traffic and is no longer needed")
        case "restart_server":
            args = {"version": situation.champion, "after": situation.last_traffic_key, "cause": situation.subject_id}
            return proposal(
                situation, "deployment", args, f"the server of version {situation.champion} does not answer"
            )
        case _:
            return Wait(until=None, waits_for=f"the deployment agent has no move for {situation.step}")


def _judge_progress(situation: Situation, reading: dict[str, Any]) -> Move:
    """Where the candidate stands in its rollout, and the one next move."""
    if situation.champion is None:
        return _promote(situation, reading, "there is no champion yet: the first version takes all traffic")
    rollout = situation.rollout
    if rollout is None:
        return Wait(until=None, waits_for="a staged version")
    edited = _judge_foreign_edit(situation, reading)
    if edited is not None:
        return edited
    match situation.step:
        case "shift_traffic":
            return _judge_canary(situation, reading)
        case "run_ab_test" if rollout.phase != "ab_test":
            return _start_ab_test(situation, reading)
        case "run_ab_test":
            return _judge_ab_test(situation, reading)
        case _:
            verdict = str(situation.facts.get("ab_verdict", "none")).replace("_", " ")
            return _promote(situation, reading, f"paired win and no live harm (A/B: {verdict})")


def _judge_foreign_edit(situation: Situation, reading: dict[str, Any]) -> Move | None:
    rollout = situation.rollout
    assert rollout is not None
    expected = {str(v): int(w) for v, w in rollout.body.get("weights", {}).items()}  # type: ignore[union-attr,arg-type]
    kind = machine.foreign_edit(expected=expected, observed=reading["weights"], candidate=rollout.candidate)
    if not expected or kind == "none":
        return None
    details: dict[str, JsonValue] = {"expected": dict(expected), "observed": reading["weights"]}
    reason = f"somebody raised version {rollout.candidate}'s share; put it back"
    if kind == "lowered":
        if situation.facts.get("held_by_edit"):
            return Wait(until=None, waits_for=HELD_BY_EDIT)
        if situation.facts.get("edit_answered") != reading["revision"]:
            return Learned(
                topic="foreign_edit",
                verdict="lowered",
                summary=f"Somebody took traffic off version {rollout.candidate}; the rollout holds until a person answers.",
                # A resume takes `held_by_edit` away and leaves the revision: that edit is answered, a later one is not.
                facts={"held_by_edit": True, "edit_answered": reading["revision"]},
                details=details,
            )
        reason = f"a person lets the rollout go on: version {rollout.candidate} gets its share back"
    args: dict[str, JsonValue] = {
        "rollout": rollout.id,
        "version": rollout.candidate,
        "weights": dict(expected),
        "after": situation.last_traffic_key,
        "corrects": reading["revision"],
    }
    move = proposal(situation, "deployment", args, reason)
    return move.model_copy(
        update={"proposal": move.proposal.model_copy(update={"args": args, "kind": "shift_traffic"})}
    )


def _judge_canary(situation: Situation, reading: dict[str, Any]) -> Move:
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    step = int(rollout.body.get("step", -1))  # type: ignore[arg-type]
    if not reading["endpoints"].get(rollout.candidate, False):
        return _not_ready(situation, has_traffic=step >= 0)
    if step >= 0:
        waiting = _wait_or_analysis(situation, reading)
        if waiting is not None:
            return waiting
    percent = machine.next_step(spec, step)
    if percent is None:
        return Learned(
            topic="analysis",
            verdict="passed",
            summary=f"Version {rollout.candidate} passed the analysis at every canary step.",
            facts={"canary_passed": True},
        )
    return _shift(
        situation, reading, percent, f"canary step {step + 2} of {len(machine.steps(spec))}: {percent} % of traffic"
    )


def _not_ready(situation: Situation, *, has_traffic: bool) -> Move:
    """Without traffic there is time to become ready; with traffic, every request to the version fails."""
    rollout = situation.rollout
    assert rollout is not None
    if has_traffic:
        return Learned(
            topic="analysis",
            verdict="failed",
            summary=f"The server of version {rollout.candidate} is not ready while it takes traffic.",
            facts={"canary_failed": True},
        )
    since = datetime.fromisoformat(str(rollout.body.get("since", rollout.started_at.isoformat())))
    if situation.now < since + situation.spec.rollout.deadline:
        return Wait(
            until=situation.now + timedelta(minutes=1), waits_for=f"version {rollout.candidate} to become ready"
        )
    return Learned(
        topic="analysis",
        verdict="deadline",
        summary=f"Version {rollout.candidate} was not ready within its deadline.",
        facts={"canary_failed": True},
    )


def _wait_or_analysis(situation: Situation, reading: dict[str, Any]) -> Move | None:
    """None where the present step passed; otherwise what the rollout waits for, or its failure."""
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    since = datetime.fromisoformat(str(rollout.body["since"]))
    analysis = analysis_since(situation, reading, candidate=rollout.candidate, stable=str(rollout.stable))
    once = _one_failing_window(situation, reading, analysis)
    if once is not None:
        return once
    ends = machine.dwell_ends(spec, since)
    if analysis.verdict != "fail" and situation.now < ends:
        return Wait(until=min(ends, situation.now + LOOK_AGAIN), waits_for="the dwell of the canary step")
    if analysis.verdict == "pass":
        return None
    if analysis.verdict == "no_data" and situation.now < since + spec.rollout.deadline:
        return Wait(until=situation.now + LOOK_AGAIN, waits_for=f"data: {analysis.reasons[0]}")
    verdict = "failed" if analysis.verdict == "fail" else "inconclusive"
    return Learned(
        topic="analysis",
        verdict=verdict,
        summary=f"Canary analysis of version {rollout.candidate} {verdict}: {'; '.join(analysis.reasons)}.",
        facts={"canary_failed": True},
        details=analysis.details(),
    )


def _one_failing_window(situation: Situation, reading: dict[str, Any], analysis: machine.Analysis) -> Learned | None:
    """A first failing window is recorded and measured again; a passing one after it clears the count."""
    rollout = situation.rollout
    assert rollout is not None
    if analysis.verdict == "pass" and rollout.body.get("failures"):
        return Learned(
            topic="analysis",
            verdict="passing_again",
            summary=f"Version {rollout.candidate} is within its service margins again.",
            facts={},
            details=analysis.details(),
            rollout_body={"failures": 0},
        )
    failures = machine.failures_after(situation.spec, rollout.body, analysis) if analysis.verdict == "fail" else None
    if failures is None:
        return None
    return Learned(
        topic="analysis",
        verdict="failing",
        summary=f"Version {rollout.candidate}: {'; '.join(analysis.reasons)}; measured once more before it counts.",
        facts={},
        details=analysis.details(),
        rollout_body={"failures": failures, "samples": reading["samples"]},
    )


def analysis_since(situation: Situation, reading: dict[str, Any], *, candidate: str, stable: str) -> machine.Analysis:
    """Service analysis over the window since the last weight change or failing window, never reaching behind it."""
    assert situation.rollout is not None
    before = situation.rollout.body.get("samples") or {}
    assert isinstance(before, dict)

    def since_change(version: str) -> Any:
        old, new = before.get(version), reading["samples"].get(version)
        return window(sample_from(old), sample_from(new)) if old and new else None

    return machine.analyse(situation.spec, candidate=since_change(candidate), stable=since_change(stable))


def _start_ab_test(situation: Situation, reading: dict[str, Any]) -> Move:
    rollout = situation.rollout
    assert rollout is not None
    percent = situation.spec.rollout.ab_test.percent
    return _shift(situation, reading, percent, f"A/B test at {percent} % as a check against live harm")


def _judge_ab_test(situation: Situation, reading: dict[str, Any]) -> Move:
    """The always-valid verdict on outcomes, with service metrics watched all along."""
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    since = datetime.fromisoformat(str(rollout.body["since"]))
    if not reading["endpoints"].get(rollout.candidate, False):
        return _not_ready(situation, has_traffic=True)
    analysis = analysis_since(situation, reading, candidate=rollout.candidate, stable=str(rollout.stable))
    once = _one_failing_window(situation, reading, analysis)
    if once is not None:
        return once
    if analysis.verdict == "fail":
        return Learned(
            topic="ab_test",
            verdict="worse",
            summary=f"Version {rollout.candidate} harms the service in the A/B test: {'; '.join(analysis.reasons)}.",
            facts={"canary_failed": True, "ab_verdict": "worse"},
            details=analysis.details(),
        )
    verdict, details = ab_verdict(situation, reading["arms"])
    if verdict == "sample_ratio_mismatch":
        return Learned(
            topic="ab_test", verdict=verdict,
            summary="The arms do not hold the share of entities that was asked for; the result is not read.",
            facts={"canary_failed": True, "ab_verdict": "undecided"}, details=details,
        )  # fmt: skip
    horizon = since + spec.rollout.ab_test.horizon
    at_horizon = situation.now >= horizon
    if verdict == "worse" or (verdict != "better" and at_horizon and spec.outcomes == "affected"):
        return Learned(
            topic="ab_test",
            verdict=verdict,
            summary=f"The A/B test ends {verdict}: version {rollout.candidate} leaves traffic.",
            facts={"canary_failed": True, "ab_verdict": verdict},
            details=details,
        )
    # Where only `better` promotes, an equivalent pair of arms may still part before the horizon.
    if verdict != "better" and not at_horizon and (verdict == "undecided" or spec.outcomes == "affected"):
        return Wait(until=situation.now + LOOK_AGAIN, waits_for="labelled outcomes of both arms")
    if analysis.verdict == "no_data":
        return _without_metrics(situation, horizon, analysis)
    return _ab_cleared(situation, reading, verdict, details)


def _without_metrics(situation: Situation, horizon: datetime, analysis: machine.Analysis) -> Move:
    """Outcomes would let the version through, but nobody saw its service: that is no pass, and it holds with a deadline."""
    rollout = situation.rollout
    assert rollout is not None
    if situation.now < horizon + situation.spec.rollout.deadline:
        return Wait(until=situation.now + LOOK_AGAIN, waits_for=f"data: {analysis.reasons[0]}")
    return Learned(
        topic="ab_test",
        verdict="inconclusive",
        summary=f"The service of version {rollout.candidate} could not be measured by the deadline: {analysis.reasons[0]}.",
        facts={"canary_failed": True, "ab_verdict": "undecided"},
        details=analysis.details(),
    )


def _ab_cleared(situation: Situation, reading: dict[str, Any], verdict: str, details: dict[str, JsonValue]) -> Move:
    rollout = situation.rollout
    assert rollout is not None
    final = "undecided_at_horizon" if verdict == "undecided" else verdict
    return Learned(
        topic="ab_test",
        verdict=final,
        summary=f"A/B test of version {rollout.candidate} against {rollout.stable}: {final.replace('_', ' ')}, no live harm.",
        facts={
            "ab_verdict": final,
            "ab_cleared": True,
            # Without a single labelled day the ratio was not looked at.
            "sample_ratio_ok": bool(reading["arms"]["losses"]),
            "ab_samples": min((int(n) for n in reading["arms"]["rows"].values()), default=0),
        },
        details=details,
    )


def read_arms(situation: Situation, platform: Platform) -> dict[str, Any]:
    """Block losses and entity counts of both arms since the A/B test began; quarantined days are left out."""
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    start = datetime.fromisoformat(str(rollout.body["since"]))
    end = matured_until(situation.now, spec.data.label.delay)
    arms: dict[str, Any] = {"entities": {}, "losses": {}, "rows": {}}
    if end <= start:
        return arms
    frame = platform.outcomes.labelled(spec.model, start=start, end=end, as_of=situation.now)
    bad = set(platform.outcomes.quarantined(spec.model))
    frame = frame.filter(~pl.col("event_time").dt.strftime("%Y-%m-%d").is_in(sorted(bad)))
    for version in (rollout.candidate, str(rollout.stable)):
        arm = frame.filter(pl.col("version") == version)
        arms["rows"][version] = arm.height
        arms["entities"][version] = arm["entity"].n_unique()
        arms["losses"][version] = block_losses(spec.objective.metric, arm, block=spec.monitoring.block)
    return arms


def ab_verdict(situation: Situation, arms: dict[str, Any]) -> tuple[str, dict[str, JsonValue]]:
    """`better`, `worse`, `equivalent`, `undecided` or `sample_ratio_mismatch`, with the figures behind it."""
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    candidate, stable = rollout.candidate, str(rollout.stable)
    if not arms["losses"]:
        return "undecided", {"n_blocks": 0}
    counts = arms["entities"]
    share = spec.rollout.ab_test.percent / 100
    ratio = sample_ratio_check(int(counts[candidate]), int(counts[stable]), share)
    details: dict[str, JsonValue] = {
        "entities": dict(counts),
        "sample_ratio_p": ratio.p_value,
        "rows": dict(arms["rows"]),
    }
    if not ratio.ok:
        return "sample_ratio_mismatch", details
    common = sorted(set(arms["losses"][candidate]) & set(arms["losses"][stable]))
    test = ab_test(
        champion_losses=[arms["losses"][stable][b] for b in common],
        challenger_losses=[arms["losses"][candidate][b] for b in common],
        n_samples=min(int(n) for n in arms["rows"].values()),
        minimum_samples=spec.rollout.ab_test.minimum_samples,
        margin=spec.rollout.ab_test.margin,
        horizon_blocks=max(1, spec.rollout.ab_test.horizon // spec.monitoring.block),
    )
    details |= {"n_blocks": len(common), "difference": test.difference, "low": test.low, "high": test.high}
    return test.verdict, details


def _shift(situation: Situation, reading: dict[str, Any], percent: int, reason: str) -> Move:
    rollout = situation.rollout
    assert rollout is not None
    weights: dict[str, JsonValue] = dict.fromkeys(reading["weights"], 0)
    weights |= {str(rollout.stable): 100 - percent, rollout.candidate: percent}
    args: dict[str, JsonValue] = {
        "rollout": rollout.id,
        "version": rollout.candidate,
        "weights": weights,
        "after": situation.last_traffic_key,
    }
    return proposal(situation, "deployment", args, reason)


def _promote(situation: Situation, reading: dict[str, Any], reason: str) -> Move:
    version = situation.candidate
    weights: dict[str, JsonValue] = dict.fromkeys(reading["weights"], 0)
    weights[str(version)] = 100
    args: dict[str, JsonValue] = {
        "rollout": _rollout_id(situation),
        "version": version,
        "previous": situation.champion,
        "weights": weights,
        "after": situation.last_traffic_key,
    }
    return proposal(situation, "deployment", args, reason)


def _judge_rollback(situation: Situation, reading: dict[str, Any]) -> Move:
    """All traffic back to the version that was healthy before: the champion, or the previous one in the bake window."""
    rollout = situation.rollout
    baking = rollout is not None and rollout.phase == "bake"
    target = situation.previous if baking else situation.champion
    if target is None or not reading["endpoints"].get(target, False):
        return Wait(until=None, waits_for=f"a person: version {target or 'none'} is not ready to take the traffic back")
    weights: dict[str, JsonValue] = dict.fromkeys(reading["weights"], 0)
    weights[target] = 100
    args: dict[str, JsonValue] = {
        "rollout": _rollout_id(situation),
        "version": situation.candidate,
        "to": target,
        "weights": weights,
        "after": situation.last_traffic_key,
    }
    return proposal(
        situation, "deployment", args, f"version {situation.candidate} must not serve: back to version {target}"
    )


def _rollout_id(situation: Situation) -> str:
    return situation.rollout.id if situation.rollout is not None else ""


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
    if intent.kind == "promote":
        platform.registry.set_alias(
            model=intent.model, alias="champion", version=text_arg(intent, "version"), key=intent.key
        )
    if intent.kind == "rollback":
        champion = _alias_holder(platform, intent.model)
        if champion != text_arg(intent, "to"):
            platform.registry.set_alias(
                model=intent.model, alias="champion", version=text_arg(intent, "to"), key=intent.key
            )
    observed = route if edited else confirm(platform, intent.model, wanted)
    if observed is None:
        return ActionOutcome(status="unknown", message="the data plane does not confirm the weights that were written")
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


GRAPH = specialist("deployment", read=read, judge=judge)
