"""A scenario on stage: the simulated world, and a crew that manages its models through one run."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver

from evals.bookmark import leave, take_up
from evals.happenings import Happenings
from evals.injections import AnyInjection
from evals.ledger_watch import LedgerWatch
from evals.loading import spec_of
from evals.playbook import SETUP_APPROVER, answer_as_people
from evals.scenario import Scenario, WorldModel
from evals.scene import Scene, SteppedClock, policy_folder
from evals.world.faults import Fault, Killed
from evals.world.platform import build
from evals.world.replayed import Replayed
from evals.world.truth import Truth
from evals.world.world import World
from orchestrator.crew import Crew
from orchestrator.goals.reading import read_goal
from orchestrator.graph import Graph, build_graph
from orchestrator.intake import add_model
from orchestrator.loop import checkpoint, tick
from orchestrator.people import state_goal
from orchestrator.triage import note_cadence
from policies.current import CurrentPolicy
from policies.engine import SHIPPED, PolicySet
from state import log
from state.canonical import digest
from state.clock import Clock
from state.decisions import Genesis
from state.errors import InputError
from state.ids import Uuid7Source
from state.keys import load_or_create
from state.spec import ModelSpec
from state.store import Database
from tools.language import LanguageModel

FIRST_WORKER = "worker-1"
SET_UP = -1
"""Before the first live day: the models are not there yet."""
MAX_TICKS = 400
"""Ticks in which one day has to become quiet."""


@dataclass(slots=True, kw_only=True)
class Stage:
    """The control plane of one run; `restart` makes another one over the same state and the same world."""

    scene: Scene
    happenings: Happenings
    graph: Graph
    first_day: int = SET_UP
    """Live day that comes next, or `SET_UP`."""
    forget_threads: bool = False
    """Delete every LangGraph row before every tick."""
    ledger: LedgerWatch | None = None
    """What watches the commits of the ticks; None: nothing does."""
    n_restarts: int = 0
    bookmarks: dict[int, Path] = field(default_factory=dict)
    """Live day -> new folder for the state before its morning."""
    stuck_days: list[int] = field(default_factory=list)
    """Days on which the loop did not become quiet."""

    def play(self) -> Iterator[int]:
        """Live through the scenario; yields the number of each live day once it is over."""
        if self.first_day == SET_UP:
            self._open()
        for day in range(max(self.first_day, 0), self.scene.scenario.days):
            if day in self.bookmarks:
                leave(self.scene, self.bookmarks[day])
            self.happenings.morning(self.scene, day)
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
        scene.draws = draws_of(scene.seed, start=self.n_restarts)
        scene.crew = make_crew(scene.folder, scene.world, scene.clock, scene.said, draws=scene.draws)
        self.graph = build_graph(InMemorySaver())

    def _open(self) -> None:
        """Models and standing goals enter the state, and the loop makes the first champions."""
        scene = self.scene
        begin(scene.crew)
        specs = list(scene.world.specs.values())
        for spec in specs:
            _enter(scene.crew, spec, scene.scenario.goal)
            # Whatever the crew may do later, the first champion is in service before the scenario begins.
            scene.world.amend(spec.model_copy(update={"autonomy": {}, "freezes": []}))
        self._sees_specs()
        self._settle(-1)
        for spec in specs:
            if "champion" not in scene.world.model(spec.model).aliases:
                told = "; ".join(message.text for message in scene.world.state.messages)
                raise InputError(
                    f"{spec.model}: no first champion came about before day 0: {told or 'nothing was told'}",
                    remedy="Give it more history_days or rows_per_day, a stronger signal, or looser gates",
                )
            scene.world.amend(spec)
        self._sees_specs()
        with scene.crew.db.transaction() as conn:
            for spec in specs:
                note_cadence(scene.crew, conn, spec, fence=None)

    def _sees_specs(self) -> None:
        self.scene.crew = replace(self.scene.crew, platform=build(self.scene.world))

    def _settle(self, day: int) -> None:
        """Tick every model until nothing moves and nobody answers any more."""
        for _ in range(MAX_TICKS):
            moved = [self._tick(spec) for spec in self.scene.world.specs.values()]
            people = self.scene.scenario.people if day >= 0 else [SETUP_APPROVER]
            if not any(moved) and not answer_as_people(self.scene, people):
                return
        self.stuck_days.append(day)

    def _tick(self, spec: ModelSpec) -> bool:
        scene = self.scene
        if self.forget_threads:
            self.graph = build_graph(InMemorySaver())
        try:
            if scene.second_worker:
                draws = draws_of(scene.seed, owner="worker-2")
                rival = make_crew(scene.folder, scene.world, scene.clock, scene.said, draws=draws, owner="worker-2")
                tick(rival, build_graph(InMemorySaver()), spec)
                rival.db.close()
            crew = scene.crew if self.ledger is None else self.ledger.watched(scene.crew)
            return tick(crew, self.graph, spec).outcome in ("progressed", "busy")
        except Killed:
            self.restart()
            return True


def set_stage(
    scenario: Scenario, *, seed: int, folder: Path, twin: bool = False, language: LanguageModel | None = None
) -> Stage:
    """The scenario before its set-up; `twin` leaves out every fault of its timeline."""
    world = World(folder / "world", seed=seed, start=scenario.start)
    for model in scenario.models:
        world.add(spec_of(model), truth_of(model, scenario.start))
    (folder / "second").mkdir(parents=True)
    timeline = [entry for entry in scenario.timeline if entry.harmless or not twin]
    return _stage(_scene(scenario, seed, folder, world, draws_of(seed), language), timeline)


def set_stage_at(
    bookmark: Path,
    scenario: Scenario,
    day: int,
    *,
    seed: int,
    folder: Path,
    moment: Moment | None = None,
    language: LanguageModel | None = None,
) -> Stage:
    """The scenario on the morning of a live day, of which a run left a bookmark; `moment` where faults were under way."""
    draws = random.Random()  # noqa: S311  # ids of a simulation
    world = take_up(bookmark, folder, draws)
    stage = _stage(_scene(scenario, seed, folder, world, draws, language), scenario.timeline)
    stage.first_day = day
    if moment is not None:
        moment.resume(stage)
    return stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a run that is under way knows beside its world and its state: which faults began, and which are in force."""

    happenings: Happenings
    faults: list[Fault]
    """Those in force."""
    began: dict[str, int]
    amiss: list[str]
    n_restarts: int
    stuck_days: list[int]

    @classmethod
    def of(cls, stage: Stage) -> Moment:
        scene = stage.scene
        found = cls(
            happenings=stage.happenings, faults=scene.world.faults.active, began=scene.began, amiss=scene.amiss,
            n_restarts=stage.n_restarts, stuck_days=stage.stuck_days,
        )  # fmt: skip
        return deepcopy(found)  # all at once: an end in `happenings` names its fault by the object

    def resume(self, stage: Stage) -> None:
        """Put a copy of everything in its place."""
        kept, scene = deepcopy(self), stage.scene
        stage.happenings = kept.happenings
        scene.world.faults.add(*kept.faults)
        scene.began, scene.amiss = kept.began, kept.amiss
        stage.n_restarts, stage.stuck_days = kept.n_restarts, kept.stuck_days


