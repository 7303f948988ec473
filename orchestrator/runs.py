"""What a run is for: the facts it works toward now, and how it ends. Everything is read from rows, so a restart knows it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from orchestrator.actions import FactName
from orchestrator.aims import Aim, reach
from orchestrator.awaited import still_missing
from orchestrator.change import begin_anew, gives_up_at, goals_kept, is_replaced, symptoms_passed
from orchestrator.crew import Crew, observe, tell
from orchestrator.goal_aims import goal_aim
from orchestrator.narrow_fit import begin_narrower_fit
from orchestrator.quiet import keep_quiet, keep_refusal
from orchestrator.segment_book import segment_regressed
from state import log, store
from state.decisions import IncidentChanged
from state.plans import ActionKind
from state.rows import ApprovalRow, DetectorRow, GoalRow, IncidentRow, RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.performance import EDetector


def aim(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec) -> Aim:
    """The present aim of `run`, from its facts and its subject alone."""
    facts = run.facts
    if run.subject_kind == "route":
        done = facts.get("gave_up") or (facts.get("traffic_shifted") and "as_written")
        return Aim(move="end", outcome=str(done)) if done else reach("traffic_shifted")
    if facts.get("canary_failed"):
        return _after_failure(run)
    if facts.get("serving_better_model"):
        return _after_promotion(crew, conn, run, spec)
    if run.subject_kind == "cadence":
        done = bool(facts.get("remedy_known"))
        verdict = str(facts.get("paired_verdict", "no_verdict"))
        return Aim(move="end", outcome=verdict) if done else reach("remedy_known")
    if run.subject_kind == "goal":
        return goal_aim(crew, conn, run, spec)
    return _incident_aim(crew, conn, run, spec)


def _after_failure(run: RunRow) -> Aim:
    """A candidate failed under traffic: take it off, take it out, and end."""
    if run.facts.get("version_staged") and not run.facts.get("traffic_on_champion"):
        return reach("rolled_back", "traffic_on_champion")
    if run.facts.get("version_staged"):
        return reach("version_retired")
    ended = "superseded" if run.facts.get("superseded") else "rolled_back"
    return Aim(move="end", outcome=str(run.facts.get("gave_up", ended)))


def _after_promotion(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec) -> Aim:
    """Bake, retire what it replaced, and hold health for the declared period."""
    rollout = store.get(conn, RolloutRow, str(run.body.get("rollout_id", "")))
    if rollout is None or rollout.stable is None:
        return Aim(move="end", outcome="first_champion")
    if rollout.phase == "bake":
        ends = datetime.fromisoformat(str(rollout.body["since"])) + spec.rollout.bake
        return Aim(move="wait", waits_for="the bake window of the new champion", wake_at=ends)
    if loss_alarm(conn, spec.model, rollout.candidate):
        # The same remedy again would be the same thing: a person gets it, with what was tried.
        return Aim(move="end", outcome="escalated")
    if not run.facts.get("version_retired"):
        return reach("version_retired")
    return _recovering(crew, run, spec, outcome="recovered")


MAX_RELAPSES = 1
"""A server that answers, and answers with errors, is started anew so often more; then a person knows more than a restart."""


def _recovering(crew: Crew, run: RunRow, spec: ModelSpec, *, outcome: str) -> Aim:
    """Health must hold for the declared period, counted from the newest sign of the opposite.

    And through a block at least: where they are longer than the period, the next one says whether it goes on.
    """
    since = datetime.fromisoformat(str(run.body.get("unhealthy_at", run.started_at.isoformat())))
    remedied = run.body.get("remedied_at")
    if remedied is not None:
        since = max(since, datetime.fromisoformat(str(remedied)))
    ends = since + max(spec.monitoring.recovery, spec.monitoring.block)
    if crew.clock.now() < ends:
        return Aim(move="wait", waits_for="sustained health", wake_at=ends)
    return Aim(move="end", outcome=outcome)


def loss_alarm(conn: Connection, model: str, version: str) -> bool:
    """Whether the loss detector of this version has alarmed, or its loss has risen in one segment."""
    row = store.get(conn, DetectorRow, f"{model}/loss/{version}")
    whole = row is not None and EDetector.from_state(row.state).alarm
    return whole or segment_regressed(conn, model, version)


def _incident_aim(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec) -> Aim:
    incident = store.get(conn, IncidentRow, run.subject_id)
    if incident is None or incident.status == "closed":
        return Aim(move="end", outcome="closed")
    facts = run.facts
    match incident.cause:
        case "data_fault" | "label_fault":
            missing = still_missing(crew, conn, run, incident, spec)
            if missing is not None and facts.get("owner_told"):
                return Aim(move="wait", waits_for=missing.waits_for, wake_at=missing.until)
            if incident.body.get("in_doubt") and not incident.body.get("asking"):
                wake_at = crew.clock.now() + spec.monitoring.block
                return Aim(move="wait", waits_for="blocks that tell wrong labels from a changed world", wake_at=wake_at)
            if missing is not None or (incident.body.get("in_doubt") and not facts.get("owner_told")):
                return reach("owner_told")
            if not facts.get("owner_told") and "denied_since" in run.body:
                # What contains the fault is denied for now: the owner hears of it all the same.
                return reach("owner_told")
            if not (facts.get("fault_contained") and facts.get("owner_told")):
                return reach("fault_contained", "owner_told")
            ended = "quarantined" if incident.body.get("quarantined") else "arrived"
            return _recovering(crew, run, spec, outcome="new_normal" if incident.body.get("lasting") else ended)
        case "skew":
            return _skew_aim(crew, conn, run, spec)
        case "serving_fault":
            relapsed = int(str(run.body.get("relapses", 0))) > MAX_RELAPSES
            if not facts.get("serving_healthy") and not relapsed:
                return reach("serving_healthy")
            if relapsed and not facts.get("owner_told"):
                return reach("owner_told")
            return _recovering(crew, run, spec, outcome="recovered")
        case "bad_release":
            # The rollout's own run takes the version off: this one sees to it that health comes back.
            running = store.select(conn, RolloutRow, model=run.model, status="running")
            if running:
                return Aim(move="wait", waits_for=f"version {running[0].candidate} to be taken off")
            return _recovering(crew, run, spec, outcome="rolled_back")
        case _ if incident.signal == "calibration_lost":
            return Aim(move="end", outcome="handed_over") if facts.get("owner_told") else reach("owner_told")
        case _:
            return _world_aim(crew, conn, run, spec, incident)


def _skew_aim(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec) -> Aim:
    """Take the days that were served with skew out of training, and the release behind them back; nothing is retrained.

    Neither waits while a person is asked about the other. Where nothing can be taken back the owner has to know, and
    days go on being taken out until the values agree again.
    """
    facts = run.facts
    if not facts.get("owner_told") and "denied_since" in run.body:
        return reach("owner_told")
    steps: dict[FactName, ActionKind] = {
        "fault_contained": "quarantine_data", "features_consistent": "rollback_features", "owner_told": "notify",
    }  # fmt: skip
    if facts.get("no_rollback"):
        del steps["features_consistent"]
    missing: list[FactName] = [fact for fact in steps if not facts.get(fact)]
    if missing:
        asked = {row.action for row in store.select(conn, ApprovalRow, model=run.model, status="pending")}
        return reach(next((fact for fact in missing if steps[fact] not in asked), missing[0]))
    returned = bool(facts.get("features_consistent"))
    return _recovering(crew, run, spec, outcome="features_rolled_back" if returned else "quarantined")


def _world_aim(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, incident: IncidentRow) -> Aim:
    """Something changed in the world: find out whether a remedy exists, then carry it out or say that there is none.

    Only a backtest that could have learned from the change says that there is none; until it can, the run waits.
    """
    facts = run.facts
    if "rollout_id" not in run.body and is_replaced(conn, spec, incident):
        replaced = _after_another(crew, conn, run, spec, incident)
        if replaced is not None:
            return replaced
    if spec.outcomes != "affected":
        if _beat_another(conn, run):
            facts |= {"remedy_known": False, "training_justified": False, "paired_win": False}
        if not facts.get("remedy_known"):
            return _seek_remedy(crew, conn, run, spec, incident)
        if not facts.get("training_justified"):
            if incident.cause == "segment_regression":
                # A person decides what the segment is to be served by: the average does not tell that it is worse.
                return Aim(move="end", outcome="escalated") if facts.get("owner_told") else reach("owner_told")
            lost = facts.get("paired_verdict") == "lose"
            return Aim(move="end", outcome="not_remediable" if lost else "inconclusive")
    if facts.get("gates_evaluated") and not facts.get("gates_cleared"):
        if spec.outcomes == "affected" or not begin_narrower_fit(crew, conn, run, spec, incident):
            return Aim(move="end", outcome="gates_failed")
        return _seek_remedy(crew, conn, run, spec, incident)
    return reach("serving_better_model")


def _after_another(
    crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, incident: IncidentRow
) -> Aim | None:  # fmt: skip
    """What was wrong was the champion before: once the one that took its place is through, health has to hold.

    None where the new one misses the goal as well, or whether it does is never known.
    """
    running = store.select(conn, RolloutRow, model=run.model, status="running")
    if running:
        return Aim(move="wait", waits_for=f"version {running[0].candidate} to be through")
    kept, now = goals_kept(conn, spec, incident), crew.clock.now()
    if kept is None and now < gives_up_at(spec, incident):
        wake_at = now + spec.monitoring.block
        return Aim(
            move="wait", waits_for="labelled blocks that tell whether the new champion keeps the goal", wake_at=wake_at
        )
    if not kept:
        return None
    champion = store.get(conn, DetectorRow, f"{run.model}/champion")
    run.body["remedied_at"] = str(champion.state["since"]) if champion is not None else None
    return _recovering(crew, run, spec, outcome="recovered")


def _beat_another(conn: Connection, run: RunRow) -> bool:
    """Whether the backtest of the run judged a champion that serves no more, and nothing of the run is on its way."""
    champion = store.get(conn, DetectorRow, f"{run.model}/champion")
    known = run.facts.get("compared_with")
    return (
        known is not None and champion is not None and known != champion.state["version"]
        and "rollout_id" not in run.body
    )  # fmt: skip


def _seek_remedy(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, incident: IncidentRow) -> Aim:
    """Backtest when it can say something; look every block whether what was wrong has passed by itself."""
    if symptoms_passed(crew, conn, spec, incident, run):
        return Aim(move="end", outcome="recovered")
    look_at = run.facts.get("look_at")
    if look_at is not None:
        now, at = crew.clock.now(), datetime.fromisoformat(str(look_at))
        if now < at:
            wake_at = min(at, now + spec.monitoring.block)
            return Aim(move="wait", waits_for=f"the next backtest, on {at:%Y-%m-%d}", wake_at=wake_at)
        del run.facts["look_at"]
        run.facts["data_validated"] = False  # what was looked at before the last backtest is not all that is there now
    return reach("remedy_known")


def end_run(crew: Crew, conn: Connection, run: RunRow, outcome: str, *, fence: Fence) -> None:
    """Finish the run, and with it its incident or one-off goal; joins the caller's transaction."""
    run.status, run.outcome, run.finished_at = "finished", outcome, crew.clock.now()
    run.wake_at, run.waits_for = None, ""
    store.put(conn, run, fence=fence)
    rollout = store.get(conn, RolloutRow, str(run.body.get("rollout_id", "")))
    if rollout is not None and rollout.status == "running":
        # Nobody walks it on: it must not stand in the way of the next one.
        rollout.status, rollout.finished_at = "failed", crew.clock.now()
        store.put(conn, rollout, fence=fence)
    if run.subject_kind == "incident":
        incident = store.get(conn, IncidentRow, run.subject_id)
        if incident is not None and incident.status == "open":
            close_incident(crew, conn, incident, run, outcome, fence=fence)
    elif run.subject_kind == "goal":
        _end_goal(crew, conn, run, outcome, fence)


