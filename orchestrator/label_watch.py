"""Whether outcomes that changed are the labels' fault: after an alarm, before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator.crew import Crew, keep_evidence, observe
from orchestrator.doubt import fault_row
from orchestrator.faulty_days import unjudged_days
from orchestrator.label_book import label_reference, labels_by_score
from orchestrator.matching import BROKEN
from orchestrator.runs import loss_alarm
from orchestrator.segment_book import read_segments
from orchestrator.segment_watch import in_words, segment_since
from orchestrator.signals import OF_THE_LOSS, WINDOW_BLOCKS, Signal, block_begins
from orchestrator.symptoms import present_signals
from state import store
from state.rows import DetectorRow, EvidenceRow, IncidentRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.calibration import calibration_alarms, tolerated
from tools.drift.dependence import Dependence, depends_on
from tools.drift.label_verdict import BROKEN as BROKEN_LABELS
from tools.drift.label_verdict import LabelVerdict, judge_change
from tools.drift.labels import STEP, Change, LabelCounts, LabelReference, distance, find_change, is_like
from tools.drift.performance import block_of

ROWS_PER_BLOCK = 4_000
"""Rows of a block that the dependence on features is measured on."""
COMPARED = 14
"""Good blocks before a change that its rows are compared with."""
TOLD_SLOPE = 3.0
"""A slope that is off by more is noise: the scores hardly differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One champion's labels."""

    spec: ModelSpec
    champion: str
    reference: LabelReference
    live: list[LabelCounts]
    """Blocks after the reference, oldest first, without faulty and quarantined ones."""
    bad: frozenset[str]
    """Quarantined days (ISO dates)."""


def explain(
    crew: Crew, conn: Connection, spec: ModelSpec, champion: str, alarms: list[Signal], fence: Fence
) -> list[Signal]:
    """`alarms` with what the labels say of them.

    An alarm of the loss, or of the calibration, is looked into: a fault of the labels takes its place, and what speaks
    against one goes with it. So is, once more with every block of its first week, an alarm that an open incident is about:
    a few blocks may not have told. While labels are at fault, what that does to the loss is no news: then newly matured
    blocks are told apart into faulty and sound ones.
    """
    if spec.task != "binary":
        return alarms
    bad = frozenset(unjudged_days(crew, conn, spec))
    reference, live = label_reference(conn, spec, champion, labels_by_score(conn, spec, champion, set(bad)))
    if reference is None or not live:
        return alarms
    case = _Case(spec=spec, champion=champion, reference=reference, live=live, bad=bad)
    others = [alarm for alarm in alarms if alarm.name not in OF_THE_LOSS]
    incident = _open_fault(conn, spec)
    if incident is not None:
        if incident.body.get("in_doubt"):
            return [*others, *_still_in_doubt(crew, conn, case, incident, fence)]
        return [*others, *_still_faulty(conn, case, fence)]
    alarm = next((alarm for alarm in alarms if alarm.name in ("loss_alarm", "segment_alarm")), None)
    known = _alarm_before(conn, case) if alarm is None else None
    off = calibration_alarms(
        reference, live, tolerance=spec.monitoring.tolerance, false_alarm_blocks=spec.monitoring.false_alarm_blocks
    )  # fmt: skip
    change = find_change(reference, live) if alarm is not None or known is not None or off else None
    if change is None:
        _forget_calibration(conn, case, fence)
        return alarms
    news, young = bool(off) and _is_news(conn, case, change), known is not None and change.n_blocks <= WINDOW_BLOCKS
    if alarm is None and not news and not young:
        return alarms
    if news:
        _note_calibration(conn, case, change, fence)
    symptom = alarm or known
    if symptom is None and _confined(conn, case, change) is not None:
        symptom = segment_since(conn, spec, champion, change.since, bad=bad, fence=fence)
        if symptom is None:
            return alarms  # told before
    symptom = symptom or _calibration_lost(case, change)
    found = _look_into(crew, conn, case, change, symptom, fence)
    if found.name == "label_fault":
        return [*others, found]
    if alarm is not None:
        return [found if item is alarm else item for item in alarms]
    # While the loss has alarmed, probabilities that are off are no news.
    told = known is not None or (found.name == "calibration_lost" and loss_alarm(conn, spec.model, champion))
    return alarms if told else [*alarms, found]


