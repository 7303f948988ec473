"""From signals to incidents: one cause, one incident; a signal that has been answered stays quiet until it grows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import JsonValue

from orchestrator.change import champion_version, change_began, later_change
from orchestrator.context import champion_of
from orchestrator.crew import Crew, keep_evidence, observe
from orchestrator.diagnosis import Diagnosis, Symptoms, diagnose
from orchestrator.gate import withdraw_questions
from orchestrator.matching import BROKEN, faulty_columns, is_something_else, matching, shares_cause_with
from orchestrator.quiet import extend_refusal, is_quiet
from orchestrator.runs import cite, end_run, new_run
from orchestrator.signals import Signal, fault_body, joined
from orchestrator.symptoms import symptoms_of
from state import log, store
from state.decisions import IncidentChanged
from state.rows import ApprovalRow, DetectorRow, DiagnosisRow, GoalRow, IncidentRow, RolloutRow, RunRow, SignalRow
from state.spec import ModelSpec
from state.store import Connection, Fence


def take_in(crew: Crew, conn: Connection, spec: ModelSpec, signal: Signal, fence: Fence) -> None:
    """Open or join an incident for a signal, or leave it alone; joins the transaction that remembers the signal."""
    if is_quiet(conn, spec, signal) or extend_refusal(conn, spec, signal, fence):
        observe(
            crew, conn, model=spec.model, topic="left_alone", verdict="quiet", actor='Agent::"monitoring"',
            summary=f"{signal.text}: this was answered before and has not grown since; left alone.",
        )  # fmt: skip
        return
    diagnosis = diagnose(symptoms_of(crew, conn, spec, signal))
    seen = keep_evidence(
        crew, conn, model=spec.model, topic="signal", body=signal.model_dump(mode="json"), fence=fence
    )  # fmt: skip
    signal = signal.model_copy(update={"evidence_ids": [*signal.evidence_ids, seen]})
    incident = matching(conn, spec, signal, diagnosis)
    if incident is not None and diagnosis.cause not in BROKEN:
        diagnosis = diagnose(symptoms_of(crew, conn, spec, signal, incident))
    row = SignalRow(
        id=crew.ids.new_id(), model=spec.model, name=signal.name, at=crew.clock.now(), value=signal.size,
        threshold=None, incident_id=incident.id if incident else None, evidence_ids=signal.evidence_ids,
        body={
            "text": signal.text, "block": signal.block, "champion": champion_version(conn, spec.model), **signal.details,
        },
    )  # fmt: skip
    other = None
    if incident is None:
        incident = _open(crew, conn, spec, signal, diagnosis, fence)
        row.incident_id = incident.id
    else:
        if is_something_else(incident, signal, diagnosis):
            if incident.body.get("in_doubt"):
                other = matching(conn, spec, signal, diagnosis, beside=incident)
            _rediagnose(crew, conn, spec, incident, signal, diagnosis, fence)
        _join(crew, conn, spec, incident, signal, diagnosis, fence)
    store.put(conn, row, fence=fence)
    _keep_diagnosis(crew, conn, incident, diagnosis, fence)
    if other is not None:
        _fold(crew, conn, incident, other, fence)


def _fold(crew: Crew, conn: Connection, incident: IncidentRow, other: IncidentRow, fence: Fence) -> None:
    """Close an incident that turned out to be about what another one, which goes on, is about."""
    incident.body["part_of"] = other.id
    store.put(conn, incident, fence=fence)
    for run in store.select(conn, RunRow, subject_id=incident.id, status=["ready", "waiting"]):
        end_run(crew, conn, run, "joined", fence=fence)


TITLES = {
    "data_fault": "faulty data arrives",
    "skew": "serving and training read different values",
    "label_fault": "the labels are not to be trusted",
    "calibration_lost": "probabilities are off",
    "serving_fault": "the champion's server fails",
    "canary_failed": "a released version fails under live traffic",
    "loss_alarm": "predictions have become worse",
    "goal_missed": "a standing goal is missed",
    "major_drift": "the inputs have moved",
    "challenger_better": "a newer fit would serve people better",
}


ADVICE = {
    "calibration_lost": ". Recalibrating would remedy it, which is not done here: ask for a retraining on newer rows, or "
    "decide by rank until then",
}
"""What a person can do where nothing here does it."""


def _open(
    crew: Crew, conn: Connection, spec: ModelSpec, signal: Signal, diagnosis: Diagnosis, fence: Fence
) -> IncidentRow:
    began = change_began(spec, signal.onset, crew.clock.now())
    body: dict[str, Any] = {
        "size": signal.size, "text": signal.text, "change_from": began.isoformat(),
        "champion": champion_version(conn, spec.model),
    }  # fmt: skip
    if diagnosis.cause == "data_fault":
        body["columns"] = sorted(faulty_columns(signal))
        first = shares_cause_with(conn, spec, signal)
        if first is not None:
            body["part_of"] = first.id
    if signal.name == "skew":
        body["skewed"] = signal.details["skewed"]
    body |= _scope(signal, diagnosis)
    fault = fault_body(signal, spec)
    if fault:
        body |= {**fault, "quarantined": []}
    incident = IncidentRow(
        id=crew.ids.new_id(), model=spec.model, status="open", cause=diagnosis.cause, signal=signal.name,
        opened_at=crew.clock.now(), title=_title(spec, signal, diagnosis), body=body,
    )  # fmt: skip
    store.put(conn, incident, fence=fence)
    facts = _story(signal)
    facts |= _world_facts(crew, spec, incident, signal)
    run = new_run(crew, model=spec.model, subject_id=incident.id, subject_kind="incident", facts=facts)
    run.body["evidence"] = list(signal.evidence_ids)
    store.put(conn, run, fence=fence)
    log.append(
        conn,
        IncidentChanged(
            **crew.stamp(), model=spec.model, run_id=run.id, incident_id=incident.id, actor='Agent::"monitoring"',
            summary=f"{incident.title}: {signal.text}. Diagnosis: {diagnosis.cause.replace('_', ' ')}.",
            change="opened", cause=diagnosis.cause, title=incident.title, evidence_ids=signal.evidence_ids,
        ),
    )  # fmt: skip
    crew.say("monitoring", f"incident: {signal.text} - {diagnosis.cause.replace('_', ' ')}")
    return incident


def _title(spec: ModelSpec, signal: Signal, diagnosis: Diagnosis) -> str:
    if diagnosis.cause == "segment_regression":
        return f"{spec.model}: predictions have become worse in {signal.details['segment']}"
    return f"{spec.model}: {TITLES.get(signal.name, signal.name)}"


def _scope(signal: Signal, diagnosis: Diagnosis) -> dict[str, Any]:
    """The segments that a signal names, each with the rise of its loss; `segment` is the one that it is confined to."""
    if "segments" not in signal.details:
        return {}
    scope: dict[str, Any] = {"segments": dict(signal.details["segments"])}
    if diagnosis.cause == "segment_regression":
        scope["segment"] = signal.details["segment"]
    return scope


def _world_facts(
    crew: Crew, spec: ModelSpec, incident: IncidentRow, signal: Signal
) -> dict[str, bool | str | int | float]:
    """Facts that hold from the start of a run, by what the incident is about."""
    facts: dict[str, bool | str | int | float] = {"healthy_champion_known": champion_of(crew, spec.model) is not None}
    match incident.cause:
        case "data_fault" | "label_fault":
            facts["bad_days_known"] = True
        case "skew":
            facts |= {"bad_days_known": True, "feature_skew_found": True}
        case "serving_fault":
            facts["server_unhealthy"] = True
    facts |= _won(signal)
    if spec.outcomes == "affected" and signal.name in ("loss_alarm", "segment_alarm", "major_drift"):
        facts["training_justified"] = True
    return facts


CARRIED = ("paired_z", "paired_evidence", "compared_with")
"""Facts of a backtest on the cadence that hold for the incident which its win opens."""


def _won(signal: Signal) -> dict[str, bool | str | int | float]:
    """Facts that a win on the cadence brings; none for another signal."""
    if signal.name != "challenger_better":
        return {}
    given = {name: value for name, value in signal.details.items() if name in CARRIED}
    return {"remedy_known": True, "training_justified": True, "paired_win": True, **given}


def _rediagnose(
    crew: Crew, conn: Connection, spec: ModelSpec, incident: IncidentRow, signal: Signal, diagnosis: Diagnosis,
    fence: Fence,
) -> None:  # fmt: skip
    """The incident is about something else after all: the symptom of labels in doubt, one segment of what is worse, harm
    that nothing showed at first, or labels that were wrong from the start."""
    said = "the labels are not at fault" if incident.cause == "label_fault" else diagnosis.evidence_for[0]
    incident.cause, incident.signal = diagnosis.cause, signal.name
    incident.title = _title(spec, signal, diagnosis)
    incident.body |= {"size": signal.size, "text": signal.text}
    fault, out = fault_body(signal, spec), list[JsonValue]()
    if signal.name == "skew" and isinstance(known := incident.body.get("quarantined"), list):
        # The same values, known better: the days that they spoilt so far are days of the skew.
        fault, out = joined(incident.body, fault), known
    asked = bool(fault) or bool(incident.body.get("in_doubt"))
    for name in ("days", "quarantined", "missing", "unlabelled", "by_score", "in_doubt", "asking", "symptom"):
        incident.body.pop(name, None)
    if fault:
        incident.body |= {**fault, "quarantined": out}
    for run in store.select(conn, RunRow, subject_id=incident.id, status=["ready", "waiting"]):
        if asked:
            withdraw_questions(crew, conn, run, f"it is about something else: {diagnosis.cause.replace('_', ' ')}")
        if fault:
            run.facts["owner_told"] = False
        run.facts |= {"bad_days_known": False, "fault_contained": False, **_story(signal)}
        if diagnosis.cause == "segment_regression" and "rollout_id" not in run.body:
            # What a backtest said of the whole is no answer for the segment.
            run.facts |= {"remedy_known": False, "training_justified": False, "paired_win": False}
        run.facts |= _world_facts(crew, spec, incident, signal)
        run.body["pinned"] = {}
        run.body.pop("denied_since", None)
        store.put(conn, run, fence=fence)
    log.append(
        conn,
        IncidentChanged(
            **crew.stamp(), model=incident.model, incident_id=incident.id, actor='Agent::"monitoring"',
            summary=f"{incident.title}: {said}. Diagnosis: {diagnosis.cause.replace('_', ' ')}.",
            change="rediagnosed", cause=diagnosis.cause, title=incident.title, evidence_ids=signal.evidence_ids,
        ),
    )  # fmt: skip


def _story(signal: Signal) -> dict[str, bool | str | int | float]:
    return {"story": f"{signal.text}{ADVICE.get(signal.name, '')}"}


def _join(
    crew: Crew, conn: Connection, spec: ModelSpec, incident: IncidentRow, signal: Signal, diagnosis: Diagnosis,
    fence: Fence,
) -> None:  # fmt: skip
    """The same cause again: the incident goes on, and what it had contained is open again."""
    more = fault_body(signal, spec)
    if incident.cause == "data_fault":
        columns = incident.body.get("columns")
        before = {str(column) for column in columns} if isinstance(columns, list) else set()
        incident.body["columns"] = [*sorted(before | faulty_columns(signal))]
    if more and "days" in incident.body:
        incident.body.pop("lasting", None)  # another fault than the change that has lasted
        incident.body |= joined(incident.body, more)
        incident.body["text"] = signal.text if "symptom" in more else incident.body["text"]
    scope = _scope(signal, diagnosis)
    if scope:
        sizes = incident.body.get("segments")
        incident.body |= {**scope, "segments": {**(sizes if isinstance(sizes, dict) else {}), **scope["segments"]}}
    if signal.name in ("loss_alarm", "segment_alarm") and signal.onset is not None:
        incident.body["change_from"] = later_change(spec, incident, signal.onset).isoformat()
    known = incident.body.get("skewed")
    same_skew = signal.name == "skew" and isinstance(known, list) and {*signal.details["skewed"]} == {*known}
    if signal.name == "skew":
        incident.body["skewed"] = signal.details["skewed"]
    incident.body["champion"] = champion_version(conn, spec.model)
    store.put(conn, incident, fence=fence)
    for run in store.select(conn, RunRow, subject_id=incident.id, status=["ready", "waiting"]):
        # Another day of what a person is asked about, or was, is no new question.
        asked = bool(more) and _is_asked(conn, run)
        if asked:
            later = run.body.get("evidence_after")
            run.body["evidence_after"] = [*(later if isinstance(later, list) else []), *signal.evidence_ids]
        elif not same_skew:
            cite(run, *signal.evidence_ids)
        run.body["unhealthy_at"] = crew.clock.now().isoformat()
        if "symptom" in more:
            run.facts |= _story(signal)  # it is known better now
        if more:
            run.facts["fault_contained"] = False
            run.facts["data_clean"] = True
            if not asked:
                run.body["pinned"] = {}  # what is proposed next covers the new days too
        if signal.name == "skew":
            run.facts |= {"feature_skew_found": True, "features_consistent": False}
        if signal.name == "serving_fault":
            run.facts |= {"serving_healthy": False, "server_unhealthy": True, **_story(signal)}
            if "error_ratio" in signal.details:
                run.body["relapses"] = int(str(run.body.get("relapses", 0))) + 1
        if not run.facts.get("training_justified"):
            run.facts |= _won(signal)
        run.status, run.wake_at = "ready", None
        store.put(conn, run, fence=fence)
    log.append(
        conn,
        IncidentChanged(
            **crew.stamp(), model=incident.model, incident_id=incident.id, actor='Agent::"monitoring"',
            summary=f"{incident.title} goes on: {signal.text}.", change="joined", cause=incident.cause,
            evidence_ids=signal.evidence_ids,
        ),
    )  # fmt: skip


def _is_asked(conn: Connection, run: RunRow) -> bool:
    """Whether a person is asked about days of the run's fault: what comes until the answer is looked at after it."""
    pending = store.select(conn, ApprovalRow, model=run.model, status="pending")
    return any(row.run_id == run.id and row.action == "quarantine_data" for row in pending)


