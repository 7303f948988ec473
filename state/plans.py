"""Actions, plans, committed intents and their outcomes."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from state.canonical import JsonObject

AgentName: TypeAlias = Literal["data_validation", "feature_engineering", "training", "deployment", "monitoring"]
ActionKind: TypeAlias = Literal[
    "ingest_data", "validate_data", "quarantine_data", "backfill_data", "engineer_features",
    "materialize_features", "rollback_features", "backtest_recipe", "train_candidates",
    "evaluate_candidate", "register_candidate", "stage_version", "shadow", "shift_traffic",
    "run_ab_test", "promote", "rollback", "retire_version", "restart_server", "scale",
    "recalibrate", "accept_drift", "hold", "resume", "notify",
]  # fmt: skip
ActionState: TypeAlias = Literal["intended", "acting", "done", "failed", "unknown", "verified", "reverted"]


class Proposal(BaseModel):
    """An action that somebody wants; it is nothing until policy allows it and the ledger commits it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ActionKind
    model: str
    subject_id: str
    """The incident or goal that the action serves."""
    args: JsonObject
    """Canonical: data digests, version and rollout ids; never a clock or a step index."""
    reason: str
    evidence_ids: list[str] = []
    proposed_by: AgentName


class PlanStep(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ActionKind
    agent: AgentName
    why: str
    waits_for: list[str] = []
    """Facts that earlier steps make true."""
    cost_minutes: float
    alternatives: list[str] = []
    """What else would have made the same facts true, with its cost."""


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    goal_facts: list[str]
    steps: list[PlanStep]
    cost_minutes: float
    explanation: str


class ActionOutcome(BaseModel):
    """What an agent observed after acting. Only an observation of the outside world counts as done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["running", "done", "failed", "unknown"]
    observed: JsonObject = {}
    message: str = ""