def close_incident(
    crew: Crew, conn: Connection, incident: IncidentRow, run: RunRow, resolution: str, *, fence: Fence
) -> None:
    """Close with a resolution; a symptom of the world that was answered so stays quiet until it has grown.

    A fault never does: data or a server that breaks again is a new fault. Nor does a win whose candidate missed a gate:
    the next one has learned from newer rows.
    """
    incident.status, incident.resolution, incident.closed_at = "closed", resolution, crew.clock.now()
    store.put(conn, incident, fence=fence)
    if resolution == "recovered":
        begin_anew(conn, incident.model)
    if resolution == "rejected":
        keep_refusal(conn, incident, fence)
    if resolution in ANSWERED:
        tried_again = frozenset({"challenger_better"} if resolution == "gates_failed" else ())
        keep_quiet(conn, crew.platform.specs[incident.model], incident, fence, but=tried_again)
    sentence = CLOSING.get(resolution, f"closed as {resolution}")
    if resolution == "recovered" and run.facts.get("serving_better_model"):
        sentence = f"the new champion serves and {sentence}"
    log.append(
        conn,
        IncidentChanged(
            **crew.stamp(), model=incident.model, run_id=run.id, incident_id=incident.id,
            actor='System::"steadyhand"', summary=f"Incident {incident.title!r}: {sentence}.", change="closed",
            cause=incident.cause, resolution=resolution,
        ),
    )  # fmt: skip
    tell(
        crew, conn, key=f"closed/{incident.id}", title=f"{incident.model}: incident closed ({resolution})",
        text=f"{incident.title}: {sentence}.",
    )  # fmt: skip
    crew.say("orchestrator", f"incident closed: {incident.title} - {sentence}")


