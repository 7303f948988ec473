"""Which open incident a signal belongs to, and whether that incident is about something else than it seemed."""

from __future__ import annotations

from orchestrator.change import change_of
from orchestrator.cursor import block_name
from orchestrator.diagnosis import Diagnosis
from orchestrator.signals import OF_THE_LOSS, Signal, block_begins
from state import store
from state.rows import IncidentRow, RunRow
from state.spec import ModelSpec
from state.store import Connection

BROKEN = frozenset({"data_fault", "label_fault", "serving_fault", "bad_release", "skew"})
"""Causes that are no change of the world."""
TENTATIVE = frozenset({"insufficient_evidence", "covariate_shift_harmless"})
"""Causes that later evidence may show to be another one."""
OF_THE_RELATION = ("concept_drift", "covariate_shift_harmful", "prior_shift")


def matching(
    conn: Connection, spec: ModelSpec, signal: Signal, diagnosis: Diagnosis, *, beside: IncidentRow | None = None
) -> IncidentRow | None:
    """An open incident of the same cause, or of the same signal: what explains the one explains the other.

    So does, first of all, the symptom of labels in doubt, where it is taken for what it is after all. With `beside`, another
    incident than that.
    """
    rows = store.select(conn, IncidentRow, model=spec.model, status="open")
    rows = [row for row in rows if beside is None or row.id != beside.id]
    for row in rows:
        symptom = row.body.get("symptom")
        if isinstance(symptom, dict) and row.body.get("in_doubt") and symptom["name"] == signal.name:
            return row
    for row in rows:
        if row.cause == diagnosis.cause or row.signal == signal.name:
            return row
        if row.cause not in BROKEN - {"skew"} and diagnosis.cause not in BROKEN:
            return row  # worse predictions and moved inputs are what skew looks like as well
        if _is_explained(conn, spec, row, signal) or _is_skew_after_all(row, signal):
            return row
    return None


def _is_explained(conn: Connection, spec: ModelSpec, incident: IncidentRow, signal: Signal) -> bool:
    """Whether labels that are known by now to be wrong are what a seeming change of the world is about.

    They are where fewer blocks of that change came before them than anything could be told from. Where its version is on
    its way already, the incident goes on with that.
    """
    if signal.name != "label_fault" or signal.onset is None or incident.cause in BROKEN:
        return False
    if incident.signal not in {*OF_THE_LOSS, "calibration_lost"}:
        return False
    runs = store.select(conn, RunRow, subject_id=incident.id, status=["ready", "waiting"])
    alone = spec.monitoring.min_blocks * spec.monitoring.block
    return (
        all("rollout_id" not in run.body for run in runs)
        and block_begins(signal.onset) < change_of(spec, incident) + alone
    )  # fmt: skip


def _is_skew_after_all(incident: IncidentRow, signal: Signal) -> bool:
    """Whether faulty values turn out to be what serving and training read differently: the feature store can be asked
    again, or the offline values have come."""
    columns = incident.body.get("columns")
    if signal.name != "skew" or incident.cause != "data_fault" or not isinstance(columns, list):
        return False
    return bool({str(column).split("/")[-1] for column in columns} & {*signal.details["skewed"]})


def is_something_else(incident: IncidentRow, signal: Signal, diagnosis: Diagnosis) -> bool:
    """Whether the incident is about something else than it was taken for, now that the signal has joined it."""
    if incident.body.get("in_doubt") and signal.name != "label_fault":
        return True
    if diagnosis.cause == "label_fault":
        return incident.cause not in BROKEN
    if _is_skew_after_all(incident, signal):
        return True
    return (
        _is_narrower(incident, diagnosis)
        or _is_wider(incident, signal, diagnosis)
        or _is_better_known(incident, signal, diagnosis)
    )


def _is_narrower(incident: IncidentRow, diagnosis: Diagnosis) -> bool:
    """Whether a change of the world is known by now to be confined to a segment."""
    return diagnosis.cause == "segment_regression" and incident.cause not in {*BROKEN, "segment_regression"}


def _is_wider(incident: IncidentRow, signal: Signal, diagnosis: Diagnosis) -> bool:
    """Whether a loss that seemed confined to a segment has by now risen outside it as well."""
    return incident.cause == "segment_regression" and signal.name == "loss_alarm" and diagnosis.cause in OF_THE_RELATION


def _is_better_known(incident: IncidentRow, signal: Signal, diagnosis: Diagnosis) -> bool:
    """Whether there is a cause now where none was known, harm where none was, or a worse ranking where it held."""
    if incident.cause in TENTATIVE:
        return diagnosis.cause not in {*BROKEN, *TENTATIVE}
    return incident.signal == "calibration_lost" and signal.name == "loss_alarm" and diagnosis.cause in OF_THE_RELATION


def shares_cause_with(conn: Connection, spec: ModelSpec, signal: Signal) -> IncidentRow | None:
    """Another model's data fault in the same column, of the same kind, in the same block or the one before: one upstream
    cause."""
    if signal.block is None or not faulty_columns(signal):
        return None
    before = block_name(block_begins(signal.block) - spec.monitoring.block, spec)
    seen = faulty_columns(signal) | faulty_columns(signal.model_copy(update={"block": before}))
    for row in store.select(conn, IncidentRow, cause="data_fault", newest_first=True, limit=50):
        mine = row.body.get("columns")
        if row.model != spec.model and isinstance(mine, list) and seen & {str(column) for column in mine}:
            first = row.body.get("part_of")
            return store.get(conn, IncidentRow, str(first)) if first else row
    return None


def faulty_columns(signal: Signal) -> set[str]:
    """`block/kind/column` of every hard finding about a column."""
    findings = signal.details.get("findings", [])
    return {f"{signal.block}/{f['kind']}/{f['feature']}" for f in findings if f.get("feature")}
