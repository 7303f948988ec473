"""Crash mode: a scenario played again, killed around each effect and at each state of the ledger, has to end the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from pydantic import JsonValue

from evals.book import deeds, repeated
from evals.bookmark import leave, place
from evals.ledger_watch import LedgerWatch
from evals.pool import worker_pool
from evals.run import RunResult, harness_error
from evals.scenario import Scenario
from evals.scene import POLICY_COPY, Scene
from evals.stage import Moment, Stage, set_stage, set_stage_at
from evals.view import View
from evals.world.faults import Fault, Faults, Killed

GATE = "crash"
Ending: TypeAlias = dict[str, JsonValue]
_NEVER = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """What is done to the control plane in one more run of a scenario."""

    kind: Literal["none", "before", "after", "once", "forget"]
    """`before` and `after`: killed around the nth effect; `once`: killed when the nth state of an action was committed;
    `forget`: all rows of LangGraph go before every tick."""
    nth: int = 0
    what: str = ""
    """The effect, or the action and its state."""

    def __str__(self) -> str:
        if self.kind == "forget":
            return "with every LangGraph row deleted before every tick"
        if self.kind == "once":
            return f"killed once {self.what} was committed (state {self.nth} of the ledger)"
        return f"killed {self.kind} effect {self.nth} ({self.what})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    ending: Ending
    methods: tuple[str, ...]
    """The calls that change the world, in order."""
    states: tuple[str, ...] = ()
    """The states of actions as they were committed, `acting` left out: a kill after that is one before the effect."""
    mornings: tuple[Morning, ...] = ()
    """Of the live days after the first, where bookmarks of them were left."""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Morning:
    """Where the run in peace stood before a live day: a crashed run is the same up to there, and need not play it."""

    bookmark: Path
    day: int
    n_effects: int
    """Calls that had changed the world by then."""
    n_states: int
    """States of actions that had been committed."""
    moment: Moment

    def passed(self, crash: Crash) -> int:
        """How many of the moments that the crash counts were over by then."""
        return self.n_states if crash.kind == "once" else self.n_effects


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """One scenario and seed under every crash."""

    id: str
    seed: int
    n_effects: int
    n_states: int
    n_runs: int
    """Crashed runs; the one without a crash that they are compared with is not among them."""
    problems: tuple[str, ...]
    """One a crashed run that ended otherwise: the moment and what differs."""


@dataclass(slots=True, kw_only=True)
class _Kill(Fault):
    """Hits once, and lets the faults of the scenario count the call once although it is made twice."""

    world: Faults

    def hits(self, method: str, *, effect: bool, model: str | None) -> bool:
        # A class with slots that dataclass makes anew: `super()` without arguments names the old one.
        hit = Fault.hits(self, method, effect=effect, model=model)
        if hit and self.kind == "crash_before":
            for other in self.world.active:
                if other is not self and _counts(other, method, model):
                    other.n_matched -= 1
        return hit


def _counts(fault: Fault, method: str, model: str | None) -> bool:
    """Whether the fault counts this call, which changes the world. Kinds that the method asks for count inside it."""
    asked_inside = fault.kind in ("slow", "fails", "not_applied")
    return not asked_inside and fnmatchcase(method, fault.method) and fault.model in (None, model)


@dataclass(slots=True, kw_only=True)
class _Listener(Fault):
    """Hits nothing and remembers the calls that change the world."""

    heard: list[str] = field(default_factory=list)

    def hits(self, method: str, *, effect: bool, model: str | None) -> bool:
        if effect:
            self.heard.append(f"{method} of {model}" if model else method)
        return False


def check_crashes(
    scenarios: Sequence[Scenario], results: Sequence[RunResult], *, n_jobs: int, told: Callable[[str], None]
) -> tuple[list[RunResult], list[CrashReport]]:
    """The results with the gate `crash`, and what each scenario was put through, with the seed of its first result.

    A run that the harness could not play is left as it is; a scenario without any effect is not crashed. `told` takes a
    line of progress for every run that ended.
    """
    first = {result.id: result for result in reversed(results) if not result.error}
    reports: list[CrashReport] = []
    with worker_pool(n_jobs) as pool:
        for scenario in scenarios:
            if scenario.id in first:
                reports.append(crash_scenario(scenario, first[scenario.id].seed, pool, told))
    return [_graded(result, reports) for result in results], reports


def crash_scenario(scenario: Scenario, seed: int, pool: Executor, told: Callable[[str], None]) -> CrashReport:
    """Play the scenario once in peace and once for each crash; say which ended otherwise."""
    why: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="steady-calm-") as folder:
        calm = pool.submit(play, scenario, seed, Crash(kind="none"), bookmarks=Path(folder)).result()
        crashes = list(_crashes(calm))
        told(
            f"{scenario.id}: {len(calm.methods)} effects and {len(calm.states)} states of actions in peace, "
            f"{len(crashes)} runs with a crash follow"
        )
        playing = {
            pool.submit(play, scenario, seed, crash, since=_since(calm, crash)): nth
            for nth, crash in enumerate(crashes)
        }
        for n_ended, done in enumerate(as_completed(playing), start=1):
            nth = playing[done]
            why[nth] = _why(calm, done.result())
            ended = f"otherwise: {why[nth]}" if why[nth] else "the same"
            told(f"{scenario.id}: crash {n_ended} of {len(crashes)}, {crashes[nth]}, ended {ended}")
    problems = [calm.error and f"in peace: {calm.error}"]
    problems += [why[nth] and f"{crash}: {why[nth]}" for nth, crash in enumerate(crashes)]
    return CrashReport(
        id=scenario.id,
        seed=seed,
        n_effects=len(calm.methods),
        n_states=len(calm.states),
        n_runs=len(crashes),
        problems=tuple(problem for problem in problems if problem),
    )


def _since(calm: Played, crash: Crash) -> Morning | None:
    """The morning of the day on which the crash comes; None where the run has to begin at the beginning."""
    before = [morning for morning in calm.mornings if morning.passed(crash) < crash.nth]
    return before[-1] if before else None


def play(
    scenario: Scenario, seed: int, crash: Crash, *, since: Morning | None = None, bookmarks: Path | None = None
) -> Played:
    """The end of one run, from a morning of the run in peace on; an exception of the harness or the crew is told as one.

    `bookmarks` is a folder for those of every morning, and for the run itself.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="steady-crash-") as folder:
            # Packages stay where they were made, for the runs that go on from a bookmark.
            run = (bookmarks or Path(folder)) / "run"
            if since is None:
                return _play(set_stage(scenario, seed=seed, folder=run), crash, bookmarks=bookmarks)
            stage = set_stage_at(since.bookmark, scenario, since.day, seed=seed, folder=run, moment=since.moment)
            return _play(stage, replace(crash, nth=crash.nth - since.passed(crash)))
    except (Exception, Killed) as exc:  # noqa: BLE001  # told with its moment, and the crash fails by it
        return Played(ending={}, methods=(), error=harness_error(exc))