CLOSING = {
    "recovered": "health held for the declared period",
    "not_remediable": "degraded or drifted, but not remediable by retraining so far; the champion stays",
    "inconclusive": "there were too few rows to tell whether retraining would help; the champion stays",
    "gates_failed": "a candidate was trained and misses a gate of the spec; the champion stays",
    "handed_over": "nothing here remedies it by itself; the owner has what was found and decides",
    "new_normal": "the change has lasted and is the new normal; the model is judged by its losses on such rows",
    "joined": "the labels are right, and another open incident is about the same change",
    "arrived": "what was missing has come and is sound",
    "quarantined": "the faulty days are out of training and judgement, and the data has been sound since",
    "features_rolled_back": "the feature view is back at its earlier revision, and served values agree with offline ones",
    "rolled_back": "the candidate was taken off; the champion serves",
    "superseded": "a person asked for another version, and the candidate made way; the champion serves",
    "escalated": "the remedy did not help or may not be repeated; a person has the history",
    "rejected": "a person said no to the remedy; the champion stays",
}
ANSWERED = frozenset({"not_remediable", "gates_failed", "rolled_back", "escalated", "rejected", "handed_over"})


def _end_goal(crew: Crew, conn: Connection, run: RunRow, outcome: str, fence: Fence) -> None:
    goal = store.get(conn, GoalRow, run.subject_id)
    if goal is None or goal.standing or goal.status != "active":
        return
    goal.status = "achieved" if outcome in ("achieved", "recovered", "first_champion", "dry_run") else "failed"
    goal.outcome = outcome
    store.put(conn, goal, fence=fence)
    observe(
        crew, conn, model=run.model, topic="health", verdict=outcome, run_id=run.id,
        summary=f"The goal {goal.text!r} ended: {outcome.replace('_', ' ')}.",
        details={"goal_id": goal.id, "status": goal.status},
    )  # fmt: skip


def cite(run: RunRow, *evidence_ids: str) -> None:
    """Add to the observations that the run's proposals cite, each once."""
    known = run.body.get("evidence")
    cited = [str(item) for item in known] if isinstance(known, list) else []
    run.body["evidence"] = [*cited, *(item for item in evidence_ids if item not in cited)]


def new_run(
    crew: Crew,
    *,
    model: str,
    subject_id: str,
    subject_kind: Literal["incident", "goal", "cadence", "route"],
    facts: dict[str, bool | str | int | float] | None = None,
) -> RunRow:
    """A run that has not begun."""
    return RunRow(
        id=crew.ids.new_id(), model=model, subject_id=subject_id, subject_kind=subject_kind, status="ready",
        facts={"rows_available": True, "data_clean": True, **(facts or {})}, started_at=crew.clock.now(),
    )  # fmt: skip


DENIED_DAYS = timedelta(days=14)
"""How long a run asks again before a person is called, and it gives up unless the denial passes."""
