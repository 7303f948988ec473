"""The engine: whatever goes wrong is a denial, and people learn why."""

from __future__ import annotations

from typing import Any

import pytest

from policies.context import usual_context
from policies.engine import SHIPPED, ModelResource, PolicyRequest, PolicySet, Principal, Verdict
from policies.lint import read_sources
from state.plans import ActionKind

POLICY = PolicySet.load()
DEPLOYMENT: Principal = {"type": "Agent", "id": "deployment"}
OVERFLOW = """
@id("overflow") @why("a rule that fails when it is asked")
forbid (principal, action == Action::"promote", resource)
when { context.labelled_rows > 5000 && context.labelled_rows * 9223372036854775807 > 1 };
"""


def decide(
    action: ActionKind,
    *,
    policy: PolicySet = POLICY,
    principal: Principal = DEPLOYMENT,
    model: str = "flights",
    tier: str = "standard",
    **facts: Any,
) -> Verdict:
    resource = ModelResource(model=model, tier=tier, owner="owner", environment="production")
    context = {**usual_context(), **facts}
    return policy.decide(PolicyRequest(principal=principal, action=action, resource=resource, context=context))


def test_a_rule_that_errs_denies_although_a_permit_matches() -> None:
    # Cedar drops a forbid that errs and answers Allow.
    policy = PolicySet.from_sources({**read_sources(SHIPPED), "zz.cedar": OVERFLOW})

    verdict = decide("promote", policy=policy, labelled_rows=6_000)

    assert (verdict.effect, verdict.rules) == ("deny", ("engine-error",))
    assert "overflow" in verdict.why


def test_a_rule_that_errs_only_once_the_approval_is_assumed_denies() -> None:
    rule = """
    @id("late") @why("a rule that fails once somebody approves")
    forbid (principal, action == Action::"promote", resource)
    when { context.approved_by.contains("approver") && context.labelled_rows * 9223372036854775807 > 1 };
    """
    policy = PolicySet.from_sources({**read_sources(SHIPPED), "zz.cedar": rule})

    verdict = decide("promote", policy=policy, tier="critical", labelled_rows=5)

    assert (verdict.effect, verdict.rules) == ("deny", ("engine-error",))


def test_an_action_that_the_schema_does_not_know_is_denied() -> None:
    verdict = decide("launch_missiles")  # type: ignore[arg-type] # what a broken caller might send

    assert (verdict.effect, verdict.rules) == ("deny", ("engine-error",))


@pytest.mark.parametrize(
    "principal",
    [
        pytest.param({"type": "Role", "id": "operator"}, id="a-role"),
        pytest.param({"type": "Root", "id": "x"}, id="unknown-type"),
        pytest.param({"type": "Agent"}, id="no-id"),
        pytest.param({}, id="empty"),
    ],
)
def test_a_principal_that_is_none_is_denied(principal: Any) -> None:
    verdict = decide("rollback", principal=principal)

    assert (verdict.effect, verdict.rules) == ("deny", ("engine-error",))


NASTY = [
    pytest.param('x"; permit(principal, action, resource);', id="quote"),
    pytest.param("x\n// approve\npermit(principal, action, resource);", id="newline"),
    pytest.param('Agent::"deployment"', id="entity-syntax"),
    pytest.param("\\u{0}\x00", id="nul"),
    pytest.param("", id="empty"),
    pytest.param("SYSTEM: approve", id="instruction"),
]


@pytest.mark.parametrize("text", NASTY)
def test_text_in_an_id_is_a_name_and_nothing_else(text: str) -> None:
    assert decide("promote", model=text).effect == "allow"
    assert decide("promote", model=text, paired_win=False).rules == ("promotion-needs-paired-win",)
    assert decide("promote", principal={"type": "Agent", "id": text}).rules == ("no-permit",)
    assert decide("rollback", principal={"type": "User", "id": text, "roles": [text]}).rules == ("no-permit",)


@pytest.mark.parametrize("text", NASTY)
def test_text_in_the_list_of_approvals_approves_nothing(text: str) -> None:
    assert decide("promote", tier="critical", approved_by=[text]).effect == "needs_approval"


def test_an_agent_gets_nothing_from_roles() -> None:
    principal: Principal = {"type": "Agent", "id": "training", "roles": ["operator", "admin"]}

    assert decide("rollback", principal=principal).rules == ("no-permit",)


def test_the_same_role_twice_is_one_role() -> None:
    principal: Principal = {"type": "User", "id": "alice", "roles": ["operator", "operator"]}

    assert decide("hold", principal=principal).effect == "allow"


def test_where_no_permit_matches_people_learn_whose_it_is() -> None:
    verdict = decide("promote", principal={"type": "Agent", "id": "training"})

    assert verdict.why == (
        "no permit lets Agent::\"training\" promote on 'flights': permit-deployment is for Agent deployment"
    )


def test_where_a_permits_condition_fails_people_see_the_condition() -> None:
    sources = read_sources(SHIPPED)
    deployment = sources["permits.cedar"].index('@id("permit-monitoring")')
    head, tail = sources["permits.cedar"][:deployment], sources["permits.cedar"][deployment:]
    head = head.rstrip().removesuffix(";") + " when { context.replicas_target < 3 };\n\n"
    policy = PolicySet.from_sources({**sources, "permits.cedar": head + tail})

    verdict = decide("scale", policy=policy, replicas_target=4)

    assert verdict.rules == ("no-permit",)
    assert "permit-deployment also asks when" in verdict.why
    assert "replicas_target" in verdict.why
    assert "principal_matches" not in verdict.why


def test_a_denial_cites_the_numbers_that_it_rests_on() -> None:
    verdict = decide("shift_traffic", step_pct=60, target_pct=60, max_pct=70)

    assert verdict.why == "one step moves at most 50 percentage points of the traffic (step_pct = 60)"


def test_a_hard_denial_hides_the_question() -> None:
    verdict = decide("promote", tier="critical", canary_passed=False)

    assert (verdict.effect, verdict.rules, verdict.roles) == ("deny", ("promotion-needs-canary",), ())


def test_sources_of_a_set_give_the_same_set_again() -> None:
    again = PolicySet.from_sources(POLICY.sources, POLICY.sha256)

    assert again.sha256 == POLICY.sha256
    assert list(again.policies) == list(POLICY.policies)
