"""The loop, unchanged, over a recorded history: what it would have raised, asked and done, day by day."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias

import polars as pl
from langgraph.checkpoint.memory import InMemorySaver

from evals.backtest.labels import AVAILABLE
from evals.backtest.pipelines import RecordedPipelines
from evals.backtest.predictions import ID
from evals.backtest.recording import DAY, Recording, late_by
from evals.backtest.world import RecordedWorld, platform_of
from evals.stage import MAX_TICKS, begin
from evals.world.world import midnight
from orchestrator.context import minimum_rows
from orchestrator.crew import Crew
from orchestrator.graph import Graph, build_graph
from orchestrator.intake import add_model
from orchestrator.loop import checkpoint, tick
from orchestrator.people import answer_question
from orchestrator.triage import note_cadence
from policies.current import CurrentPolicy
from policies.engine import PolicySet
from state import store
from state.canonical import digest
from state.errors import InputError
from state.ids import Uuid7Source
from state.keys import load_or_create
from state.rows import ActionRow, ApprovalRow, IncidentRow, RunRow
from state.spec import ModelSpec, RecipeTraining
from state.store import Database

Answers: TypeAlias = Literal["none", "approve"]
WATCH_ONLY = RecipeTraining.model_validate(
    {"kind": "recipe", "candidates": [{"name": "as-served", "estimator": "hist_gradient_boosting"}]}
)
"""Stands in the place of a training that is not carried out here; nothing is ever fitted by it."""
NEVER = timedelta(days=36_500)
APPROVER = "approver"
SPARE = 2
"""Times the requests of a verdict that a canary should expect: with just as many, every second one would miss them, and
traffic has thinner weeks than its mean."""


@dataclass(slots=True, kw_only=True)
class Lived:
    """A run that is over; `close` it when its rows were read."""

    recording: Recording
    world: RecordedWorld
    crew: Crew
    pipelines: RecordedPipelines
    first_day: date
    last_day: date
    notes: list[str]
    stuck_days: list[str] = field(default_factory=list)
    """Days on which the loop did not become quiet."""

    def close(self) -> None:
        self.crew.db.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a history is to be lived through."""

    history_days: int | None = None
    """Days before live operation; None takes `default_history`."""
    n_days: int | None = None
    """Live days; None goes to the end of the file."""
    answers: Answers = "none"
    policy_dir: Path


