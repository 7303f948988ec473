"""Labels in doubt: what a person's answer makes of the incident."""

from __future__ import annotations

from orchestrator.crew import Crew, tell
from orchestrator.signals import Signal
from orchestrator.triage import take_in
from state import store
from state.plans import Proposal
from state.rows import DetectorRow, IncidentRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence


def labels_are_right(
    crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, proposal: Proposal, *, fence: Fence
) -> bool:
    """Take the no to a quarantine of labels in doubt for what it says: they are right, and the world has changed.

    The incident goes on with the symptom that raised the doubt, and the same change raises none again. False where the
    proposal is another one, and its no means no.
    """
    incident = store.get(conn, IncidentRow, run.subject_id)
    if proposal.kind != "quarantine_data" or incident is None or not incident.body.get("in_doubt"):
        return False
    known = store.get(conn, DetectorRow, fault_row(spec.model))
    if known is not None:
        store.put(conn, known.model_copy(update={"state": {**known.state, "cleared": True}}), fence=fence)
    symptom = Signal.model_validate(incident.body["symptom"])
    text = f"{symptom.text}; a person says that the labels are right"
    take_in(crew, conn, spec, symptom.model_copy(update={"text": text}), fence)
    return True


def held_for_answer(crew: Crew, conn: Connection, spec: ModelSpec, win: Signal) -> bool:
    """Whether a win on the cadence starts nothing because the model's labels are in doubt; people are told of it once.

    The answer decides what the win was worth: labels that are right make the incident a drift with a backtest of its
    own, wrong ones are quarantined and the next backtest is made without them.
    """
    faults = store.select(conn, IncidentRow, model=spec.model, status="open", cause="label_fault")
    doubt = next((row for row in faults if row.body.get("in_doubt")), None)
    if doubt is None:
        return False
    text = (
        f"{win.text}. It was judged by the labels in doubt, and nothing is trained before somebody says whether they "
        "are wrong."
    )
    tell(
        crew, conn, key=f"doubt/{doubt.id}", title=f"{spec.model}: a won backtest while labels are in doubt", text=text
    )  # fmt: skip
    return True


def fault_row(model: str) -> str:
    """Id of the row that holds what a fault of the labels looks like, and whether a person denied that it is one."""
    return f"{model}/label_fault"
