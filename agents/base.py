"""What a specialist gets to see, what it may answer, and the small subgraph that every specialist is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from state.canonical import JsonObject
from state.ledger import CommittedIntent
from state.plans import ActionKind, ActionOutcome, AgentName, Proposal
from state.rows import RolloutRow
from state.spec import ModelSpec
from tools.ports import Platform


class Situation(BaseModel):
    """Everything that an agent may know when it is asked for the next move of one plan step.

    Plain data, so that a thread can be thrown away and built again from SQL.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    spec: ModelSpec
    spec_sha256: str
    now: AwareDatetime
    step: ActionKind
    subject_id: str
    run_id: str
    cause: str
    facts: JsonObject
    """Facts of the run; established ones are `true`, measured ones carry their value."""
    pinned: JsonObject
    """Args of this step if it was proposed before under this plan: a question asked twice is one question."""
    champion: str | None
    previous: str | None
    candidate: str | None
    last_traffic_key: str
    """Key of the newest verified traffic change on this model; empty before the first."""
    rollout: RolloutRow | None
    written: dict[str, int] = {}
    """Share of every version of the route as the last verified write left it; empty before the first."""
    corrected_today: list[dict[str, int]] = []
    """Splits that somebody had written and that were corrected in the past 24 hours."""
    asked_by_person: bool = False
    """The run serves a person's goal rather than an incident or the cadence."""
    fault_days: list[str] = []
    """Days that the open data fault covers (ISO dates)."""
    fit_from: AwareDatetime | None = None
    """Backtests and trainings read rows from then on only; None: as far back as the recipe reads."""
    change_from: AwareDatetime | None = None
    """About when the change began that the incident is about; None where the run serves no incident."""
    segment: str | None = None
    """The segment that the incident is confined to; None where it is about all rows."""


class Propose(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    move: Literal["propose"] = "propose"
    proposal: Proposal


class Wait(BaseModel):
    """Nothing to do before `until` (None: until something outside changes)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    move: Literal["wait"] = "wait"
    until: AwareDatetime | None
    waits_for: str


class Learned(BaseModel):
    """A judgement that needs no effect: facts established (`true`) or lost (`false`), with the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    move: Literal["learned"] = "learned"
    topic: Literal["gates", "analysis", "ab_test", "backtest", "data_quality", "health", "foreign_edit", "world"]
    verdict: str
    summary: str
    facts: JsonObject
    details: JsonObject = {}
    rollout_body: JsonObject | None = None
    """What changes in the body of the rollout that the judgement belongs to."""


Move: TypeAlias = Annotated[Propose | Wait | Learned, Field(discriminator="move")]
MOVES: TypeAdapter[Move] = TypeAdapter(Move)


class SpecialistState(TypedDict, total=False):
    """State of a specialist's subgraph: JSON only."""

    situation: dict[str, Any]
    reading: dict[str, Any]
    move: dict[str, Any]


Read: TypeAlias = Callable[[Situation, Platform], dict[str, Any]]
Judge: TypeAlias = Callable[[Situation, dict[str, Any]], Move]
Specialist: TypeAlias = CompiledStateGraph[SpecialistState, Platform, SpecialistState, SpecialistState]


def specialist(name: AgentName, *, read: Read, judge: Judge) -> Specialist:
    """A subgraph of two nodes: `read` looks at the world, `judge` is a pure function of what was read."""

    def read_node(state: SpecialistState, runtime: Runtime[Platform]) -> SpecialistState:
        situation = Situation.model_validate(state["situation"])
        return {"reading": read(situation, runtime.context)}

    def judge_node(state: SpecialistState) -> SpecialistState:
        situation = Situation.model_validate(state["situation"])
        return {"move": judge(situation, state["reading"]).model_dump(mode="json")}

    graph = StateGraph(SpecialistState, context_schema=Platform)
    graph.add_node("read", read_node)
    graph.add_node("judge", judge_node)
    graph.add_edge(START, "read")
    graph.add_edge("read", "judge")
    graph.add_edge("judge", END)
    return graph.compile(name=name)


def proposal(
    situation: Situation, agent: AgentName, args: dict[str, JsonValue], reason: str, evidence: list[str] | None = None
) -> Propose:
    """A proposal for the step that the situation asks about; pinned args win over fresh ones."""
    return Propose(
        proposal=Proposal(
            kind=situation.step,
            model=situation.model,
            subject_id=situation.subject_id,
            args=situation.pinned or args,
            reason=reason,
            evidence_ids=evidence or [],
            proposed_by=agent,
        )
    )


def done(observed: dict[str, JsonValue], message: str = "") -> ActionOutcome:
    return ActionOutcome(status="done", observed=observed, message=message)


def failed(message: str) -> ActionOutcome:
    return ActionOutcome(status="failed", message=message)


def text_arg(intent: CommittedIntent, name: str) -> str:
    """A string argument of a committed intent."""
    return str(intent.args[name])


def day_start(at: datetime) -> datetime:
    """Midnight UTC at or before `at`."""
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def matured_until(situation_now: datetime, delay: timedelta) -> datetime:
    """Event times before this have had their label delay in full; always a midnight, so that days stay whole."""
    return day_start(situation_now - delay)
