"""Asks Cedar whether an action may happen. Whatever goes wrong on the way is a denial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import cedarpy

from policies.context import ContextValue, problems, strictest_context, usual_context
from policies.lint import ACTIONS, KILL_SWITCH, SCHEMA_FILE, PolicySource, check_sources, read_sources, sources_digest
from state.errors import InputError
from state.plans import ActionKind

SHIPPED = Path(__file__).parent
ALLOWED_WHILE_HALTED = frozenset({"validate_data", "evaluate_candidate", "notify", "rollback"})


class Principal(TypedDict):
    """Who acts: an agent by its name, or a person with the roles they hold."""

    type: Literal["Agent", "User"]
    id: str
    roles: NotRequired[list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResource:
    model: str
    tier: str
    owner: str
    environment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    principal: Principal
    action: ActionKind
    resource: ModelResource
    context: Mapping[str, ContextValue]
    """As `policies.context.build_context` makes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    effect: Literal["allow", "deny", "needs_approval"]
    rules: tuple[str, ...]
    """`@id` of the policies that decided; `no-permit`, `bad-context` and `engine-error` where none did."""
    roles: tuple[str, ...] = ()
    """Roles that have to approve."""
    why: str
    """For people."""


@dataclass(frozen=True, slots=True)
class _Answer:
    allowed: bool
    rules: tuple[str, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """A checked policy set. Immutable, and safe to ask from several threads."""

    sha256: str
    sources: Mapping[str, str] = field(repr=False)
    """Text by file name: what the digest covers, stored so that an auditor can ask again."""
    policies: Mapping[str, PolicySource] = field(repr=False)
    _set: cedarpy.PolicySet = field(repr=False)
    _schema: cedarpy.Schema = field(repr=False)
    _probes: cedarpy.PolicySet = field(repr=False)
    _facts: dict[ActionKind, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)
    """What was found so: the set never changes."""

    @classmethod
    def load(cls, directory: Path = SHIPPED, approved_sha256: str | None = None) -> PolicySet:
        """The set in `directory`, if it keeps every rule of loading and is the approved one.

        Raises:
            InputError: it does not; the message names file, line, policy and remedy.
        """
        return cls.from_sources(read_sources(directory), approved_sha256)

    @classmethod
    def from_sources(cls, sources: Mapping[str, str], approved_sha256: str | None = None) -> PolicySet:
        """As `load`, from text by file name: a stored set that an auditor asks again, or an edited one to compare."""
        sha256 = sources_digest(sources)
        if approved_sha256 is not None and sha256 != approved_sha256:
            raise InputError(
                f"policy set: its digest is {sha256[:12]}..., and {approved_sha256[:12]}... is the approved one",
                remedy="Restore the files, or see what changed with `steady policy check` and approve the new set with "
                "`steady policy approve`",
            )
        policies = check_sources(sources)
        loaded = cls(
            sha256=sha256,
            sources=dict(sources),
            policies={policy.id: policy for policy in policies},
            _set=_cedar_set({policy.id: policy.ast for policy in policies}),
            _schema=cedarpy.Schema.from_str(sources[SCHEMA_FILE]),
            _probes=_cedar_set(dict(_probe_policies(policies))),
        )
        loaded._check_behaviour()
        return loaded

    def decide(self, request: PolicyRequest) -> Verdict:
        """Policy's verdict. Never raises for what a request holds: what cannot be asked is denied."""
        wrong = problems(request.context)
        if wrong:
            return Verdict(effect="deny", rules=("bad-context",), why="policy was not asked: " + "; ".join(wrong))
        answer = self._ask(request, self._set, request.context)
        if answer.errors:
            return _engine_error(answer)
        if answer.allowed:
            return Verdict(effect="allow", rules=answer.rules, why=self._explain(answer.rules, request))
        hard = tuple(rule for rule in answer.rules if self.policies[rule].role is None)
        if hard:
            return Verdict(effect="deny", rules=hard, why=self._explain(hard, request))
        if not answer.rules:
            return Verdict(effect="deny", rules=("no-permit",), why=self._explain_no_permit(request))
        return self._assuming_approval(request, answer.rules)

    def facts_used(self, action: ActionKind) -> frozenset[str]:
        """Context keys that some policy about `action` reads."""
        if action not in self._facts:
            asked = self._ask(_probe_request(action), self._probes, usual_context())
            names = {rule.removesuffix("|action") for rule in asked.rules if rule.endswith("|action")}
            self._facts[action] = frozenset[str]().union(*(self.policies[name].facts() for name in names))
        return self._facts[action]

    def _assuming_approval(self, request: PolicyRequest, rules: tuple[str, ...]) -> Verdict:
        roles = sorted({role for rule in rules if (role := self.policies[rule].role) is not None})
        approved = request.context["approved_by"]
        held = approved if isinstance(approved, list) else []
        assumed = {**request.context, "approved_by": sorted({*held, *roles})}
        answer = self._ask(request, self._set, assumed)
        if answer.errors:
            return _engine_error(answer)
        if answer.allowed:
            return Verdict(effect="needs_approval", rules=rules, roles=tuple(roles), why=self._explain(rules, request))
        if not answer.rules:
            return Verdict(effect="deny", rules=("no-permit",), why=self._explain_no_permit(request))
        return Verdict(effect="deny", rules=answer.rules, why=self._explain(answer.rules, request))

    def _ask(self, request: PolicyRequest, policies: cedarpy.PolicySet, context: Mapping[str, ContextValue]) -> _Answer:
        try:
            result = cedarpy.is_authorized(
                {
                    "principal": {"type": request.principal["type"], "id": request.principal["id"]},
                    "action": {"type": "Action", "id": request.action},
                    "resource": {"type": "Model", "id": request.resource.model},
                    "context": dict(context),
                },
                policies,
                _entities(request),
                self._schema,
            )
        except (ValueError, TypeError, KeyError) as exc:
            return _Answer(False, (), (str(exc),))
        errors = [str(error) for error in result.diagnostics.errors]
        if result.decision not in (cedarpy.Decision.Allow, cedarpy.Decision.Deny) and not errors:
            errors = ["no decision"]
        return _Answer(result.allowed, tuple(sorted(result.diagnostics.reasons)), tuple(errors))

    def _explain(self, rules: Iterable[str], request: PolicyRequest) -> str:
        parts = []
        for rule in rules:
            policy = self.policies[rule]
            facts = {name: request.context[name] for name in sorted(policy.facts()) if name in request.context}
            cited = ", ".join(
                f"{name} = {value}" for name, value in facts.items() if not isinstance(value, bool | list)
            )
            parts.append(f"{policy.why} ({cited})" if cited else policy.why)
        return "; ".join(parts)

    def _explain_no_permit(self, request: PolicyRequest) -> str:
        """Which permits speak of the action, and why none of them reached this request."""
        held = set(self._ask(request, self._probes, request.context).rules)
        parts = []
        for policy in self.policies.values():
            if policy.effect != "permit" or f"{policy.id}|action" not in held:
                continue
            if f"{policy.id}|scope" not in held:
                parts.append(f"{policy.id} is for {_principal_text(policy)}")
                continue
            failed = [index for index in range(len(policy.ast["conditions"])) if f"{policy.id}|{index}" not in held]
            parts.append(f"{policy.id} also asks {', '.join(_clause_text(policy, index) for index in failed)}")
        who = f"{request.principal['type']}::{json.dumps(request.principal['id'])}"
        known = "; ".join(parts) or "no permit names the action"
        return f"no permit lets {who} {request.action} on {request.resource.model!r}: {known}"

    def _check_behaviour(self) -> None:
        """Ask about every action once, halted: each must be decidable, and stopped unless it is on the short list."""
        for action in ACTIONS:
            for context in (usual_context(), strictest_context()):
                answer = self._ask(_probe_request(action), self._set, {**context, "halted": True})
                if answer.errors:
                    raise InputError(
                        f"{SCHEMA_FILE}: {action} cannot be decided: {'; '.join(answer.errors)}",
                        remedy="Declare it with the context of policies/context.py, or correct the policy that fails",
                    )
                if action not in ALLOWED_WHILE_HALTED and KILL_SWITCH not in answer.rules:
                    raise InputError(
                        f"{self.policies[KILL_SWITCH].where} policy {KILL_SWITCH!r}: does not stop {action}",
                        remedy=f"Exempt nothing but {', '.join(sorted(ALLOWED_WHILE_HALTED))}",
                    )


def _engine_error(answer: _Answer) -> Verdict:
    why = "policy could not be evaluated: " + "; ".join(answer.errors)
    return Verdict(effect="deny", rules=("engine-error",), why=why)


def _cedar_set(policies: Mapping[str, Mapping[str, Any]]) -> cedarpy.PolicySet:
    # Engine ids of policies parsed from text are positional; in the JSON form they are ours.
    return cedarpy.PolicySet.from_json_str(
        json.dumps({"staticPolicies": policies, "templates": {}, "templateLinks": []})
    )


def _probe_policies(policies: Iterable[PolicySource]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Every policy's action scope, whole scope and single clauses as permits: Cedar itself says which hold."""
    everything = {"op": "All"}
    for policy in policies:
        bare = {"effect": "permit", "principal": everything, "resource": everything, "conditions": []}
        yield f"{policy.id}|action", {**bare, "action": policy.ast["action"]}
        if policy.effect == "permit":
            scope = {part: policy.ast[part] for part in ("principal", "action", "resource")}
            yield f"{policy.id}|scope", {**bare, **scope}
            for index, clause in enumerate(policy.ast["conditions"]):
                yield f"{policy.id}|{index}", {**bare, "action": everything, "conditions": [clause]}


def _probe_request(action: ActionKind) -> PolicyRequest:
    return PolicyRequest(
        principal={"type": "Agent", "id": "nobody"},
        action=action,
        resource=ModelResource(model="none", tier="standard", owner="nobody", environment="production"),
        context={},
    )


def _entities(request: PolicyRequest) -> list[dict[str, Any]]:
    principal = request.principal
    roles = [{"type": "Role", "id": role} for role in dict.fromkeys(principal.get("roles", []))]
    resource = request.resource
    return [
        *({"uid": role, "attrs": {}, "parents": []} for role in roles),
        {
            "uid": {"type": request.principal["type"], "id": request.principal["id"]},
            "attrs": {},
            "parents": roles if principal["type"] == "User" else [],
        },
        {
            "uid": {"type": "Model", "id": resource.model},
            "attrs": {"tier": resource.tier, "owner": resource.owner, "environment": resource.environment},
            "parents": [],
        },
    ]


def _principal_text(policy: PolicySource) -> str:
    scope = policy.ast["principal"]
    entity = scope.get("entity", {})
    return f"{entity.get('type', scope.get('entity_type', 'somebody'))} {entity.get('id', '')}".strip()


def _clause_text(policy: PolicySource, index: int) -> str:
    clause = policy.ast["conditions"][index]
    bare = {"effect": "permit", **{part: {"op": "All"} for part in ("principal", "action", "resource")}}
    text = cedarpy.policies_from_json_str(
        json.dumps({"staticPolicies": {"p": {**bare, "conditions": [clause]}}, "templates": {}, "templateLinks": []})
    )
    return " ".join(text[text.index(")") + 1 :].split()).rstrip(";").strip()
