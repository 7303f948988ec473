"""The catalogue: complete, agreed with policy and schema, and without loose ends."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from orchestrator.actions import CATALOGUE, FACT_NAMES, ActionDeclaration, FactName, without
from orchestrator.planner import NoPlan, execute, plan
from policies.context import usual_context
from policies.engine import SHIPPED, ModelResource, PolicyRequest, PolicySet
from policies.lint import SCHEMA_FILE
from state.plans import ActionKind

OBSERVED: frozenset[FactName] = frozenset(
    {
        "source_reachable", "hole_found", "bad_days_known", "feature_skew_found", "only_calibration_lost",
        "drift_found", "drift_harmless", "healthy_champion_known", "server_unhealthy", "load_too_high", "hold_ended",
    }
)  # fmt: skip
"""Facts that only an observation makes true."""
DECLARATIONS = [pytest.param(declaration, id=kind) for kind, declaration in sorted(CATALOGUE.items())]


def test_every_kind_of_action_is_declared_once() -> None:
    assert set(CATALOGUE) == set(get_args(ActionKind))


def test_groups_are_those_of_the_schema() -> None:
    schema = (SHIPPED / SCHEMA_FILE).read_text()
    groups = {
        name: group
        for names, group in re.findall(r"\naction\n([\w,\s]+?)\s+in \[(\w+)\]", schema)
        for name in re.findall(r"\w+", names)
    }

    assert groups == {kind: declaration.group for kind, declaration in CATALOGUE.items()}


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_policy_permits_the_action_to_its_agent_and_to_no_other(declaration: ActionDeclaration) -> None:
    policy = PolicySet.load()
    resource = ModelResource(model="m", tier="standard", owner="o", environment="production")
    context = {**usual_context(), "asked_by_person": declaration.kind == "resume"}
    allowed = [
        agent
        for agent in sorted({other.agent for other in CATALOGUE.values()})
        if policy.decide(
            PolicyRequest(
                principal={"type": "Agent", "id": agent}, action=declaration.kind, resource=resource, context=context
            )
        ).effect
        == "allow"
    ]

    assert allowed == [declaration.agent]


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_what_takes_an_action_back_is_declared_and_undoes_something(declaration: ActionDeclaration) -> None:
    if declaration.inverse is None:
        return
    inverse = CATALOGUE[declaration.inverse]

    assert declaration.reversible
    assert inverse.kind == declaration.kind or inverse.ends & declaration.makes or declaration.ends & inverse.makes


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_what_touches_people_can_be_taken_back_or_restores_service(declaration: ActionDeclaration) -> None:
    if declaration.group == "risky":
        assert declaration.risk >= 1
        assert declaration.inverse is not None or declaration.kind == "restart_server"
    if declaration.group == "read":
        assert declaration.risk == 0
        assert not declaration.ends


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_an_action_costs_something_and_does_not_end_what_it_makes(declaration: ActionDeclaration) -> None:
    assert declaration.cost > 0
    assert declaration.makes
    assert not declaration.makes & declaration.ends
    assert declaration.parameters


@pytest.mark.parametrize("fact", sorted(FACT_NAMES))
def test_every_fact_is_observed_or_made_and_is_of_use(fact: FactName) -> None:
    made = any(fact in declaration.makes for declaration in CATALOGUE.values())

    assert made != (fact in OBSERVED)
    if fact in OBSERVED:
        assert any(fact in declaration.needs for declaration in CATALOGUE.values())


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_every_action_is_the_plan_for_what_it_makes_when_its_needs_hold(declaration: ActionDeclaration) -> None:
    only = {declaration.kind: declaration}

    made = plan(declaration.needs, declaration.makes, allowed=only)

    assert [step.kind for step in made.steps] == [declaration.kind]
    assert made.steps[0].agent == declaration.agent


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_every_action_is_within_reach_of_observed_facts(declaration: ActionDeclaration) -> None:
    made = plan(OBSERVED, declaration.needs)

    execute([step.kind for step in made.steps] + [declaration.kind], OBSERVED, declaration.makes)


def test_without_leaves_the_rest() -> None:
    assert set(CATALOGUE) - set(without("promote", "hold")) == {"promote", "hold"}
    with pytest.raises(NoPlan):
        plan(frozenset(), {"changes_held"}, allowed=without("hold"))
