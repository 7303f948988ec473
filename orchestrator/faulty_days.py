"""Days that nothing is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.crew import Crew
from orchestrator.signals import Signal, days_of
from state import store
from state.rows import IncidentRow
from state.spec import ModelSpec
from state.store import Connection


def unjudged_days(crew: Crew, conn: Connection, spec: ModelSpec, found: Sequence[Signal] = ()) -> set[str]:
    """Quarantined days (ISO dates), and those that an open fault of the data is about but that wait to be taken out;
    `found` is what a look has just seen.

    What such a day does to losses has a cause that is known, whether or not somebody has said yes to its quarantine yet.
    """
    out = set(crew.platform.outcomes.quarantined(spec.model))
    for incident in store.select(conn, IncidentRow, model=spec.model, status="open", cause="data_fault"):
        days = incident.body.get("days")
        out |= {str(day) for day in days} if isinstance(days, list) else set()
    for signal in found:
        if signal.name == "data_fault":
            out |= set(days_of(signal, spec) or ())
    return out
