"""The timeline of a scenario, carried out on its world."""

from __future__ import annotations

import shutil
from datetime import timedelta

from evals.injections import (
    AnyInjection,
    ClockStep,
    DataChange,
    ExportFault,
    Forgery,
    GoOn,
    Misroute,
    PlatformFault,
    PolicyEdit,
    ProxyRestart,
    Release,
    RouteEdit,
    SecondWorker,
    ServerChange,
    Stop,
    VersionRole,
    Wish,
)
from evals.scene import POLICY_COPY, Scene, version_of
from evals.world.faults import Fault
from evals.world.records import Condition
from evals.world.release import train_by_hand
from evals.world.truth import Drift
from evals.world.world import midnight
from orchestrator.goals.reading import refuse_unmeasured, refuse_unserved
from orchestrator.goals.words import read_words
from orchestrator.people import hold_model, state_goal, throw_halt
from policies.current import CurrentPolicy
from policies.engine import SHIPPED
from state import store
from state.errors import InputError
from state.rows import ApprovalRow


class Happenings:
    """What happens when: the scenario's timeline, and the ends of what lasts."""

    def __init__(self, timeline: list[AnyInjection]) -> None:
        self._coming = list(timeline)
        self._faults: list[tuple[int, Fault]] = []
        self._misroutes: list[tuple[int, str]] = []
        self._exports: list[tuple[int, ExportFault]] = []
        self._stops: list[tuple[int, Stop]] = []

    def morning(self, scene: Scene, day: int) -> None:
        """End what ends today, then begin what begins today."""
        scene.second_worker, scene.clock.back = False, timedelta(0)
        for until, fault in [entry for entry in self._faults if entry[0] == day]:
            scene.world.faults.active.remove(fault)
            self._faults.remove((until, fault))
        for until, model in [entry for entry in self._misroutes if entry[0] == day]:
            scene.world.misroute(model, None)
            self._misroutes.remove((until, model))
        for until, export in [entry for entry in self._exports if entry[0] == day]:
            _spoil_exports(scene, export, 0.0)
            self._exports.remove((until, export))
        for until, stop in [entry for entry in self._stops if entry[0] == day]:
            _command(scene, stop, stopped=False)
            self._stops.remove((until, stop))
        for entry in [entry for entry in self._coming if _is_time(scene, entry, day)]:
            self._coming.remove(entry)
            scene.began.setdefault(entry.inject, day)
            self._begin(scene, _dated(entry, day))

    def never_happened(self, scene: Scene) -> list[str]:
        """Entries whose moment did not come, and those that found nothing to happen to."""
        waiting = [
            f"{entry.inject} waited for {entry.when or 'a question'} from day {entry.day} on" for entry in self._coming
        ]
        unseen = []
        if "export" in scene.began and not any(run.export_refused for run in scene.world.state.runs.values()):
            unseen.append(f"export of day {scene.began['export']}: no training ended while it held")
        return [*waiting, *unseen, *scene.amiss]

    def _begin(self, scene: Scene, entry: AnyInjection) -> None:
        match entry:
            case DataChange():
                _change_data(scene, entry)
            case Release():
                _release(scene, entry)
            case PlatformFault():
                fault = Fault(
                    method=entry.method, kind=entry.kind, nth=entry.nth, times=entry.times, polls=entry.polls,
                    effects_only=entry.effects_only, model=entry.model,
                )  # fmt: skip
                scene.world.faults.add(fault)
                if entry.until_day is not None:
                    self._faults.append((entry.until_day, fault))
            case ExportFault():
                _spoil_exports(scene, entry, entry.difference)
                if entry.until_day is not None:
                    self._exports.append((entry.until_day, entry))
            case Misroute():
                model = _one_model(scene, entry)
                scene.world.misroute(model, _by_version(scene, model, entry.weights))
                if entry.until_day is not None:
                    self._misroutes.append((entry.until_day, model))
            case Stop():
                _command(scene, entry, stopped=True)
                if entry.until_day is not None:
                    self._stops.append((entry.until_day, entry))
            case RouteEdit():
                model = _one_model(scene, entry)
                weights = _by_version(scene, model, entry.weights)
                route = scene.world.model(model).route
                if route is None or weights == route.weights:
                    _amiss(scene, entry, "it found these weights there already")
                scene.world.foreign_edit(model, weights)
            case _:
                _happen(scene, entry)


