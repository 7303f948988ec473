"""The ports: what the crew may ask of the outside world, and the platform that bundles them.

Every effect takes the ledger `key` and is idempotent under it; `find(key)` looks outward for an effect that
an earlier, perhaps killed, process has made. Nothing here imports MLflow, kfp or any other client.
Every method may raise `ToolUnavailable` (try again later) or `ToolRejected` (change something first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

import polars as pl
from pydantic import JsonValue

from state.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRequest:
    """One run of a compiled pipeline. `parameters` are JSON; what they may hold stands at each pipeline."""

    pipeline: Literal["train", "backtest"]
    model: str
    parameters: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    key: str
    status: Literal["running", "succeeded", "failed"]
    outputs: Mapping[str, JsonValue] = field(default_factory=dict)
    """JSON of the pipeline's last component; empty unless succeeded."""
    error: str = ""
    """The failing component and its last error line, in plain text."""


class Pipelines(Protocol):
    def submit(self, request: PipelineRequest, *, key: str) -> PipelineRun:
        """Start the run, or return the one that `key` already names; never blocks for its end."""

    def find(self, key: str) -> PipelineRun | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    model: str
    version: str
    key: str | None
    """The ledger key that registered it; None where somebody else did."""
    mlflow_run_id: str | None
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


class Registry(Protocol):
    def register(self, *, model: str, mlflow_run_id: str, tags: Mapping[str, str], key: str) -> ModelVersion:
        """Make the model package logged by `mlflow_run_id` a version, once per `key`."""

    def find(self, key: str) -> ModelVersion | None:
        """The version that `key` registered or pointed an alias at."""

    def get(self, model: str, version: str) -> ModelVersion | None: ...

    def versions(self, model: str) -> Sequence[ModelVersion]:
        """Every version, oldest first."""

    def set_alias(self, *, model: str, alias: str, version: str, key: str) -> None: ...

    def delete_alias(self, *, model: str, alias: str, key: str) -> None: ...

    def package(self, model: str, version: str) -> Path:
        """A local folder with the version's model package, its SHA256SUMS checked."""

    def metrics(self, model: str, version: str) -> Mapping[str, float]:
        """Metrics of the version's tracked run; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One running server process (or Deployment) of one version."""

    model: str
    version: str
    key: str
    host: str
    port: int
    ready: bool
    pid: int | None = None


class Servers(Protocol):
    def start(self, *, model: str, version: str, package: Path, key: str) -> Endpoint:
        """Start the version's server, or adopt the one that runs; returns when it is ready."""

    def find(self, key: str) -> Endpoint | None: ...

    def get(self, model: str, version: str) -> Endpoint | None:
        """The version's server as it is now; None where none runs."""

    def list(self, model: str) -> Sequence[Endpoint]: ...

    def stop(self, *, model: str, version: str, key: str) -> None:
        """End the version's server after it has answered what it had accepted."""

    def flush(self, model: str) -> None:
        """Return once every prediction answered so far can be read through `Outcomes.predictions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The managed route of a model as stored, and what the data plane confirms of it."""

    model: str
    weights: Mapping[str, int]
    """Version -> percent, in route order; they sum to 100."""
    revision: str
    """Changes with every write, ours or not."""
    key: str | None
    """`steadyhand.io/action-key` of the stored document."""
    served: bool
    """Whether the data plane confirms this revision."""
    address: str
    """Where requests are sent, `http://host:port`."""


class Mesh(Protocol):
    def read(self, model: str) -> Route | None: ...

    def stage(self, *, endpoint: Endpoint, key: str) -> Route:
        """Add the version's destination at weight 0 (100 where it is the first), last in the route."""

    def set_weights(self, *, model: str, weights: Mapping[str, int], key: str, revision: str | None = None) -> Route:
        """Write exactly these weights and the key; nothing else of the document changes.

        `revision` is the one the caller decided on: where the stored document has another, `ToolUnavailable`
        is raised and nothing is written. Returns once the data plane confirms.
        """

    def retire(self, *, model: str, version: str, key: str) -> Route:
        """Remove the version's destination; refused unless its weight is 0."""

    def find(self, key: str) -> Route | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSample:
    """Counters of one version since its server or proxy started; windows are differences of two samples."""

    n_requests: int
    n_errors: int
    """Answers with a 5xx, and requests without an answer."""
    latency_buckets_ms: Mapping[float, int]
    """Cumulative counts by upper bound; the last bound is infinity."""
    source: str
    """Changes when the counters restarted at zero; those of one version may also start again by themselves."""