def default_history(spec: ModelSpec) -> int:
    """Days that a first champion and its reference need: six weeks (or twelve blocks), the holdout and the delay."""
    held = spec.training.holdout if isinstance(spec.training, RecipeTraining) else timedelta(days=14)
    needed = max(timedelta(days=42), 12 * spec.monitoring.block) + held + spec.data.label.delay
    return -(-needed // DAY)


def history_needed(recording: Recording) -> int:
    """`default_history`, or longer until as many labelled rows are known as policy asks of a first champion.

    It reads nothing that became available after the start that it names.
    """
    least, enough = default_history(recording.spec), minimum_rows(recording.spec)
    known_after: list[int] = []  # days from the first one until a label is known, ascending
    for day in recording.days:
        since = (date.fromisoformat(day) - recording.first_day).days
        if len(known_after) >= enough and known_after[enough - 1] <= since:
            break
        first = recording.labels_of(day).group_by(ID).agg(pl.col(AVAILABLE).min())[AVAILABLE]
        waited = (first - midnight(recording.first_day)).to_list()
        due = since + 1 - (-recording.spec.data.label.delay // DAY)
        known_after = sorted([*known_after, *(max(due, -(-time // DAY)) for time in waited)])[:enough]
    return max(least, known_after[-1]) if len(known_after) == enough else least


def live(recording: Recording, folder: Path, wish: Wish, *, told: Callable[[str], None]) -> Lived:
    """Make the first champion on the days before live operation, then live through the others.

    Raises:
        InputError: the history is too short, or no first champion comes of it.
    """
    n_before = wish.history_days or history_needed(recording)
    _refuse_short(recording, n_before)
    start = recording.first_day + n_before * DAY
    n_live = (recording.last_day - start).days + 1
    last = start + (min(n_live, wish.n_days or n_live) - 1) * DAY
    used, notes = spec_to_live(recording)
    notes += [text for text in [late_by(recording, start=midnight(start))] if text]
    before = [n for day, n in recording.days.items() if day < start.isoformat()]
    if recording.can_train:
        used, text = rollout_to_live(used, per_day=sum(before) / n_before)
        notes += [text] if text else []
    recording = _with_spec(recording, used)
    world = RecordedWorld(folder / "world", recording, start=start)
    pipelines = RecordedPipelines(world)
    crew = _crew(folder, world, pipelines, wish.policy_dir)
    lived = Lived(
        recording=recording, world=world, crew=crew, pipelines=pipelines, first_day=start, last_day=last, notes=notes
    )
    try:
        _Days(lived, wish.answers, told).run()
    except BaseException:
        lived.close()
        raise
    return lived


def spec_to_live(recording: Recording) -> tuple[ModelSpec, list[str]]:
    """The spec that the loop reads: what a history by days cannot carry out is replaced, and each change is told."""
    spec, notes = recording.spec, []
    if spec.monitoring.block < DAY:
        notes.append(f"Blocks of {spec.monitoring.block / timedelta(hours=1):g} hours are judged by whole days here.")
        spec = spec.model_copy(update={"monitoring": spec.monitoring.model_copy(update={"block": DAY})})
    if spec.outcomes == "affected":
        notes.append(
            "outcomes: affected - the recorded labels came about under the model of that time; what another model would "
            "have caused cannot be known, and no backtest judges by it."
        )
    if not recording.can_train:
        notes.append(
            f"Nothing is trained: {recording.why_not}. The loop watches, and says what it would raise and ask."
        )
        monitoring = spec.monitoring.model_copy(update={"cadence": NEVER})
        training = spec.training if isinstance(spec.training, RecipeTraining) else WATCH_ONLY
        spec = spec.model_copy(update={"monitoring": monitoring, "training": training})
    return spec, notes


def rollout_to_live(spec: ModelSpec, *, per_day: float) -> tuple[ModelSpec, str]:
    """The spec with a rollout that a candidate can come through, and what a person should know of it.

    Where a step of the rollout cannot see enough requests before its deadline, a larger one is lived with, or a later
    deadline - if the spec leaves both to their defaults. What a spec declares is obeyed as it is. "" where nothing is to say.
    """
    rollout = spec.rollout
    least, days = rollout.minimum_requests, max(rollout.deadline, rollout.dwell) / DAY
    steps = [step for step in rollout.steps if step > 0]
    n_seen = per_day * min(steps, default=100) / 100 * days
    if n_seen >= least or not per_day:
        return spec, ""
    wanted = math.ceil(100 * SPARE * least / (per_day * days))
    larger: dict[str, Any] = {"steps": [min(wanted, rollout.max_percent)]}
    remedy = f"rollout.steps: {larger['steps']}"
    if wanted > rollout.max_percent:
        longer = math.ceil(100 * SPARE * least / (per_day * rollout.max_percent))
        larger["deadline"] = timedelta(days=longer)
        remedy += f" and rollout.deadline: P{longer}D"
    why = (
        f"At {per_day:.3g} predictions a day a canary of {min(steps)} % sees about {n_seen:.2g} requests in {days:g} days, and a "
        f"verdict needs {least}: no candidate can come through."
    )
    if {"steps", "deadline"} & rollout.model_fields_set:
        return spec, f"{why} With {remedy} one could."
    lived = spec.model_copy(update={"rollout": rollout.model_copy(update=larger)})
    return lived, f"{why} The spec does not declare them, so {remedy} was lived with here: write it into the spec."


def _with_spec(recording: Recording, spec: ModelSpec) -> Recording:
    return replace(recording, spec=spec)


def _refuse_short(recording: Recording, n_before: int) -> None:
    n_span = (recording.last_day - recording.first_day).days + 1
    if n_before < n_span:
        return
    fewer = f", or make fewer of these {n_span} days the start with --history DAYS" if n_span > 1 else ""
    days = f"{n_span} days, from {recording.first_day} to {recording.last_day}" if n_span > 1 else "a single day"
    raise InputError(
        f"{recording.spec.model}: the predictions span {days}, and {n_before} days are needed as the history of the first "
        "champion: no live day is left",
        remedy=f"Give a longer history{fewer}",
    )


def _crew(folder: Path, world: RecordedWorld, pipelines: RecordedPipelines, policy_dir: Path) -> Crew:
    db = Database.open(f"sqlite:///{folder / 'steady.db'}", durable=False)
    db.upgrade()
    (folder / "second").mkdir()
    # Ids are part of no decision, and the same on every run.
    ids = Uuid7Source(random.Random(0), milliseconds=lambda: int(world.clock.now().timestamp() * 1000))  # noqa: S311
    policy = CurrentPolicy(policy_dir, PolicySet.load(policy_dir))
    return Crew(
        db=db, policy=policy, platform=platform_of(world, pipelines), clock=world.clock, wall=world.clock, ids=ids,
        owner="backtest", signer=load_or_create(folder / "key", "backtest"), second_place=folder / "second",
    )  # fmt: skip


class _Days:
    """The days of one run."""

    def __init__(self, lived: Lived, answers: Answers, told: Callable[[str], None]) -> None:
        self._lived = lived
        self._answers = answers
        self._told = told
        self._graph: Graph = build_graph(InMemorySaver())
        self._spec = lived.recording.spec

    def run(self) -> None:
        self._open()
        world, lived = self._lived.world, self._lived
        n_days = (lived.last_day - lived.first_day).days + 1
        for n in range(n_days):
            world.advance()
            self._settle(world.clock.now().date() - DAY)
            self._told(f"{world.clock.now() - DAY:%Y-%m-%d}: day {n + 1} of {n_days}, {self._so_far()}")
        checkpoint(lived.crew)

    def _open(self) -> None:
        """The model comes under management, and its first champion is made of the history."""
        crew, spec = self._lived.crew, self._spec
        begin(crew)
        self._told("making the first champion of the history")
        with crew.db.transaction() as conn:
            add_model(crew, conn, spec, spec_sha256=digest(spec.model_dump(mode="json")), base_path=".")
        self._settle(self._lived.first_day - DAY, start=True)
        if "champion" not in self._lived.world.model(spec.model).aliases:
            self._refuse_start()
        if failed := self._failed_gates():
            self._lived.notes.append(
                f"The first champion misses its gates ({'; '.join(failed)}). It stands for a model that serves already, so "
                "they were waived; every candidate after it has to meet them."
            )
        with crew.db.transaction() as conn:
            note_cadence(crew, conn, spec, fence=None)

    def _refuse_start(self) -> None:
        with self._lived.crew.db.snapshot() as conn:
            actions = store.select(conn, ActionRow, model=self._spec.model, state="failed")
        errors = dict.fromkeys(action.message for action in actions if action.message)
        why = "; ".join(errors) or self._waits_for()
        raise InputError(
            f"{self._spec.model}: no first champion comes of the history before {self._lived.first_day}: {why}",
            remedy="Give a longer history with --history DAYS, or correct the labels"
            if self._lived.recording.has_scores
            else "Give a longer history with --history DAYS, correct the recipe, or add the scores that your own model gave",
        )

    def _failed_gates(self) -> list[str]:
        return [
            f"{gate['metric']} is {_said(gate['value'])} and has to be {gate['op']} {gate['bound']}"
            for run in self._lived.world.state.runs.values() if run.pipeline == "train"
            for gate in run.outputs.get("gates", [])  # type: ignore[union-attr]
            if isinstance(gate, dict) and not gate["passed"]
        ]  # fmt: skip

    def _waits_for(self) -> str:
        with self._lived.crew.db.snapshot() as conn:
            runs = store.select(conn, RunRow, model=self._spec.model)
        return "; ".join(run.waits_for or run.outcome for run in runs) or "the loop made none"

    def _settle(self, day: date, *, start: bool = False) -> None:
        """Tick until nothing moves and nobody answers any more."""
        for _ in range(MAX_TICKS):
            moved = tick(self._lived.crew, self._graph, self._spec).outcome in ("progressed", "busy")
            if not moved and not self._answer(start):
                return
        self._lived.stuck_days.append(day.isoformat())

    def _answer(self, start: bool) -> bool:
        """Say yes to what was asked a day ago, where somebody does; whether anything was.

        The first champion stands for what was in service already: nobody is waited for, and its gates are waived.
        """
        if self._answers == "none" and not start:
            return False
        crew, wait = self._lived.crew, timedelta(0) if start else DAY
        with crew.db.transaction() as conn:
            pending = store.select(conn, ApprovalRow, status="pending")
        answered = False
        for row in [row for row in pending if crew.clock.now() - row.asked_at >= wait]:
            try:
                with crew.db.transaction() as conn:
                    answer_question(
                        conn, row.id, answer="approved", user=APPROVER, comment="simulated", stamp=crew.stamp()
                    )
                answered = True
            except InputError:
                continue  # it expired meanwhile: it is asked anew
        return answered

    def _so_far(self) -> str:
        with self._lived.crew.db.snapshot() as conn:
            incidents = store.select(conn, IncidentRow, model=self._spec.model)
        n_open = sum(row.status == "open" for row in incidents)
        version = self._lived.world.model(self._spec.model).aliases.get("champion", "-")
        return f"champion {version}, {len(incidents)} incidents so far, {n_open} open"


def _said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not measurable"
