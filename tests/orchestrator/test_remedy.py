"""A concept drift from its first signal to sustained health."""

from __future__ import annotations

from state.rows import ActionRow
from tests.orchestrator.support import Stage


def test_a_concept_drift_is_remedied_in_the_declared_order(at) -> None:  # type: ignore[no-untyped-def]
    stage: Stage = at("after")
    (incident,) = stage.incidents()
    assert (incident.cause, incident.status, incident.resolution) == ("concept_drift", "closed", "recovered")
    assert [a.kind for a in stage.verified()][-1]
    print(stage.kinds(), stage.weights(), stage.alias(), stage.champion())
    stage.check_books()