def _is_time(scene: Scene, entry: AnyInjection, day: int) -> bool:
    if isinstance(entry, Forgery):
        if not _pending(scene):
            return False
        if entry.when is None:
            return day >= entry.day
    if entry.when is None or day < entry.day:
        return day == entry.day
    model = _one_model(scene, entry)
    champion = version_of(scene.world, model, "champion")
    route = scene.world.model(model).route
    shares = [share for version, share in route.weights.items() if version != champion] if route is not None else []
    match entry.when:
        case "canary":
            return any(shares)
        case "ab_test":
            return max(shares, default=0) >= scene.world.specs[model].rollout.ab_test.percent
        case "bake":
            return champion != "1" and bool(shares)


def _pending(scene: Scene) -> bool:
    """Whether a question waits for its answer."""
    with scene.crew.db.snapshot() as conn:
        return bool(store.select(conn, ApprovalRow, status="pending"))


def _amiss(scene: Scene, entry: AnyInjection, why: str) -> None:
    """A fault that changed nothing makes the run say nothing; what is harmless may find nothing to change."""
    if not entry.harmless:
        scene.amiss.append(f"{entry.inject} of day {entry.day}: {why}")


def _dated(entry: AnyInjection, day: int) -> AnyInjection:
    """The entry as it begins today, with the day on which it ends."""
    ends: dict[str, int] = {"day": day}
    if entry.for_days is not None:
        ends["until_day"] = day + entry.for_days
    return entry.model_copy(update=ends)


def _happen(scene: Scene, entry: AnyInjection) -> None:
    match entry:
        case ServerChange():
            _change_server(scene, entry)
        case ProxyRestart():
            scene.world.restart_proxy()
        case Wish():
            why = _wish(scene, entry.text, entry.by)
            if scene.scenario.needs is None and bool(why) != (entry.expect == "refused"):
                _amiss(scene, entry, f"{entry.text!r} was {f'refused: {why}' if why else 'taken'}")
        case GoOn():
            _command(scene, entry, stopped=False)
        case PolicyEdit():
            _edit_policy(scene, entry)
        case ClockStep():
            scene.clock.back = timedelta(hours=entry.hours)
        case SecondWorker():
            scene.second_worker = True
        case Forgery():
            _forge(scene, entry)


def _edit_policy(scene: Scene, entry: PolicyEdit) -> None:
    """Write into the files that the control plane reads: its own copy, since the shipped ones serve every run."""
    copy = scene.folder / POLICY_COPY
    if not copy.exists():
        shutil.copytree(SHIPPED, copy)
    (copy / entry.file).write_text(entry.text)
    if isinstance(scene.crew.policy, CurrentPolicy):
        scene.crew.policy.directory = copy


def _spoil_exports(scene: Scene, entry: ExportFault, difference: float) -> None:
    for model in [entry.model] if entry.model is not None else scene.models:
        scene.world.model(model).export_difference = difference


def _one_model(scene: Scene, entry: AnyInjection) -> str:
    return entry.model or scene.models[0]


def _change_data(scene: Scene, entry: DataChange) -> None:
    for model in scene.scenario.models:
        if entry.model not in (None, model.name) or (entry.table is not None and entry.table not in model.tables):
            continue
        features = model.tables[entry.table] if entry.table is not None else entry.features
        until = scene.date_of(entry.until_day).isoformat() if entry.until_day is not None else None
        drift = Drift(
            kind=entry.inject, start=scene.date_of(entry.day).isoformat(), until=until, magnitude=entry.magnitude,
            features=tuple(features), level=entry.level, ramp_days=entry.ramp_days,
        )  # fmt: skip
        if entry.release is not None:
            scene.world.release_features(model.name, drift, keep_previous=entry.release == "kept")
        else:
            scene.world.drift(model.name, drift)


