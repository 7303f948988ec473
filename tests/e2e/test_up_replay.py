"""`steady up SPEC --replay DAY` from end to end: real training, MLflow, servers and Envoy, three stories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import datasets, running
from tests.e2e.datasets import Story, day


@dataclass(frozen=True)
class Ended:
    """A replay that has ended, and what the commands say about it."""

    home: Path
    summary: dict[str, Any]
    said: str
    status: dict[str, Any]
    incidents: list[dict[str, Any]]
    audit: dict[str, Any]


def replay(folder: Path, story: Story, until: int) -> Iterator[Ended]:
    home, spec = folder / "ws", datasets.write(folder, story)
    try:
        done = running.steady(
            "up", spec, "--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", "--until", f"{day(until):%Y-%m-%d}",
            "--json", home=home,
        )  # fmt: skip
        assert done.code == 0, done.err
        yield Ended(
            home=home, summary=done.json, said=done.err, status=running.steady("status", "--json", home=home).json,
            incidents=running.steady("incidents", "--json", home=home).json["incidents"],
            audit=running.steady("audit", "verify", "--json", home=home).json,
        )  # fmt: skip
    finally:
        running.end(home)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    yield from replay(tmp_path_factory.mktemp("turns"), "turns", datasets.N_DAYS)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    yield from replay(tmp_path_factory.mktemp("still"), "still", 40)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    yield from replay(tmp_path_factory.mktemp("noise"), "noise", 46)


def sound(ended: Ended) -> dict[str, Any]:
    """What holds after every replay, whatever its story; the model's status."""
    assert ended.audit["ok"], ended.audit["problems"]
    assert ended.audit["problems"] == []
    assert ended.audit["n_proven"] == ended.audit["n_records"] == ended.summary["log"]["n_records"]
    assert ended.audit["n_actions"] == len(running.actions(ended.home))
    assert {state for _, state, _ in running.actions(ended.home)} == {"verified"}
    [model] = ended.status["models"]
    assert model["runs"] == []
    assert ended.status["approvals"] == []
    # Route, registry and ledger name one champion.
    champion = model["champion"]
    assert model["weights"] == {champion: 100}
    assert running.alias(ended.home, "champion") == champion
    [serving] = [v["version"] for v in ended.summary["versions"] if v["served_until"] is None]
    assert serving == champion
    # Every row of the window was answered by somebody, and nobody was answered twice.
    traffic = ended.summary["traffic"]
    n_days = round((day_of(ended.summary["end"]) - day_of(ended.summary["start"])) / datasets.DAY)
    assert traffic["n_answered"] == n_days * datasets.PER_DAY == sum(traffic["n_by_version"].values())
    assert traffic["n_errors"] == 0
    assert running.wait_until_gone(ended.home) == {}
    return dict(model)


def day_of(text: str) -> Any:
    return datasets.datetime.fromisoformat(text)


@pytest.mark.xdist_group("replay-turns")
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


@pytest.mark.xdist_group("replay-turns")
def test_the_loss_opens_an_incident_that_the_win_closes(turned: Ended) -> None:
    assert turned.incidents[0]["signal"] == "loss_alarm"
    assert turned.incidents[0]["opened_at"] > day(datasets.TURN_DAY).isoformat()
    assert turned.incidents[0]["diagnoses"][0]["for"]
    last = turned.incidents[-1]
    assert (last["status"], last["resolution"]) == ("closed", "recovered")
    assert {"train_candidates", "promote"} <= {action["kind"] for action in last["actions"]}
    assert all(incident["status"] == "closed" for incident in turned.incidents)


@pytest.mark.xdist_group("replay-turns")
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


@pytest.mark.xdist_group("replay-still")
def test_where_nothing_changes_nothing_is_done(quiet: Ended) -> None:
    model = sound(quiet)

    assert model["champion"] == "1"
    assert running.mlflow_counts(quiet.home) == {"runs": 1, "versions": 1}
    kinds = [kind for kind, _, _ in running.actions(quiet.home)]
    assert kinds.count("train_candidates") == kinds.count("promote") == 1
    assert not {"shift_traffic", "run_ab_test", "rollback", "retire_version"} & set(kinds)
    assert quiet.incidents == []
    # The cadence asked, and the answer was no.
    [asked] = quiet.summary["challengers"]
    assert (asked["asked_by"], asked["verdict"], asked["adopted"]) == ("cadence", "lose", False)
    assert quiet.summary["overall"]["served"] == quiet.summary["overall"]["never"]


@pytest.mark.xdist_group("replay-still")
def test_going_on_after_the_end_adds_nothing(quiet: Ended) -> None:
    before = (running.actions(quiet.home), running.mlflow_counts(quiet.home))
    again = running.steady(
        "up", quiet.home.parent / "loans.yaml", "--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", "--until",
        f"{day(40):%Y-%m-%d}", "--json", home=quiet.home,
    )  # fmt: skip
    assert again.code == 0, again.err
    assert (running.actions(quiet.home), running.mlflow_counts(quiet.home)) == before
    for part in ("overall", "versions", "traffic", "challengers"):
        assert again.json[part] == quiet.summary[part]
    assert running.wait_until_gone(quiet.home) == {}


@pytest.mark.xdist_group("replay-still")
def test_another_start_in_the_same_workspace_is_refused_by_name(quiet: Ended) -> None:
    other = running.steady(
        "up", quiet.home.parent / "loans.yaml", "--replay", f"{day(30):%Y-%m-%d}", home=quiet.home
    )  # fmt: skip
    assert other.code == 2
    assert f"from {day(datasets.REPLAY_DAY):%Y-%m-%d}, not from {day(30):%Y-%m-%d}" in other.err
    assert running.processes(quiet.home) == {}


@pytest.mark.xdist_group("replay-still")
def test_a_damaged_package_of_the_champion_is_named_and_nothing_is_left_running(quiet: Ended) -> None:
    damaged = list(quiet.home.glob("mlflow/**/model.onnx"))
    kept = {path: path.read_bytes() for path in damaged}
    assert kept
    try:
        for path, content in kept.items():
            path.write_bytes(content[:-1] + b"\x00")
        answer = running.steady(
            "up", quiet.home.parent / "loans.yaml", "--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", home=quiet.home
        )
    finally:
        for path, content in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    assert answer.code == 2, answer.err
    assert "version 1 of loans" in answer.err
    assert "backup" in answer.err
    assert running.wait_until_gone(quiet.home) == {}


@pytest.mark.xdist_group("replay-noise")
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
    assert "lose" in {c["verdict"] for c in noisy.summary["challengers"]}
    assert "not remediable by retraining" in noisy.said