def _keep_diagnosis(crew: Crew, conn: Connection, incident: IncidentRow, diagnosis: Diagnosis, fence: Fence) -> None:
    newest = store.select(conn, DiagnosisRow, incident_id=incident.id, newest_first=True, limit=1)
    said = (diagnosis.cause, list(diagnosis.evidence_for))
    if newest and (newest[0].cause, newest[0].evidence_for) == said:
        return
    row = DiagnosisRow(
        id=crew.ids.new_id(), model=incident.model, incident_id=incident.id, at=crew.clock.now(),
        cause=diagnosis.cause, evidence_for=list(diagnosis.evidence_for),
        evidence_against=list(diagnosis.evidence_against), alternatives=diagnosis.alternatives,
    )  # fmt: skip
    store.put(conn, row, fence=fence)
    observe(
        crew, conn, model=incident.model, topic="diagnosis", verdict=diagnosis.cause, actor='Agent::"monitoring"',
        summary=f"{diagnosis.cause.replace('_', ' ')}: {'; '.join(diagnosis.evidence_for)}.",
        incident_id=incident.id,
        details={"for": list(diagnosis.evidence_for), "against": list(diagnosis.evidence_against),
                 "alternatives": dict(diagnosis.alternatives)},
    )  # fmt: skip


def learn_from_win(
    crew: Crew, conn: Connection, spec: ModelSpec, incident: IncidentRow, *, z: float, evidence_id: str, fence: Fence
) -> None:
    """A won backtest explains an incident that nothing explained so far; joins the caller's transaction."""
    if incident.cause != "insufficient_evidence":
        return
    drift = store.get(conn, DetectorRow, f"{spec.model}/drift")
    level: dict[str, Any] = dict(drift.state) if drift is not None else {}
    symptoms = Symptoms(
        signal=incident.signal, backtest="win", backtest_z=z, drift_level=level.get("level"),
        drifting_features=tuple(level.get("features", [])),
    )  # fmt: skip
    diagnosis = diagnose(symptoms)
    incident.cause = diagnosis.cause
    store.put(conn, incident, fence=fence)
    log.append(
        conn,
        IncidentChanged(
            **crew.stamp(), model=incident.model, incident_id=incident.id, actor='Agent::"monitoring"',
            summary=f"{incident.title}: {diagnosis.evidence_for[0]}. Diagnosis: {diagnosis.cause.replace('_', ' ')}.",
            change="rediagnosed", cause=diagnosis.cause, evidence_ids=[evidence_id],
        ),
    )  # fmt: skip
    _keep_diagnosis(crew, conn, incident, diagnosis, fence)


