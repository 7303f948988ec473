"""The rows of the shared state: what is queried is a field here and a column there; the rest is the JSON body."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from state.canonical import JsonObject
from state.facts import FactValue
from state.plans import ActionKind, ActionState


class Row(BaseModel):
    """A stored record. `columns` names the fields that are also SQL columns, `id` always being the first."""

    model_config = ConfigDict(extra="forbid")

    table: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    schema_version: int = 1
    id: str


class ModelRow(Row):
    """`id` is the model's name."""

    table = "models"
    columns = ("id", "status")
    status: Literal["new", "live", "watched"] = "new"
    held: bool = False
    spec: JsonObject
    spec_sha256: str
    base_path: str
    """Folder that the spec's relative paths start from."""
    added_at: AwareDatetime


class GoalRow(Row):
    table = "goals"
    columns = ("id", "model", "status")
    model: str | None
    status: Literal["active", "achieved", "refused", "failed", "expired", "withdrawn"]
    standing: bool
    goal: JsonObject
    text: str
    """The sentence as given; data, never an instruction."""
    asked_by: str
    asked_at: AwareDatetime
    outcome: str = ""


class IncidentRow(Row):
    table = "incidents"
    columns = ("id", "model", "status", "cause")
    model: str
    status: Literal["open", "closed"]
    cause: str
    """The present diagnosis."""
    signal: str
    """The signal that opened it."""
    opened_at: AwareDatetime
    closed_at: AwareDatetime | None = None
    resolution: str | None = None
    """`recovered`, `not_remediable`, `inconclusive`, `gates_failed`, `quarantined`, `rolled_back`, `escalated` ..."""
    title: str
    body: JsonObject = {}


class RunRow(Row):
    """What is next for one incident or goal. The truth about progress: LangGraph threads are disposable."""

    table = "runs"
    columns = ("id", "model", "subject_id", "status", "wake_at")
    model: str
    subject_id: str
    subject_kind: Literal["incident", "goal", "cadence", "route"]
    """`route`: somebody edited the route by hand; its subject is the standing goal."""
    status: Literal["ready", "waiting", "finished"]
    wake_at: AwareDatetime | None = None
    waits_for: str = ""
    plan_revision: int = 0
    plan: JsonObject | None = None
    facts: JsonObject = {}
    started_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    outcome: str = ""
    body: JsonObject = {}


class SignalRow(Row):
    table = "signals"
    columns = ("id", "model", "name", "at")
    model: str
    name: str
    at: AwareDatetime
    value: float | None
    threshold: float | None
    incident_id: str | None = None
    evidence_ids: list[str] = []
    body: JsonObject = {}


class DiagnosisRow(Row):
    table = "diagnoses"
    columns = ("id", "model", "incident_id", "at")
    model: str
    incident_id: str
    at: AwareDatetime
    cause: str
    evidence_for: list[str]
    evidence_against: list[str]
    alternatives: dict[str, str] = {}


class DetectorRow(Row):
    """`id` is `<model>/<detector>[/<segment>]`: a few floats, so looks are free and restarts safe."""

    table = "detector_states"
    columns = ("id", "model")
    model: str
    state: JsonObject


class ApprovalRow(Row):
    table = "approvals"
    columns = ("id", "model", "status", "action_key")
    model: str
    status: Literal["pending", "approved", "rejected", "expired", "used", "void"]
    action_key: str
    action: ActionKind
    args: JsonObject
    binding_sha256: str
    """Digest of action, policy set, evidence ids and discrete facts; a changed one voids the approval."""
    roles: list[str]
    reason: str
    asked_at: AwareDatetime
    expires_at: AwareDatetime
    on_expiry: Literal["deny", "allow"] = "deny"
    answered_by: str | None = None
    answered_at: AwareDatetime | None = None
    comment: str = ""
    run_id: str


class RolloutRow(Row):
    table = "rollouts"
    columns = ("id", "model", "status", "candidate")
    model: str
    status: Literal["running", "promoted", "rolled_back", "superseded", "failed", "completed"]
    candidate: str
    stable: str | None
    phase: str
    body: JsonObject = {}
    started_at: AwareDatetime
    finished_at: AwareDatetime | None = None


class EvidenceRow(Row):
    """A stored observation that decisions cite by id and digest."""

    table = "evidence"
    columns = ("id", "model", "topic", "sha256", "at")
    model: str
    topic: str
    at: AwareDatetime
    sha256: str
    body: JsonObject


class BlockRow(Row):
    """`id` is `<model>/<block start>/<arm>/<topic>`: matured per-block numbers, computed once."""

    table = "blocks"
    columns = ("id", "model", "topic", "block")
    model: str
    topic: str
    block: str
    """ISO date or time of the block's start."""
    body: JsonObject


class OutboxRow(Row):
    """A message that has to reach a person, sent by the notifier after commit."""

    table = "outbox"
    columns = ("id", "status")
    status: Literal["pending", "sent", "failed"]
    key: str
    title: str
    text: str
    created_at: AwareDatetime
    n_attempts: int = 0


class SwitchRow(Row):
    """A switch or cursor of the whole installation: `halt`, `mode`, `replay/<model>`."""

    table = "switches"
    columns = ("id",)
    body: JsonObject


class ActionRow(Row):
    """One effect on the outside world. `id` is the ledger key. Written by the ledger only."""

    table = "actions"
    columns = ("id", "model", "subject_id", "kind", "state", "created_at")
    model: str
    subject_id: str
    kind: ActionKind
    state: ActionState
    args: JsonObject
    args_sha256: str
    attempt: int
    agent: str
    run_id: str | None
    prior: JsonObject
    evidence_ids: list[str]
    facts_sha256: str
    policy_sha256: str
    approval_id: str | None
    epoch: int
    observed: JsonObject = {}
    message: str = ""
    created_at: AwareDatetime
    """Domain time of the intent: budgets count by it."""
    finished_at: AwareDatetime | None = None


class FactRow(Row):
    """A fact as it stood when it was gathered for one incident or goal."""

    table = "facts"
    columns = ("id", "model", "subject_id", "name", "at")
    model: str
    subject_id: str
    name: str
    at: AwareDatetime
    value: FactValue
    source: str


class PlanRow(Row):
    """One revision of the plan of a run; revisions are kept, so that a change of mind can be read."""

    table = "plans"
    columns = ("id", "model", "run_id", "revision")
    model: str
    run_id: str
    revision: int
    plan: JsonObject
    made_at: AwareDatetime


class ProfileRow(Row):
    """`id` is `<model>/<version>/<block>`: the counts of one block of rows against the reference bins."""

    table = "profiles"
    columns = ("id", "model", "block")
    model: str
    block: str
    """ISO date or time of the block's start."""
    sha256: str
    content: str
    """Base64 of the profile's bytes."""


class ApiTokenRow(Row):
    """A bearer token of the HTTP API; only its digest is stored."""

    table = "api_tokens"
    columns = ("id", "owner", "token_sha256")
    owner: str
    token_sha256: str
    roles: list[str]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
