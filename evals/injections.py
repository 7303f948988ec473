"""What can happen to a simulated world: the entries of a scenario's timeline."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from evals.world.faults import FaultKind

Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(allow_inf_nan=False)]
Days = Annotated[int, Field(ge=0, le=2_000)]
Capacity = Annotated[int, Field(ge=1, le=10_000_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
Words = Annotated[str, Field(min_length=1)]
VersionRole: TypeAlias = Literal["champion", "candidate", "previous", "first", "next"]
"""`candidate` is the newest version that is not the champion; `next` every version first started afterwards."""
Moment: TypeAlias = Literal["canary", "ab_test", "bake"]


MAGNITUDES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("signal_loss", "skew", "missing", "new_level", "label_flip", "label_lost",
         "label_missing", "repeated", "late_rows", "extra"),
        (0.0, 1.0),
    ),
    "concept": (-4.0, 4.0),
    "segment": (-4.0, 4.0),
    "prior": (-20.0, 20.0),
    "covariate": (-100.0, 100.0),
    "unit": (1e-9, 1e9),
    "volume": (0.0, 100.0),
    "late_labels": (0.0, 2_000.0),
    "no_rows": (1.0, 1.0),
}  # fmt: skip
"""Least and largest magnitude of a change of the data, in the units of `DataChange.magnitude`."""
NO_CHANGE: dict[str, float] = {"unit": 1.0, "volume": 1.0}
"""The magnitude with which nothing changes, where it is not 0."""
TYPES: dict[str, str] = {"unit": "numeric", "skew": "numeric", "new_level": "categorical"}
"""Changes of features of one type; no other feature is touched."""
OF_FEATURES = ("covariate", "segment", "unit", "skew", "missing", "new_level")
"""Changes of features; the others are of whole rows, of labels or of what relates both."""
NO_RAMP = frozenset({"unit", "volume", "no_rows"})
EVERYWHERE = frozenset(
    {"halt", "unhalt", "policy_edit", "clock_back", "second_worker", "restart_proxy", "forged_answer"}
)
"""What happens to the whole control plane or platform; a model says only whose rollout `when` waits for."""


class Part(BaseModel):
    # Strict: a text "20" or a `true` is no number, as the published schema says too.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Injection(Part):
    day: Days
    """Live day from whose morning it holds: 0 is the first one."""
    model: str | None = None
    """None: the only model of the scenario; of several, all that it can touch."""
    harmless: bool = False
    """It is no fault, so the healthy twin keeps it: a season, a person's wish."""
    when: Moment | None = None
    """Not before the first morning, from `day` on, on which the model's rollout has come so far: `canary` (a candidate
    takes traffic), `ab_test` (it takes the share of the A/B test), `bake` (a newer version was promoted)."""
    for_days: Annotated[int, Field(ge=1, le=2_000)] | None = None
    """How long it lasts, where it can end: another way to say `until_day`."""


class DataChange(Injection):
    """The data or its labels change. Magnitudes as in `evals/world/truth.py`."""

    inject: Literal[
        "concept", "signal_loss", "prior", "covariate", "segment", "unit", "skew", "missing", "new_level", "label_flip",
        "label_lost", "label_missing", "late_labels", "no_rows", "volume", "repeated", "late_rows", "extra",
    ]  # fmt: skip
    magnitude: Factor = 1.0
    """concept: 0-1 of a quarter turn of the true coefficients; signal_loss, missing, new_level, label_flip, label_lost,
    label_missing, repeated, late_rows, extra, skew: a ratio; prior: logits; covariate: standard deviations; unit,
    volume: a factor; late_labels: days."""
    until_day: Days | None = None
    """First day without the change; none lasts to the end."""
    ramp_days: Days = 0
    features: list[str] = []
    """None named: every feature of the fitting type."""
    level: str | None = None
    """segment: the level of the first named feature inside which the concept turns; new_level: its name."""
    release: Literal["kept", "only"] | None = None
    """skew: a release of the feature view is behind it; `kept`: the store still has the revision before it, `only`: it
    cannot return to one. None: the store knows of no release."""
    table: str | None = None
    """An upstream table: the change hits the features that every model reads from it."""