def _alarm_before(conn: Connection, case: _Case) -> Signal | None:
    """The newest alarm of this champion's loss, where an open incident is about a change of the world because of it."""
    for incident in store.select(conn, IncidentRow, model=case.spec.model, status="open"):
        alarms = [
            row for row in present_signals(conn, case.spec, incident) if row.name in ("loss_alarm", "segment_alarm")
        ]  # fmt: skip
        seen = store.get(conn, EvidenceRow, alarms[-1].evidence_ids[-1]) if alarms else None
        if seen is not None and incident.cause not in BROKEN:
            return Signal.model_validate(seen.body)
    return None


def _look_into(crew: Crew, conn: Connection, case: _Case, change: Change, symptom: Signal, fence: Fence) -> Signal:
    """A fault of the labels in the place of the symptom that it explains; else the symptom with what speaks against one."""
    moved = _inputs_moved(conn, case.spec, change)
    confined = symptom.details.get("confined") or _confined(conn, case, change)
    verdict = judge_change(change, _dependence(crew, case, change), inputs_moved=moved, confined=confined)
    evidence_id = _keep(crew, conn, case, change, verdict, fence)
    if verdict.kind == "world" or _is_cleared(conn, case, change):
        return _with_labels(symptom, case, change, verdict, evidence_id)
    _remember(conn, case, change, fence)
    return _fault(case, change, verdict, symptom, evidence_id)


def _confined(conn: Connection, case: _Case, change: Change) -> str | None:
    """In figures: the segment that the change is confined to; None where it goes through all rows."""
    book = read_segments(conn, case.spec, case.champion)
    one = book.confined_since(case.spec, change.since, case.bad)
    return in_words(case.spec, book, one) if one is not None else None


def _is_news(conn: Connection, case: _Case, change: Change) -> bool:
    """Whether a loss of calibration was not told before, or has grown by another tolerance since."""
    if case.spec.objective.metric == "log_loss":
        return False  # its own detector speaks of that
    row = store.get(conn, DetectorRow, _calibration_id(case))
    return row is None or _off_by(case, change) > float(str(row.state.get("size", 0.0))) + 1


def _off_by(case: _Case, change: Change) -> float:
    """How far probabilities are off, in tolerances."""
    limit = tolerated(case.reference, case.spec.monitoring.tolerance)
    return max(abs(change.rate) / limit.rate, abs(change.slope) / limit.slope)


def _fault(case: _Case, change: Change, verdict: LabelVerdict, symptom: Signal, evidence_id: str) -> Signal:
    in_doubt = verdict.kind == "in_doubt"
    # A person is asked where a week could not tell: until then more days may.
    asking = in_doubt and change.n_blocks >= WINDOW_BLOCKS
    cannot = "the data cannot tell" if asking else "so few blocks cannot tell"
    said = f"are in doubt: whether they are wrong or the world has changed, {cannot}" if in_doubt else "are wrong"
    return Signal(
        name="label_fault",
        text=f"the labels of {change.n_blocks} blocks from {change.since} on {said} ({'; '.join(verdict.evidence_for)})",
        blocks=[counts.block for counts in case.live if counts.block >= change.since],
        size=change.size,
        onset=change.since,
        details={
            "for": [*verdict.evidence_for], "against": [*verdict.evidence_against], "in_doubt": in_doubt,
            "asking": asking, "symptom": symptom.model_dump(mode="json"),
        },
        evidence_ids=[evidence_id],
    )  # fmt: skip