class Metrics(Protocol):
    def sample(self, model: str, version: str) -> ServiceSample | None:
        """The version's counters at the proxy now; None is `no_data`, never zero."""


class Data(Protocol):
    """Training rows: the history that came with the model, and what was captured since."""

    def days(self, model: str) -> Sequence[str]:
        """ISO dates that hold history rows, ascending."""

    def history(self, model: str, *, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        """Rows of the history with event time in [start, end): `request_id, entity, event_time`, one column a
        feature, `label` (float64 class index or number, null where unknown)."""

    def digest(self, model: str) -> str:
        """SHA-256 over the imported files' digests."""


class Outcomes(Protocol):
    """Predictions that were served and the labels that came back."""

    def predictions(self, model: str, *, start: datetime, end: datetime) -> pl.DataFrame:
        """Prediction records with event time in [start, end), once per request id: `request_id, entity,
        event_time, version, mirrored, score` (probability of class 1, or the number; list for multiclass),
        `flags`, and one column a feature. Mirrored records are left out."""

    def revisions(self, model: str) -> Mapping[str, int]:
        """Event day (ISO date) -> a number that rises whenever prediction records of that day were added; reads no row."""

    def record(self, model: str, labels: pl.DataFrame, *, key: str) -> int:
        """Store `request_id, label, available_at`, once per `key`; returns the number of new rows."""

    def labelled(self, model: str, *, start: datetime, end: datetime, as_of: datetime) -> pl.DataFrame:
        """`predictions` joined with the labels available by `as_of`; rows without a label are left out."""

    def quarantine(self, model: str, days: Sequence[str], *, reason: str, key: str) -> None:
        """Take days (ISO dates) out of training, evaluation and detectors; traffic is untouched."""

    def quarantined(self, model: str) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """The feature view that a model's online features are served from."""

    model: str
    name: str
    revision: str
    """The released one."""
    previous: str | None
    """The one released before it, if the store still has it."""
    key: str | None
    """The ledger key of the rollback that released this revision; None where a team did."""
    served: bool
    """Whether the online store confirms that it serves this revision."""


class Features(Protocol):
    """A feature store: the values that training reads, and the release that serving reads from."""

    def offline(self, model: str, keys: pl.DataFrame) -> pl.DataFrame:
        """Offline values of served rows, as of their event time. `keys` holds `request_id, entity, event_time`; the
        answer holds `request_id` and one column a feature of the store, rows that it does not know left out."""

    def read(self, model: str) -> FeatureView | None:
        """The released view as it is now; None where the store keeps no releases of it."""

    def rollback(self, *, model: str, revision: str, key: str) -> FeatureView:
        """Release `revision`, the view's `previous` one, again; returns once the online store confirms.

        Said again under its key it pushes what is stored once more. `ToolUnavailable` where it is stored and not
        confirmed; `ToolRejected` where the store has no such revision to return to.
        """

    def find(self, key: str) -> FeatureView | None:
        """The view that `key` rolled back, while that is still its release."""


class Notifier(Protocol):
    def send(self, *, title: str, text: str, key: str) -> bool:
        """Deliver one message; False where no channel is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Everything an agent may touch. Travels in LangGraph's runtime context, never in its state."""

    pipelines: Pipelines
    registry: Registry
    servers: Servers
    mesh: Mesh
    metrics: Metrics
    data: Data
    outcomes: Outcomes
    notifier: Notifier
    specs: Mapping[str, ModelSpec]
    features: Features | None = None
    """None: there are no offline values to compare with, which is no data and never a pass."""
