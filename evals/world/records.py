"""What the simulated world remembers: plain records, stored as one JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from evals.world.truth import Drift, Truth

LATENCY_BOUNDS_MS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One change of the world by the control plane. Graders read these, never the agents' text."""

    index: int
    at: str
    """Domain time, ISO."""
    method: str
    model: str
    key: str
    args: dict[str, JsonValue]


@dataclass(slots=True, kw_only=True)
class Run:
    """A pipeline run; `outputs` are computed when it ends."""

    pipeline: Literal["train", "backtest"]
    model: str
    parameters: dict[str, JsonValue]
    status: Literal["running", "succeeded", "failed"] = "running"
    polls_left: int = 1
    will_fail: bool = False
    export_refused: bool = False
    """Its export differed, so that nothing was packaged."""
    shuffled: bool = False
    """Trained on shuffled labels: a model that learned nothing."""
    lost: bool = False
    """Its process died with the control plane; submitted again under its key, it starts over."""
    outputs: dict[str, JsonValue] = field(default_factory=dict)
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Version:
    version: str
    key: str | None
    mlflow_run_id: str
    tags: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Server:
    """One process of one version; `generation` rises with every start."""

    version: str
    keys: list[str]
    """The key that started it, then those that adopted it."""
    digest: str
    """Names the fitted model that it loaded."""
    port: int
    generation: int
    alive: bool = True
    stopped_by: str | None = None


@dataclass(slots=True, kw_only=True)
class Counters:
    """What the proxy counted of one version since it was staged or the proxy started."""

    n_requests: int = 0
    n_errors: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))
    """Answers of the version per cell, the last one above every bound."""

    def add(self, other: Counters) -> None:
        self.n_requests += other.n_requests
        self.n_errors += other.n_errors
        self.latency = [a + b for a, b in zip(self.latency, other.latency, strict=True)]


@dataclass(slots=True, kw_only=True)
class RouteDocument:
    weights: dict[str, int]
    applied: dict[str, int]
    """What the data plane has taken over and confirms."""
    misrouted: dict[str, int] | None = None
    """What it does in truth where it lies."""
    revision: int
    key: str | None


@dataclass(slots=True, kw_only=True)
class Condition:
    """How a version's server behaves. `version` None: every version first started while this holds."""

    version: str | None
    error_ratio: float = 0.0
    latency_ratio: float = 1.0
    capacity: int | None = None
    """Requests that it can answer in a day; None: any number."""
    score_shift: float = 0.0
    """Added to the served score: the served model is not the trained one."""
    dead: bool = False
    """The process ends right after it became ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What answered a share of one day's requests."""

    version: str
    weight: int
    digest: str | None
    """None: nothing ran, and every request was an error."""
    error_ratio: float
    latency_ratio: float
    score_shift: float
    capacity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedDay:
    """One day's traffic; with the day's rows it determines every prediction record."""

    day: str
    arms: list[Arm]


@dataclass(slots=True, kw_only=True)
class Recorded:
    """Labels that somebody recorded through the port, beside those of the world's own label pipeline."""

    key: str
    rows: list[tuple[str, float, str]]
    """`request_id, label, available_at` (ISO)."""
    n_new: int


@dataclass(slots=True, kw_only=True)
class ViewRelease:
    """One released revision of a model's feature view."""

    revision: str
    skew: Drift | None = None
    """What it serves otherwise than the offline store holds."""
    previous: str | None = None
    """The revision that the store can return to."""
    key: str | None = None
    served: bool = True
    looks_left: int = 0
    """Times that the online store still says that it does not serve it."""


@dataclass(slots=True, kw_only=True)
class ModelState:
    spec: dict[str, JsonValue]
    truth: Truth
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    alias_keys: dict[str, str] = field(default_factory=dict)
    """Alias -> key of its last change."""
    servers: dict[str, Server] = field(default_factory=dict)
    route: RouteDocument | None = None
    counters: dict[str, Counters] = field(default_factory=dict)
    """By version in the route."""
    conditions: list[Condition] = field(default_factory=list)
    days: list[ServedDay] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    quarantine_keys: list[str] = field(default_factory=list)
    export_difference: float = 0.0
    """By how much an exported model answers otherwise than the fitted one, for trainings of the pipeline service."""
    views: list[ViewRelease] = field(default_factory=lambda: [ViewRelease(revision="1")])
    """Releases of the feature view, oldest first; the last one is stored."""


@dataclass(slots=True, kw_only=True)
class Message:
    key: str
    title: str
    text: str


@dataclass(slots=True, kw_only=True)
class WorldState:
    seed: int
    start: str
    """First day of live traffic; the history ends before it."""
    next_day: str
    models: dict[str, ModelState] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    """By key."""
    fitted: dict[str, str] = field(default_factory=dict)
    """What servers loaded: digest of a model -> its text in the package."""
    tracked: dict[str, str] = field(default_factory=dict)
    """MLflow run id -> key of the training run that logged it."""
    effects: list[Effect] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    n_started: int = 0
    n_proxy_starts: int = 1
    n_writes: int = 0
