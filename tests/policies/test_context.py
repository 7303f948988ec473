"""The context: whole, rounded toward the unsafe side, and refused where it is not a fact."""

from __future__ import annotations

import math
from typing import Any

import pytest

from policies.context import (
    CONTEXT_KEYS,
    MAX_LONG,
    build_context,
    discrete_facts,
    problems,
    strictest_context,
    usual_context,
)
from policies.engine import ModelResource, PolicyRequest, PolicySet
from state.canonical import canonical_json
from state.errors import InputError

GIVEN = {name: key.usual for name, key in CONTEXT_KEYS.items() if key.strictest is None}


@pytest.mark.parametrize(
    ("name", "value", "rounded"),
    [
        pytest.param("step_pct", 25.01, 26, id="a-step-up"),
        pytest.param("step_pct", -0.5, 0, id="a-small-step-down-is-none"),
        pytest.param("target_pct", 50.0, 50, id="a-whole-number-stays"),
        pytest.param("max_pct", 50.9, 50, id="a-limit-down"),
        pytest.param("labelled_rows", 999.9, 999, id="rows-down"),
        pytest.param("minimum_rows", 999.1, 1000, id="needed-rows-up"),
        pytest.param("paired_z_x100", 199.99, 199, id="evidence-down"),
        pytest.param("fresh_label_age_min", 10080.01, 10081, id="age-up"),
        pytest.param("compute_minutes_today", 2.0**80, MAX_LONG, id="more-than-cedar-can-hold"),
    ],
)
def test_fractions_are_rounded_toward_the_unsafe_side(name: str, value: float, rounded: int) -> None:
    context = build_context({**GIVEN, name: value})

    assert context[name] == rounded
    assert problems(context) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", ["trainings_today", "paired_win", "ab_verdict", "fresh_label_age_min"])
def test_what_is_no_number_is_refused_and_can_be_recorded(name: str, value: float) -> None:
    context = build_context({**GIVEN, name: value})

    assert len(problems(context)) == 1
    assert name.encode() in canonical_json(context)


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_a_fact_that_must_be_given_is_missed(name: str) -> None:
    given = {key: value for key, value in GIVEN.items() if key != name}

    assert problems(build_context(given)) == [f"{name} is missing"]


def test_a_fact_that_is_not_known_takes_its_strictest_value() -> None:
    assert build_context({**GIVEN, "gates_passed": None}) == strictest_context()


def test_a_fact_that_no_policy_can_know_is_refused() -> None:
    with pytest.raises(InputError, match="gates_pased is not a declared fact"):
        build_context({**GIVEN, "gates_pased": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("halted", 0, id="number-for-a-flag"),
        pytest.param("halted", "false", id="text-for-a-flag"),
        pytest.param("step_pct", True, id="flag-for-a-number"),
        pytest.param("step_pct", 5.5, id="fraction"),
        pytest.param("step_pct", 2**63, id="too-large"),
        pytest.param("mode", "Enforce", id="another-spelling"),
        pytest.param("approved_by", "approver", id="text-for-a-list"),
        pytest.param("approved_by", [1], id="numbers-for-roles"),
        pytest.param("gates_passed", None, id="nothing"),
    ],
)
def test_a_value_of_another_kind_is_a_problem(name: str, value: Any) -> None:
    (problem,) = problems({**usual_context(), name: value})

    assert problem.startswith(f"{name} is ")


def test_nothing_that_carries_risk_is_allowed_on_the_strictest_facts() -> None:
    """A caller that forgets to fill a fact gets a denial or a question, never a yes."""
    policy = PolicySet.load()
    resource = ModelResource(model="m", tier="standard", owner="o", environment="production")
    risky = {
        "deployment": ["shift_traffic", "run_ab_test", "promote", "rollback", "retire_version", "shadow", "scale"],
        "training": ["train_candidates", "recalibrate", "backtest_recipe"],
        "data_validation": ["quarantine_data"],
        "feature_engineering": ["rollback_features", "materialize_features"],
        "monitoring": ["accept_drift", "resume"],
    }
    allowed = [
        action
        for agent, actions in risky.items()
        for action in actions
        if policy.decide(
            PolicyRequest(
                principal={"type": "Agent", "id": agent},
                action=action,  # type: ignore[arg-type] # a literal by construction
                resource=resource,
                context=strictest_context(),
            )
        ).effect
        == "allow"
    ]

    assert allowed == []


def test_ticking_facts_are_not_what_an_approval_is_bound_to() -> None:
    bound = discrete_facts(usual_context())

    assert {"gates_passed", "ab_verdict", "target_pct", "halted"} <= set(bound)
    assert not {"trainings_today", "fresh_label_age_min", "approved_by", "ab_samples"} & set(bound)
