"""A crew over the simulated world, for tests of the loop."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver

from evals.world.platform import build, example_spec
from evals.world.truth import Drift, Truth
from evals.world.world import World
from orchestrator.crew import Crew
from orchestrator.graph import Graph, build_graph
from orchestrator.loop import run_until_quiet
from orchestrator.runs import new_run
from orchestrator.triage import note_cadence
from policies.engine import PolicySet
from state import store
from state.clock import ReplayClock
from state.ids import Uuid7Source
from state.keys import load_or_create
from state.rows import DetectorRow, GoalRow, ModelRow
from state.spec import ModelSpec
from state.store import Database

__all__ = ["Drift", "Stage", "Truth", "staged"]


@dataclass
class Stage:
    """One model in the world with a crew that manages it."""

    folder: Path
    spec: ModelSpec
    world: World
    crew: Crew
    graph: Graph
    clock: ReplayClock
    said: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Put the model and its standing goal into the state and let the loop make its first champion."""
        with self.crew.db.transaction() as conn:
            row = ModelRow(
                id=self.spec.model, spec=self.spec.model_dump(mode="json"), spec_sha256="0" * 64, base_path=".",
                added_at=self.clock.now(),
            )  # fmt: skip
            store.put(conn, row, fence=None)
            goal = GoalRow(
                id=self.crew.ids.new_id(), model=self.spec.model, status="active", standing=True, goal={"intent": "maintain"},
                text="keep it good", asked_by=self.spec.owner, asked_at=self.clock.now(),
            )  # fmt: skip
            store.put(conn, goal, fence=None)
            facts: dict[str, bool | str | int | float] = {"training_justified": True, "ab_cleared": True}
            run = new_run(self.crew, model=self.spec.model, subject_id=goal.id, subject_kind="goal", facts=facts)
            store.put(conn, run, fence=None)
        self.settle()
        with self.crew.db.transaction() as conn:
            note_cadence(self.crew, conn, self.spec, fence=None)

    def settle(self) -> None:
        for _ in range(50):
            if run_until_quiet(self.crew, self.graph, self.spec).outcome == "quiet":
                return
        raise AssertionError("the loop does not become quiet")

    def days(self, n_days: int) -> None:
        """Live through `n_days` of traffic, one barrier a day."""
        for _ in range(n_days):
            self.world.advance()
            self.settle()

    def champion(self) -> str | None:
        with self.crew.db.transaction() as conn:
            row = store.get(conn, DetectorRow, f"{self.spec.model}/champion")
        return str(row.state["version"]) if row is not None else None

    def again(self, *, owner: str = "worker-1") -> Stage:
        """Another control plane over the same state and the same world: a restart after a kill."""
        crew = make_crew(self.folder, self.world, self.clock, self.said, owner=owner)
        return Stage(
            folder=self.folder, spec=self.spec, world=self.world, crew=crew, graph=build_graph(InMemorySaver()),
            clock=self.clock, said=self.said,
        )  # fmt: skip


_STARTS = itertools.count(7)


def make_crew(folder: Path, world: World, clock: ReplayClock, said: list[str], *, owner: str = "worker-1") -> Crew:
    db = Database.open(f"sqlite:///{folder / 'steady.db'}")
    db.upgrade()
    return Crew(
        db=db, policy=PolicySet.load(), platform=build(world), clock=clock,
        # Another process draws other ids, even at the same moment of domain time.
        ids=Uuid7Source(random.Random(next(_STARTS)), milliseconds=lambda: int(clock.now().timestamp() * 1000)),
        owner=owner, signer=load_or_create(folder / "key", "test"), second_place=folder / "second",
        say=lambda agent, text: said.append(f"{agent}: {text}"),
    )  # fmt: skip


@contextmanager
def staged(folder: Path, *, seed: int = 0, truth: Truth | None = None, **changes: object) -> Iterator[Stage]:
    """A world with one model, and a crew that has not begun."""
    spec = example_spec(**changes)  # type: ignore[arg-type]
    world = World(folder / "world", seed=seed)
    world.add(spec, truth)
    said: list[str] = []
    (folder / "second").mkdir()
    stage = Stage(
        folder=folder, spec=spec, world=world, crew=make_crew(folder, world, world.clock, said),
        graph=build_graph(InMemorySaver()), clock=world.clock, said=said,
    )  # fmt: skip
    try:
        yield stage
    finally:
        stage.crew.db.close()

