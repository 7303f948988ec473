"""The simulated world: true data, live traffic and everything a platform would hold, behind no port at all.

Scenarios and graders use this object directly; agents and the orchestrator see it through `platform.build`.
A new platform over the same world, or over a world loaded from its file, is a control plane that was killed and
started again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import JsonValue, TypeAdapter

from evals.world.faults import Faults
from evals.world.models import LinearModels, Model, Models
from evals.world.records import Arm, Condition, Counters, Effect, ModelState, ServedDay, ViewRelease, WorldState
from evals.world.traffic import DayRecord, record_day
from evals.world.truth import Day, Drift, Truth, day_rows
from state.clock import ReplayClock
from state.errors import InputError
from state.spec import ModelSpec

DEFAULT_START = date(2026, 3, 2)
WORLD_STATE = TypeAdapter(WorldState)


class World:
    """Everything outside the control plane, in memory; `save` writes it to one JSON file."""

    def __init__(
        self, folder: Path, *, seed: int = 0, start: date = DEFAULT_START, models: Models | None = None
    ) -> None:
        """`folder` receives model packages only, and `world.json` on `save`."""
        self.folder = folder
        self.models: Models = models or LinearModels()
        self.faults = Faults()
        self.state = WorldState(seed=seed, start=start.isoformat(), next_day=start.isoformat())
        self.clock = ReplayClock(midnight(start))
        """Domain time; `advance` moves it to the end of the day that it served."""
        self.notifier_channels = 1
        self._specs: dict[str, ModelSpec] = {}
        self._days: dict[tuple[str, str], Day] = {}
        self._served: dict[tuple[str, str], DayRecord] = {}
        self._models: dict[str, Model] = {}
        self._history: dict[str, tuple[pl.DataFrame, str]] = {}
        self._labelled: dict[tuple[str, str], pl.DataFrame] = {}

    @classmethod
    def load(cls, folder: Path) -> World:
        """The world that `save` wrote to `folder`, without the faults that were in force."""
        state = WORLD_STATE.validate_json((folder / "world.json").read_bytes())
        world = cls(folder, seed=state.seed, start=date.fromisoformat(state.start))
        world.state = state
        world.clock.advance_to(midnight(date.fromisoformat(state.next_day)))
        for name, model in state.models.items():
            world._specs[name] = ModelSpec.model_validate(model.spec)
        return world

    def save(self) -> Path:
        """Write the whole world, atomically; return the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "world.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(WORLD_STATE.dump_json(self.state))
        temporary.replace(path)
        return path

    @property
    def specs(self) -> dict[str, ModelSpec]:
        return dict(self._specs)

    @property
    def effects(self) -> Sequence[Effect]:
        """Every change that the control plane made, in order."""
        return self.state.effects

    def add(self, spec: ModelSpec, truth: Truth | None = None) -> None:
        """Bring a model's data into the world; nothing is trained or served yet."""
        if spec.model in self.state.models:
            raise InputError(f"model {spec.model!r} is in this world already", remedy="Use another name")
        self._specs[spec.model] = spec
        self.state.models[spec.model] = ModelState(spec=spec.model_dump(mode="json"), truth=truth or Truth())

    def amend(self, spec: ModelSpec) -> None:
        """Replace the spec of a model that is there; a platform built from now on shows the new one."""
        self.model(spec.model).spec = spec.model_dump(mode="json")
        self._specs[spec.model] = spec

    def model(self, name: str) -> ModelState:
        """Raises `InputError` where the world has no such model."""
        try:
            return self.state.models[name]
        except KeyError as exc:
            raise InputError(
                f"model {name!r} is not in this world",
                remedy=f"It has {', '.join(sorted(self.state.models)) or 'none'}",
            ) from exc

    def drift(self, model: str, *drifts: Drift) -> None:
        """Change the truth from a day that was not served yet.

        Raises:
            InputError: the change starts in the past, where records of it exist already.
        """
        for drift in drifts:
            if self.model(model).days and drift.start < self.state.next_day:
                raise InputError(
                    f"{drift.kind} starts on {drift.start}, but days before {self.state.next_day} were served",
                    remedy="Start it later",
                )
        state = self.model(model)
        state.truth = replace(state.truth, drifts=[*state.truth.drifts, *drifts])
        self._forget(lambda model, day: day >= self.state.next_day)

    def release_features(self, model: str, skew: Drift, *, keep_previous: bool) -> str:
        """A team releases a revision of the feature view that serves some values otherwise; returns the revision."""
        views = self.model(model).views
        revision = str(len({view.revision for view in views}) + 1)
        previous = views[-1].revision if keep_previous else None
        views.append(ViewRelease(revision=revision, skew=skew, previous=previous))
        self.drift(model, skew)
        return revision

    def end_skew(self, model: str, skew: Drift) -> None:
        """The online store serves that release no more: from the next day on its values are the offline ones."""
        truth, until = self.model(model).truth, self.state.next_day
        if skew.until is None or skew.until > until:
            ended = [replace(drift, until=until) if drift == skew else drift for drift in truth.drifts]
            self.model(model).truth = replace(truth, drifts=ended)
            self._forget(lambda model, day: day >= until)

    def backfill(self, model: str, day: str) -> None:
        """The rows that a `no_rows` drift held back on an ISO day are sent after all, to the route of their own day."""
        state = self.model(model)
        held = [d for d in state.truth.drifts if d.kind == "no_rows" and d.strength(date.fromisoformat(day)) > 0]
        state.truth = replace(state.truth, drifts=[drift for drift in state.truth.drifts if drift not in held])
        self._forget(lambda name, known: (name, known) == (model, day))

    def degrade(self, model: str, condition: Condition) -> None:
        """Make a version's server misbehave from now on."""
        state = self.model(model)
        if condition.version is None:
            state.conditions.append(condition)
            return
        state.conditions.insert(0, condition)
        server = state.servers.get(condition.version)
        if server is not None and condition.dead:
            server.alive = False

    def condition(self, model: str, version: str) -> Condition:
        """How the version's server behaves; the newest statement about the version wins."""
        for condition in self.model(model).conditions:
            if condition.version == version:
                return condition
        return Condition(version=version)

    def foreign_edit(self, model: str, weights: dict[str, int]) -> None:
        """Somebody edits the weights by hand: the key stays in the document, the revision is a new one."""
        route = self.model(model).route
        if route is None:
            raise InputError(f"model {model!r} has no route yet", remedy="Serve a version first")
        route.weights, route.applied = dict(weights), dict(weights)
        self.state.n_writes += 1
        route.revision = self.state.n_writes

    def misroute(self, model: str, weights: dict[str, int] | None) -> None:
        """From now on the data plane splits by `weights` whatever it confirms; None: it is honest again."""
        route = self.model(model).route
        if route is None or (weights is not None and set(weights) != set(route.weights)):
            raise InputError(f"{weights} is no split of the route of {model!r}", remedy="Name every staged version")
        route.misrouted = weights

    def restart_proxy(self) -> None:
        """The proxy starts again: every counter begins at zero under a new source."""
        self.state.n_proxy_starts += 1
        for state in self.state.models.values():
            state.counters = {version: Counters() for version in state.counters}

    def effect(self, method: str, *, model: str, key: str, args: dict[str, JsonValue]) -> None:
        """Note one change of the world; ports call it once per change."""
        at = self.clock.now().isoformat()
        effects = self.state.effects
        effects.append(Effect(index=len(effects), at=at, method=method, model=model, key=key, args=args))

    def advance(self, n_days: int = 1) -> date:
        """Serve the next day or days of every model; return the last one. The clock then stands at its end."""
        day = date.fromisoformat(self.state.next_day)
        for _ in range(n_days):
            day = date.fromisoformat(self.state.next_day)
            for name in self.state.models:
                self._serve(name, day)
            self.state.next_day = (day + timedelta(days=1)).isoformat()
            self.clock.advance_to(max(self.clock.now(), midnight(day + timedelta(days=1))))
        return day

    def kill(self) -> None:
        """What dies with the control plane: its running pipelines. Servers and routes live on."""
        for run in self.state.runs.values():
            run.lost = run.status == "running"

    def rows(self, model: str, day: date) -> Day:
        """The true rows of any day, served or not."""
        key = (model, day.isoformat())
        if key not in self._days:
            self._days[key] = day_rows(self._specs[model], self.model(model).truth, seed=self.state.seed, day=day)
        return self._days[key]

    def _forget(self, which: Callable[[str, str], bool]) -> None:
        """Days that are another truth from now on. The days before the world's first one never change."""
        for key in [key for key in {*self._days, *self._served} if which(*key)]:
            self._days.pop(key, None)
            self._served.pop(key, None)
            self._labelled.pop(key, None)

    def history(self, model: str) -> tuple[pl.DataFrame, str]:
        """Every row that came with the model, oldest first, with the label and when it became known; and its digest."""
        if model not in self._history:
            days = [self.rows(model, day) for day in self.history_days(model)]
            frame = with_columns_of(pl.concat([day.frame for day in days]), pl.concat([day.labels for day in days]))
            self._history[model] = frame, matrix_digest(frame.drop("available_at"))
        return self._history[model]

    def labelled(self, model: str, day: str) -> pl.DataFrame:
        """The records of a served ISO day with every label that their pipeline ever reports."""
        key = (model, day)
        if key not in self._labelled:
            self._labelled[key] = self._join_labels(model, day)
        return self._labelled[key]

    def _join_labels(self, model: str, day: str) -> pl.DataFrame:
        record = self.served(model, day)
        assert record is not None
        labels = self.rows(model, date.fromisoformat(day)).labels
        return with_columns_of(record.predictions, labels, how="inner")

    def served(self, model: str, day: str) -> DayRecord | None:
        """What was answered on an ISO day; None where the model had no traffic."""
        key = (model, day)
        if key not in self._served:
            found = next((served for served in self.model(model).days if served.day == day), None)
            if found is None:
                return None
            rows = self.rows(model, date.fromisoformat(day))
            self._served[key] = record_day(rows, found, loaded=self._loaded, task=self._specs[model].task, model=model)
        return self._served[key]

    def served_between(self, model: str, first: str, last: str) -> list[str]:
        """The served ISO days from `first` to `last`, both included, oldest first."""
        return [served.day for served in self.model(model).days if first <= served.day <= last]

    def history_days(self, model: str) -> list[date]:
        start = date.fromisoformat(self.state.start)
        return [start - timedelta(days=age) for age in range(self.model(model).truth.history_days, 0, -1)]

    def load_model(self, data: bytes) -> str:
        """Keep the model of a package for serving; return its digest, which names it.

        Raises:
            ToolRejected: the bytes are no model of this world.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._models[digest] = self.models.decode(data)
        self.state.fitted[digest] = data.decode()
        return digest

    def _loaded(self, digest: str) -> Model:
        if digest not in self._models:
            self._models[digest] = self.models.decode(self.state.fitted[digest].encode())
        return self._models[digest]

    def harm(self, model: str) -> dict[str, float]:
        """Day -> rows times expected excess log loss (squared error in a regression) of what was served over the
        truth itself; a request without an answer counts as one nat. The harm integral is the sum."""
        harm: dict[str, float] = {}
        for served in self.model(model).days:
            record = self.served(model, served.day)
            if record is not None:
                harm[served.day] = record.harm(self._specs[model].task)
        return harm

    def _serve(self, name: str, day: date) -> None:
        state = self.model(name)
        if state.route is None:
            return
        split = state.route.misrouted or state.route.applied
        arms = [self._arm(name, version, weight) for version, weight in split.items()]
        served = ServedDay(day=day.isoformat(), arms=arms)
        state.days.append(served)
        record = self.served(name, served.day)
        if record is None:
            return
        for version, counted in record.by_version.items():
            state.counters.setdefault(version, Counters()).add(counted)

    def _arm(self, name: str, version: str, weight: int) -> Arm:
        server = self.model(name).servers.get(version)
        condition = self.condition(name, version)
        return Arm(
            version=version,
            weight=weight,
            digest=server.digest if server is not None and server.alive else None,
            error_ratio=condition.error_ratio,
            latency_ratio=condition.latency_ratio,
            score_shift=condition.score_shift,
            capacity=condition.capacity,
        )


def with_columns_of(
    rows: pl.DataFrame, others: pl.DataFrame, how: Literal["left", "inner"] = "left"
) -> pl.DataFrame:  # fmt: skip
    """`rows` with the other columns of `others` by request id. As a rule both are of one day, row by row: no join then."""
    if rows["request_id"].equals(others["request_id"]):
        return rows.hstack(others.drop("request_id"))
    return rows.join(others, on="request_id", how=how, maintain_order="left")


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


@functools.lru_cache(maxsize=1)
def empty_labels() -> pl.DataFrame:
    """No labels, with the columns that labels have."""
    return pl.DataFrame(schema={"request_id": pl.Utf8, "label": pl.Float64, "available_at": pl.Datetime("us", "UTC")})


def matrix_digest(frame: pl.DataFrame) -> str:
    """SHA-256 over a frame's ids, times, numbers and categories, in row order."""
    digest = hashlib.sha256()
    for column in frame.get_columns():
        if column.dtype == pl.Utf8:
            texts = column.replace("", None).fill_null("\x00")
            digest.update(str(texts.str.join("\x1f").item()).encode())
        else:
            digest.update(np.ascontiguousarray(column.cast(pl.Float64).fill_null(float("nan")).to_numpy()).tobytes())
    return digest.hexdigest()
