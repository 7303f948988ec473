"""The orchestrator's graph: plan, consult the specialist, authorise, act. One effect per node; the SQL rows say what is next.

A thread belongs to one run and one plan revision and may be deleted at any moment: every node reads the run from SQL
and writes what it changed back before it ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from agents import data_validation, deployment, feature_engineering, monitoring, training
from agents.base import MOVES, Learned, Propose, Situation, Specialist, Wait
from agents.edits import HELD_BY_EDIT
from orchestrator.actions import CATALOGUE
from orchestrator.aims import Aim
from orchestrator.context import failed_in_a_row
from orchestrator.crew import Crew, keep_evidence, observe, tell
from orchestrator.doubt import labels_are_right
from orchestrator.execute import carry_out, give_up
from orchestrator.gate import REJECTED, Ruling, rule
from orchestrator.planner import NoPlan, plan
from orchestrator.runs import DENIED_DAYS, aim, cite, end_run
from orchestrator.signals import Signal
from orchestrator.situation import situation_of, true_facts
from orchestrator.triage import take_in
from orchestrator.way import TAKES_THE_ROUTE, Refused, make_way
from policies.lint import POLICY_CHANGED
from state import ledger, store
from state.canonical import digest
from state.plans import ActionKind, AgentName, Plan, Proposal
from state.rows import RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence

GRAPH_VERSION = 1
"""Stored with every thread; a thread of another version is never resumed, because every tick starts from the rows."""
SPECIALISTS: dict[AgentName, Specialist] = {
    "data_validation": data_validation.GRAPH,
    "feature_engineering": feature_engineering.GRAPH,
    "training": training.GRAPH,
    "deployment": deployment.GRAPH,
    "monitoring": monitoring.GRAPH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The runtime context of one advance: who works, under which lease, on which model."""

    crew: Crew
    fence: Fence
    spec: ModelSpec


class AdvanceState(TypedDict, total=False):
    """JSON only."""

    run_id: str
    step: str
    situation: dict[str, Any]
    move: dict[str, Any]
    proposal: dict[str, Any]
    action_key: str
    progressed: bool
    """Whether something was written that makes another look worth while now."""


Graph = CompiledStateGraph[AdvanceState, Desk, AdvanceState, AdvanceState]


def plan_node(state: AdvanceState, runtime: Runtime[Desk]) -> AdvanceState:
    """What the run works toward, the plan that reaches it, and the first step that is not done."""
    desk = runtime.context
    with desk.crew.db.transaction() as conn:
        run = _run(conn, state)
        goal = aim(desk.crew, conn, run, desk.spec)
        if goal.move == "end":
            end_run(desk.crew, conn, run, goal.outcome, fence=desk.fence)
            return {"step": "", "progressed": True}
        if goal.move == "wait":
            _wait(conn, run, goal.waits_for, goal, desk.fence)
            return {"step": "", "progressed": goal.changed}
        step = _next_step(desk, conn, run, goal)
        if step is None:
            return {"step": "", "progressed": False}
        in_the_way = goal.in_the_way if step in TAKES_THE_ROUTE else ()
        if step == "stage_version" and not in_the_way:
            _open_rollout(desk, conn, run)
        store.put(conn, run, fence=desk.fence)
    if in_the_way:
        return _make_way(desk, state, run, step, in_the_way)
    situation = situation_of(desk.crew, run, desk.spec, step)
    return {"step": step, "situation": situation.model_dump(mode="json"), "progressed": False}


def _make_way(
    desk: Desk, state: AdvanceState, run: RunRow, step: ActionKind, in_the_way: tuple[str, ...]
) -> AdvanceState:  # fmt: skip
    """The run takes a rollout's place once policy, and a person where it asks one, let its version have traffic."""
    made = make_way(desk.crew, run, desk.spec, in_the_way, step=step, fence=desk.fence)
    if isinstance(made, Refused):
        return {**_after_ruling(desk, state, made.proposal, made.ruling), "step": ""}
    return {"step": "", "progressed": made}


