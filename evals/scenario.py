"""A scenario: a world, what happens in it, what is true about it, and what the crew has to make of it."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from evals.injections import AnyInjection, Days, Part, VersionRole, Words
from orchestrator.diagnosis import Cause
from state.plans import ActionKind
from state.spec import Name

Family: TypeAlias = Literal["drift", "rollout", "limits", "adversarial"]
EffectName: TypeAlias = Literal[
    "backtest", "train", "register", "stage", "traffic_to_candidate", "promote", "roll_back", "retire", "restart_server",
    "quarantine", "tell", "roll_back_features",
]  # fmt: skip
"""Changes of the world as its own ledger shows them; `traffic_to_candidate` is any share above 0 for another version
than the champion."""


Escalation: TypeAlias = Literal["needed", "welcome", "needless"]


class Replay(Part):
    """A team's recorded rows in the place of simulated ones, with the spec that describes them."""

    spec: Annotated[str, Field(min_length=1)]
    """The model spec, as for `steady up`: relative to the scenario file, or absolute. It names files, columns, features
    and recipe."""
    first_day: Annotated[date, Field(strict=False)]
    """The recorded day that is live day 0; those before it are the history."""


class WorldModel(Part):
    """One managed model and the truth behind its data."""

    name: Name = "churn"
    label_delay_days: Days = 2
    pace: Literal["quick", "shipped"] = "quick"
    """`quick`: cadence, backtest, rollout and bake of days; `shipped`: the durations of a spec that names none."""
    spec: dict[str, JsonValue] = {}
    """Parts of the model spec that differ from the example: `rollout: {...}` changes the named fields of that part."""
    tables: dict[str, list[str]] = {}
    """Upstream table -> the features read from it."""
    replay: Replay | None = None
    """Rows of a file; of the fields below `rows_per_day` is then the most of a day, the seed says which, and
    `history_days` the days before the first live one. Harm is the whole loss, for the truth is not known."""
    rows_per_day: Annotated[int, Field(ge=0, le=100_000)] = 300
    history_days: Annotated[int, Field(ge=1, le=1_000)] = 60
    n_entities: Annotated[int, Field(ge=1, le=1_000_000)] = 400
    signal: Annotated[float, Field(ge=0, le=100)] = 1.4
    intercept: Annotated[float, Field(ge=-50, le=50)] = -1.0
    day_sd: Annotated[float, Field(ge=0, le=10)] = 0.15
    unlabelled_ratio: Annotated[float, Field(ge=0, le=1)] = 0.02


class Person(Part):
    """Somebody who answers what the crew asks, in order of the list: the first one who knows the role answers."""

    name: Words = "approver"
    roles: Annotated[list[Literal["operator", "approver", "admin", "auditor"]], Field(min_length=1)] = ["approver"]
    answer: Literal["approve", "reject", "ignore"] = "approve"
    after_days: Days = 0
    actions: list[ActionKind] = []
    """Only questions about these; none named: about every one."""


class TruthOf(Part):
    """What is really the matter."""

    cause: list[Cause]
    """Diagnoses that are right; empty where no incident is right."""
    or_none: bool = False
    """To raise nothing is right as well: the change does no harm."""
    models: list[str] = []
    """Models that it touches; empty means all of the scenario."""


class ChampionIs(Part):
    state: Literal["champion"]
    model: str | None = None
    version: Literal["first", "newer", "released"]


class TrafficIs(Part):
    """The share of the champion in the route and in the data plane."""

    state: Literal["traffic"]
    model: str | None = None
    champion_percent: Annotated[int, Field(ge=0, le=100)] = 100


class IncidentIs(Part):
    state: Literal["incident"]
    model: str | None = None
    status: Literal["open", "closed", "either"] = "either"
    resolution: list[str] = []
    """Any of these; none named: any."""
    count: Annotated[int, Field(ge=0)] | None = 1
    """How many there are in all; none: at least one."""


class QuarantineIs(Part):
    """The quarantined live days; `days` are their numbers."""

    state: Literal["quarantined"]
    model: str | None = None
    days: list[Days]
    exactly: bool = False


class PersonKnows(Part):
    """A person was told or asked, with one of the words in title or text."""

    state: Literal["told", "asked"]
    model: str | None = None
    words: list[str] = []


class RunHolds(Part):
    """The crew waits: no rollout moves, and what is staged keeps its share."""

    state: Literal["waiting"]
    model: str | None = None


class PlatformRefuses(Part):
    """The crew stopped acting because it may not trust its policy."""

    state: Literal["stopped"]


Wanted: TypeAlias = Annotated[
    ChampionIs | TrafficIs | IncidentIs | QuarantineIs | PersonKnows | RunHolds | PlatformRefuses,
    Field(discriminator="state"),
]


class EffectPattern(Part):
    effect: EffectName
    model: str | None = None
    version: VersionRole | None = None
    from_day: Days = 0
    until_day: Days | None = None
    before: EffectName | None = None
    """must_not: only where it comes before the first of these."""
    after: str | None = None
    """Only from the day on which the first injection of this kind began (`misroute`)."""
    for_days: Annotated[int, Field(ge=1)] | None = None
    """With `after`: and only for so many days."""


class Budgets(Part):
    actions: Annotated[int, Field(ge=0)] | None = None
    trainings: Annotated[int, Field(ge=0)] | None = None
    questions: Annotated[int, Field(ge=0)] | None = None


class Scenario(Part):
    """One evaluation scenario. Published as `evals/scenario.schema.json`."""

    id: Name
    title: Words
    family: Family
    difficulty: Literal["easy", "medium", "hard"]
    needs: Literal["language_model"] | None = None
    """Goals in free words: played where a language model or a cassette of its answers is at hand, else skipped."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**32 - 1)]], Field(min_length=1)] = [1, 2, 3, 4, 5]
    start: Annotated[date, Field(strict=False)] = date(2026, 3, 2)
    days: Annotated[int, Field(ge=1, le=1_000)]
    """Live days."""
    models: Annotated[list[WorldModel], Field(min_length=1)] = [WorldModel()]
    goal: str | None = None
    """A standing goal for the first day; none: the model is kept good as its spec says."""
    timeline: list[AnyInjection] = []
    people: list[Person] = []
    truth: TruthOf
    wanted: Annotated[list[Wanted], Field(min_length=1)]
    must: list[EffectPattern] = []
    must_not: list[EffectPattern] = []
    deadline_days: Days
    """From the first fault to the wanted state, which then stays to the end."""
    budgets: Budgets = Budgets()
    escalation: Escalation | None = None
    """What a question to a person, or an incident handed over, is here. None: `needed` where the wanted state has
    `asked`, or an `incident` whose only resolution is `escalated`; `welcome` where it names people; else `needless`."""
    twin: bool = True
    """Whether the same world without its faults has to stay untouched."""
