"""What the deployment agent will propose for a version once another one's rollout has made way for it."""

from __future__ import annotations

from collections.abc import Set

from pydantic import JsonValue

from agents import rollout as machine
from agents.base import Situation
from state.plans import ActionKind, Proposal


def staging(situation: Situation, rollout_id: str) -> Proposal:
    """The staging that the deployment agent proposes for this rollout."""
    args: dict[str, JsonValue] = {"version": situation.candidate, "rollout": rollout_id}
    return _proposal(situation, "stage_version", args, f"start version {situation.candidate} warm, with no traffic")


def first_share(situation: Situation, rollout_id: str, *, routed: Set[str], leaving: Set[str], after: str) -> Proposal:
    """The first share of traffic that the version asks for: the first canary step, or the A/B test where there is none.

    `routed` are the versions of the route now and `leaving` those that will be gone from it by then; `after` is the key
    of the version's staging.
    """
    spec, version = situation.spec, str(situation.candidate)
    step = machine.next_step(spec, -1)
    percent = step if step is not None else spec.rollout.ab_test.percent
    weights: dict[str, JsonValue] = dict.fromkeys(sorted(routed - leaving), 0)
    weights |= {str(situation.champion): 100 - percent, version: percent}
    args: dict[str, JsonValue] = {"rollout": rollout_id, "version": version, "weights": weights, "after": after}
    gone = " and ".join(f"version {name}" for name in sorted(leaving))
    reason = f"give version {version} its first {percent} % of traffic, in the place of {gone}, which leaves"
    return _proposal(situation, "shift_traffic" if step is not None else "run_ab_test", args, reason)


def _proposal(situation: Situation, kind: ActionKind, args: dict[str, JsonValue], reason: str) -> Proposal:
    return Proposal(
        kind=kind, model=situation.model, subject_id=situation.subject_id, args=args, reason=reason,
        proposed_by="deployment",
    )  # fmt: skip