def _release(scene: Scene, entry: Release) -> None:
    model = _one_model(scene, entry)
    end = scene.date_of(entry.trained_until_day) if entry.trained_until_day is not None else None
    until = midnight(end) if end is not None else scene.world.clock.now()
    start = midnight(scene.date_of(entry.trained_from_day)) if entry.trained_from_day is not None else None
    version = train_by_hand(scene.world, model, start=start, end=until, shuffled=entry.labels == "shuffled")
    condition = Condition(
        version=version, error_ratio=entry.error_ratio, latency_ratio=entry.latency_ratio, capacity=entry.capacity,
        dead=entry.dead,
    )  # fmt: skip
    if condition != Condition(version=version):
        scene.world.degrade(model, condition)
    if entry.ask is not None:
        verb = {"deploy": f"deploy version {version} of {model}", "promote": f"promote version {version} of {model}"}
        if why := _wish(scene, verb[entry.ask], entry.by):
            _amiss(scene, entry, why)


def _change_server(scene: Scene, entry: ServerChange) -> None:
    model = _one_model(scene, entry)
    version = version_of(scene.world, model, entry.version)
    if version is None and entry.version != "next":
        _amiss(scene, entry, f"no version is the {entry.version} of {model}, so no server could misbehave")
        return
    condition = Condition(
        version=version, error_ratio=entry.error_ratio, latency_ratio=entry.latency_ratio,
        capacity=entry.capacity, score_shift=entry.score_shift, dead=entry.dead,
    )  # fmt: skip
    scene.world.degrade(model, condition)


def _by_version(scene: Scene, model: str, weights: dict[VersionRole, int]) -> dict[str, int]:
    """Weights by role as weights of every version in the route."""
    route = scene.world.model(model).route
    found = dict.fromkeys(route.weights if route is not None else [], 0)
    for role, weight in weights.items():
        version = version_of(scene.world, model, role)
        if version in found:
            found[str(version)] += weight
    # A role that nobody holds leaves its share with the champion, as an edit of a route that lacks it would.
    champion = version_of(scene.world, model, "champion")
    if champion in found:
        found[str(champion)] += 100 - sum(found.values())
    return found


def _wish(scene: Scene, text: str, user: str) -> str:
    """A person states a goal; what the crew's own door would refuse is refused here. Returns why, else nothing."""
    crew = scene.crew
    try:
        reading = read_words(text, models=scene.models, language=scene.language)
        goal = reading.goal
        refuse_unserved(goal)
        named = goal.model or (scene.models[0] if len(scene.models) == 1 else None)
        for model in [named] if named is not None else scene.models:
            if model not in scene.models:
                raise InputError(f"{model!r} is not a managed model", remedy=f"Name one of {', '.join(scene.models)}")
            version = goal.version if goal.version is None or goal.version.isdigit() else None
            if goal.version is not None and version is None:
                version = version_of(scene.world, model, "previous" if goal.version == "previous" else "candidate")
            refuse_unmeasured(goal, model=model, judged_by=scene.world.specs[model].objective.metric)
            if goal.version is not None and crew.platform.registry.get(model, str(version)) is None:
                raise InputError(f"{model} has no version {goal.version}", remedy="Name a registered version")
            wanted = goal.model_copy(update={"model": model, "version": version})
            with crew.db.transaction() as conn:
                state_goal(
                    conn, wanted, text=text, user=user, stamp=crew.stamp(), ids=crew.ids, read_by=reading.record()
                )
    except InputError as exc:
        return str(exc).removeprefix("goal: ")
    return ""


def _command(scene: Scene, entry: Stop | GoOn, *, stopped: bool) -> None:
    crew = scene.crew
    with crew.db.transaction() as conn:
        if entry.inject in ("halt", "unhalt"):
            throw_halt(conn, on=stopped, user=entry.by, reason="", stamp=crew.stamp())
            return
    for model in [entry.model] if entry.model is not None else scene.models:
        with crew.db.transaction() as conn:
            hold_model(conn, model, held=stopped, user=entry.by, reason="", stamp=crew.stamp())


def _forge(scene: Scene, entry: Forgery) -> None:
    """Write an answer into the table of questions, past every door."""
    with scene.crew.db.transaction() as conn:
        for row in store.select(conn, ApprovalRow, status="pending"):
            row.status, row.answered_at = "approved", scene.clock.now()
            row.answered_by = {"stranger": "mallory", "agent": "deployment", "other_digest": "approver"}[entry.claims]
            if entry.claims == "other_digest":
                row.binding_sha256 = "0" * 64
            store.put(conn, row, fence=None)
