"""The gate: facts, policy verdict, approval, intent. Nothing reaches an agent's hands on any other way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, cast

from pydantic import JsonValue

from orchestrator.actions import CATALOGUE
from orchestrator.context import Foreseen, policy_context
from orchestrator.crew import Crew, agent_uid, tell
from policies.context import ContextValue, discrete_facts
from policies.engine import ModelResource, PolicyRequest, Verdict
from state import ledger, log, store
from state.canonical import action_key, digest
from state.decisions import ActionDecided, ApprovalChanged
from state.ledger import CommittedIntent
from state.plans import AgentName, Proposal
from state.rows import ActionRow, ApprovalRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence

APPROVAL_TTL = timedelta(days=7)
UNKNOWN = "the effect of this very action is unknown: it is looked up until it is settled"
REJECTED = "rejected-by-a-person"
"""Stands where the id of a policy stands: policy asked, and the answer was no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the gate made of one proposal."""

    verdict: Literal["allow", "deny", "needs_approval", "settled"]
    key: str
    intent: CommittedIntent | None = None
    reason: str = ""
    rules: tuple[str, ...] = ()


def rule(crew: Crew, run: RunRow, spec: ModelSpec, proposal: Proposal, *, fence: Fence) -> Ruling:
    """Ask policy about `proposal`; commit an intent where it is allowed. One transaction.

    An action that the ledger already holds is not asked again while it is under way: `settled` says that its outcome
    is known, and an open one comes back as its own intent.
    """
    with crew.db.transaction() as conn:
        attempt = ledger.next_attempt(conn, proposal.subject_id, proposal.kind, proposal.args)
        key = key_of(conn, proposal)
        held = ledger.get(conn, key)
        if held is not None:
            if held.state in ("verified", "reverted", "done"):
                return Ruling(verdict="settled", key=key)
            if held.state == "unknown":
                return Ruling(verdict="deny", key=key, rules=("unknown-effects",), reason=UNKNOWN)
            return Ruling(verdict="allow", key=key, intent=ledger.reopen(conn, key, fence))
        case = _heard(crew, conn, run, spec, proposal, key)
        if case.verdict.effect != "allow":
            return _not_allowed(crew, conn, run, proposal, key, case, fence)
        decided, approval = _decided(crew, run, proposal, key, case), case.approval
        intent = ledger.commit(
            conn, proposal, key=key, attempt=attempt, prior=prior_state(crew, proposal),
            facts_sha256=decided.facts_sha256, policy_sha256=crew.policy.sha256,
            approval_id=approval.id if approval else None, run_id=run.id, decision=decided, fence=fence,
            at=decided.at,
        )  # fmt: skip
        if approval is not None:
            _change_approval(crew, conn, approval, "used", "")
        return Ruling(verdict="allow", key=key, intent=intent, rules=case.verdict.rules)


def foresee(
    crew: Crew, run: RunRow, spec: ModelSpec, proposal: Proposal, *, foreseen: Foreseen, fence: Fence
) -> Ruling:
    """What policy says of an action that comes next once `foreseen` holds; a person is asked where it takes one.

    Nothing is committed. The question and its answer are those of the action itself, under the same key: when its time
    comes, and the facts are the foreseen ones, nobody is asked again.
    """
    with crew.db.transaction() as conn:
        key = key_of(conn, proposal)
        case = _heard(crew, conn, run, spec, proposal, key, foreseen=foreseen)
        if case.verdict.effect != "allow":
            return _not_allowed(crew, conn, run, proposal, key, case, fence)
        return Ruling(verdict="allow", key=key, rules=case.verdict.rules)


def key_of(conn: Connection, proposal: Proposal) -> str:
    """The ledger key that the action has, or will have."""
    attempt = ledger.next_attempt(conn, proposal.subject_id, proposal.kind, proposal.args)
    return action_key(subject_id=proposal.subject_id, kind=proposal.kind, args=proposal.args, attempt=attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One proposal before policy: what was asked, what it answered, and the person's answer that was counted in."""

    request: PolicyRequest
    verdict: Verdict
    binding: str
    approval: ApprovalRow | None


