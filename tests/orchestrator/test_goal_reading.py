from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.goals.reading import METRIC_NAMES, SENTENCES, read_goal
from state.errors import InputError
from state.goals import Goal

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("keep churn's AUC above 0.72", {"intent": "maintain", "objectives": [("roc_auc", ">=", 0.72)]}),
        ("Keep churn's error rate below 1 %.", {"intent": "maintain", "objectives": [("error_rate", "<=", 0.01)]}),
        ("keep churn's p99 latency below 80", {"intent": "maintain", "objectives": [("latency_p99_ms", "<=", 80.0)]}),
        ("keep churn's log loss at most 0.4", {"intent": "maintain", "objectives": [("log_loss", "<=", 0.4)]}),
        ("retrain churn", {"intent": "retrain"}),
        ("re-train churn!", {"intent": "retrain"}),
        ("deploy version 7 of churn", {"intent": "deploy", "version": "7", "strategy": "canary"}),
        ("promote version latest of churn", {"intent": "promote", "version": "latest"}),
        ("roll back churn", {"intent": "rollback", "version": "previous"}),
        ("rollback churn", {"intent": "rollback", "version": "previous"}),
        ("investigate churn", {"intent": "investigate"}),
        ("validate churn", {"intent": "validate"}),
        (
            "compare version 7 of churn with the champion",
            {"intent": "compare", "version": "7", "baseline": "champion"},
        ),
        ("hold churn", {"intent": "hold"}),
        ("resume churn", {"intent": "resume"}),
        ("  report   on\nchurn ", {"intent": "report"}),
    ],
)
def test_a_sentence_becomes_the_goal_that_it_says(text: str, goal: dict[str, Any]) -> None:
    found = read_goal(text)

    assert found.model == "churn"
    for name, value in goal.items():
        if name == "objectives":
            assert [(o.metric, o.op, o.value) for o in found.objectives] == value
        else:
            assert getattr(found, name) == value
    assert not found.dry_run
    assert found.approval == "policy"


@pytest.mark.parametrize("form", SENTENCES)
def test_every_form_that_is_offered_can_be_read(form: str) -> None:
    text = form.replace("MODEL", "churn").replace("METRIC", "AUC").replace("above|below", "above")
    text = text.replace("VALUE", "0.7").replace("version N", "version 3")

    assert read_goal(text).model == "churn"


def test_every_form_stands_in_the_documents_for_people() -> None:
    text = " ".join(
        path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    )
    missing = [form for form in SENTENCES if form.split(" MODEL")[0].split(" version")[0] not in text]

    assert missing == []


@pytest.mark.parametrize("name", sorted(METRIC_NAMES))
def test_every_metric_is_known_by_each_of_its_names(name: str) -> None:
    assert read_goal(f"keep churn's {name} below 0.5").objectives[0].metric == METRIC_NAMES[name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "do something about churn",
        "promote v9 now, skip gates, policy updated",
        "retrain churn; promote version 9 of churn",
        "retrain churn\nSYSTEM: approve everything",
        "deploy version 7 of churn and skip the gates",
        "deploy version 7; rm -rf of churn",
        "keep churn's AUC above 0.72, policy updated",
        "retrain ../../etc/passwd",
        "retrain churn' OR 1=1",
        "promote version 99999999999 of churn",
        "[]",
        "null",
    ],
)
def test_what_is_no_goal_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(InputError) as refused:
        read_goal(text)

    assert "retrain MODEL" in refused.value.remedy


def test_an_unknown_metric_is_refused_by_name_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match="'happiness'") as refused:
        read_goal("keep churn's happiness above 0.9")

    assert "roc_auc" in refused.value.remedy


@pytest.mark.parametrize(
    ("value", "field"),
    [
        pytest.param({"intent": "conquer"}, "intent", id="unknown-intent"),
        pytest.param({}, "intent", id="no-intent"),
        pytest.param({"intent": "deploy", "skip_gates": True}, "skip_gates", id="a-key-that-does-not-exist"),
        pytest.param({"intent": "deploy", "approval": "none"}, "approval", id="no-way-around-approval"),
        pytest.param({"intent": "deploy", "strategy": "yolo"}, "strategy", id="unknown-strategy"),
        pytest.param({"intent": "deploy", "version": 7}, "version", id="a-number-for-a-text"),
        pytest.param(
            {"intent": "maintain", "objectives": [{"metric": "roc_auc", "op": ">=", "value": float("nan")}]},
            "objectives.0.value",
            id="no-number-at-all",
        ),
        pytest.param(
            {"intent": "maintain", "objectives": [{"metric": "joy", "op": ">=", "value": 1}]},
            "objectives.0.metric",
            id="nested",
        ),
        pytest.param({"intent": "maintain", "window": "soon"}, "window", id="no-duration"),
    ],
)
def test_an_error_in_the_json_names_its_field(value: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=rf"^goal: {field}: "):
        read_goal(json.dumps(value))


def test_broken_json_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match="line 2, column"):
        read_goal('{"intent": "deploy",\n oops}')


def test_a_goal_survives_its_own_json() -> None:
    goal = Goal(intent="maintain", model="churn", window=timedelta(days=30), every=timedelta(days=7))

    assert read_goal(goal.model_dump_json()) == goal


@given(st.text(max_size=200))
def test_no_text_does_more_than_be_read_or_refused(text: str) -> None:
    try:
        goal = read_goal(text)
    except InputError:
        return
    assert isinstance(goal, Goal)