def _play(stage: Stage, crash: Crash, *, bookmarks: Path | None = None) -> Played:
    faults, n_before = stage.scene.world.faults, stage.n_restarts
    listener = _Listener(method="*", kind="outage", nth=_NEVER)
    faults.add(listener)
    if crash.kind == "before":
        faults.active.insert(0, _Kill(method="*", kind="crash_before", nth=crash.nth, effects_only=True, world=faults))
    elif crash.kind == "after":
        faults.active.insert(0, _Kill(method="*", kind="crash_after", nth=crash.nth, effects_only=True, world=faults))
    stage.forget_threads = crash.kind == "forget"
    ledger = LedgerWatch.of(stage.scene.crew.db, nth=crash.nth if crash.kind == "once" else 0)
    stage.ledger = ledger if crash.kind in ("none", "once") else None
    mornings: list[Morning] = []
    for day in stage.play():
        last = day + 1 == stage.scene.scenario.days or (stage.scene.folder / POLICY_COPY).exists()
        if bookmarks is not None and not last:
            mornings.append(_morning(stage, day + 1, listener, len(ledger.heard), bookmarks))
    if crash.kind in ("before", "after", "once") and stage.n_restarts == n_before:
        return Played(ending={}, methods=(), error="the kill never came")
    played = Played(
        ending=ending(stage), methods=tuple(listener.heard), states=tuple(ledger.heard), mornings=tuple(mornings)
    )  # fmt: skip
    stage.scene.crew.db.close()
    return played