def _next_step(desk: Desk, conn: Connection, run: RunRow, goal: Aim) -> ActionKind | None:
    """The plan's first step whose effects do not all hold; a new plan where the old one no longer fits."""
    facts = true_facts(run)
    missing = goal.facts - facts
    current = Plan.model_validate(run.plan) if run.plan else None
    fits = current is not None and set(current.goal_facts) == set(goal.facts)
    if fits and current is not None:
        for step in current.steps:
            if not CATALOGUE[step.kind].makes <= facts:
                if CATALOGUE[step.kind].needs <= facts:
                    return step.kind
                break
    try:
        made = plan(facts, goal.facts)
    except NoPlan as exc:
        _wait(conn, run, f"a person: {exc}", None, desk.fence)
        _call_once(desk, conn, run, f"no plan reaches {', '.join(sorted(missing))}: {exc}")
        return None
    run.plan, run.plan_revision = made.model_dump(mode="json"), run.plan_revision + 1
    run.body["pinned"] = {}
    observe(
        desk.crew, conn, model=run.model, topic="plan", verdict=" -> ".join(step.kind for step in made.steps),
        summary=made.explanation, run_id=run.id, incident_id=_incident(run), details={"plan": run.plan},
    )  # fmt: skip
    return made.steps[0].kind if made.steps else None


def _open_rollout(desk: Desk, conn: Connection, run: RunRow) -> None:
    """A rollout row with an id of its own before anything is staged; a retry gets a new one."""
    candidate = str(run.facts["candidate"])
    known = store.get(conn, RolloutRow, str(run.body.get("rollout_id", "")))
    if known is not None and known.status == "running" and known.candidate == candidate:
        return
    stable = desk.crew.platform.registry.versions(run.model)
    champion = next((v.version for v in stable if "champion" in v.aliases), None)
    row = RolloutRow(
        id=str(run.body.pop("next_rollout", desk.crew.ids.new_id())), model=run.model, status="running",
        candidate=candidate, stable=champion, phase="new", started_at=desk.crew.clock.now(),
    )  # fmt: skip
    store.put(conn, row, fence=desk.fence)
    run.body["rollout_id"] = row.id


def consult_node(state: AdvanceState, runtime: Runtime[Desk]) -> AdvanceState:
    """Ask the agent that owns the step for its next move."""
    kind = cast(ActionKind, state["step"])
    specialist = SPECIALISTS[CATALOGUE[kind].agent]
    # Asked again after a crash, so none of its steps is worth a checkpoint; the answer is in that of this node.
    answer = specialist.invoke(
        {"situation": state["situation"]}, context=runtime.context.crew.platform, durability="exit"
    )
    return {"move": answer["move"]}


def authorise_node(state: AdvanceState, runtime: Runtime[Desk]) -> AdvanceState:
    """Write a judgement or a wait down; take a proposal through the gate."""
    desk = runtime.context
    move = MOVES.validate_python(state["move"])
    situation = Situation.model_validate(state["situation"])
    if isinstance(move, Learned):
        _learn(desk, state, situation, move)
        return {"proposal": {}, "progressed": True}
    with desk.crew.db.transaction() as conn:
        run = _run(conn, state)
        if isinstance(move, Wait):
            wake = Aim(move="wait", waits_for=move.waits_for, wake_at=move.until)
            _wait(conn, run, move.waits_for, wake, desk.fence)
            if move.waits_for.startswith("a person"):
                _call_once(desk, conn, run, f"{situation.step} waits for {move.waits_for}")
            return {"proposal": {}, "progressed": False}
        assert isinstance(move, Propose)
        cited = run.body.get("evidence")
        if isinstance(cited, list):
            proposal = move.proposal.model_copy(update={"evidence_ids": [str(item) for item in cited]})
            move = move.model_copy(update={"proposal": proposal})
        if run.body.get("pinned") != {move.proposal.kind: move.proposal.args}:
            run.body["pinned"] = {move.proposal.kind: move.proposal.args}
            store.put(conn, run, fence=desk.fence)
    ruling = rule(desk.crew, run, desk.spec, move.proposal, fence=desk.fence)
    return _after_ruling(desk, state, move.proposal, ruling)


def _after_ruling(desk: Desk, state: AdvanceState, proposal: Proposal, ruling: Ruling) -> AdvanceState:
    crew = desk.crew
    if ruling.verdict == "allow":
        crew.say(proposal.proposed_by, f"{proposal.kind.replace('_', ' ')}: {proposal.reason}")
        return {"proposal": proposal.model_dump(mode="json"), "action_key": ruling.key, "progressed": True}
    with crew.db.transaction() as conn:
        run = _run(conn, state)
        if ruling.verdict == "settled":
            # The world already has it: another run, or this one before a crash, did exactly this.
            run.body["pinned"] = {}
            store.put(conn, run, fence=desk.fence)
            return {"proposal": {}, "progressed": False}
        if ruling.verdict == "needs_approval":
            _wait(conn, run, f"approval of {proposal.kind}: {ruling.reason}", None, desk.fence)
            return {"proposal": {}, "progressed": False}
        _denied(desk, conn, run, proposal, ruling)
        run = _run(conn, state)
        return {"proposal": {}, "progressed": run.status != "waiting" or bool(run.facts.get("canary_failed"))}


