"""`steady up SPEC --replay DAY` where the model loses ground and nothing that could be learnt would help."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import running
from tests.e2e.replays import Ended, replayed, sound


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    with replayed(tmp_path_factory.mktemp("noise"), "noise", 54) as ended:
        yield ended


def test_where_nothing_helps_the_champion_stays_and_the_record_says_so(noisy: Ended) -> None:
    model = sound(noisy)

    assert model["champion"] == "1"
    assert running.mlflow_counts(noisy.home) == {"runs": 1, "versions": 1}
    kinds = [kind for kind, _, _ in running.actions(noisy.home)]
    assert kinds.count("promote") == 1
    assert not {"shift_traffic", "run_ab_test", "rollback"} & set(kinds)
    assert noisy.incidents
    assert {(i["signal"], i["resolution"]) for i in noisy.incidents} == {("loss_alarm", "not_remediable")}
    assert {c["adopted"] for c in noisy.summary["challengers"]} == {False}
    # Until a fit could learn from the change there was no verdict, and then it was a loss.
    told = [c["verdict"] for c in noisy.summary["challengers"] if c["asked_by"] == "incident"]
    assert told[0] == "no_verdict"
    assert told[-1] == "lose"
    assert "not remediable by retraining" in noisy.said
