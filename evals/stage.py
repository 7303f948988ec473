"""A scenario on stage: the simulated world, and a crew that manages its models through one run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver

from evals.happenings import Happenings
from evals.loading import spec_of
from evals.playbook import answer_as_people
from evals.scenario import Scenario, WorldModel
from evals.scene import Scene, SteppedClock
from evals.world.faults import Killed
from evals.world.platform import build
from evals.world.truth import Truth
from evals.world.world import World
from orchestrator.crew import Crew
from orchestrator.goals.reading import read_goal
from orchestrator.graph import Graph, build_graph
from orchestrator.loop import checkpoint, tick
from orchestrator.people import state_goal
from orchestrator.runs import new_run
from orchestrator.triage import note_cadence
from policies.engine import SHIPPED, PolicySet
from state import store
from state.canonical import digest
from state.clock import Clock
from state.errors import InputError
from state.goals import Goal
from state.ids import Uuid7Source
from state.keys import load_or_create
from state.rows import GoalRow, ModelRow
from state.spec import ModelSpec
from state.store import Database

MAX_TICKS = 400
"""Ticks in which one day has to become quiet."""


@dataclass(slots=True, kw_only=True)
class Stage:
    """The control plane of one run; `restart` makes another one over the same state and the same world."""

    scene: Scene
    happenings: Happenings
    graph: Graph
    forget_threads: bool = False
    """Delete every LangGraph row before every tick."""
    n_restarts: int = 0
    stuck_days: list[int] = field(default_factory=list)
    """Days on which the loop did not become quiet."""

    def play(self) -> Iterator[int]:
        """Live through the scenario; yields the number of each live day once it is over."""
        self._open()
        for day in range(self.scene.scenario.days):
            self.happenings.morning(self.scene, day)
            self._heed_policy()
            self.scene.world.advance()
            self._settle(day)
            yield day
        checkpoint(self.scene.crew)

    def restart(self) -> None:
        """The control plane was killed: what dies with it dies, and another one starts."""
        scene = self.scene
        scene.world.kill()
        scene.crew.db.close()
        self.n_restarts += 1
        scene.crew = make_crew(scene.folder, scene.world, scene.clock, scene.said, start=self.n_restarts)
        self.graph = build_graph(InMemorySaver())

    def _heed_policy(self) -> None:
        """A control plane that starts on an edited set refuses to load it: the edit is found at the next start."""
        edited = self.scene.folder / "policies"
        if not edited.exists() or self.scene.stopped:
            return
        try:
            PolicySet.load(edited, approved_sha256=self.scene.crew.policy.sha256)
        except InputError as exc:
            self.scene.stopped = str(exc)

    def _open(self) -> None:
        """Models and standing goals enter the state, and the loop makes the first champions."""
        crew = self.scene.crew
        specs = list(self.scene.world.specs.values())
        for spec in specs:
            _enter(crew, spec, self.scene.scenario.goal)
        self._settle(-1)
        with self.scene.crew.db.transaction() as conn:
            for spec in specs:
                note_cadence(self.scene.crew, conn, spec, fence=None)

    def _settle(self, day: int) -> None:
        """Tick every model until nothing moves and nobody answers any more."""
        if self.scene.stopped:
            return
        for _ in range(MAX_TICKS):
            moved = [self._tick(spec) for spec in self.scene.world.specs.values()]
            if not any(moved) and not answer_as_people(self.scene):
                return
        self.stuck_days.append(day)

    def _tick(self, spec: ModelSpec) -> bool:
        scene = self.scene
        if self.forget_threads:
            self.graph = build_graph(InMemorySaver())
        try:
            if scene.second_worker:
                rival = make_crew(scene.folder, scene.world, scene.clock, scene.said, owner="worker-2")
                tick(rival, build_graph(InMemorySaver()), spec)
                rival.db.close()
            return tick(scene.crew, self.graph, spec).outcome in ("progressed", "busy")
        except Killed:
            self.restart()
            return True


def set_stage(scenario: Scenario, *, seed: int, folder: Path, twin: bool = False) -> Stage:
    """The scenario before its first day; `twin` leaves out every fault of its timeline."""
    world = World(folder / "world", seed=seed, start=scenario.start)
    for model in scenario.models:
        world.add(spec_of(model), truth_of(model))
    (folder / "second").mkdir(parents=True)
    clock = SteppedClock(world.clock)
    said: list[str] = []
    crew = make_crew(folder, world, clock, said)
    scene = Scene(folder=folder, scenario=scenario, seed=seed, world=world, clock=clock, crew=crew, said=said)
    timeline = [entry for entry in scenario.timeline if entry.harmless or not twin]
    return Stage(scene=scene, happenings=Happenings(timeline), graph=build_graph(InMemorySaver()))


def truth_of(model: WorldModel) -> Truth:
    return Truth(
        rows_per_day=model.rows_per_day, history_days=model.history_days, n_entities=model.n_entities,
        signal=model.signal, intercept=model.intercept, day_sd=model.day_sd, unlabelled_ratio=model.unlabelled_ratio,
    )  # fmt: skip


def _enter(crew: Crew, spec: ModelSpec, goal_text: str | None) -> None:
    """A model and its standing goals as `steady up` brings them in, with the run for its first champion."""
    now = crew.clock.now()
    document = spec.model_dump(mode="json")
    row = ModelRow(id=spec.model, spec=document, spec_sha256=digest(document), base_path=".", added_at=now)
    standing = GoalRow(
        id=crew.ids.new_id(), model=spec.model, status="active", standing=True, goal={"intent": "maintain"},
        text=f"keep {spec.model} as its spec says", asked_by=spec.owner, asked_at=now,
    )  # fmt: skip
    facts: dict[str, bool | str | int | float] = {"training_justified": True, "ab_cleared": True}
    with crew.db.transaction() as conn:
        store.put(conn, row, fence=None)
        store.put(conn, standing, fence=None)
        wanted: Goal | None = read_goal(goal_text) if goal_text else None
        if wanted is not None and wanted.model in (None, spec.model):
            goal = wanted.model_copy(update={"model": spec.model})
            state_goal(conn, goal, text=goal_text or "", user="operator", stamp=crew.stamp(), ids=crew.ids)
        run = new_run(crew, model=spec.model, subject_id=standing.id, subject_kind="goal", facts=facts)
        store.put(conn, run, fence=None)


def make_crew(
    folder: Path, world: World, clock: Clock, said: list[str], *, start: int = 0, owner: str = "worker-1"
) -> Crew:
    """A control plane over the state in `folder`; `start` counts restarts."""
    db = Database.open(f"sqlite:///{folder / 'steady.db'}")
    db.upgrade()
    # Another process draws other ids, even at the same moment of domain time.
    source = random.Random(f"{world.state.seed}/{start}/{owner}")  # noqa: S311  # ids of a simulation
    ids = Uuid7Source(source, milliseconds=lambda: int(clock.now().timestamp() * 1000))
    return Crew(
        db=db, policy=PolicySet.load(SHIPPED), platform=build(world), clock=clock, wall=clock, ids=ids, owner=owner,
        signer=load_or_create(folder / "key", "eval"), second_place=folder / "second",
        say=lambda agent, text: said.append(f"{agent}: {text}"),
    )  # fmt: skip