def _denied(desk: Desk, conn: Connection, run: RunRow, proposal: Proposal, ruling: Ruling) -> None:
    """A denied promotion takes the candidate off; a remedy that may not be repeated goes to a person; the rest asks again."""
    crew = desk.crew
    now = crew.clock.now()
    if "denied_since" not in run.body:
        crew.say("orchestrator", f"{proposal.kind.replace('_', ' ')} denied: {ruling.reason}")
    first = datetime.fromisoformat(str(run.body.setdefault("denied_since", now.isoformat())))
    if proposal.kind == "promote" and not _passing(ruling):
        run.facts["story"] = f"promotion denied: {ruling.reason}"
        if proposal.args.get("previous") is None:
            # A first version has nobody to give its traffic back to.
            end_run(crew, conn, run, "rejected" if REJECTED in ruling.rules else "denied", fence=desk.fence)
            return
        run.facts["canary_failed"] = True
        run.status, run.wake_at, run.waits_for = "ready", None, ""
        store.put(conn, run, fence=desk.fence)
        return
    if REJECTED in ruling.rules and labels_are_right(
        crew, conn, run, desk.spec, proposal, fence=desk.fence
    ):  # fmt: skip
        return
    if REJECTED in ruling.rules and proposal.kind == "rollback_features":
        # The release stays; what it serves is still no data to learn from.
        run.facts["no_rollback"] = True
        run.status, run.wake_at, run.waits_for = "ready", None, ""
        store.put(conn, run, fence=desk.fence)
        return
    if REJECTED in ruling.rules:
        give_up(crew, conn, run, "rejected", ruling.reason, fence=desk.fence)
        return
    if set(ruling.rules) == {"dry-run"}:
        end_run(crew, conn, run, "dry_run", fence=desk.fence)
        return
    too_long = first <= now - DENIED_DAYS and not _stopped_by_people(ruling)
    if too_long or "same-remedy" in ruling.rules:
        text = f"{proposal.kind} is denied: {ruling.reason}"
        _call_once(desk, conn, run, text)
        if not ruling.rules or not set(ruling.rules) <= _PASSING:
            give_up(crew, conn, run, "escalated", text, fence=desk.fence)
            return
    wake = Aim(move="wait", waits_for=f"policy: {ruling.reason}", wake_at=now + timedelta(hours=6))
    _wait(conn, run, wake.waits_for, wake, desk.fence)


_PASSING = frozenset({"kill-switch", "halted", "model-held", "advise-mode", "one-risky-action", "unknown-effects",
                      "actions-per-hour", "actions-per-day", "freeze", "freeze-window", "training-on-bad-data",
                      "training-on-labels-in-doubt",
                      "stale-labels", "one-rollout", POLICY_CHANGED})  # fmt: skip
"""Denials that pass by themselves or by a person's hand: what they deny waits rather than fails, and after `DENIED_DAYS`
a person is called to what it waits for."""


_STOPS = frozenset({"kill-switch", "model-held", "advise-mode", "freeze-window", POLICY_CHANGED})


def _stopped_by_people(ruling: Ruling) -> bool:
    """Whether somebody stopped things on purpose: the run waits for as long as they want."""
    return bool(_STOPS & set(ruling.rules))


def _passing(ruling: Ruling) -> bool:
    return all(name in _PASSING or name.startswith(("autonomy", "halt", "hold", "kill")) for name in ruling.rules)


