"""The model spec: one YAML file per managed model."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self, TypeAlias, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from state.plans import ActionKind

Metric: TypeAlias = Literal[
    "accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "log_loss", "rmse", "mae",
]  # fmt: skip
CLASSIFICATION_METRICS: frozenset[str] = frozenset(
    {"accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "log_loss"}
)
REGRESSION_METRICS: frozenset[str] = frozenset({"rmse", "mae"})
LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "rmse", "mae"})

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
PREFIX_PATTERN = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Also a Kubernetes object name, an MLflow registered model and a folder."""


def _no_bare_number(value: object) -> object:
    # Pydantic takes 10 as ten seconds, and whoever writes it mostly means days.
    if isinstance(value, int | float):
        raise PydanticCustomError("time_delta_type", "a duration needs its unit")
    return value


_LONGEST = timedelta(days=36_500)
"""What is reckoned with durations stays within the calendar."""
Duration = Annotated[timedelta, Field(ge=timedelta(0), le=_LONGEST), BeforeValidator(_no_bare_number)]
"""In a file ISO 8601, as `P14D` or `PT6H`."""
Span = Annotated[timedelta, Field(gt=timedelta(0), le=_LONGEST), BeforeValidator(_no_bare_number)]
"""A duration that is not zero."""
_SPAN = TypeAdapter[timedelta](Span)


class SpecPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(SpecPart):
    column: str
    positive: str | int | float | bool | None = None
    """The value that counts as class 1 of a binary task; None takes true, 1 or "1"."""
    delay: Duration = timedelta(0)
    """Domain time between a row's event and the moment its label is known."""


class FilesData(SpecPart):
    """Rows in parquet or CSV: one file, or a directory of files."""

    kind: Literal["files"] = "files"
    path: str
    """Relative to the spec file, or absolute."""
    time: str
    """Column of the event time."""
    entity: list[str] = []
    """Columns that together name the entity: the unit of assignment. Empty: the request id is the unit."""
    label: Label


class QueryData(SpecPart):
    """A SQL query with event time and availability time. Read, not yet served: `steady up` says so."""

    kind: Literal["query"]
    url: str
    sql: str
    time: str
    available_at: str
    entity: list[str] = []
    label: Label


Data: TypeAlias = Annotated[FilesData | QueryData, Field(discriminator="kind")]


class OfflineFiles(SpecPart):
    """Feature values as training reads them, to hold against what was served: parquet or CSV with a row per entity and
    event time, the columns of `data.entity`, the time and the features; features that it lacks are not compared."""

    kind: Literal["files"] = "files"
    path: str
    """Relative to the spec file, or absolute: one file, or a directory of files."""
    time: str | None = None
    """Column of the event time; None takes the name of `data.time`."""


class Feature(SpecPart):
    name: str
    type: Literal["numeric", "categorical", "boolean", "text"]
    low: float | None = None
    """Smallest admissible value; None takes the training minimum for flagging only."""
    high: float | None = None
    unit: str | None = None


class Candidate(SpecPart):
    name: Name
    estimator: Literal[
        "hist_gradient_boosting", "random_forest", "logistic_regression", "ridge"
    ]  # logistic_regression for classes, ridge for numbers
    params: dict[str, JsonValue] = {}


class RecipeTraining(SpecPart):
    kind: Literal["recipe"] = "recipe"
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    window: Span | None = None
    """How far back training reads; None reads everything."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Time-ordered cross-validation folds that choose among the candidates."""
    holdout: Span = timedelta(days=14)
    """The newest labelled stretch that the gates are measured on; the packaged model is then refitted on everything."""
    max_rows: Annotated[int, Field(ge=1_000)] = 1_000_000
    """Rows above this are thinned by a hash of the request id."""
    seed: int = 42


class CommandTraining(SpecPart):
    """An image and a command of the team's own: a window in; a model and `metrics.json` out."""

    kind: Literal["command"]
    image: str
    command: list[str]


class PipelineTraining(SpecPart):
    """The team's own compiled KFP pipeline, under the contract of `command`."""

    kind: Literal["pipeline"]
    ir: str


Training: TypeAlias = Annotated[RecipeTraining | CommandTraining | PipelineTraining, Field(discriminator="kind")]


class Bound(SpecPart):
    """A metric held against a value: a quality gate, an objective or a constraint."""

    metric: Metric
    op: Literal[">=", "<=", ">", "<"]
    value: float


