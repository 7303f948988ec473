"""A crew over the simulated world, for tests of the loop."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from langgraph.checkpoint.memory import InMemorySaver
from pydantic import JsonValue

from evals.world.platform import build, example_spec
from evals.world.truth import Drift, Truth
from evals.world.world import World
from orchestrator.crew import Crew
from orchestrator.graph import Graph, build_graph
from orchestrator.intake import add_model
from orchestrator.loop import Tick, checkpoint, run_until_quiet, tick
from orchestrator.people import answer_question, hold_model, state_goal
from orchestrator.triage import note_cadence
from policies.engine import PolicySet
from state import audit, log, store
from state.canonical import digest
from state.clock import ReplayClock
from state.decisions import AnyDecision
from state.goals import Goal
from state.ids import Uuid7Source
from state.keys import load_or_create
from state.plans import ActionKind
from state.rows import (
    ActionRow,
    ApprovalRow,
    DetectorRow,
    IncidentRow,
    OutboxRow,
    RolloutRow,
    RunRow,
    SwitchRow,
)
from state.spec import ModelSpec
from state.store import Database
from tools.ports import PipelineRequest

__all__ = ["QUICK", "SMALL", "Drift", "Stage", "Truth", "days", "staged"]

MODEL = "churn"


def days(n: float) -> timedelta:
    return timedelta(days=n)


SMALL = Truth(rows_per_day=200, history_days=10)
QUICK: dict[str, Any] = {
    "label_delay_days": 0,
    "monitoring": {
        "cadence": days(8), "backtest": days(4), "min_blocks": 3, "recovery": days(1), "false_alarm_blocks": 1e12,
    },
    "rollout": {
        "steps": [10, 30], "dwell": days(1), "bake": days(1), "minimum_requests": 5, "deadline": days(2), "failure_limit": 1,
        "ab_test": {"percent": 50, "horizon": days(3), "minimum_samples": 50},
    },
    "training": {
        "kind": "recipe", "candidates": [{"name": "logistic", "estimator": "logistic_regression"}],
        "window": days(4), "holdout": days(2), "folds": 2,
    },
    "gates": [{"metric": "roc_auc", "op": ">=", "value": 0.55}],
}  # fmt: skip
"""A model whose whole remedy, from drift to sustained health, takes a fortnight of its time and two seconds of ours."""


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
        document = self.spec.model_dump(mode="json")
        with self.crew.db.transaction() as conn:
            add_model(self.crew, conn, self.spec, spec_sha256=digest(document), base_path=".")
        self.settle()
        with self.crew.db.transaction() as conn:
            note_cadence(self.crew, conn, self.spec, fence=None)

    def settle(self) -> None:
        for _ in range(50):
            if run_until_quiet(self.crew, self.graph, self.spec, max_ticks=60).outcome == "quiet":
                return
        raise AssertionError("the loop does not become quiet")

    def tick(self) -> Tick:
        return tick(self.crew, self.graph, self.spec)

    def days(self, n_days: int) -> None:
        """Live through `n_days` of traffic, one barrier a day."""
        for _ in range(n_days):
            self.world.advance()
            self.settle()

    def drift(self, kind: str, magnitude: float = 1.0, **more: Any) -> None:
        """The world changes from the next day on."""
        start = self.world.state.next_day
        self.world.drift(MODEL, Drift(kind=kind, start=start, magnitude=magnitude, **more))  # type: ignore[arg-type]

    def ask(self, intent: str, **goal: Any) -> RunRow:
        """A person's one-off goal with its run, as the console makes them."""
        wanted, crew = Goal.model_validate({"intent": intent, "model": MODEL, **goal}), self.crew
        with crew.db.transaction() as conn:
            row = state_goal(
                conn, wanted, text=f"{intent} {MODEL}", user="alice", stamp=crew.stamp(), ids=crew.ids
            )  # fmt: skip
        run: RunRow
        (run,) = self.rows(RunRow, subject_id=row.id)
        return run

    def answer(
        self, status: Literal["approved", "rejected"], comment: str = "", *, action: ActionKind | None = None
    ) -> ApprovalRow:
        """A person answers the only pending question, or the only one about `action`."""
        row: ApprovalRow
        (row,) = [a for a in self.rows(ApprovalRow, status="pending") if action in (None, a.action)]
        with self.crew.db.transaction() as conn:
            return answer_question(
                conn, row.id, answer=status, user="bob", comment=comment, stamp=self.crew.stamp()
            )  # fmt: skip

    def switch(self, name: str, **body: JsonValue) -> None:
        self.put(SwitchRow(id=name, body=body))

    def hold(self, held: bool) -> None:
        """Hold or resume as the console does."""
        with self.crew.db.transaction() as conn:
            hold_model(conn, MODEL, held=held, user="alice", reason="", stamp=self.crew.stamp())

    def register(self, *, until: str | None = None) -> str:
        """A version that a team registered by hand, trained on rows up to `until` only."""

        platform = build(self.world)
        end = until or self.clock.now().isoformat()
        parameters: dict[str, JsonValue] = {
            "spec": self.spec.model_dump_json(), "end": end, "as_of": self.clock.now().isoformat(), "seed": 0,
        }  # fmt: skip
        key = "setup" + digest(parameters)
        platform.pipelines.submit(PipelineRequest(pipeline="train", model=MODEL, parameters=parameters), key=key)
        run = platform.pipelines.find(key)
        assert run is not None and run.status == "succeeded", run
        found = platform.registry.register(
            model=MODEL, mlflow_run_id=str(run.outputs["mlflow_run_id"]), tags={}, key=key
        )
        return found.version

    # What is there now

    def put(self, row: Any) -> None:
        with self.crew.db.transaction() as conn:
            store.put(conn, row, fence=None)

    def rows(self, row_type: Any, **where: Any) -> list[Any]:
        with self.crew.db.transaction() as conn:
            return store.select(conn, row_type, **where)

    def log(self) -> list[AnyDecision]:
        with self.crew.db.transaction() as conn:
            return [entry.decision for entry in log.read(conn)]

    def champion(self) -> str | None:
        with self.crew.db.transaction() as conn:
            row = store.get(conn, DetectorRow, f"{self.spec.model}/champion")
        return str(row.state["version"]) if row is not None else None

    def alias(self) -> str | None:
        return self.world.model(MODEL).aliases.get("champion")

    def weights(self) -> dict[str, int]:
        route = self.world.model(MODEL).route
        return dict(route.weights) if route is not None else {}

    def rollout(self) -> RolloutRow:
        """The newest rollout."""
        return self.rows(RolloutRow)[-1]  # type: ignore[no-any-return]

    def incidents(self) -> list[IncidentRow]:
        return self.rows(IncidentRow)

    def verified(self) -> list[ActionRow]:
        """Verified actions in the order in which they were intended."""
        return [row for row in self.rows(ActionRow, order="created_at") if row.state in ("verified", "reverted")]

    def kinds(self, *only: ActionKind) -> list[str]:
        """Verified kinds in the order of the log."""
        done = [d for d in self.log() if d.kind == "action_changed" and d.state == "verified"]
        return [d.action for d in done if not only or d.action in only]

    def traffic_writes(self) -> list[dict[str, Any]]:
        """Every split that was written, oldest first."""
        return [dict(e.args["weights"]) for e in self.world.effects if e.method == "mesh.set_weights"]  # type: ignore[arg-type]

    def story(self) -> list[tuple[str, str]]:
        """What was verified, with args that name no id of ours: the same for two runs of the same world."""
        ours = ("rollout", "after", "cause", "corrects", "mlflow_run_id")
        return [(a.kind, str({k: v for k, v in a.args.items() if k not in ours})) for a in self._in_log_order()]

    def _in_log_order(self) -> list[ActionRow]:
        rows = {row.id: row for row in self.rows(ActionRow)}
        return [rows[d.action_key] for d in self.log() if d.kind == "action_changed" and d.state == "verified"]

    def messages(self) -> list[OutboxRow]:
        return self.rows(OutboxRow)

    def check_books(self) -> None:
        """Every effect once, with an intent and an outcome; the log verifies; nothing is left open."""
        said = Counter((e.method, e.key) for e in self.world.effects)
        assert [item for item, n in said.items() if n > 1] == []
        actions = {row.id: row for row in self.rows(ActionRow)}
        outbox = {row.key for row in self.messages()}
        for effect in self.world.effects:
            if not effect.key.startswith("setup"):
                assert effect.key in actions or effect.key in outbox, effect
        assert {row.state for row in actions.values()} <= {"verified", "failed", "reverted"}
        checkpoint(self.crew)
        result = audit.verify(self.crew.db, self.crew.second_place, self.crew.signer.vkey)
        assert result.problems == []
        assert result.n_proven == result.n_records > 0

    def again(self, *, owner: str = "worker-1") -> Stage:
        """Another control plane over the same state and the same world: a restart after a kill."""
        crew = make_crew(self.folder, self.world, self.clock, self.said, owner=owner)
        return Stage(
            folder=self.folder, spec=self.spec, world=self.world, crew=crew, graph=build_graph(InMemorySaver()),
            clock=self.clock, said=self.said,
        )  # fmt: skip

    def copy_to(self, folder: Path) -> None:
        """State and world as they are now, for `resumed`."""
        self.world.save()
        self.crew.db.close()
        shutil.copytree(self.folder, folder)
        self.crew = self.again().crew


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
    (folder / "second").mkdir()
    stage = _stage(folder, world, spec)
    try:
        yield stage
    finally:
        stage.crew.db.close()


@contextmanager
def resumed(source: Path, folder: Path) -> Iterator[Stage]:
    """A stage that goes on from the copy in `source`, and leaves that copy as it is."""
    shutil.copytree(source, folder)
    world = World.load(folder / "world")
    stage = _stage(folder, world, world.specs[MODEL])
    try:
        yield stage
    finally:
        stage.crew.db.close()


def _stage(folder: Path, world: World, spec: ModelSpec) -> Stage:
    said: list[str] = []
    return Stage(
        folder=folder, spec=spec, world=world, crew=make_crew(folder, world, world.clock, said),
        graph=build_graph(InMemorySaver()), clock=world.clock, said=said,
    )  # fmt: skip
