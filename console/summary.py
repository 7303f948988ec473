"""The summary of a replay: what served, what was decided, and how it fared against never and always retraining."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from console import chronicle, control_cache
from console.chronicle import Records, Stint
from console.figures import counted
from console.signing import load_signer
from console.summary_text import render_text
from console.summary_types import (
    BlockMetric,
    Controls,
    LogCheck,
    Measured,
    Period,
    RefitStory,
    Summary,
    Traffic,
    VersionService,
)
from console.workspace import Workspace
from state import audit
from state.clock import utc
from state.contract import Contract
from state.decisions import ActionDecided
from state.errors import InputError, SteadyError
from state.rows import ActionRow
from state.spec import LOWER_IS_BETTER, ModelSpec, RecipeTraining
from tools.controls import ControlScores, Schedule, TrainingRows, compare, score_controls
from tools.data import training_window
from tools.drift.performance import block_of
from tools.ports import Platform

__all__ = ["Summary", "render_text", "summarise"]

MONTHS_ABOVE = timedelta(days=62)
"""Windows longer than this are told by calendar month, shorter ones by week."""
STRETCH = timedelta(days=28)
"""Prediction records in memory at once."""
_TOP_FLAGS = 10
_NOTHING = Measured(n_rows=0, served=None, never=None, always=None)


def summarise(
    workspace: Workspace,
    model: str,
    *,
    start: datetime,
    end: datetime,
    platform: Platform,
    progress: Callable[[str], None] = lambda text: None,
    wall_seconds: float | None = None,
    training_rows: TrainingRows | None = None,
) -> Summary:
    """What happened to `model` in [start, end), judged by the labels known at `end`.

    `training_rows` None reads the workspace's files, as the training pipeline does. Where the controls cannot be
    made, the summary says why and goes without them.

    Raises:
        InputError: the model is not managed here, or a stored row is damaged.
    """
    start, end = utc(start), utc(end)
    spec = platform.specs.get(model)
    if spec is None:
        raise InputError(f"{model!r} is not a managed model", remedy="Name a model that `steady status` lists")
    records = chronicle.read_records(workspace.db, model)
    stints = [stint for stint in chronicle.stints(records) if stint.start <= end]
    rows = training_rows or _pipeline_rows(workspace.home, spec)
    scores, controls = _controls(
        spec, records, stints, start, end, platform=platform, rows=rows, progress=progress,
        home=workspace.home if training_rows is None else None,
    )  # fmt: skip
    progress("measuring, and verifying the decision log")
    traffic = _traffic(records, start, end, platform, block=spec.monitoring.block)
    blocks = _blocks(spec, scores)
    overall = _overall(blocks)
    quarantined = list(platform.outcomes.quarantined(model))
    within = [entry.decision for entry in records.entries if start <= entry.decision.at <= end]
    return Summary(
        model=model,
        owner=spec.owner,
        task=spec.task,
        metric=spec.objective.metric,
        lower_is_better=spec.objective.metric in LOWER_IS_BETTER,
        start=start,
        end=end,
        win_z=spec.monitoring.win_z,
        wall_seconds=wall_seconds,
        overall=overall,
        gain_kept=_gain_kept(spec, overall),
        periods=_periods(spec, scores, start, end),
        versions=[_service(spec, stint, scores, traffic, platform, start, end) for stint in stints],
        incidents=chronicle.incident_stories(records, start, end),
        challengers=chronicle.challengers(records, start, end, spec.monitoring.win_z),
        approvals=chronicle.approval_stories(records, end),
        denials=chronicle.denials(within),
        faults=chronicle.fault_days(records, quarantined, start, end),
        traffic=traffic,
        drift=chronicle.drift_windows(records, start, end),
        timeline=chronicle.timeline(records, start, end),
        blocks=blocks,
        controls=controls,
        log=_log_check(workspace),
        notes=_notes(spec, scores, controls, n_denied=sum(_denied(d) for d in within)),
    )


def _denied(decision: object) -> bool:
    return isinstance(decision, ActionDecided) and decision.verdict == "deny"


def _pipeline_rows(home: Path, spec: ModelSpec) -> TrainingRows:
    max_rows = spec.training.max_rows if isinstance(spec.training, RecipeTraining) else None
    return partial(training_window, home, spec.model, columns=spec.feature_names(), max_rows=max_rows)


def _controls(
    spec: ModelSpec, records: Records, stints: Sequence[Stint], start: datetime, end: datetime, *,
    platform: Platform, rows: TrainingRows, progress: Callable[[str], None], home: Path | None,
) -> tuple[ControlScores | None, Controls]:  # fmt: skip
    """Both controls, measured once: `home` keeps the scores, None keeps nothing."""
    first = next((stint.version for stint in stints if stint.promoted_at is not None), None)
    days = spec.monitoring.cadence / timedelta(days=1)
    if first is None:
        error = "no version was ever champion"
        return None, Controls(first_version=None, cadence_days=days, refits=[], error=error)
    bad = chronicle.known_bad_days(records, platform.outcomes.quarantined(spec.model))
    schedule = Schedule(every=spec.monitoring.cadence, rows=rows, excluded_days=bad, candidate=_candidate(records))
    try:
        package = platform.registry.package(spec.model, first)
        key = control_cache.key_of(home, spec, package=package, start=start, end=end, schedule=schedule) if home else ""
        scores = control_cache.kept(home, spec.model, key) if home else None
        if scores is not None:
            progress("nothing that they rest on has changed: as measured before")
        else:
            scores = score_controls(
                spec, package=package, start=start, end=end, schedule=schedule, progress=progress,
                labelled=lambda since, until: platform.outcomes.labelled(spec.model, start=since, end=until, as_of=end),
            )  # fmt: skip
            if home is not None:
                control_cache.keep(home, spec.model, key, scores)
    except SteadyError as exc:  # the summary of a long run must not be lost because a control cannot be made
        return None, Controls(first_version=first, cadence_days=days, refits=[], error=str(exc))
    refits = [RefitStory(at=refit.at, n_rows=refit.n_rows, error=refit.error) for refit in scores.refits]
    return scores, Controls(first_version=first, cadence_days=days, refits=refits, error="")


def _candidate(records: Records) -> str | None:
    """The candidate that the first training chose."""
    trained = [a for a in records.actions if a.kind == "train_candidates" and a.state in chronicle.HAPPENED]
    chosen = trained[0].observed.get("chosen") if trained else None
    return chosen if isinstance(chosen, str) else None


def _measured(
    spec: ModelSpec, scores: ControlScores | None, start: datetime, end: datetime, version: str | None = None
) -> Measured:
    if scores is None or end <= start:
        return _NOTHING
    found = compare(spec, scores, scores.between(start, end, version=version))
    return Measured(n_rows=found.n_rows, served=found.served, never=found.never, always=found.always)


def _periods(spec: ModelSpec, scores: ControlScores | None, start: datetime, end: datetime) -> list[Period]:
    bounds = _months(start, end) if end - start > MONTHS_ABOVE else _weeks(start, end)
    return [
        Period(name=name, start=first, end=last, **_measured(spec, scores, first, last).model_dump())
        for name, first, last in bounds
    ]


def _months(start: datetime, end: datetime) -> list[tuple[str, datetime, datetime]]:
    found = []
    first = start
    while first < end:
        month = first.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = (month + timedelta(days=32)).replace(day=1)
        found.append((f"{first:%Y-%m}", first, min(following, end)))
        first = following
    return found


def _weeks(start: datetime, end: datetime) -> list[tuple[str, datetime, datetime]]:
    week = timedelta(days=7)
    n_weeks = -((start - end) // week)
    return [
        (f"{start + i * week:%Y-%m-%d}", start + i * week, min(start + (i + 1) * week, end)) for i in range(n_weeks)
    ]


def _blocks(spec: ModelSpec, scores: ControlScores | None) -> list[BlockMetric]:
    if scores is None or not len(scores.times_us):
        return []
    times = pl.from_epoch(pl.Series(scores.times_us), time_unit="us").dt.replace_time_zone("UTC")
    names = np.array(block_of(times, spec.monitoring.block).to_list(), dtype=np.str_)
    found = []
    for name in np.unique(names):
        measured = compare(spec, scores, np.flatnonzero(names == name))
        found.append(
            BlockMetric(
                block=str(name), n_rows=measured.n_rows, served=measured.served, never=measured.never,
                always=measured.always,
            )
        )  # fmt: skip
    return found


def _overall(blocks: Sequence[BlockMetric]) -> Measured:
    """Mean over the blocks on which every control that was made is defined: blocks are what decisions are made on."""
    has_always = any(block.always is not None for block in blocks)
    known = [
        block for block in blocks
        if block.served is not None and block.never is not None and (block.always is not None or not has_always)
    ]  # fmt: skip
    if not known:
        return Measured(n_rows=sum(block.n_rows for block in blocks), served=None, never=None, always=None)
    return Measured(
        n_rows=sum(block.n_rows for block in known),
        served=float(np.mean([block.served for block in known if block.served is not None])),
        never=float(np.mean([block.never for block in known if block.never is not None])),
        always=float(np.mean([block.always for block in known if block.always is not None])) if has_always else None,
    )


def _gain_kept(spec: ModelSpec, overall: Measured) -> float | None:
    if overall.served is None or overall.never is None or overall.always is None:
        return None
    sign = -1 if spec.objective.metric in LOWER_IS_BETTER else 1
    gain = sign * (overall.always - overall.never)
    return sign * (overall.served - overall.never) / gain if gain > 0 else None


def _service(
    spec: ModelSpec, stint: Stint, scores: ControlScores | None, traffic: Traffic, platform: Platform,
    start: datetime, end: datetime,
) -> VersionService:  # fmt: skip
    length = spec.monitoring.backtest
    until = min(stint.end or end, end)
    return VersionService(
        version=stint.version,
        role=stint.role,
        trained_until=_trained_until(platform, spec.model, stint.version),
        served_from=stint.start,
        promoted_at=stint.promoted_at,
        served_until=stint.end,
        ended_by=stint.ended_by,
        n_answered=traffic.n_by_version.get(stint.version, 0),
        before=_measured(spec, scores, max(start, stint.start - length), stint.start),
        during=_measured(spec, scores, max(start, stint.start), until, stint.version),
        after=_measured(spec, scores, until, min(until + length, end)) if stint.end is not None else _NOTHING,
    )


def _trained_until(platform: Platform, model: str, version: str) -> str | None:
    try:
        content = (platform.registry.package(model, version) / "contract.json").read_bytes()
        value = Contract.from_json(content).lineage.get("trained_until")
    except (SteadyError, OSError):  # a package that is gone takes nothing else with it
        return None
    return value if isinstance(value, str) else None


def _traffic(records: Records, start: datetime, end: datetime, platform: Platform, *, block: timedelta) -> Traffic:
    flags: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    n_flagged, since = 0, start
    while since < end:
        until = min(since + STRETCH, end)
        frame = platform.outcomes.predictions(records.model, start=since, end=until).select("version", "flags")
        answered.update(dict(frame.group_by("version").len().iter_rows()))
        flagged = frame.filter(pl.col("flags").list.len() > 0)
        n_flagged += flagged.height
        flags.update(dict(flagged["flags"].explode().value_counts().iter_rows()))
        since = until
    return Traffic(
        n_answered=sum(answered.values()),
        n_errors=_errors(records.actions, sorted(answered), records.model, platform),
        n_flagged=n_flagged,
        flags=dict(sorted(flags.items(), key=lambda item: (-item[1], item[0]))[:_TOP_FLAGS]),
        n_by_version=dict(sorted(answered.items())),
        blocks=chronicle.traffic_blocks(records, start, end, block),
    )


def _errors(actions: Sequence[ActionRow], versions: Sequence[str], model: str, platform: Platform) -> int:
    """Errors by the highest count seen of every counter: a counter ends with the server or proxy that it is of."""
    highest: dict[tuple[str, str], int] = {}
    for action in actions:
        samples = action.observed.get("samples")
        for version, sample in samples.items() if isinstance(samples, dict) else []:
            if isinstance(sample, dict):
                counter = (version, str(sample.get("source")))
                highest[counter] = max(highest.get(counter, 0), int(str(sample.get("n_errors", 0))))
    for version in versions:
        try:
            now = platform.metrics.sample(model, version)
        except SteadyError:  # the proxy may have been stopped already
            continue
        if now is not None:
            counter = (version, now.source)
            highest[counter] = max(highest.get(counter, 0), now.n_errors)
    return sum(highest.values())


def _log_check(workspace: Workspace) -> LogCheck:
    vkey = load_signer(workspace).vkey
    result = audit.verify(workspace.db, workspace.second_place, vkey)
    return LogCheck(
        path=workspace.db.name,
        n_records=result.n_records,
        n_proven=result.n_proven,
        ok=result.ok,
        problems=result.problems,
        notes=result.notes,
        vkey=vkey,
        checkpoints=str(workspace.second_place),
    )


def _notes(spec: ModelSpec, scores: ControlScores | None, controls: Controls, *, n_denied: int) -> list[str]:
    """What a reader must know to judge the figures."""
    notes: list[str] = []
    if controls.error:
        notes.append(f"The controls could not be measured: {controls.error}.")
    if scores is not None:
        notes.append(
            "All three are measured on the same answered rows whose labels were known at the end; days in quarantine "
            "count here, because people were served on them."
        )
        notes.append(f"Never-retrain is version {controls.first_version}, frozen, scored on every row.")
    if scores is not None and scores.always is not None:
        notes.append(
            f"Always-retrain refits the recipe at the spec's cadence of {controls.cadence_days:g} days on the labels "
            f"known by then, one fit without cross-validation each, and serves every refit unseen: "
            f"{counted(sum(not refit.error for refit in controls.refits), 'refit')}. Quarantined days are left out."
        )
        notes += [f"The refit of {r.at:%Y-%m-%d} failed: {r.error}." for r in controls.refits if r.error]
    elif scores is not None:
        notes.append(f"There is no always-retrain control: training.kind {spec.training.kind!r} is not refitted here.")
    if spec.outcomes == "affected":
        notes.append(
            "Predictions cause or hide outcomes here, so that the controls' figures on recorded rows are advisory."
        )
    if scores is not None and not len(scores.times_us):
        notes.append("No answered row has a label yet: there is nothing to measure.")
    if n_denied:
        said = "1 proposal was" if n_denied == 1 else f"{n_denied} proposals were"
        notes.append(f"{said} denied; a denial that repeats unchanged is recorded once.")
    return notes
