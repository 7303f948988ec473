"""The result of a backtest over a recorded history: what `steady backtest --json` prints."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from state.canonical import digest


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Moment(Part):
    """One line of the timeline. `day` is the live day on whose evening it was decided."""

    day: str
    what: str
    why: str
    about: str = Field(default="", exclude=True)
    """What it is about, where the same comes again in other words."""


class Incident(Part):
    opened: str
    closed: str | None
    """None: still open at the end."""
    cause: str
    resolution: str | None
    title: str
    why: str


class Question(Part):
    asked: str
    action: str
    roles: list[str]
    why: str
    status: str
    answered: str | None
    times: int = 1


class Ways(Part):
    """One number as served, and under each control; None where it was not made or cannot be said."""

    served: float | None
    never: float | None
    always: float | None
    classic: float | None


class MetricTable(Ways):
    name: str
    lower_is_better: bool
    n_blocks: int
    """Blocks behind the means: those on which every way is defined."""


class BlockMetric(Ways):
    block: str
    n_rows: int


class Harm(Part):
    positive: float
    net: float


class HarmTable(Part):
    """Rows times the objective's loss beyond that of never retraining."""

    served: Harm | None
    always: Harm | None
    classic: Harm | None


class Cost(Part):
    """What each way fitted and changed. A fit of the loop may be a whole recipe; one of a control is a single model."""

    served_trainings: int
    served_backtests: int
    served_changes: int
    """Changes of champion after the first."""
    always_refits: int
    classic_refits: int
    classic_looks: int


class Data(Part):
    n_predictions: int
    n_live: int
    n_labels: int
    n_late: int
    n_restated: int
    n_missing: int


class BacktestResult(Part):
    model: str
    spec_sha256: str
    data_sha256: str
    task: str
    first_champion: str
    """`as_served`: the recorded scores; `recipe`: fitted on the history before the first live day."""
    trains: bool
    history_days: int
    first_live_day: str
    last_live_day: str
    answers: str
    n_rows: int
    n_labels: int
    data: Data
    incidents: list[Incident]
    timeline: list[Moment]
    actions: dict[str, int]
    """Verified actions by kind, from the first live day on."""
    denied: dict[str, int]
    """Proposals that policy denied, by rule."""
    trainings: int
    backtests: int
    promotions: int
    rollbacks: int
    questions: list[Question]
    quarantined: list[str]
    unsettled: list[str]
    """Days on which the loop did not become quiet."""
    metric: MetricTable
    harm: HarmTable
    cost: Cost
    blocks: list[BlockMetric]
    notes: list[str]
    digest: str = ""
    """Of everything above but the notes: the same on every run over the same files, spec and policy."""
    seconds: dict[str, float] = {}

    def sealed(self) -> BacktestResult:
        """The same with its digest."""
        said = self.model_dump(mode="json", exclude={"digest", "notes", "seconds"})
        return self.model_copy(update={"digest": digest(_rounded(said))})


def _rounded(value: object) -> object:
    """Numbers to nine digits: the last bits of a sum may depend on the number of threads."""
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, dict):
        return {str(name): _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