def _scene(
    scenario: Scenario, seed: int, folder: Path, world: World, draws: random.Random, language: LanguageModel | None
) -> Scene:
    clock = SteppedClock(world.clock)
    said: list[str] = []
    return Scene(
        folder=folder, scenario=scenario, seed=seed, world=world, clock=clock, draws=draws, said=said,
        crew=make_crew(folder, world, clock, said, draws=draws), language=language,
    )  # fmt: skip


def _stage(scene: Scene, timeline: list[AnyInjection]) -> Stage:
    return Stage(scene=scene, happenings=Happenings(timeline), graph=build_graph(InMemorySaver()))


def truth_of(model: WorldModel, start: date) -> Truth:
    replay = model.replay
    return Truth(
        replay=Replayed(spec=replay.spec, shift_days=(start - replay.first_day).days) if replay is not None else None,
        rows_per_day=model.rows_per_day, history_days=model.history_days, n_entities=model.n_entities,
        signal=model.signal, intercept=model.intercept, day_sd=model.day_sd, unlabelled_ratio=model.unlabelled_ratio,
    )  # fmt: skip


def begin(crew: Crew) -> None:
    """The genesis decision, as the first start of a workspace writes it: the set that holds, and the key that signs."""
    genesis = Genesis(
        **crew.stamp(), actor='User::"operator"', summary="First start.", policy_sha256=crew.policy.sha256,
        signing_key=crew.signer.vkey, roles={},
    )  # fmt: skip
    with crew.db.transaction() as conn:
        log.append(conn, genesis)


def _enter(crew: Crew, spec: ModelSpec, goal_text: str | None) -> None:
    """A model as `steady up` brings it in, and the standing goal of the scenario."""
    with crew.db.transaction() as conn:
        add_model(crew, conn, spec, spec_sha256=digest(spec.model_dump(mode="json")), base_path=".")
        wanted = read_goal(goal_text) if goal_text else None
        if wanted is not None and wanted.model in (None, spec.model):
            goal = wanted.model_copy(update={"model": spec.model})
            state_goal(conn, goal, text=goal_text or "", user="operator", stamp=crew.stamp(), ids=crew.ids)


def draws_of(seed: int, *, start: int = 0, owner: str = FIRST_WORKER) -> random.Random:
    """Random numbers behind a process's ids: one that starts again draws others, even at the same domain time."""
    return random.Random(f"{seed}/{start}/{owner}")  # noqa: S311  # ids of a simulation


@functools.cache
def _empty_database() -> bytes:
    """A database of this release's schema: making one takes longer than living through a day."""
    with tempfile.TemporaryDirectory(prefix="steady-eval-") as folder:
        path = Path(folder) / "steady.db"
        with Database.open(f"sqlite:///{path}", durable=False) as db:
            db.upgrade()
        return path.read_bytes()


@functools.cache
def _shipped() -> PolicySet:
    return PolicySet.load(SHIPPED)


def make_crew(
    folder: Path, world: World, clock: Clock, said: list[str], *, draws: random.Random, owner: str = FIRST_WORKER
) -> Crew:
    """A control plane over the state in `folder`; `draws` make its ids."""
    path = folder / "steady.db"
    if not path.exists():
        path.write_bytes(_empty_database())
    db = Database.open(f"sqlite:///{path}", durable=False)
    ids = Uuid7Source(draws, milliseconds=lambda: int(clock.now().timestamp() * 1000))
    policy = CurrentPolicy(policy_folder(folder), _shipped())
    return Crew(
        db=db, policy=policy, platform=build(world), clock=clock, wall=clock, ids=ids, owner=owner,
        signer=load_or_create(folder / "key", "eval"), second_place=folder / "second",
        say=lambda agent, text: said.append(f"{agent}: {text}"),
    )  # fmt: skip
