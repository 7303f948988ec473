"""Runs the `*.test.yaml` files that stand beside the policy files: request -> verdict and rules.

A case changes a few facts of a healthy model and an ordinary request (`policies.context.usual_context`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from policies.context import ContextValue, usual_context
from policies.engine import ModelResource, PolicyRequest, PolicySet, Principal
from state.errors import InputError
from state.plans import ActionKind


class Case(BaseModel):
    """One case; the keys are those of the YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    agent: str | None = None
    user: str | None = None
    user_roles: list[str] = []
    action: ActionKind
    model: str = "flights"
    tier: Literal["low", "standard", "critical"] = "standard"
    facts: dict[str, Any] = {}
    """Facts that differ from the usual ones; null takes the fact out of the context."""
    expect: Literal["allow", "deny", "needs_approval"]
    rules: list[str] = Field(min_length=1)
    """All rules that decide, in alphabetical order."""
    roles: list[str] = []

    @model_validator(mode="after")
    def _one_principal(self) -> Self:
        if (self.agent is None) == (self.user is None):
            raise ValueError(f"case {self.name!r} names neither or both of agent and user")
        return self

    def request(self) -> PolicyRequest:
        principal: Principal = {"type": "User", "id": self.user or "", "roles": self.user_roles}
        if self.agent is not None:
            principal = {"type": "Agent", "id": self.agent}
        context: dict[str, Any] = {**usual_context(), **self.facts}
        given = {name: value for name, value in context.items() if value is not None}
        return PolicyRequest(
            principal=principal,
            action=self.action,
            resource=ModelResource(model=self.model, tier=self.tier, owner="owner", environment="production"),
            context=cast(dict[str, ContextValue], given),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    file: str
    case: Case
    effect: str
    rules: tuple[str, ...]
    roles: tuple[str, ...]
    why: str

    @property
    def passed(self) -> bool:
        case = self.case
        return (self.effect, list(self.rules), list(self.roles)) == (case.expect, case.rules, case.roles)

    @property
    def message(self) -> str:
        """One line for people."""
        wanted = f"{self.case.expect} by {', '.join(self.case.rules)}"
        got = f"{self.effect} by {', '.join(self.rules)}"
        return f"{self.file}: {self.case.name}: expected {wanted}, got {got}: {self.why}"


_CASES = TypeAdapter(list[Case])


def read_cases(path: Path) -> list[Case]:
    """The cases of one file.

    Raises:
        InputError: the file is not a list of cases, or two of them share a name.
    """
    try:
        cases = _CASES.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as exc:
        raise InputError(f"{path}: not a list of policy test cases: {exc}", remedy="Correct the file") from exc
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: two cases are called {twice[0]!r}", remedy="Give every case its own name")
    return cases


def run_cases(policy: PolicySet, directory: Path) -> Sequence[CaseResult]:
    """The outcome of every case of every `*.test.yaml` file of `directory`."""
    return [
        run_case(policy, case, file=path.name)
        for path in sorted(directory.glob("*.test.yaml"))
        for case in read_cases(path)
    ]


def run_case(policy: PolicySet, case: Case, *, file: str) -> CaseResult:
    verdict = policy.decide(case.request())
    return CaseResult(
        file=file, case=case, effect=verdict.effect, rules=verdict.rules, roles=verdict.roles, why=verdict.why
    )