def _morning(stage: Stage, day: int, listener: _Listener, n_states: int, folder: Path) -> Morning:
    bookmark = place(folder, day)
    leave(stage.scene, bookmark)
    faults = stage.scene.world.faults.active
    faults.remove(listener)
    moment = Moment.of(stage)
    faults.append(listener)
    return Morning(bookmark=bookmark, day=day, n_effects=len(listener.heard), n_states=n_states, moment=moment)


def ending(stage: Stage) -> Ending:
    """What has to be the same however the run came to it. Ids, keys and the order within a day may differ."""
    scene = stage.scene
    view = View.of(scene)
    found: Ending = {f"world of {model}": _world(scene, model) for model in scene.models}
    found["incidents"] = _sorted(
        [row.model, row.cause, row.status, row.resolution, row.opened_at.date().isoformat()] for row in view.incidents
    )
    found["diagnoses"] = _sorted({(row.model, row.cause) for row in view.diagnoses})
    found["questions"] = _sorted([row.model, row.action, row.status] for row in view.questions)
    found["rollouts"] = _sorted([row.model, row.status] for row in view.rollouts)
    found["effects"] = _sorted([deed.day, deed.model, deed.effect, deed.version] for deed in deeds(scene.world))
    found["effects done twice"] = _sorted([text] for text in repeated(scene.world))
    found["days that did not settle"] = list[JsonValue](stage.stuck_days)
    return found


def _world(scene: Scene, model: str) -> JsonValue:
    state = scene.world.model(model)
    return {
        "aliases": dict[str, JsonValue](state.aliases),
        "versions": [version.version for version in state.versions],
        "weights": dict[str, JsonValue](state.route.weights) if state.route is not None else None,
        "applied": dict[str, JsonValue](state.route.applied) if state.route is not None else None,
        "quarantined": list[JsonValue](sorted(state.quarantined)),
    }


def _sorted(rows: Iterable[Iterable[object]]) -> JsonValue:
    plain: list[list[JsonValue]] = msgspec.to_builtins([list(row) for row in rows])
    plain.sort(key=lambda row: [str(cell) for cell in row])
    return list[JsonValue](plain)


def _crashes(calm: Played) -> Iterator[Crash]:
    for nth, method in enumerate(calm.methods, start=1):
        yield Crash(kind="before", nth=nth, what=method)
        yield Crash(kind="after", nth=nth, what=method)
    for nth, state in enumerate(calm.states, start=1):
        yield Crash(kind="once", nth=nth, what=state)
    if calm.methods:
        yield Crash(kind="forget")


def _why(calm: Played, run: Played) -> str:
    return run.error or "; ".join(differences(calm.ending, run.ending))


def differences(calm: Mapping[str, JsonValue], crashed: Mapping[str, JsonValue]) -> list[str]:
    """Every part of the end that differs, with what is there only in peace and only after the crash."""
    told = []
    for part in calm:
        before, after = calm[part], crashed[part]
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            told += [
                f"{part}: {name} {after[name]}, not {before[name]}" for name in before if before[name] != after[name]
            ]
        elif isinstance(before, list) and isinstance(after, list):
            lost, more = _minus(before, after), _minus(after, before)
            told.append(
                f"{part}:" + "".join(f" missing {_row(r)}" for r in lost) + "".join(f" added {_row(r)}" for r in more)
            )
    return told


def _minus(left: list[JsonValue], right: list[JsonValue]) -> list[JsonValue]:
    kept = list(right)
    found = []
    for row in left:
        if row in kept:
            kept.remove(row)
        else:
            found.append(row)
    return found


def _row(row: JsonValue) -> str:
    return "(" + " ".join(str(cell) for cell in row if cell is not None) + ")" if isinstance(row, list) else str(row)


def _graded(result: RunResult, reports: Sequence[CrashReport]) -> RunResult:
    mine = next((r for r in reports if (r.id, r.seed) == (result.id, result.seed)), None)
    if mine is None:
        return result
    gates = {**result.gates, GATE: not mine.problems}
    if not mine.problems:
        return replace(result, gates=gates)
    why = f"{len(mine.problems)} of {mine.n_runs} crashed runs ended otherwise; " + "; ".join(mine.problems[:3])
    return replace(result, passed=False, gates=gates, why={**result.why, GATE: why})