class Release(Injection):
    """A team registers a version by hand and may ask for it."""

    inject: Literal["release"]
    labels: Literal["true", "shuffled"] = "true"
    """`shuffled` is a model that learned nothing."""
    trained_from_day: int | None = None
    """Rows from this day on, which may be negative: after a change they make a version of the changed world alone. None: as
    the recipe has it."""
    trained_until_day: int | None = None
    """Rows before this day, which may be negative; none: all that are known."""
    ask: Literal["deploy", "promote"] | None = "deploy"
    by: Words = "operator"
    latency_ratio: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    error_ratio: Ratio = 0.0
    capacity: Capacity | None = None
    """Requests a day that its server can answer: the nearer to it the slower, and beyond it errors. None: any number."""
    dead: bool = False


class ServerChange(Injection):
    """A version's server misbehaves from now on, or recovers with the defaults."""

    inject: Literal["server"]
    version: VersionRole
    error_ratio: Ratio = 0.0
    latency_ratio: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    capacity: Capacity | None = None
    """Requests a day that it can answer: the nearer to it the slower, and beyond it errors. None: any number."""
    score_shift: Factor = 0.0
    dead: bool = False


class PlatformFault(Injection):
    """Calls of the platform fail: `method` is a glob over `port.method`, for instance `mesh.set_weights`."""

    inject: Literal["platform"]
    method: str
    kind: FaultKind
    nth: Annotated[int, Field(ge=1)] = 1
    times: Annotated[int, Field(ge=1)] | None = 1
    """None: every later call, until `until_day`."""
    polls: Annotated[int, Field(ge=1)] = 3
    effects_only: bool = False
    until_day: Days | None = None


class ExportFault(Injection):
    """Every ONNX export of the pipeline service answers otherwise than the model that was fitted, until `until_day`:
    trainings find it by comparing the two, and fail. What a team releases by hand is not exported there."""

    inject: Literal["export"]
    difference: Annotated[float, Field(gt=0, le=1e6)] = 0.2
    """Largest difference of a probability; of numbers, in units of their spread."""
    until_day: Days | None = None


class RouteEdit(Injection):
    """Somebody edits the weights by hand."""

    inject: Literal["edit_route"]
    weights: dict[VersionRole, Percent]


class Misroute(Injection):
    """The data plane splits otherwise than the document says, until `until_day`."""

    inject: Literal["misroute"]
    weights: dict[VersionRole, Percent]
    until_day: Days | None = None


class ProxyRestart(Injection):
    """The proxy starts again, and with it every counter."""

    inject: Literal["restart_proxy"]


class Wish(Injection):
    """A person states a goal: a sentence of `steady goal`, or the typed goal as JSON text."""

    inject: Literal["goal"]
    text: str
    expect: Literal["taken", "refused"] = "taken"
    """Whether this is a goal at all, or words that the crew's door must refuse."""
    by: Words = "operator"


class Stop(Injection):
    """A person throws the kill switch, or holds the model, and takes that back on `until_day`."""

    inject: Literal["halt", "hold"]
    by: Words = "operator"
    until_day: Days | None = None


class GoOn(Injection):
    """A person releases the kill switch, or resumes the model."""

    inject: Literal["unhalt", "resume"]
    by: Words = "operator"


class PolicyEdit(Injection):
    """Somebody writes a policy file on disk without approval."""

    inject: Literal["policy_edit"]
    file: Annotated[str, Field(pattern=r"^[a-z0-9_]+\.(cedar|cedarschema)$")]
    text: str


class ClockStep(Injection):
    """The clock of the control plane goes back for one day."""

    inject: Literal["clock_back"]
    hours: Annotated[int, Field(ge=1, le=48)]


class SecondWorker(Injection):
    """Another control plane ticks on the same state for one day, between every two ticks of the first."""

    inject: Literal["second_worker"]


class Forgery(Injection):
    """Somebody writes an answer to a pending question that no person gave: on the first morning, from `day` on, with one."""

    inject: Literal["forged_answer"]
    claims: Literal["stranger", "agent", "other_digest"]


AnyInjection: TypeAlias = Annotated[
    DataChange | Release | ServerChange | PlatformFault | ExportFault | RouteEdit | Misroute | ProxyRestart | Wish | Stop | GoOn
    | PolicyEdit | ClockStep | SecondWorker | Forgery,
    Field(discriminator="inject"),
]  # fmt: skip
