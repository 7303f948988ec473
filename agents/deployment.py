"""Deployment: stage a version, walk the canary, run the A/B test, promote, roll back, retire."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import JsonValue

from agents import rollout as machine
from agents.arms import ab_verdict, read_arms
from agents.base import Learned, Move, Situation, Wait, proposal, specialist
from agents.edits import judge_edit, restore
from agents.traffic import sample_from, samples
from tools.metrics import window
from tools.ports import Platform

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
    if rollout is not None and rollout.body.get("samples") and route is not None and situation.cause != "route":
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
        case "shift_traffic" if situation.cause == "route":
            return restore(situation, reading)
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
    edited = judge_edit(situation, reading)
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
    horizon = since + spec.rollout.ab_test.horizon + machine.paused(rollout.body)
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
            # Where nobody was served by either arm there was no ratio to look at.
            "sample_ratio_ok": any(reading["arms"]["entities"].values()),
            "ab_samples": min((int(n) for n in reading["arms"]["rows"].values()), default=0),
        },
        details=details,
    )


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
    """All traffic back to the version that was healthy before: the champion, the previous one in the bake window, or the
    earlier champion that a person wants back."""
    rollout = situation.rollout
    baking = rollout is not None and rollout.phase == "bake"
    restoring = rollout is not None and situation.facts.get("rollback_to") == rollout.candidate
    leaving = situation.champion if restoring else situation.candidate
    target = situation.candidate if restoring else situation.previous if baking else situation.champion
    if target is None or not reading["endpoints"].get(target, False):
        return Wait(until=None, waits_for=f"a person: version {target or 'none'} is not ready to take the traffic back")
    weights: dict[str, JsonValue] = dict.fromkeys(reading["weights"], 0)
    weights[target] = 100
    args: dict[str, JsonValue] = {
        "rollout": _rollout_id(situation),
        "version": leaving,
        "to": target,
        "weights": weights,
        "after": situation.last_traffic_key,
    }
    return proposal(situation, "deployment", args, f"version {leaving} must not serve: back to version {target}")


def _rollout_id(situation: Situation) -> str:
    return situation.rollout.id if situation.rollout is not None else ""


GRAPH = specialist("deployment", read=read, judge=judge)
