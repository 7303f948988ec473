"""`steady up SPEC --replay DAY` where nothing changes, and starts in the workspace that it leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import datasets, running
from tests.e2e.datasets import day
from tests.e2e.replays import Ended, replayed, sound

UNTIL = 46


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    with replayed(tmp_path_factory.mktemp("still"), "still", UNTIL) as ended:
        yield ended


def test_where_nothing_changes_nothing_is_done(quiet: Ended) -> None:
    model = sound(quiet)

    assert model["champion"] == "1"
    assert running.mlflow_counts(quiet.home) == {"runs": 1, "versions": 1}
    kinds = [kind for kind, _, _ in running.actions(quiet.home)]
    assert kinds.count("train_candidates") == kinds.count("promote") == 1
    assert not {"shift_traffic", "run_ab_test", "rollback", "retire_version"} & set(kinds)
    assert quiet.incidents == []
    # The cadence asked, and the answer was no.
    asked = quiet.summary["challengers"]
    assert {(c["asked_by"], c["adopted"]) for c in asked} == {("cadence", False)}
    assert asked[-1]["verdict"] == "lose"
    assert kinds.count("backtest_recipe") == 1
    assert quiet.summary["overall"]["served"] == quiet.summary["overall"]["never"]


def test_going_on_after_the_end_adds_nothing(quiet: Ended) -> None:
    before = (running.actions(quiet.home), running.mlflow_counts(quiet.home))
    again = running.steady(
        "up", quiet.home.parent / "loans.yaml", "--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", "--until",
        f"{day(UNTIL):%Y-%m-%d}", "--json", home=quiet.home,
    )  # fmt: skip
    assert again.code == 0, again.err
    assert (running.actions(quiet.home), running.mlflow_counts(quiet.home)) == before
    for part in ("overall", "versions", "traffic", "challengers"):
        assert again.json[part] == quiet.summary[part]
    assert running.wait_until_gone(quiet.home) == {}


def test_another_start_in_the_same_workspace_is_refused_by_name(quiet: Ended) -> None:
    other = running.steady(
        "up", quiet.home.parent / "loans.yaml", "--replay", f"{day(30):%Y-%m-%d}", home=quiet.home
    )  # fmt: skip
    assert other.code == 2
    assert f"from {day(datasets.REPLAY_DAY):%Y-%m-%d}, not from {day(30):%Y-%m-%d}" in other.err
    assert running.processes(quiet.home) == {}


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


def test_live_operation_after_the_replay_begins_now_and_there_is_no_way_back(quiet: Ended) -> None:
    """Last in this file: it ends the replay's time."""
    spec = quiet.home.parent / "loans.yaml"
    before = running.actions(quiet.home)
    live = running.steady("up", spec, "--ticks", "2", "--json", home=quiet.home, STEADYHAND_TICK_SECONDS="0.1")
    assert live.code == 0, live.err
    [model] = live.json["models"]
    assert (model["champion"], model["open_incidents"], model["runs"]) == ("1", [], [])
    said = running.steady("audit", "list", "--kind", "observed", "--json", home=quiet.home).json["decisions"]
    operation = [d for d in said if d["topic"] == "operation"]
    assert [(d["verdict"], d["details"]["replay_ended"]) for d in operation] == [("live", day(UNTIL).isoformat())]
    assert running.actions(quiet.home) == before
    assert running.steady("audit", "verify", home=quiet.home).code == 0

    back = running.steady("up", spec, "--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", home=quiet.home)
    assert back.code == 2
    assert "is in live operation: its time cannot go back" in back.err
    assert running.wait_until_gone(quiet.home) == {}