def _heard(
    crew: Crew,
    conn: Connection,
    run: RunRow,
    spec: ModelSpec,
    proposal: Proposal,
    key: str,
    *,
    foreseen: Foreseen | None = None,
) -> _Case:
    """Policy's verdict with the answer that a person gave, as long as it was given to this very question."""

    def ask(approval: ApprovalRow | None) -> _Case:
        roles = list(approval.roles) if approval is not None else []
        context = policy_context(crew, conn, run, spec, proposal, approved_by=roles, foreseen=foreseen)
        request = _request(spec, proposal, context)
        binding = _binding(crew, proposal, key, context)
        return _Case(request=request, verdict=crew.policy.decide(request), binding=binding, approval=approval)

    approval = _usable_approval(crew, conn, key)
    case = ask(approval)
    if approval is not None and (approval.binding_sha256 != case.binding or case.verdict.effect != "allow"):
        _change_approval(crew, conn, approval, "void", "the evidence, the facts or the policy changed since the answer")
        case = ask(None)
    refused = _rejection(conn, key, case.binding) if case.verdict.effect == "needs_approval" else None
    if refused is not None:
        return replace(case, verdict=Verdict(effect="deny", rules=(REJECTED,), why=_no(refused)))
    return case


def _not_allowed(
    crew: Crew, conn: Connection, run: RunRow, proposal: Proposal, key: str, case: _Case, fence: Fence
) -> Ruling:
    """Ask a person, or record the denial."""
    decided, verdict = _decided(crew, run, proposal, key, case), case.verdict
    if verdict.effect == "needs_approval":
        _ask(crew, conn, run, proposal, key, case, decided, fence)
        return Ruling(verdict="needs_approval", key=key, reason=verdict.why, rules=verdict.rules)
    _record_denial(conn, run, decided, fence)
    return Ruling(verdict="deny", key=key, reason=verdict.why, rules=verdict.rules)


def withdraw_questions(crew: Crew, conn: Connection, run: RunRow, reason: str) -> None:
    """What was asked or answered for the run rests on something that is gone: it is void."""
    for row in store.select(conn, ApprovalRow, model=run.model, status=["pending", "approved"]):
        if row.run_id == run.id:
            _change_approval(crew, conn, row, "void", reason)


def ask_again(crew: Crew, run: RunRow, spec: ModelSpec, action: ActionRow, *, fence: Fence) -> str | None:
    """Whether policy still allows a committed action whose effect is nowhere to be seen; why not, or None where it does.

    An approval that the intent used counts for it still, as long as it was given for the facts of now.
    """
    proposal = Proposal(
        kind=action.kind, model=action.model, subject_id=action.subject_id, args=action.args,
        reason="asked again, because the effect is not there yet", evidence_ids=action.evidence_ids,
        proposed_by=cast(AgentName, action.agent),
    )  # fmt: skip
    with crew.db.transaction() as conn:
        fence.check(conn)
        approval = store.get(conn, ApprovalRow, action.approval_id) if action.approval_id else None
        context = policy_context(
            crew, conn, run, spec, proposal, approved_by=list(approval.roles) if approval else [], own_key=action.id
        )
        request = _request(spec, proposal, context)
        verdict = crew.policy.decide(request)
        if approval is not None and approval.binding_sha256 != _binding(crew, proposal, action.id, context):
            verdict = Verdict(effect="deny", rules=("approval-void",), why="the facts changed since a person approved")
        if verdict.effect == "allow":
            return None
        case = _Case(request=request, verdict=verdict, binding="", approval=None)
        log.append(conn, _decided(crew, run, proposal, action.id, case))
    return verdict.why


def prior_state(crew: Crew, proposal: Proposal) -> dict[str, JsonValue]:
    """What an undo would need: the route's weights before a traffic action."""
    if CATALOGUE[proposal.kind].group != "risky":
        return {}
    route = crew.platform.mesh.read(proposal.model)
    return {"weights": dict(route.weights), "revision": route.revision} if route is not None else {}


