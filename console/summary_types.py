"""What the summary of a replay holds: plain JSON, so that it prints, plots and travels alike."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict

Role: TypeAlias = Literal["champion", "former champion", "rolled back", "candidate"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(Part):
    """The objective's metric over the same labelled rows, three ways; None where the rows cannot say."""

    n_rows: int
    served: float | None
    """By the version that answered each row."""
    never: float | None
    """By the first champion, never retrained."""
    always: float | None
    """By refits on a schedule, each adopted unseen."""


class Period(Measured):
    """A calendar month, or a week of a short window."""

    name: str
    start: AwareDatetime
    end: AwareDatetime


class BlockMetric(Measured):
    """`block` is the ISO date or time of its start."""

    block: str


class VersionService(Part):
    """One stretch of service of one version, from its first live request."""

    version: str
    role: Role
    trained_until: str | None
    """Event time of the newest row that it was trained on."""
    served_from: AwareDatetime
    promoted_at: AwareDatetime | None
    served_until: AwareDatetime | None
    """None where it still serves."""
    ended_by: str
    n_answered: int
    before: Measured
    """Rows of the backtest's length before its first live request, whoever answered them."""
    during: Measured
    """Rows that it answered."""
    after: Measured
    """Rows of the backtest's length after its service, whoever answered them."""


class ActionTaken(Part):
    kind: str
    state: str
    at: AwareDatetime
    message: str


class IncidentStory(Part):
    id: str
    title: str
    cause: str
    signal: str
    text: str
    opened_at: AwareDatetime
    closed_at: AwareDatetime | None
    resolution: str | None
    actions: list[ActionTaken]


class Challenger(Part):
    """One backtest of the recipe, or one comparison of a version, against the champion of its day."""

    at: AwareDatetime
    asked_by: str
    """`cadence`, `incident` or `goal`."""
    champion: str | None
    candidate: str | None
    """The version compared, or the one that the win led to; None where nothing was registered."""
    compare_from: str | None
    compare_until: str | None
    verdict: str
    z: float | None
    needed_z: float | None
    """What wins over as many blocks; None where they were too few for a verdict."""
    mean_difference: float | None
    """Champion's loss minus challenger's: positive where the challenger was better."""
    n_blocks: int | None
    adopted: bool
    near_miss: bool
    """It lost with a z of at least half of what wins; where none did, the best of the losers."""
    why: str


class ApprovalStory(Part):
    id: str
    action: str
    roles: list[str]
    status: str
    reason: str
    asked_at: AwareDatetime
    answered_by: str | None
    answered_at: AwareDatetime | None
    comment: str


class FaultDay(Part):
    day: str
    n_rows: int | None
    quarantined: bool
    findings: list[str]


class TrafficBlock(Part):
    block: str
    n_by_version: dict[str, int]


class Traffic(Part):
    n_answered: int
    n_errors: int
    """Answers with a 5xx and requests without an answer, as the proxy counted them."""
    n_flagged: int
    """Answered rows with at least one flag, for instance a value out of range."""
    flags: dict[str, int]
    """The most frequent flags."""
    n_by_version: dict[str, int]
    blocks: list[TrafficBlock]


class FeatureMove(Part):
    name: str
    kind: str
    statistic: float
    p_value: float
    level: str


class DriftWindow(Part):
    start: AwareDatetime
    end: AwareDatetime
    level: str
    calibrated: bool
    features: list[FeatureMove]
    """The gravest test of each feature."""


class TimelineEntry(Part):
    index: int
    """In the decision log."""
    at: AwareDatetime
    what: str
    actor: str
    text: str


class RefitStory(Part):
    at: AwareDatetime
    n_rows: int
    error: str


class Controls(Part):
    """How the two controls were made, so that the comparison can be judged."""

    first_version: str | None
    cadence_days: float
    refits: list[RefitStory]
    error: str
    """Why there are no controls; empty where there are."""


class LogCheck(Part):
    path: str
    n_records: int
    n_proven: int
    """Records, from the first on, that a signed checkpoint proves unchanged."""
    ok: bool
    problems: list[str]
    notes: list[str]
    vkey: str
    checkpoints: str
    """Folder of the second place."""


class Summary(Part):
    """A replay, or any stretch of time, of one model."""

    model: str
    owner: str
    task: str
    metric: str
    lower_is_better: bool
    start: AwareDatetime
    end: AwareDatetime
    win_z: float
    wall_seconds: float | None
    overall: Measured
    """Mean over the blocks on which all that was measured is defined."""
    gain_kept: float | None
    """Share of the always-retrain control's gain over never retraining; None where it gained nothing."""
    periods: list[Period]
    versions: list[VersionService]
    incidents: list[IncidentStory]
    challengers: list[Challenger]
    approvals: list[ApprovalStory]
    denials: dict[str, int]
    """Denied proposals by the policy rule that denied them."""
    faults: list[FaultDay]
    traffic: Traffic
    drift: list[DriftWindow]
    timeline: list[TimelineEntry]
    blocks: list[BlockMetric]
    controls: Controls
    log: LogCheck
    notes: list[str]
    """What a reader must know to judge the figures."""
