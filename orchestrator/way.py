"""Making way: a person's version is judged to the end while another rollout goes on, and only then takes its place."""

from __future__ import annotations

from dataclasses import dataclass

from agents import ahead
from agents.base import Situation
from orchestrator.aims import call_off
from orchestrator.context import Foreseen
from orchestrator.crew import Crew
from orchestrator.gate import Ruling, foresee, key_of
from orchestrator.situation import situation_of
from state import store
from state.plans import ActionKind, Proposal
from state.rows import RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence

TAKES_THE_ROUTE: frozenset[ActionKind] = frozenset({"stage_version", "shift_traffic", "run_ab_test", "promote"})
"""Steps that another version's rollout makes way for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What policy or a person still has against the version: the running rollout goes on."""

    proposal: Proposal
    ruling: Ruling


def make_way(
    crew: Crew, run: RunRow, spec: ModelSpec, in_the_way: tuple[str, ...], *, step: ActionKind, fence: Fence
) -> Refused | bool:
    """Call the rollouts `in_the_way` off once the run's version may be staged and take its first share of traffic.

    Returns what stands against the version, or whether something was called off now. Policy is asked as if the rollouts
    had left already: that they run is no reason against the version that takes their place.
    """
    situation = situation_of(crew, run, spec, step)
    with crew.db.transaction() as conn:
        rollouts = [row for row in store.select(conn, RolloutRow, model=run.model) if row.id in in_the_way]
        proposals = _ahead(crew, conn, run, situation, rollouts)
        store.put(conn, run, fence=fence)
    foreseen = Foreseen(leaving=frozenset(in_the_way))
    for proposal in proposals:
        ruling = foresee(crew, run, spec, proposal, foreseen=foreseen, fence=fence)
        if ruling.verdict != "allow":
            return Refused(proposal=proposal, ruling=ruling)
    version = run.facts["candidate"]
    with crew.db.transaction() as conn:
        run.body.pop("denied_since", None)
        run.status, run.wake_at = "waiting", None
        run.waits_for = f"version {rollouts[0].candidate} to leave the traffic"
        store.put(conn, run, fence=fence)
        called = [call_off(crew, conn, row, f"a person wants version {version}", superseded=True) for row in rollouts]
    return any(called)


def _ahead(
    crew: Crew, conn: Connection, run: RunRow, situation: Situation, rollouts: list[RolloutRow]
) -> list[Proposal]:
    """The next actions of the version up to its first share of traffic; none where it has one already.

    The id of its rollout and the args of its first share are kept with the run: the action that comes is the one that
    was asked about.
    """
    own = situation.rollout
    if own is not None and int(str(own.body.get("step", -1))) >= 0:
        return []
    rollout_id = own.id if own is not None else str(run.body.setdefault("next_rollout", crew.ids.new_id()))
    staging = ahead.staging(situation, rollout_id)
    route = crew.platform.mesh.read(run.model)
    share = ahead.first_share(
        situation, rollout_id, routed=set(route.weights) if route is not None else set(),
        leaving={row.candidate for row in rollouts}, after=key_of(conn, staging),
    )  # fmt: skip
    cited = run.body.get("evidence")
    evidence = [str(item) for item in cited] if isinstance(cited, list) else []
    not_staged = situation.step == "stage_version"
    run.body["ahead" if not_staged else "pinned"] = {share.kind: share.args}
    wanted = [staging, share] if not_staged else [share]
    return [proposal.model_copy(update={"evidence_ids": evidence}) for proposal in wanted]