def cadence_due(crew: Crew, conn: Connection, spec: ModelSpec) -> bool:
    """Whether the standing goal asks for a backtest now: nothing wrong, none under way, the cadence over."""
    since = store.get(conn, DetectorRow, f"{spec.model}/cadence")
    if spec.outcomes == "affected" or since is None:
        return False
    counted = datetime.fromisoformat(str(since.state["at"])) + spec.monitoring.cadence
    if crew.clock.now() < min(counted, datetime.fromisoformat(str(since.state.get("due", counted.isoformat())))):
        return False
    incidents = store.select(conn, IncidentRow, model=spec.model, status="open")
    if any(row.cause not in ("data_fault", "label_fault", "serving_fault") for row in incidents):
        return False  # the backtest of an open incident answers the same question
    runs = store.select(conn, RunRow, model=spec.model, status=["ready", "waiting"])
    if any(run.subject_kind == "cadence" for run in runs):
        return False
    if store.select(conn, RolloutRow, model=spec.model, status="running"):
        return False
    return champion_of(crew, spec.model) is not None


def start_cadence(crew: Crew, conn: Connection, spec: ModelSpec, *, fence: Fence) -> None:
    """Begin a cadence backtest; the standing goal's id keys its action."""
    goals = store.select(conn, GoalRow, model=spec.model, status="active")
    standing = next((goal for goal in goals if goal.standing), None)
    if standing is None:
        return
    note_cadence(crew, conn, spec, fence=fence)
    run = new_run(crew, model=spec.model, subject_id=standing.id, subject_kind="cadence")
    store.put(conn, run, fence=fence)


