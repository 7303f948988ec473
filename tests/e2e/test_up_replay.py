"""`steady up SPEC --replay DAY`, the concept turns: real training, MLflow, servers and Envoy up to a promotion."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import datasets, running
from tests.e2e.datasets import day
from tests.e2e.replays import Ended, replayed, sound


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    with replayed(tmp_path_factory.mktemp("turns"), "turns", datasets.N_DAYS) as ended:
        yield ended


def test_a_concept_that_turns_is_noticed_and_the_better_model_promoted(turned: Ended) -> None:
    model = sound(turned)

    assert model["champion"] == "2"
    assert running.mlflow_counts(turned.home) == {"runs": 2, "versions": 2}
    kinds = [kind for kind, _, _ in running.actions(turned.home)]
    rollout = ["stage_version", "shift_traffic", "run_ab_test", "promote", "retire_version"]
    assert [kind for kind in kinds if kind in rollout][-5:] == rollout
    assert kinds.count("train_candidates") == 2
    assert kinds.count("promote") == 2
    assert "rollback" not in kinds


def test_the_loss_opens_an_incident_that_the_win_closes(turned: Ended) -> None:
    assert turned.incidents[0]["signal"] == "loss_alarm"
    assert turned.incidents[0]["opened_at"] > day(datasets.TURN_DAY).isoformat()
    assert turned.incidents[0]["diagnoses"][0]["for"]
    last = turned.incidents[-1]
    assert (last["status"], last["resolution"]) == ("closed", "recovered")
    assert {"train_candidates", "promote"} <= {action["kind"] for action in last["actions"]}
    assert all(incident["status"] == "closed" for incident in turned.incidents)


def test_the_summary_says_what_the_change_was_worth(turned: Ended) -> None:
    summary = turned.summary
    assert (summary["model"], summary["metric"]) == ("loans", "roc_auc")
    first, second = summary["versions"]
    assert (first["role"], second["role"]) == ("former champion", "champion")
    assert second["during"]["served"] > second["during"]["never"] + 0.1
    overall = summary["overall"]
    assert overall["never"] < overall["served"] < overall["always"]
    assert 0.2 < summary["gain_kept"] < 1.0
    [won] = [c for c in summary["challengers"] if c["verdict"] == "win"]
    assert (won["adopted"], won["candidate"]) == (True, "2")
    assert won["z"] >= summary["win_z"]
    # Judged on rows newer than both cuts.
    assert won["compare_from"] >= first["trained_until"]
    assert (turned.home / "report.html").stat().st_size > 10_000
