"""`steady backtest` as a service: files in, one result out, and nothing outside a temporary folder is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from console import chronicle
from console.backtest_story import incidents, live_day, questions, timeline, verified, with_releases
from console.backtest_types import BacktestResult, BlockMetric, Cost, Data, Harm, HarmTable, MetricTable
from console.specs import LoadedSpec, load_spec
from evals.backtest.live import Answers, Lived, Wish, live
from evals.backtest.measure import Judged, judge
from evals.backtest.recording import Recording, record
from evals.world.world import midnight
from policies.engine import SHIPPED
from state.decisions import ActionDecided
from state.log import LogEntry
from state.spec import LOWER_IS_BETTER

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestRequest:
    spec: Path
    predictions: Path
    labels: Path
    history_days: int | None = None
    n_days: int | None = None
    answers: Answers = "none"
    policy_dir: Path | None = None


def backtest(request: BacktestRequest, *, progress: Progress = lambda text: None) -> BacktestResult:
    """Run the loop over the recorded history.

    Raises:
        InputError: spec or files cannot be used, or the history is too short; names file, field or record and remedy.
    """
    loaded = load_spec(request.spec)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="steady-backtest-") as name:
        folder = Path(name)
        recording = record(loaded.spec, request.predictions, request.labels, folder / "history", progress=progress)
        read = time.monotonic()
        wish = Wish(
            history_days=request.history_days, n_days=request.n_days, answers=request.answers,
            policy_dir=request.policy_dir or SHIPPED,
        )  # fmt: skip
        (folder / "run").mkdir()
        lived = live(recording, folder / "run", wish, told=progress)
        done = time.monotonic()
        try:
            judged = judge(lived, progress=progress)
            seconds = {"reading": read - began, "loop": done - read, "loop_fits": lived.pipelines.fit_seconds}
            seconds |= {"controls": time.monotonic() - done}
            return _result(loaded, request, lived, judged, seconds).sealed()
        finally:
            lived.close()


def _result(
    loaded: LoadedSpec, request: BacktestRequest, lived: Lived, judged: Judged, seconds: dict[str, float]
) -> BacktestResult:
    recording, start = lived.recording, midnight(lived.first_day)
    records = chronicle.read_records(lived.crew.db, recording.spec.model)
    acts = verified(records.actions, start)
    data = _data(recording, lived)
    return BacktestResult(
        model=recording.spec.model,
        spec_sha256=loaded.sha256,
        data_sha256=recording.sha256,
        task=recording.spec.task,
        first_champion="as_served" if recording.has_scores else "recipe",
        trains=recording.can_train,
        history_days=(lived.first_day - recording.first_day).days,
        first_live_day=lived.first_day.isoformat(),
        last_live_day=lived.last_day.isoformat(),
        answers=request.answers,
        n_rows=data.n_predictions,
        n_labels=data.n_labels,
        data=data,
        incidents=incidents(records),
        timeline=with_releases(
            timeline(records, first_champion="the model that gave the recorded scores"), recording.releases, lived.last_day
        ),
        actions=acts,
        denied=_denied(records.entries),
        trainings=acts.get("train_candidates", 0),
        backtests=acts.get("backtest_recipe", 0),
        promotions=acts.get("promote", 0),
        rollbacks=acts.get("rollback", 0),
        questions=questions(records, start),
        quarantined=list(lived.crew.platform.outcomes.quarantined(recording.spec.model)),
        unsettled=lived.stuck_days,
        metric=_metric(recording, judged),
        harm=_harm(judged),
        cost=_cost(lived, judged, acts),
        blocks=[BlockMetric(block=b.block, n_rows=b.n_rows, **asdict(b.metric)) for b in judged.blocks],
        notes=[*loaded_notes(loaded), *recording.notes, *lived.notes, *_control_notes(judged)],
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )  # fmt: skip


def _metric(recording: Recording, judged: Judged) -> MetricTable:
    metric = recording.spec.objective.metric
    return MetricTable(
        name=metric, lower_is_better=metric in LOWER_IS_BETTER, n_blocks=judged.n_blocks, **asdict(judged.overall)
    )


def _cost(lived: Lived, judged: Judged, acts: dict[str, int]) -> Cost:
    return Cost(
        served_trainings=acts.get("train_candidates", 0),
        served_backtests=acts.get("backtest_recipe", 0),
        served_changes=_changes(lived),
        always_refits=sum(not refit.error for refit in judged.always_refits),
        classic_refits=judged.classic_refits,
        classic_looks=judged.classic_looks,
    )


def _changes(lived: Lived) -> int:
    """How often the champion changed after the first one."""
    held = [str(e.args["version"]) for e in lived.world.effects if e.method == "registry.alias.champion"]
    return sum(now != before for before, now in pairwise(held))


def loaded_notes(loaded: LoadedSpec) -> list[str]:
    """Of the spec's notes those that matter here: the data come from files, and nothing is served or delivered."""
    return [f"{note}." for note in loaded.notes if note.startswith("training")]


def _data(recording: Recording, lived: Lived) -> Data:
    first, last = lived.first_day.isoformat(), lived.last_day.isoformat()
    return Data(
        n_predictions=recording.n_rows,
        n_live=sum(n for day, n in recording.days.items() if first <= day <= last),
        n_labels=recording.n_labels,
        n_late=recording.n_late,
        n_restated=recording.n_restated,
        n_missing=recording.n_rows - recording.n_labels,
    )


def _harm(judged: Judged) -> HarmTable:
    found = {way: Harm(positive=harm.positive, net=harm.net) for way, harm in judged.harm.items()}
    return HarmTable(served=found.get("served"), always=found.get("always"), classic=found.get("classic"))


def _denied(entries: Sequence[LogEntry]) -> dict[str, int]:
    return chronicle.denials(entry.decision for entry in entries if isinstance(entry.decision, ActionDecided))


def _control_notes(judged: Judged) -> list[str]:
    errors = [f"always-retrain of {live_day(r.at)}: {r.error}" for r in judged.always_refits if r.error]
    errors += [f"classic rule of {live_day(f.at)}: {f.error}" for f in judged.classic_firings if f.error]
    if not errors:
        return []
    more = f" ({len(errors)} refits of controls failed)" if len(errors) > 1 else ""
    return [f"A refit of a control failed, and the model before it served on: {errors[0]}{more}."]