class Monitoring(SpecPart):
    cadence: Span = timedelta(days=14)
    """Domain time between two backtests of the recipe when nothing is wrong."""
    backtest: Span = timedelta(days=28)
    """Newest labelled stretch that a backtest compares on; an incident may win on a shorter one of ten blocks or more."""
    block: Span = timedelta(days=1)
    """Unit of independent observation: a day, or the period of the rows where they come weekly or monthly."""
    min_blocks: Annotated[int, Field(ge=2)] = 7
    """Fewer common blocks give no verdict, and a fit that could not learn from as many blocks of a change that an incident
    is about loses nothing by a loss: the incident waits for them."""
    win_z: Annotated[float, Field(gt=0)] = 2.8
    """One-sided z of the paired difference that adopts a challenger over 28 blocks or more; fewer need more, by Student's
    t at the same tail: 3.77 over 7 blocks, 3.29 over 10."""
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Smallest gain that is worth a rollout while nothing is wrong, as a share of the champion's loss on the same rows: a
    newer fit that is better by less is not adopted, however certain it is."""
    tolerance: Annotated[float, Field(ge=0)] = 0.02
    """Relative loss over the reference that still counts as healthy."""
    false_alarm_blocks: Annotated[float, Field(ge=100)] = 8_000
    """P(false alarm by block t) <= t / this."""
    recovery: Duration = timedelta(days=3)
    """How long health must hold before an incident closes."""
    lasting_blocks: Annotated[int, Field(ge=1)] = 7
    """After so many blocks in a row with the same sudden finding about values, a change is the new normal: no
    further block is quarantined for it, and losses judge it."""
    drift_window: Span = timedelta(days=28)
    """Length of the non-overlapping windows on which input drift is tested."""
    drift_alpha_per_year: Annotated[float, Field(gt=0, lt=1)] = 0.05
    segments: list[str] | None = None
    """Categorical and boolean features whose levels are watched as segments; None takes all of them, an empty list none."""

    @model_validator(mode="before")
    @classmethod
    def _after_the_block(cls, given: object) -> object:
        """Stretches left out are long enough for the block: 28 days hold four weeks, which no verdict can come of."""
        if not isinstance(given, dict) or "block" not in given:
            return given
        try:
            block = _SPAN.validate_python(given["block"])
        except ValidationError:
            return given  # told as the field's own error
        ten = {name: max(cls.model_fields[name].default, 10 * block) for name in ("backtest", "drift_window")}
        return {"cadence": max(cls.model_fields["cadence"].default, block), **ten, **given}


class ManagedServing(SpecPart):
    """Our server: a process per version, behind Envoy."""

    kind: Literal["managed"] = "managed"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the route; 0 takes a free one."""
    decision_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    out_of_range: Literal["flag", "refuse"] = "flag"
    output_prefix: Annotated[str, Field(pattern=PREFIX_PATTERN)] | None = None
    """`fraud` adds `fraud_probability` and `fraud_prediction` to every answer of `/predict`."""


class EndpointServing(SpecPart):
    """A server of the team's own: watched and advised upon, never written to."""

    kind: Literal["endpoint"]
    url: str
    protocol: Literal["open-inference", "http"] = "open-inference"


Serving: TypeAlias = Annotated[ManagedServing | EndpointServing, Field(discriminator="kind")]


class AbTest(SpecPart):
    percent: Annotated[int, Field(ge=1, le=99)] = 50
    horizon: Span = timedelta(days=28)
    minimum_samples: Annotated[int, Field(ge=1)] = 1_000
    """Labelled rows of the smaller arm before any verdict but `undecided`."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Non-inferiority margin in the unit of the objective's loss."""


class Rollout(SpecPart):
    steps: Annotated[list[int], Field(min_length=1)] = [5, 25]
    dwell: Duration = timedelta(days=1)
    """Domain time at every analysis step."""
    max_percent: Annotated[int, Field(ge=1, le=100)] = 50
    """Largest share in an analysis step; it does not limit the promotion."""
    minimum_requests: Annotated[int, Field(ge=1)] = 30
    """Requests of the candidate that a step needs before its analysis can pass."""
    deadline: Span = timedelta(days=7)
    """How long a step may stay without a verdict before traffic returns to the champion."""
    failure_limit: Annotated[int, Field(ge=1)] = 2
    """Consecutive failing windows of service metrics that take a candidate off; a gross failure needs one."""
    max_error_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Admissible excess of the candidate's error ratio over the champion's."""
    max_latency_ratio: Annotated[float, Field(ge=1)] = 2.0
    """Admissible candidate p99 as a multiple of the champion's."""
    latency_floor_ms: Annotated[float, Field(ge=0)] = 25.0
    """A p99 below this passes whatever the ratio."""
    ab_test: AbTest = AbTest()
    bake: Duration = timedelta(days=3)

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: list[int]) -> list[int]:
        for index, step in enumerate(steps):
            if not 0 <= step <= 100:
                raise ValueError(f"steps[{index}] is {step}: a step is a percentage between 0 and 100")
            if index and step <= steps[index - 1]:
                raise ValueError(f"steps[{index}] is {step}: steps must rise, and {steps[index - 1]} stands before it")
        return steps


