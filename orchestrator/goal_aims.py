"""What a person's goal asks of its run now, from the rows and the registry alone."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.actions import FactName
from orchestrator.aims import Aim, call_off, reach
from orchestrator.crew import Crew
from orchestrator.gate import withdraw_questions
from state import store
from state.goals import Goal
from state.rows import ActionRow, DetectorRow, GoalRow, RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection


def goal_aim(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec) -> Aim:
    """The present aim of a run that serves a person's goal."""
    row = store.get(conn, GoalRow, run.subject_id)
    if row is None or row.status != "active":
        return Aim(move="end", outcome="withdrawn")
    goal = Goal.model_validate(row.goal)
    if goal.intent == "maintain":
        return reach("serving_better_model")
    running = store.select(conn, RolloutRow, model=run.model, status="running")
    others = [rollout for rollout in running if rollout.id != run.body.get("rollout_id")]
    begins_with_version = goal.intent in ("deploy", "promote", "compare") and not run.body.get("rollout_id")
    if begins_with_version and crew.platform.registry.get(run.model, str(goal.version)) is None:
        # Before anything makes way for it: a slip of the finger must not call off a rollout.
        return Aim(move="end", outcome="no_such_version")
    if goal.intent == "rollback":
        return _rollback_aim(crew, conn, run, spec, goal.version, others)
    if goal.intent in ("deploy", "promote"):
        first = _first(crew, conn, run, str(goal.version), others)
        if first is not None:
            return first
        in_the_way = tuple(rollout.id for rollout in others)
        return replace(reach("serving_better_model"), in_the_way=in_the_way)
    wanted: dict[str, tuple[FactName, ...]] = {
        "retrain": ("serving_better_model",),
        "investigate": ("remedy_known",),
        "validate": ("data_validated",),
        "compare": ("gates_evaluated",),
        "hold": ("changes_held",),
        "resume": ("changes_resumed",),
    }
    names = wanted.get(goal.intent, ())
    if all(run.facts.get(name) for name in names):
        return Aim(move="end", outcome="achieved")
    return reach(*names)


def _rollback_aim(
    crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, version: str | None, running: list[RolloutRow]
) -> Aim:
    """A rollback by hand calls off what is under way, then brings back the version that is wanted.

    Where nothing is under way and no earlier version is meant, it puts strayed traffic back on the champion.
    """
    facts = run.facts
    if facts.get("rolled_back") and facts.get("traffic_on_champion"):
        if run.body.get("rollout_id") and not facts.get("version_retired"):
            return reach("version_retired")
        return Aim(move="end", outcome="achieved")
    row = store.get(conn, DetectorRow, f"{run.model}/champion")
    champion = str(row.state["version"]) if row is not None else None
    if "rollback_to" not in facts:
        # Settled before anything moves: the rollback itself changes what "previous" means.
        before = running[0].stable if running else row.state.get("previous") if row is not None else None
        facts["rollback_to"] = before if version in (None, "previous") else version
    if running:
        facts["called_off"] = True
        changed = call_off(crew, conn, running[0], "a person rolls it back")
        return Aim(move="wait", waits_for=f"version {running[0].candidate} to leave the traffic", changed=changed)
    if champion is not None and facts["rollback_to"] not in (None, champion):
        return _restoring_aim(crew, conn, run, str(facts["rollback_to"]))
    if facts.get("called_off"):
        return Aim(move="end", outcome="achieved")
    route = crew.platform.mesh.read(spec.model)
    if route is None or champion is None or route.weights.get(champion) == 100:
        return Aim(move="end", outcome="nothing_to_roll_back")
    return reach("rolled_back", "traffic_on_champion")


def _restoring_aim(crew: Crew, conn: Connection, run: RunRow, version: str) -> Aim:
    """An earlier champion is staged again and takes all traffic in one write; what it replaces is retired."""
    if not run.body.get("rollout_id"):
        if (waiting := _leaving(conn, run)) is not None:
            return waiting
        if crew.platform.registry.get(run.model, version) is None:
            return Aim(move="end", outcome="no_such_version")
        if version not in served_versions(conn, run.model):
            return Aim(move="end", outcome="never_served")
        # It was judged when it was promoted; whether it is healthy now is what policy asks a person.
        run.facts |= {
            "candidate": version, "candidate_registered": True, "gates_evaluated": True, "gates_cleared": True,
        }  # fmt: skip
    if not run.facts.get("version_staged"):
        return reach("version_staged")
    return reach("rolled_back", "traffic_on_champion")


def served_versions(conn: Connection, model: str) -> list[str]:
    """Versions that were promoted once, oldest first."""
    promoted = store.select(conn, ActionRow, model=model, kind="promote", order="log_index")
    return list(dict.fromkeys(str(row.args["version"]) for row in promoted if row.state in ("verified", "reverted")))


def _first(crew: Crew, conn: Connection, run: RunRow, version: str, running: list[RolloutRow]) -> Aim | None:
    """What comes before a person's version: None where it can be judged now.

    A rollout that runs goes on while the version is judged (`orchestrator/way.py`). Only the champion itself needs no
    judgement: what would take its place leaves at once.
    """
    champion = store.get(conn, DetectorRow, f"{run.model}/champion")
    serving = str(champion.state["version"]) if champion is not None else None
    is_champion = serving == version
    for rollout in running:
        if rollout.phase == "bake" and not is_champion:
            return Aim(move="wait", waits_for=f"version {rollout.candidate} to end its bake window")
        if rollout.candidate == version and not is_champion:
            return Aim(move="wait", waits_for=f"version {version}, which is on its way already")
        if rollout.phase != "bake" and is_champion:
            why = f"a person wants version {version}"
            changed = call_off(crew, conn, rollout, why, superseded=True)
            return Aim(move="wait", waits_for=f"version {rollout.candidate} to leave the traffic", changed=changed)
    if is_champion and not run.body.get("rollout_id"):
        return Aim(move="end", outcome="achieved")
    if (waiting := _leaving(conn, run)) is not None:
        return waiting
    if not run.body.get("rollout_id") and run.facts.get("compared_with", serving) != serving:
        _judge_anew(crew, conn, run)
    return None


def _leaving(conn: Connection, run: RunRow) -> Aim | None:
    """Wait while another run takes its version off: until its server is gone and its incident closed, the facts are not
    those that an answer was given for."""
    for other in store.select(conn, RunRow, model=run.model, status=["ready", "waiting"]):
        if other.id != run.id and other.facts.get("canary_failed"):
            return Aim(move="wait", waits_for=f"version {other.facts.get('candidate')} to leave the traffic")
    return None


def _judge_anew(crew: Crew, conn: Connection, run: RunRow) -> None:
    """The version was compared with a champion that serves no more: what was measured and asked says nothing now."""
    for name in ("gates_evaluated", "gates_cleared", "gates_passed", "remedy_known", "compared_with"):
        run.facts.pop(name, None)
    for name in ("paired_win", "paired_z", "paired_verdict", "paired_evidence"):
        run.facts.pop(name, None)
    run.body.pop("ahead", None)
    withdraw_questions(
        crew, conn, run, f"version {run.facts.get('candidate')} has to be judged against the new champion"
    )
