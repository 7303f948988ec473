"""The shipped policy set: its own test files, their coverage, and what no single case can say."""

from __future__ import annotations

from collections import defaultdict

import pytest

from policies.context import usual_context
from policies.engine import SHIPPED, ModelResource, PolicyRequest, PolicySet
from policies.lint import ACTIONS
from policies.testing import Case, read_cases, run_case
from state.plans import ActionKind

POLICY = PolicySet.load()
FILES = sorted(SHIPPED.glob("*.test.yaml"))
CASES = [pytest.param(path.name, case, id=f"{path.name}-{case.name}") for path in FILES for case in read_cases(path)]
AGENTS = ("data_validation", "feature_engineering", "training", "deployment", "monitoring")


@pytest.mark.parametrize(("file", "case"), CASES)
def test_case(file: str, case: Case) -> None:
    result = run_case(POLICY, case, file=file)

    assert result.passed, result.message


def test_every_policy_decides_a_case_of_its_own_test_file() -> None:
    decided: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        for case in read_cases(path):
            decided[path.name.replace(".test.yaml", ".cedar")].update(case.rules)

    assert [policy.id for policy in POLICY.policies.values() if policy.id not in decided[policy.file]] == []


@pytest.mark.parametrize("action", ACTIONS)
def test_exactly_one_agent_may_do_an_action_on_a_healthy_model(action: ActionKind) -> None:
    # Resuming is the one action that a healthy model's usual facts do not allow: nobody asked for it.
    context = {**usual_context(), "asked_by_person": action == "resume"}
    resource = ModelResource(model="m", tier="standard", owner="o", environment="production")
    verdicts = [
        POLICY.decide(
            PolicyRequest(principal={"type": "Agent", "id": agent}, action=action, resource=resource, context=context)
        )
        for agent in AGENTS
    ]

    assert sorted(verdict.effect for verdict in verdicts) == ["allow", "deny", "deny", "deny", "deny"]
    assert {verdict.rules for verdict in verdicts if verdict.effect == "deny"} == {("no-permit",)}


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "notify"])
def test_no_set_of_approvals_lifts_the_kill_switch(action: ActionKind) -> None:
    context = {**usual_context(), "halted": True, "rollback_target_healthy": False}
    context["approved_by"] = ["viewer", "operator", "approver", "auditor", "admin"]
    resource = ModelResource(model="m", tier="low", owner="o", environment="development")
    effects = {
        POLICY.decide(
            PolicyRequest(principal={"type": "Agent", "id": agent}, action=action, resource=resource, context=context)
        ).effect
        for agent in AGENTS
    }

    reading = action in ("validate_data", "evaluate_candidate")
    assert effects == ({"allow", "deny"} if reading else {"deny"})


@pytest.mark.parametrize(
    ("action", "read", "unread"),
    [
        pytest.param("promote", "ab_verdict", "replicas_target", id="promote"),
        pytest.param("scale", "replicas_target", "ab_verdict", id="scale"),
        pytest.param("quarantine_data", "quarantine_share_pct", "step_pct", id="quarantine"),
    ],
)
def test_facts_used_are_those_of_the_policies_about_the_action(action: ActionKind, read: str, unread: str) -> None:
    used = POLICY.facts_used(action)

    assert read in used
    assert "halted" in used
    assert unread not in used