class Freeze(SpecPart):
    """A stretch of domain time, `end` excluded, in which nothing changes but for a rollback or a hold."""

    start: AwareDatetime
    end: AwareDatetime
    why: str = ""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end {self.end.isoformat()} is not after start {self.start.isoformat()}")
        return self


class MlflowRegistry(SpecPart):
    kind: Literal["mlflow"] = "mlflow"
    tracking_uri: str | None = None
    """None keeps MLflow embedded in the workspace."""


class DirectDelivery(SpecPart):
    kind: Literal["direct"] = "direct"


class GitDelivery(SpecPart):
    """Changes are delivered as pull requests; the merged commit is the observation."""

    kind: Literal["git"]
    repository: str


Delivery: TypeAlias = Annotated[DirectDelivery | GitDelivery, Field(discriminator="kind")]
Autonomy: TypeAlias = Literal["observe", "advise", "approve", "auto"]
_AUTONOMOUS: frozenset[str] = frozenset({*get_args(ActionKind), "read", "reversible", "risky"})


class ModelSpec(SpecPart):
    """Everything Steadyhand knows about one managed model before it looks at data."""

    schema_version: Literal[1] = 1
    model: Name
    owner: str
    tier: Literal["low", "standard", "critical"] = "standard"
    environment: Literal["development", "staging", "production"] = "production"
    task: Literal["binary", "multiclass", "regression"]
    outcomes: Literal["independent", "affected"] = "independent"
    """`affected` where a prediction causes or hides the outcome: then only randomised arms count."""
    data: Data
    offline: OfflineFiles | None = None
    """Where the offline values of served rows are; None compares nothing."""
    features: Annotated[list[Feature], Field(min_length=1)]
    training: Training
    objective: Bound
    """The goal's own metric: it is the loss that every comparison decides on."""
    gates: list[Bound] = []
    monitoring: Monitoring = Monitoring()
    serving: Serving = ManagedServing()
    rollout: Rollout = Rollout()
    registry: MlflowRegistry = MlflowRegistry()
    delivery: Delivery = DirectDelivery()
    freezes: list[Freeze] = []
    autonomy: dict[str, Autonomy] = {}
    """Action or action group (`reversible`, `risky`) to autonomy; what is not named is `auto`."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        names = [feature.name for feature in self.features]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"features: {', '.join(repeated)} is listed more than once")
        if self.data.label.column in names:
            raise ValueError(f"features: {self.data.label.column!r} is the label and cannot be a feature")
        if self.offline is not None and not self.data.entity:
            raise ValueError("offline: its rows are found by entity and event time, and data.entity names no column")
        self._check_segments()
        for name in self.autonomy:
            if name not in _AUTONOMOUS:
                # A misspelt one would leave the action at `auto`.
                raise ValueError(f"autonomy: {name!r} is no action and no group; use {', '.join(sorted(_AUTONOMOUS))}")
        allowed = REGRESSION_METRICS if self.task == "regression" else CLASSIFICATION_METRICS
        for where, bound in [("objective", self.objective), *((f"gates[{i}]", g) for i, g in enumerate(self.gates))]:
            if bound.metric not in allowed:
                raise ValueError(
                    f"{where}.metric is {bound.metric!r}: a {self.task} model takes one of {', '.join(sorted(allowed))}"
                )
        if isinstance(self.training, RecipeTraining):
            wrong = "ridge" if self.task != "regression" else "logistic_regression"
            for index, candidate in enumerate(self.training.candidates):
                if candidate.estimator == wrong:
                    raise ValueError(
                        f"training.candidates[{index}].estimator {wrong!r} does not fit task {self.task!r}"
                    )
        return self

    def _check_segments(self) -> None:
        types = {feature.name: feature.type for feature in self.features}
        named = self.monitoring.segments or []
        for index, name in enumerate(named):
            where = f"monitoring.segments[{index}]"
            if name not in types:
                raise ValueError(f"{where}: {name!r} is not a feature; name one of `features`")
            if types[name] not in ("categorical", "boolean"):
                raise ValueError(
                    f"{where}: {name!r} is {types[name]}; segments are levels of categorical or boolean features"
                )
            if name in named[:index]:
                raise ValueError(f"{where}: {name!r} is listed more than once")

    def feature_names(self) -> list[str]:
        return [feature.name for feature in self.features]
