"""Findings that come block after block: a change that stays is the new normal, and judged by its harm from then on."""

from __future__ import annotations

from typing import Any

from agents.monitoring import Measured, finding_key, sentence
from orchestrator.crew import Crew, observe, tell
from orchestrator.gate import withdraw_questions
from state import store
from state.rows import DetectorRow, IncidentRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence


def lasting(conn: Connection, spec: ModelSpec) -> list[str]:
    """Keys of findings that came in so many blocks in a row that the next one is no fault any more."""
    return [key for key, run in _runs(conn, spec).items() if run["n"] >= spec.monitoring.lasting_blocks]


def note_findings(
    crew: Crew, conn: Connection, spec: ModelSpec, block: str, measured: Measured, fence: Fence
) -> None:  # fmt: skip
    """Count on, once per block in order of time; what has lasted is told and recorded once, and its incident let go.

    A block without rows shows nothing and breaks no row of blocks; nor does one that was looked at again.
    """
    known = store.get(conn, DetectorRow, _row_id(spec))
    if not measured.n_rows or (known is not None and block <= str(known.state["block"])):
        return
    before, now = _runs(conn, spec), dict[str, Any]()
    for finding in measured.findings:
        if finding["severity"] in ("hard", "lasting"):
            run = before.get(finding_key(finding), {"n": 0, "since": block, "accepted": False})
            accepted = run["accepted"] or finding["severity"] == "lasting"
            now[finding_key(finding)] = {"n": run["n"] + 1, "since": run["since"], "accepted": accepted}
            if accepted and not run["accepted"]:
                _accept(crew, conn, spec, finding, str(run["since"]))
    state: dict[str, Any] = {"block": block, "runs": now}
    store.put(conn, DetectorRow(id=_row_id(spec), model=spec.model, state=state), fence=fence)
    if any(run["accepted"] and not before.get(key, {}).get("accepted") for key, run in now.items()):
        _let_go(crew, conn, spec, measured, fence)


def _accept(crew: Crew, conn: Connection, spec: ModelSpec, finding: dict[str, Any], since: str) -> None:
    n_blocks = spec.monitoring.lasting_blocks
    text = (
        f"{sentence(finding)}. So it has been for {n_blocks} blocks, since {since}: it is taken for the new normal, no "
        "further day is quarantined for it, and the model is judged by its losses on such rows"
    )
    observe(
        crew, conn, model=spec.model, topic="data_quality", verdict="lasting", actor='Agent::"monitoring"',
        summary=f"{text}.", details={"finding": finding, "since": since},
    )  # fmt: skip
    tell(
        crew, conn, key=f"lasting/{spec.model}/{finding_key(finding)}/{since}",
        title=f"{spec.model}: a change of the data that stays",
        text=f"{text}. If it is a fault, mend it at its source: the next healthy block is the end of it.",
    )  # fmt: skip
    crew.say("monitoring", text)


def _let_go(crew: Crew, conn: Connection, spec: ModelSpec, measured: Measured, fence: Fence) -> None:
    """Open incidents of faulty data have no further day to contain, unless something else is still at fault."""
    if any(finding["severity"] == "hard" for finding in measured.findings):
        return
    for incident in store.select(conn, IncidentRow, model=spec.model, status="open", cause="data_fault"):
        # Days that nobody has taken out yet are days of what is normal now.
        incident.body |= {"days": incident.body.get("quarantined", []), "lasting": True}
        store.put(conn, incident, fence=fence)
        for run in store.select(conn, RunRow, subject_id=incident.id, status=["ready", "waiting"]):
            withdraw_questions(crew, conn, run, "the change has lasted and is the new normal")
            run.facts["fault_contained"] = True
            run.body["pinned"] = {}
            run.status, run.wake_at, run.waits_for = "ready", None, ""
            store.put(conn, run, fence=fence)


def _runs(conn: Connection, spec: ModelSpec) -> dict[str, Any]:
    known = store.get(conn, DetectorRow, _row_id(spec))
    runs = known.state["runs"] if known is not None else {}
    return dict(runs) if isinstance(runs, dict) else {}


def _row_id(spec: ModelSpec) -> str:
    return f"{spec.model}/lasting"