def _request(spec: ModelSpec, proposal: Proposal, context: dict[str, ContextValue]) -> PolicyRequest:
    return PolicyRequest(
        principal={"type": "Agent", "id": proposal.proposed_by},
        action=proposal.kind,
        resource=ModelResource(model=spec.model, tier=spec.tier, owner=spec.owner, environment=spec.environment),
        context=context,
    )


def _binding(crew: Crew, proposal: Proposal, key: str, context: dict[str, ContextValue]) -> str:
    """What an approval is good for: this action, under this policy, on this evidence and these judgements.

    Counts and ages tick by themselves and void nothing; nor does a judgement that no policy about the action reads.
    """
    read = crew.policy.facts_used(proposal.kind)
    return digest(
        {
            "action_key": key,
            "policy": crew.policy.sha256,
            "evidence": sorted(proposal.evidence_ids),
            "facts": {name: value for name, value in discrete_facts(context).items() if name in read},
        }
    )


def _decided(crew: Crew, run: RunRow, proposal: Proposal, key: str, case: _Case) -> ActionDecided:
    request, verdict, approval = case.request, case.verdict, case.approval
    resource = request.resource
    return ActionDecided(
        **crew.stamp(),
        model=proposal.model,
        run_id=run.id,
        incident_id=run.subject_id if run.subject_kind == "incident" else None,
        actor=agent_uid(proposal.proposed_by),
        summary=f"{proposal.kind.replace('_', ' ')} of {proposal.model}: {verdict.effect.replace('_', ' ')}"
        + (f" - {verdict.why}" if verdict.effect != "allow" else f" - {proposal.reason}"),
        action=proposal.kind,
        action_key=key,
        args=proposal.args,
        verdict=verdict.effect,
        rules=list(verdict.rules),
        roles=list(verdict.roles),
        reason=proposal.reason,
        principal=agent_uid(proposal.proposed_by),
        resource={
            "model": resource.model, "tier": resource.tier,
            "owner": resource.owner, "environment": resource.environment,
        },
        facts={name: list(v) if isinstance(v, list) else v for name, v in request.context.items()},
        facts_sha256=digest(request.context),
        policy_sha256=crew.policy.sha256,
        approval_id=approval.id if approval else None,
        evidence_ids=proposal.evidence_ids,
    )  # fmt: skip


def _usable_approval(crew: Crew, conn: Connection, key: str) -> ApprovalRow | None:
    """The newest yes to this action that the log holds as well; a row that only says so is void, and people hear of it."""
    found = store.select(conn, ApprovalRow, action_key=key, status="approved")
    for row in reversed(found):
        said = _said_of(conn, row)
        if _is_said(row, said):
            return row
        _put_back(row, said)
        _change_approval(crew, conn, row, "void", "the row says approved, and the log holds no such answer")
        tell(
            crew, conn, key=f"forged/{row.id}", title=f"{row.model}: somebody wrote an approval past the log",
            text=f"{row.action} was marked as approved, and nobody's answer is recorded. `steady audit verify` looks for more.",
        )  # fmt: skip
    return None


def _said_of(conn: Connection, row: ApprovalRow) -> list[ApprovalChanged]:
    entries = log.read(conn, run_id=row.run_id, kind="approval_changed")
    return [d for e in entries if isinstance(d := e.decision, ApprovalChanged) and d.approval_id == row.id]


def _put_back(row: ApprovalRow, said: list[ApprovalChanged]) -> None:
    """The question as the log has it, with no answer."""
    row.answered_by, row.answered_at, row.comment = None, None, ""
    for asked in (d for d in said if d.change == "asked"):
        row.roles = list(asked.roles)
        row.binding_sha256 = asked.binding_sha256 or row.binding_sha256


def _is_said(row: ApprovalRow, said: list[ApprovalChanged]) -> bool:
    """Whether the log holds the yes, and the question as the row has it."""
    asked = [d.binding_sha256 for d in said if d.change == "asked" and d.binding_sha256 is not None]
    return (not asked or asked[-1] == row.binding_sha256) and any(
        (d.change, d.action_key, d.roles) == ("approved", row.action_key, row.roles) for d in said
    )