def _learn(desk: Desk, state: AdvanceState, situation: Situation, move: Learned) -> None:
    """A judgement establishes facts and is a decision of its own."""
    agent = CATALOGUE[situation.step].agent
    with desk.crew.db.transaction() as conn:
        run = _run(conn, state)
        run.facts |= move.facts
        run.body["pinned"] = {}
        evidence_id = keep_evidence(
            desk.crew, conn, model=run.model, topic=move.topic, fence=desk.fence,
            body={"verdict": move.verdict, "summary": move.summary, "details": move.details},
        )  # fmt: skip
        cite(run, evidence_id)
        run.status, run.wake_at, run.waits_for = "ready", None, ""
        if move.rollout_body is not None and situation.rollout is not None:
            rollout = situation.rollout.model_copy(update={"body": {**situation.rollout.body, **move.rollout_body}})
            store.put(conn, rollout, fence=desk.fence)
        if move.verdict in ("failed", "worse", "inconclusive"):
            run.facts["story"] = move.summary
        if move.facts.get("held_by_edit"):
            _wait(conn, run, HELD_BY_EDIT, None, desk.fence)
        if move.facts.get("held_by_edit") or move.verdict in ("inconclusive", "deadline", "raised"):
            _call_once(desk, conn, run, move.summary)
        store.put(conn, run, fence=desk.fence)
        observe(
            desk.crew, conn, model=run.model, topic=move.topic, verdict=move.verdict, summary=move.summary,
            actor=f'Agent::"{agent}"', run_id=run.id, incident_id=_incident(run), details=move.details,
            evidence_ids=[evidence_id],
        )  # fmt: skip
        if run.subject_kind == "incident" and move.facts.get("canary_failed") and move.verdict in ("failed", "worse"):
            _call_if_again(desk, conn, run, move.summary)
        if run.subject_kind == "goal" and move.facts.get("canary_failed") and move.verdict in ("failed", "worse"):
            # A version that a person asked for does harm; within an incident the failure is part of its story.
            harm = Signal(name="canary_failed", text=move.summary.rstrip("."), evidence_ids=[evidence_id])
            take_in(desk.crew, conn, desk.spec, harm, desk.fence)
    desk.crew.say(agent, move.summary)


def act_node(state: AdvanceState, runtime: Runtime[Desk]) -> AdvanceState:
    """Let the agent carry out the committed intent. The only node with an effect on the outside world."""
    desk = runtime.context
    with desk.crew.db.transaction() as conn:
        run = _run(conn, state)
        run.body.pop("denied_since", None)
        intent = ledger.reopen(conn, state["action_key"], desk.fence)
    outcome = carry_out(desk.crew, run, intent, fence=desk.fence)
    with desk.crew.db.transaction() as conn:
        run = _run(conn, state)
        if outcome.status == "running":
            _wait(conn, run, f"{intent.kind}: {outcome.message}", None, desk.fence)
        elif outcome.status != "failed":
            run.status, run.wake_at, run.waits_for = "ready", None, ""
            store.put(conn, run, fence=desk.fence)
    return {"progressed": outcome.status in ("done", "failed")}


def _wait(conn: Connection, run: RunRow, waits_for: str, wake: Aim | None, fence: Fence) -> None:
    run.status, run.waits_for = "waiting", waits_for
    run.wake_at = wake.wake_at if wake is not None else None
    store.put(conn, run, fence=fence)


def _call_once(desk: Desk, conn: Connection, run: RunRow, text: str) -> None:
    tell(desk.crew, conn, key=f"run/{run.id}/{digest(text)[:16]}", title=f"{run.model} needs a person", text=text)


def _call_if_again(desk: Desk, conn: Connection, run: RunRow, why: str) -> None:
    """Two versions in a row that fail under live traffic are no chance: every later win would be tried in the same way."""
    mine = store.get(conn, RolloutRow, str(run.body.get("rollout_id", "")))
    if mine is None:
        return
    mine.body["failed_live"] = True
    store.put(conn, mine, fence=desk.fence)
    failed = failed_in_a_row(conn, run.model)
    if len(failed) > 1:
        text = (
            f"Version {mine.candidate} fails under live traffic, as version {failed[1].candidate} did before it. {why}"
        )
        _call_once(desk, conn, run, text)


def _run(conn: Connection, state: AdvanceState) -> RunRow:
    run = store.get(conn, RunRow, state["run_id"])
    assert run is not None, f"run {state['run_id']} is gone"
    return run


def _incident(run: RunRow) -> str | None:
    return run.subject_id if run.subject_kind == "incident" else None


@contextmanager
def open_graph(path: Path) -> Iterator[Graph]:
    """The graph with its disposable threads in the SQLite file `path`."""
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        yield build_graph(SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=[])))
    finally:
        connection.close()


def build_graph(checkpointer: BaseCheckpointSaver[Any] | None) -> Graph:
    """The compiled graph; its threads are disposable."""
    graph = StateGraph(AdvanceState, context_schema=Desk)
    graph.add_node("plan", plan_node)
    graph.add_node("consult", consult_node)
    graph.add_node("authorise", authorise_node)
    graph.add_node("act", act_node)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda s: "consult" if s["step"] else END, ["consult", END])
    graph.add_edge("consult", "authorise")
    graph.add_conditional_edges("authorise", lambda s: "act" if s.get("proposal") else END, ["act", END])
    graph.add_edge("act", END)
    return graph.compile(checkpointer=checkpointer, name="steadyhand")