def note_cadence(
    crew: Crew, conn: Connection, spec: ModelSpec, *, fence: Fence | None, due: datetime | None = None
) -> None:
    """The cadence counts from now; with `due`, the next backtest comes then if that is sooner."""
    state: dict[str, JsonValue] = {"at": crew.clock.now().isoformat()}
    if due is not None:
        state["due"] = due.isoformat()
    store.put(conn, DetectorRow(id=f"{spec.model}/cadence", model=spec.model, state=state), fence=fence)


def look_again(run: RunRow) -> datetime | None:
    """When a finished run without a verdict wants the question asked again; None where it was answered."""
    at = run.facts.get("look_at")
    return datetime.fromisoformat(str(at)) if at and run.facts.get("paired_verdict") == "no_verdict" else None


def cadence_signal(run: RunRow) -> Signal | None:
    """The signal of a finished cadence run that won; None where the champion stays."""
    if run.facts.get("paired_verdict") != "win":
        return None
    z = float(str(run.facts["paired_z"]))
    return Signal(
        name="challenger_better",
        text=f"the recipe, fitted anew, beats the champion on the newest labelled days (z {z:.2f})",
        size=z,
        details={"z": z, **{name: value for name, value in run.facts.items() if name in CARRIED}},
        evidence_ids=[str(run.facts["paired_evidence"])],
    )
