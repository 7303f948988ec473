"""Run scenarios: each seed in its own folder and process, with its healthy twin, graded from outside."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from evals.book import deeds
from evals.bookmark import branch_day, place
from evals.graders import Gate, first_fault, first_held, grade
from evals.language import Source, Trial
from evals.oracle import oracle_harm
from evals.pool import worker_pool
from evals.scenario import Escalation, Family, IncidentIs, PersonKnows, Scenario
from evals.scene import Scene
from evals.stage import Stage, set_stage, set_stage_at
from evals.twins import Twin, harm_by_day, longest, play_twin, twin_key
from evals.view import View
from state.canonical import digest
from tools.language import Exchange

MINUTES_PER_DAY = 1_440


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One line of a run's timeline."""

    day: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One seed of one scenario."""

    id: str
    family: Family
    difficulty: str
    seed: int
    passed: bool
    error: str = ""
    """A fault of the harness: no verdict about the crew."""
    gates: dict[str, bool] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    """Of each gate that failed."""
    ttd_min: float | None = None
    """Simulated minutes from the first fault to the first incident or question."""
    ttdiag_min: float | None = None
    """To the first right diagnosis."""
    ttm_min: float | None = None
    """To the wanted state that stayed."""
    actions: int = 0
    forbidden: int = 0
    duplicates: int = 0
    twin_false_actions: int = 0
    escalated: bool = False
    """Whether a person was asked, or an incident handed over to one."""
    escalation: Escalation = "needless"
    """What that is in this scenario."""
    harm: float = 0.0
    """Excess log loss over the truth, summed over the rows served since the first fault (squared error in a
    regression)."""
    regret: float = 0.0
    """Harm beyond that of the oracle (`evals/oracle.py`) on the same days."""
    exchanges: tuple[Exchange, ...] = ()
    """What a language model was asked, and its answers."""
    digest: str = ""
    """Of everything above and of every effect: the same on every run."""
    timeline: tuple[Moment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    scenario: Scenario
    seed: int
    twin: Twin | None = None
    """The healthy twin, where it was played already."""
    bookmark: Path | None = None
    """Where that twin left the state from which this run goes on; None: it begins at the beginning."""
    source: Source | None = None
    """Answers for a scenario that needs a language model."""


def harness_error(exc: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    place = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} at {Path(place.filename).name}:{place.lineno}: {exc}"


def run_job(job: Job) -> RunResult:
    """Play and grade one job; an error of the harness is told as one."""
    try:
        with tempfile.TemporaryDirectory(prefix="steady-eval-") as folder:
            return _run(job, Path(folder))
    except Exception as exc:  # noqa: BLE001  # the harness's boundary: an error is reported, never a zero
        return RunResult(
            id=job.scenario.id, family=job.scenario.family, difficulty=job.scenario.difficulty, seed=job.seed,
            passed=False, error=harness_error(exc),
        )  # fmt: skip


def run_all(
    scenarios: Sequence[Scenario],
    *,
    seeds: int | None,
    n_jobs: int,
    told: Callable[[RunResult, int, int], None] = lambda result, n_ended, n_runs: None,
    source: Source | None = None,
) -> list[RunResult]:
    """Every scenario with its first `seeds` seeds; results in order of scenario and seed.

    `told` takes each result as it comes, with how many have come of how many.
    """
    jobs = [Job(scenario=s, seed=seed, source=source) for s in scenarios for seed in s.seeds[:seeds]]
    results: dict[int, RunResult] = {}
    with tempfile.TemporaryDirectory(prefix="steady-twins-") as folder, worker_pool(n_jobs) as pool:
        for index, result in _played(jobs, pool, Path(folder)):
            results[index] = result
            told(result, len(results), len(jobs))
    return [results[index] for index in range(len(jobs))]


def _played(jobs: Sequence[Job], pool: Executor, folder: Path) -> Iterator[tuple[int, RunResult]]:
    """Shared twins first: a run is graded against its own and begins where it leaves it, and none is played twice."""
    shared = longest((job.scenario, job.seed) for job in jobs)
    keys = [twin_key(job.scenario, job.seed) for job in jobs]
    branches: dict[str, set[int]] = {}
    for key, job in zip(keys, jobs, strict=True):
        branches.setdefault(key, set()).add(branch_day(job.scenario))
    playing = {key: pool.submit(_try_twin, *run, folder / key, branches[key]) for key, run in shared.items()}
    waiting: dict[Future[RunResult], int] = {}
    for index, (key, job) in enumerate(zip(keys, jobs, strict=True)):
        twin = playing[key].result() if key in playing else None
        bookmark = place(folder / key, branch_day(job.scenario)) if twin is not None else None
        ready = replace(
            job,
            twin=twin if job.scenario.twin else None,
            bookmark=bookmark if bookmark is not None and bookmark.exists() else None,
        )
        waiting[pool.submit(run_job, ready)] = index
    for done in as_completed(waiting):
        yield waiting[done], done.result()


def _try_twin(scenario: Scenario, seed: int, folder: Path, bookmarks: set[int]) -> Twin | None:
    """The twin; None where the harness fails on it, which every run of it then finds and tells."""
    try:
        return play_twin(scenario, seed, folder, bookmarks=bookmarks)
    except Exception:  # noqa: BLE001  # told by each run that plays it again
        return None


def _run(job: Job, folder: Path) -> RunResult:
    trial = _trial(job)
    stage, unmet = _staged(job, folder / "run", trial)
    unmet += [View.of(stage.scene).unmet(job.scenario.wanted) for _ in stage.play()]
    twin = job.twin or play_twin(job.scenario, job.seed, folder / "twin") if job.scenario.twin else None
    twin = twin.until(job.scenario.days) if twin is not None else None
    view = View.of(stage.scene)
    asked = tuple(trial.asked.values()) if trial is not None else ()
    result = _result(job, view, grade(stage, view, unmet, twin=twin), unmet, twin, asked=asked)
    stage.scene.crew.db.close()
    return result


def _staged(job: Job, folder: Path, trial: Trial | None) -> tuple[Stage, list[list[str]]]:
    """The scenario where the job begins it, and what was unmet on the evenings before."""
    if job.bookmark is None:
        return set_stage(job.scenario, seed=job.seed, folder=folder, language=trial), []
    day = branch_day(job.scenario)
    stage = set_stage_at(job.bookmark, job.scenario, day, seed=job.seed, folder=folder, language=trial)
    # Only the last of those evenings matters: times count from the first fault, which comes later.
    return stage, [View.of(stage.scene).unmet(job.scenario.wanted)] * day


def _trial(job: Job) -> Trial | None:
    """Scenarios that need no language model have none in any mode, so that they end the same in all."""
    if job.source is None or job.scenario.needs is None:
        return None
    return Trial(source=job.source, scenario=job.scenario.id, seed=job.seed)


def _result(
    job: Job,
    view: View,
    gates: list[Gate],
    unmet: Sequence[Sequence[str]],
    twin: Twin | None,
    *,
    asked: tuple[Exchange, ...],
) -> RunResult:
    scene = view.scene
    done = deeds(scene.world)
    fault, held = first_fault(scene), first_held(unmet)
    harm = round(sum(loss for day, loss in harm_by_day(scene).items() if day >= fault), 6)
    failed = {gate.name: gate.why for gate in gates if not gate.passed}
    n_problems = {gate.name: len(gate.problems) for gate in gates}
    found = RunResult(
        id=job.scenario.id,
        family=job.scenario.family,
        difficulty=job.scenario.difficulty,
        seed=job.seed,
        passed=not failed,
        gates={gate.name: gate.passed for gate in gates},
        why=failed,
        ttd_min=_minutes(
            scene, fault, [row.opened_at for row in view.incidents] + [q.asked_at for q in view.questions]
        ),
        ttdiag_min=_minutes(scene, fault, [d.at for d in view.diagnoses if d.cause in job.scenario.truth.cause]),
        ttm_min=None if held is None else float(max(held + 1 - fault, 0) * MINUTES_PER_DAY),
        actions=sum(deed.day >= 0 and deed.effect != "tell" for deed in done),
        forbidden=n_problems["must_not"],
        duplicates=n_problems["duplicates"],
        twin_false_actions=len(twin.false_actions) if twin is not None else 0,
        escalated=bool(view.questions) or any(row.resolution == "escalated" for row in view.incidents),
        escalation=escalation_in(job.scenario),
        harm=harm,
        regret=round(harm - oracle_harm(scene, since=fault), 6),
        exchanges=asked,
        timeline=tuple(_timeline(scene, view)),
    )
    effects = [[e.method, e.model, e.at, e.args] for e in scene.world.effects]
    return replace(found, digest=digest(_plain({"result": asdict(found), "effects": effects})))


def escalation_in(scenario: Scenario) -> Escalation:
    """What a question to a person, or an incident handed over, is in this scenario: as it says, else as it lets one see.

    A scenario that names the people who answer expects that policy asks them.
    """
    needed = any(
        (isinstance(part, PersonKnows) and part.state == "asked")
        or (isinstance(part, IncidentIs) and part.resolution == ["escalated"])
        for part in scenario.wanted
    )
    return scenario.escalation or ("needed" if needed else "welcome" if scenario.people else "needless")


def _plain(value: object) -> object:
    """JSON without what differs between two folders: packages are named by the key of their run."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in ("package", "digest")}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _minutes(scene: Scene, fault: int, times: Sequence[object]) -> float | None:
    began = scene.date_of(fault)
    later = [at for at in times if at.date() > began]  # type: ignore[attr-defined]  # aware datetimes of rows
    if not later:
        return None
    days = (min(later).date() - began).days  # type: ignore[attr-defined,type-var]  # likewise
    return float(days * MINUTES_PER_DAY)


def _timeline(scene: Scene, view: View) -> list[Moment]:
    moments = [
        Moment(day=scene.began.get(e.inject, e.day) if e.when else e.day,
               what=f"{e.inject}{f' ({e.model})' if e.model else ''} begins")
        for e in scene.scenario.timeline
        if e.when is None or e.inject in scene.began
    ]  # fmt: skip
    for row in view.incidents:
        moments.append(
            Moment(day=scene.day_of(row.opened_at.date()) - 1, what=f"incident opens: {row.title} [{row.cause}]")
        )
        if row.closed_at is not None:
            moments.append(
                Moment(day=scene.day_of(row.closed_at.date()) - 1, what=f"incident closes: {row.resolution}")
            )
    for deed in deeds(scene.world):
        if deed.effect != "tell" and deed.day >= 0:
            moments.append(
                Moment(day=deed.day, what=f"{deed.effect}{f' {deed.version}' if deed.version else ''} ({deed.model})")
            )
    return sorted(moments, key=lambda moment: moment.day)
