"""Decision records: what was proposed, allowed, denied, asked, done, undone or left alone - and why.

A record is appended once and never edited. Stored data carries the `kind` string, never a class path.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from state.canonical import JsonObject
from state.plans import ActionKind, ActionState


class Decision(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    decision_id: str
    at: AwareDatetime
    """Domain time."""
    recorded_at: AwareDatetime
    """Time of day, for people; nothing is decided from it."""
    model: str | None = None
    run_id: str | None = None
    incident_id: str | None = None
    actor: str
    """`Agent::"training"`, `User::"alice"` or `System::"steadyhand"`."""
    summary: str
    """One plain sentence for people."""


class Genesis(Decision):
    """The first record: which policy set was approved, which key signs, who holds which roles."""

    kind: Literal["genesis"] = "genesis"
    policy_sha256: str
    signing_key: str
    """Public key in the vkey form of C2SP signed-note."""
    roles: dict[str, list[str]]


class Observed(Decision):
    """Something was measured or judged, for instance a signal, a diagnosis, a comparison, a gate."""

    kind: Literal["observed"] = "observed"
    topic: Literal[
        "signal", "diagnosis", "data_quality", "drift", "performance", "backtest", "gates", "analysis",
        "ab_test", "health", "foreign_edit", "left_alone", "plan", "world", "operation",
    ]  # fmt: skip
    verdict: str
    evidence_ids: list[str] = []
    details: JsonObject = {}


class PolicyApproved(Decision):
    """A person approved a changed policy set: from here on it is the one that is asked."""

    kind: Literal["policy_approved"] = "policy_approved"
    old_sha256: str
    policy_sha256: str
    added: list[str]
    """Ids of policies that the old set did not have."""
    changed: list[str]
    removed: list[str]
    schema_changed: bool
    comment: str = ""


class KeyChanged(Decision):
    """A person gave the log another signing key: checkpoints that cover this record are signed with it."""

    kind: Literal["key_changed"] = "key_changed"
    old_key: str
    new_key: str
    """Public keys in the vkey form."""
    reason: str


class IncidentChanged(Decision):
    kind: Literal["incident_changed"] = "incident_changed"
    change: Literal["opened", "joined", "rediagnosed", "closed"]
    cause: str
    title: str | None = None
    """Of an incident that opens, or that turns out to be about something else."""
    resolution: str | None = None
    evidence_ids: list[str] = []


class ActionDecided(Decision):
    """Policy's verdict on a proposed action; `facts` and digests let an auditor ask again."""

    kind: Literal["action_decided"] = "action_decided"
    action: ActionKind
    action_key: str
    args: JsonObject
    verdict: Literal["allow", "deny", "needs_approval"]
    rules: list[str]
    """`@id` of the policies that decided."""
    roles: list[str] = []
    reason: str
    principal: str
    resource: JsonObject
    facts: JsonObject
    """The whole policy context, as asked."""
    facts_sha256: str
    policy_sha256: str
    approval_id: str | None = None
    prior: JsonObject | None = None
    """What an undo would need, of an action that was committed; None in records of format 1."""
    evidence_ids: list[str] = []


class ActionChanged(Decision):
    """The ledger moved an action on; `observed` is what was read back from the outside world."""

    kind: Literal["action_changed"] = "action_changed"
    action: ActionKind
    action_key: str
    state: ActionState
    observed: JsonObject = {}
    message: str = ""


class ApprovalChanged(Decision):
    kind: Literal["approval_changed"] = "approval_changed"
    approval_id: str
    change: Literal["asked", "approved", "rejected", "expired", "used", "void"]
    action: ActionKind
    action_key: str
    roles: list[str]
    reason: str = ""
    args: JsonObject | None = None
    """What was asked about, of a question."""
    binding_sha256: str | None = None
    """What an answer is good for, of a question."""
    expires_at: AwareDatetime | None = None
    """When the question or the unused answer lapses, where the record sets that time."""


class Commanded(Decision):
    """A person asked for something: a goal, a halt, a hold, a resume."""

    kind: Literal["commanded"] = "commanded"
    command: Literal["goal", "halt", "unhalt", "hold", "resume", "model_added", "spec_changed"]
    details: JsonObject = {}


AnyDecision: TypeAlias = Annotated[
    Genesis
    | PolicyApproved
    | KeyChanged
    | Observed
    | IncidentChanged
    | ActionDecided
    | ActionChanged
    | ApprovalChanged
    | Commanded,
    Field(discriminator="kind"),
]
KINDS: tuple[str, ...] = tuple(
    get_args(item.model_fields["kind"].annotation)[0] for item in get_args(get_args(AnyDecision)[0])
)
"""What a record may be."""
DECISIONS: TypeAdapter[AnyDecision] = TypeAdapter(AnyDecision)


def stamp(at: datetime) -> str:
    """A time as people read it in records: UTC to the second."""
    return at.strftime("%Y-%m-%d %H:%M:%SZ")
