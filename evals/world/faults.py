"""Faults that a scenario injects into single calls of the simulated platform, and the wrapper that applies them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import polars as pl
from pydantic import JsonValue

from state.errors import SteadyError, ToolRejected, ToolUnavailable
from tools.ports import Endpoint, PipelineRequest, PipelineRun, ServiceSample

FaultKind: TypeAlias = Literal[
    "outage", "rejected", "timeout", "no_data", "nan", "crash_before", "crash_after", "slow", "fails", "not_applied",
]  # fmt: skip
BODY_KINDS: frozenset[str] = frozenset({"slow", "fails", "not_applied"})
"""Kinds that change what the method does, so the method asks for them itself."""


class Killed(BaseException):
    """The control plane died here, as under `kill -9`: no handler for errors may catch it."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """One fault on the calls whose name matches `method`, for instance `mesh.set_weights` or `pipelines.*`.

    outage: no answer, nothing done. timeout: the effect happens, then no answer. rejected: refused.
    no_data: the call is made, and nothing comes back: None where the port may say so, a table without rows, else an
    answer that no client can read (`ToolUnavailable`). nan: every measured number of the answer is NaN. crash_before,
    crash_after: `Killed` around the effect. slow: a submitted pipeline stays `running`, a feature view unserved, for
    `polls` looks. fails: a submitted pipeline fails. not_applied: the mesh stores the document, the data plane keeps the
    old weights; likewise the feature store.
    """

    method: str
    kind: FaultKind
    nth: int = 1
    """First matching call that is hit, counted from 1."""
    times: int | None = 1
    """Number of calls that are hit; None hits every later one."""
    effects_only: bool = False
    """Count calls that change the world only, so that `*` finds the nth effect."""
    polls: int = 3
    model: str | None = None
    """Calls about this model only; None hits every one, `find` by key included."""
    n_matched: int = 0

    def hits(self, method: str, *, effect: bool, model: str | None) -> bool:
        """Count a call; return whether this one is hit."""
        if not fnmatchcase(method, self.method) or (self.effects_only and not effect):
            return False
        if self.model is not None and model != self.model:
            return False
        self.n_matched += 1
        last = math.inf if self.times is None else self.nth + self.times - 1
        return self.nth <= self.n_matched <= last


@dataclass(slots=True)
class Faults:
    """The faults in force, and how often each method was called."""

    active: list[Fault] = field(default_factory=list)
    n_calls: dict[str, int] = field(default_factory=dict)

    def add(self, *faults: Fault) -> None:
        self.active.extend(faults)

    def clear(self) -> None:
        self.active.clear()

    def take(self, method: str, kind: FaultKind, model: str | None = None) -> Fault | None:
        """The first fault of a body kind that hits this call."""
        hit = [f for f in self.active if f.kind == kind and f.hits(method, effect=True, model=model)]
        return hit[0] if hit else None

    def around(self, method: str, *, effect: bool, model: str | None) -> list[Fault]:
        """Every fault that the wrapper has to apply to this call."""
        self.n_calls[method] = self.n_calls.get(method, 0) + 1
        return [f for f in self.active if f.kind not in BODY_KINDS and f.hits(method, effect=effect, model=model)]


class Faulty(Protocol):
    @property
    def faults(self) -> Faults: ...


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Faulty)
Method: TypeAlias = Callable[Concatenate[S, P], R]


CALLS: set[str] = set()
"""Every call of the platform that a fault can hit; complete once `evals.world.platform` is imported."""
EFFECTS: set[str] = set()
"""Those that change the world."""
HITS: Mapping[FaultKind, frozenset[str]] = {
    "slow": frozenset({"pipelines.submit", "features.rollback"}),
    "fails": frozenset({"pipelines.submit"}),
    "not_applied": frozenset({"mesh.stage", "mesh.set_weights", "mesh.retire", "features.rollback"}),
    "nan": frozenset({
        "pipelines.submit", "pipelines.find", "registry.metrics", "metrics.sample", "data.history", "outcomes.predictions",
        "outcomes.labelled", "features.offline",
    }),
}  # fmt: skip
"""Calls that kinds of faults change; the other kinds change every call."""


def port_call(method: str, *, effect: bool = False) -> Callable[[Method[S, P, R]], Method[S, P, R]]:
    """Let the world's faults happen around a port's method."""
    CALLS.add(method)
    if effect:
        EFFECTS.add(method)

    def wrap(function: Method[S, P, R]) -> Method[S, P, R]:
        may_be_none = str(function.__annotations__.get("return", "")).endswith("None")

        @functools.wraps(function)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            faults = self.faults.around(method, effect=effect, model=_model_of(method, args, kwargs))
            kinds = {fault.kind for fault in faults}
            try:
                _before(method, kinds)
                result = function(self, *args, **kwargs)
            except SteadyError as exc:
                if "crash_after" in kinds:  # who made the call dies before it hears that it failed
                    raise Killed(f"after {method}") from exc
                raise
            if "crash_after" in kinds:
                raise Killed(f"after {method}")
            if "timeout" in kinds:
                raise ToolUnavailable(f"{method}: no answer in time")
            if "no_data" in kinds:
                return cast(R, _emptied(method, result, may_be_none=may_be_none))
            return cast(R, _spoiled(method, result)) if "nan" in kinds else result

        return cast(Method[S, P, R], call)

    return wrap


def _model_of(method: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str | None:
    """The model that a call is about; None where only a key names it."""
    subject = kwargs.get("model", kwargs.get("endpoint", args[0] if args and not method.endswith(".find") else None))
    if isinstance(subject, PipelineRequest | Endpoint):
        return subject.model
    return subject if isinstance(subject, str) else None


def _before(method: str, kinds: set[FaultKind]) -> None:
    if "crash_before" in kinds:
        raise Killed(f"before {method}")
    if "outage" in kinds:
        raise ToolUnavailable(f"{method}: connection refused")
    if "rejected" in kinds:
        raise ToolRejected(f"{method}: request refused")


def _emptied(method: str, result: object, *, may_be_none: bool) -> object:
    """What a client makes of an answer without content."""
    if may_be_none:
        return None
    if isinstance(result, pl.DataFrame | pl.LazyFrame):
        return result.clear()
    raise ToolUnavailable(f"{method}: the answer is empty")


def _spoiled(method: str, result: object) -> object:
    """`result` with NaN in place of every measured number."""
    if isinstance(result, PipelineRun):
        return replace(result, outputs={name: _spoiled_json(value) for name, value in result.outputs.items()})
    if isinstance(result, ServiceSample):
        # Counts cannot be NaN: the client of the proxy's statistics cannot read them either.
        raise ToolUnavailable(f"{method}: the counters are not numbers")
    if isinstance(result, pl.DataFrame | pl.LazyFrame):
        spoiled = result.with_columns(pl.col(pl.Float32, pl.Float64) * math.nan)
        # A label that is no number is none: whoever records labels refuses it.
        return spoiled.clear() if "label" in spoiled.collect_schema() else spoiled
    if isinstance(result, Mapping):
        return {name: math.nan if isinstance(value, float) else value for name, value in result.items()}
    return result


def _spoiled_json(value: JsonValue) -> JsonValue:
    if isinstance(value, float):
        return math.nan
    if isinstance(value, dict):
        return {name: _spoiled_json(item) for name, item in value.items()}
    return [_spoiled_json(item) for item in value] if isinstance(value, list) else value