def _rejection(conn: Connection, key: str, binding: str) -> ApprovalRow | None:
    """A person's no to this very question: it stands until the evidence, the facts or the policy change."""
    found = store.select(conn, ApprovalRow, action_key=key, status="rejected")
    return next((row for row in reversed(found) if row.binding_sha256 == binding), None)


def _no(row: ApprovalRow) -> str:
    return f"{row.answered_by or 'a person'} said no" + (f": {row.comment}" if row.comment else "")


def _ask(
    crew: Crew,
    conn: Connection,
    run: RunRow,
    proposal: Proposal,
    key: str,
    case: _Case,
    decided: ActionDecided,
    fence: Fence,
) -> None:
    """Store the question once; a pending one of the run on other args or evidence is void and asked anew."""
    verdict, binding = case.verdict, case.binding
    for pending in store.select(conn, ApprovalRow, model=proposal.model, status="pending"):
        if (pending.run_id, pending.action) != (run.id, proposal.kind):
            continue
        if (pending.action_key, pending.binding_sha256) == (key, binding):
            return
        _change_approval(crew, conn, pending, "void", "the evidence or the facts changed before an answer came")
    log.append(conn, decided)
    now = crew.clock.now()
    row = ApprovalRow(
        id=crew.ids.new_id(), model=proposal.model, status="pending", action_key=key, action=proposal.kind,
        args=proposal.args, binding_sha256=binding, roles=list(verdict.roles),
        reason=f"{proposal.reason}. {verdict.why}", asked_at=now, expires_at=now + APPROVAL_TTL, run_id=run.id,
    )  # fmt: skip
    store.put(conn, row, fence=fence)
    log.append(conn, _approval_record(crew, row, "asked", row.reason))
    tell(
        crew, conn, key=row.id, title=f"{proposal.model}: {proposal.kind} needs {', '.join(verdict.roles)}",
        text=f"{row.reason} Answer with: steady approve {row.id}",
    )  # fmt: skip


def _record_denial(conn: Connection, run: RunRow, decided: ActionDecided, fence: Fence) -> None:
    """A denial is a decision; the same denial on the next tick is the same one."""
    last = run.body.get("denied")
    now: dict[str, JsonValue] = {"key": decided.action_key, "rules": list(decided.rules)}
    if last != now:
        log.append(conn, decided)
        run.body["denied"] = now
        store.put(conn, run, fence=fence)


def expire_approvals(crew: Crew, conn: Connection, model: str) -> None:
    """Give every question whose time has passed its declared outcome; an answer that was never used lapses as well."""
    for row in store.select(conn, ApprovalRow, model=model, status=["pending", "approved"]):
        if crew.clock.now() < row.expires_at:
            continue
        if row.status == "approved":
            _change_approval(crew, conn, row, "expired", "approved, but not used in time")
        elif row.on_expiry == "allow":
            row.answered_by, row.expires_at = "expiry", crew.clock.now() + APPROVAL_TTL
            _change_approval(crew, conn, row, "approved", "nobody answered; the declared outcome is allow")
        else:
            _change_approval(crew, conn, row, "expired", "nobody answered in time; the declared outcome is deny")


def _change_approval(
    crew: Crew, conn: Connection, row: ApprovalRow, change: Literal["approved", "expired", "used", "void"], reason: str
) -> None:
    row.status = change
    store.put(conn, row, fence=None)
    log.append(conn, _approval_record(crew, row, change, reason))


def _approval_record(
    crew: Crew, row: ApprovalRow, change: Literal["asked", "approved", "expired", "used", "void"], reason: str
) -> ApprovalChanged:
    return ApprovalChanged(
        **crew.stamp(), model=row.model, run_id=row.run_id, actor='System::"gate"',
        summary=f"Approval {row.id} for {row.action}: {change}.", approval_id=row.id, change=change, action=row.action,
        action_key=row.action_key, roles=row.roles, reason=reason,
        args=row.args if change == "asked" else None,
        binding_sha256=row.binding_sha256 if change == "asked" else None,
        expires_at=row.expires_at if change in ("asked", "approved") else None,
    )  # fmt: skip