def _with_labels(alarm: Signal, case: _Case, change: Change, verdict: LabelVerdict, evidence_id: str) -> Signal:
    """The alarm with what speaks against a fault of the labels, and by how much their rate has moved."""
    error = float(case.reference.covariance[0, 0] * (1 / change.n_blocks + 1 / len(case.reference.shifts))) ** 0.5
    more: dict[str, Any] = {"against_labels": [*verdict.evidence_against], "label_rate_shift": change.rate / error}
    return alarm.model_copy(
        update={"details": {**alarm.details, **more}, "evidence_ids": [*alarm.evidence_ids, evidence_id]}
    )  # fmt: skip


def _still_in_doubt(crew: Crew, conn: Connection, case: _Case, incident: IncidentRow, fence: Fence) -> list[Signal]:
    """What newer blocks say; nothing new while they cannot tell either, or while a person is asked."""
    change = find_change(case.reference, case.live)
    segment = segment_since(conn, case.spec, case.champion, change.since, bad=case.bad, fence=fence) if change else None
    if incident.body.get("asking") and segment is None:
        return []
    symptom = segment or Signal.model_validate(incident.body["symptom"])
    if change is None:
        return [symptom]
    found = _look_into(crew, conn, case, change, symptom, fence)
    return [found] if found.name != "label_fault" or found.details["asking"] or not found.details["in_doubt"] else []


def _still_faulty(conn: Connection, case: _Case, fence: Fence) -> list[Signal]:
    """Newly matured blocks whose labels are nearer to the fault than to the reference."""
    row = store.get(conn, DetectorRow, _row_id(case))
    if row is None or row.state.get("version") != case.champion:
        return []
    state = {**row.state, "until": case.live[-1].block}
    rate, slope = float(str(state["rate"])), float(str(state["slope"]))
    faulty = [
        counts.block for counts in case.live
        if counts.block > str(row.state["until"]) and is_like(case.reference, rate, slope, counts)
    ]  # fmt: skip
    store.put(conn, row.model_copy(update={"state": state}), fence=fence)
    if not faulty:
        return []
    text = f"the labels of {', '.join(faulty)} are like the wrong ones before"
    return [
        Signal(name="label_fault", text=text, blocks=faulty, details={"for": [text], "against": [], "in_doubt": False})
    ]


def _note_calibration(conn: Connection, case: _Case, change: Change, fence: Fence) -> None:
    """From now on only what grows by another tolerance is news."""
    state: dict[str, Any] = {"size": _off_by(case, change)}
    store.put(conn, DetectorRow(id=_calibration_id(case), model=case.spec.model, state=state), fence=fence)


def _calibration_lost(case: _Case, change: Change) -> Signal:
    """Probabilities are off while the objective holds."""
    size = _off_by(case, change)
    more = "more" if change.rate > 0 else "fewer"
    text = (
        f"probabilities are off while {case.spec.objective.metric} holds: from the block of {change.since} on labels of "
        f"class 1 come in {abs(change.rate):.1%} of rows {more} than the scores say"
    )
    if abs(change.slope) <= TOLD_SLOPE:
        text += f", and rise by {1 + change.slope:.2f} where the scores rise by 1"
    return Signal(
        name="calibration_lost", text=text, size=size, floor=1.0, onset=change.since,
        details={"rate": change.rate, "slope": change.slope},
    )  # fmt: skip


def _forget_calibration(conn: Connection, case: _Case, fence: Fence) -> None:
    """Nothing is off any more: the next time it is news."""
    row = store.get(conn, DetectorRow, _calibration_id(case))
    if row is not None and row.state:
        store.put(conn, row.model_copy(update={"state": {}}), fence=fence)


