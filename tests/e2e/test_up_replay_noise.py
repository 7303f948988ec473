"""`steady up SPEC --replay DAY` where the model loses ground and no row could tell why: the outcomes turn to noise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import running
from tests.e2e.replays import Ended, replayed, sound


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    with replayed(tmp_path_factory.mktemp("noise"), "noise", 54) as ended:
        yield ended


def test_where_outcomes_turn_to_noise_the_champion_stays_and_a_person_is_asked_about_the_labels(noisy: Ended) -> None:
    model = sound(noisy, asks=True)

    assert model["champion"] == "1"
    assert running.mlflow_counts(noisy.home) == {"runs": 1, "versions": 1}
    kinds = [kind for kind, _, _ in running.actions(noisy.home)]
    assert kinds.count("promote") == 1
    assert not {"shift_traffic", "run_ab_test", "rollback", "quarantine_data"} & set(kinds)
    # Outcomes that no longer go with the scores look alike, whether they are reported wrongly or have become chance.
    assert [(i["cause"], i["status"]) for i in noisy.incidents] == [("label_fault", "open")]
    [asked] = noisy.status["approvals"]
    assert asked["action"] == "quarantine_data"
    assert "whether these labels are wrong or the world has changed" in asked["reason"]
    assert {c["adopted"] for c in noisy.summary["challengers"]} <= {False}