def _dependence(crew: Crew, case: _Case, change: Change) -> Dependence | None:
    """Whether the labels since the change follow the features beyond the score."""
    spec = case.spec
    before = [counts.block for counts in case.live if counts.block < change.since][-COMPARED:]
    since = [counts.block for counts in case.live if counts.block >= change.since]
    frame = crew.platform.outcomes.labelled(
        spec.model, start=block_begins((before or since)[0]), end=block_begins(since[-1]) + spec.monitoring.block,
        as_of=crew.clock.now(),
    ).filter(pl.col("version") == case.champion)  # fmt: skip
    frame = frame.with_columns(block_of(frame["event_time"], spec.monitoring.block).alias("block"))
    # Every so many rows of a large block: the variation is that of blocks.
    frame = frame.filter(
        pl.int_range(pl.len()).over("block") % (pl.len().over("block") // ROWS_PER_BLOCK + 1) == 0
    )  # fmt: skip
    ours, theirs = (frame.filter(pl.col("block").is_in(blocks)) for blocks in (since, before))
    features = {feature.name: feature.type for feature in spec.features}
    return depends_on(
        ours, theirs if theirs.height else None, curve=case.reference.curve, features=features,
        kept=change.best(*BROKEN_LABELS).kept,
    )  # fmt: skip


def _inputs_moved(conn: Connection, spec: ModelSpec, change: Change) -> bool:
    row = store.get(conn, DetectorRow, f"{spec.model}/drift")
    return row is not None and row.state.get("level") == "major" and str(row.state.get("until")) >= change.since


def _keep(crew: Crew, conn: Connection, case: _Case, change: Change, verdict: LabelVerdict, fence: Fence) -> str:
    body: dict[str, Any] = {
        "version": case.champion, "since": change.since, "n_blocks": change.n_blocks, "rate": change.rate,
        "slope": change.slope, "size": change.size, "ramp": change.ramp, "verdict": verdict.kind,
        "fits": [{"hypothesis": f.hypothesis, "strength": f.strength, "p_value": f.p_value} for f in change.fits],
        "for": [*verdict.evidence_for], "against": [*verdict.evidence_against],
    }  # fmt: skip
    evidence_id = keep_evidence(crew, conn, model=case.spec.model, topic="labels", body=body, fence=fence)
    observe(
        crew, conn, model=case.spec.model, topic="performance", verdict=f"labels_{verdict.kind}",
        actor='Agent::"monitoring"', evidence_ids=[evidence_id],
        summary=f"Labels against scores since {change.since}: {verdict.kind.replace('_', ' ')}. For a fault of the labels: "
        f"{'; '.join(verdict.evidence_for) or 'nothing'}. Against: {'; '.join(verdict.evidence_against) or 'nothing'}.",
    )  # fmt: skip
    return evidence_id


def _open_fault(conn: Connection, spec: ModelSpec) -> IncidentRow | None:
    rows = store.select(conn, IncidentRow, model=spec.model, status="open", cause="label_fault")
    return next((row for row in rows if row.body.get("by_score")), None)


def _remember(conn: Connection, case: _Case, change: Change, fence: Fence) -> None:
    """What the fault looks like, to tell newly matured blocks apart."""
    state: dict[str, Any] = {
        "version": case.champion, "rate": change.rate, "slope": change.slope, "until": case.live[-1].block,
        "cleared": False,
    }  # fmt: skip
    store.put(conn, DetectorRow(id=_row_id(case), model=case.spec.model, state=state), fence=fence)


def _is_cleared(conn: Connection, case: _Case, change: Change) -> bool:
    """Whether a person said of this change that its labels are right."""
    row = store.get(conn, DetectorRow, _row_id(case))
    if row is None or not row.state.get("cleared") or row.state.get("version") != case.champion:
        return False
    known = float(str(row.state["rate"])), float(str(row.state["slope"]))
    return distance(case.reference, known, (change.rate, change.slope)) < STEP


def _calibration_id(case: _Case) -> str:
    return f"{case.spec.model}/calibration/{case.champion}"


def _row_id(case: _Case) -> str:
    return fault_row(case.spec.model)
