"""Observation: one look a tick at whatever became complete since the last one, kept as rows so that looks are free."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from agents.base import matured_until
from agents.monitoring import Measured, Watch, decode_profile, look, reference_profile, sentence
from orchestrator.context import champion_of
from orchestrator.crew import Crew, keep_evidence, observe
from orchestrator.promises import missed_goals
from orchestrator.signals import Signal
from orchestrator.triage import days_of_block, take_in
from state import store
from state.profile import Profile, merge
from state.rows import BlockRow, DetectorRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.decision import DriftVerdict, decide_drift, window_alpha
from tools.drift.performance import EDetector, block_of, reference_from_losses

PREVIOUS_BLOCKS = 28


@dataclass(slots=True, kw_only=True)
class Cursor:
    """How far one model has been looked at; a row, so that a restart goes on where the last look ended."""

    traffic: datetime
    """Start of the first block whose traffic has not been measured."""
    outcomes: datetime
    """Event time up to which matured outcomes have been measured."""
    drift: datetime
    """Start of the drift window that is filling."""


def watch(crew: Crew, spec: ModelSpec, *, fence: Fence) -> bool:
    """Measure every complete block and every matured outcome since the last look; returns whether something stood out.

    What a look saw, what it raised and where the next one starts are stored together: a kill loses no signal.
    """
    champion = champion_of(crew, spec.model)
    if champion is None:
        return False
    stood_out = False
    while True:
        with crew.db.transaction() as conn:
            cursor = _cursor(crew, conn, spec)
            step = _next_look(crew, conn, spec, champion, cursor)
        if step is None:
            return stood_out
        measured, raised = look(step, crew.platform)
        with crew.db.transaction() as conn:
            found = [_signal(item) for item in raised]
            _keep(crew, conn, spec, step, measured, fence)
            found += _judge_losses(crew, conn, spec, champion, measured, fence)
            if step.traffic_end is not None:
                cursor.traffic = step.traffic_end
            if step.outcomes_until is not None:
                cursor.outcomes = step.outcomes_until
            found += _judge_drift(crew, conn, spec, champion, cursor, fence)
            _save_cursor(conn, spec, cursor, fence)
            for signal in found:
                take_in(crew, conn, spec, signal, fence)
        stood_out |= bool(found)


def _signal(item: dict[str, Any]) -> Signal:
    return Signal(
        name=item["name"], text=item["text"], block=item.get("block"),
        details={k: v for k, v in item.items() if k not in ("name", "text", "block")},
    )  # fmt: skip


def _cursor(crew: Crew, conn: Connection, spec: ModelSpec) -> Cursor:
    row = store.get(conn, DetectorRow, f"{spec.model}/cursor")
    if row is None:
        start = _block_start(crew.clock.now(), spec)
        return Cursor(traffic=start, outcomes=start, drift=start)
    at = {name: datetime.fromisoformat(str(row.state[name])) for name in ("traffic", "outcomes", "drift")}
    return Cursor(traffic=at["traffic"], outcomes=at["outcomes"], drift=at["drift"])


def _save_cursor(conn: Connection, spec: ModelSpec, cursor: Cursor, fence: Fence) -> None:
    state = {name: getattr(cursor, name).isoformat() for name in ("traffic", "outcomes", "drift")}
    store.put(conn, DetectorRow(id=f"{spec.model}/cursor", model=spec.model, state=state), fence=fence)


def begin(crew: Crew, spec: ModelSpec, *, fence: Fence) -> None:
    """Start the watch at the present block; does nothing where it has begun."""
    with crew.db.transaction() as conn:
        if store.get(conn, DetectorRow, f"{spec.model}/cursor") is None:
            _save_cursor(conn, spec, _cursor(crew, conn, spec), fence)


def block_name(at: datetime, spec: ModelSpec) -> str:
    """Name of the block that holds `at`: the ISO date (or time) of its start."""
    return str(block_of(pl.Series([at]), spec.monitoring.block)[0])


def _block_start(at: datetime, spec: ModelSpec) -> datetime:
    return datetime.fromisoformat(block_name(at, spec)).replace(tzinfo=UTC)


def _next_look(crew: Crew, conn: Connection, spec: ModelSpec, champion: str, cursor: Cursor) -> Watch | None:
    """The next complete block of traffic, and with it every outcome that has matured; None where nothing is new."""
    now, block = crew.clock.now(), spec.monitoring.block
    complete = cursor.traffic + block <= now
    matured = _block_start(matured_until(now, spec.data.label.delay), spec)
    fresh = matured > cursor.outcomes
    if not complete and not fresh:
        return None
    previous: list[str] = []
    if complete:
        rows = store.select(conn, BlockRow, model=spec.model, topic=f"profile/{champion}", order="block",
                            newest_first=True, limit=PREVIOUS_BLOCKS)  # fmt: skip
        previous = [str(row.body["profile"]) for row in reversed(rows) if not row.body.get("hard")]
    return Watch(
        model=spec.model, spec=spec, now=now, champion=champion,
        traffic_block=block_name(cursor.traffic, spec) if complete else None,
        traffic_start=cursor.traffic if complete else None,
        traffic_end=cursor.traffic + block if complete else None,
        outcomes_from=cursor.outcomes if fresh else None,
        outcomes_until=matured if fresh else None,
        previous_profiles=previous,
    )  # fmt: skip


def _keep(crew: Crew, conn: Connection, spec: ModelSpec, step: Watch, measured: Measured, fence: Fence) -> None:
    """Store what was measured, once per block: profiles against the champion's bins, losses by version."""
    model = spec.model
    if step.traffic_block is not None:
        hard = any(f["severity"] == "hard" for f in measured.findings)
        body: dict[str, Any] = {
            "profile": measured.profile, "n_rows": measured.n_rows, "n_by_version": dict(measured.n_by_version),
            "findings": list(measured.findings), "hard": hard,
        }  # fmt: skip
        topic = f"profile/{step.champion}"
        row_id = f"{model}/{step.traffic_block}/{step.champion}/profile"
        store.put(conn, BlockRow(id=row_id, model=model, topic=topic, block=step.traffic_block, body=body), fence=fence)
        warnings = [f for f in measured.findings if f["severity"] != "hard"]
        if warnings:
            observe(
                crew, conn, model=model, topic="data_quality", verdict="warn", actor='Agent::"monitoring"',
                summary=f"{step.traffic_block}: " + "; ".join(sentence(f) for f in warnings[:3]) + ".",
                details={"block": step.traffic_block, "findings": list(warnings)},
            )  # fmt: skip
    if measured.n_labelled:
        known = store.get(conn, DetectorRow, f"{model}/labels")
        n_before = int(str(known.state["n"])) if known is not None else 0
        state: dict[str, Any] = {"n": n_before + measured.n_labelled, "newest": measured.newest_label}
        store.put(conn, DetectorRow(id=f"{model}/labels", model=model, state=state), fence=fence)
    for version, losses in measured.losses.items():
        for block, loss in losses.items():
            row_id = f"{model}/{block}/{version}/loss"
            kept: dict[str, Any] = {"loss": loss, "version": version, "label_mean": measured.label_means.get(block)}
            store.put(conn, BlockRow(id=row_id, model=model, topic="loss", block=block, body=kept), fence=fence)


def _judge_losses(
    crew: Crew, conn: Connection, spec: ModelSpec, champion: str, measured: Measured, fence: Fence
) -> list[Signal]:
    """Feed the champion's matured blocks to its detector, quarantined days left out.

    An alarm is raised once, and again where the blocks since then are worse by another floor.
    """
    losses = measured.losses.get(champion, {})
    if not losses:
        return []
    row = store.get(conn, DetectorRow, f"{spec.model}/loss/{champion}")
    detector = EDetector.from_state(row.state) if row is not None else _new_detector(conn, spec, champion)
    if detector is None:
        return []
    bad = set(crew.platform.outcomes.quarantined(spec.model))
    detector.update_all({block: loss for block, loss in losses.items() if not bad & set(days_of_block(block, spec))})
    state: dict[str, Any] = dict(detector.state())
    store.put(conn, DetectorRow(id=f"{spec.model}/loss/{champion}", model=spec.model, state=state), fence=fence)
    signal = _alarm(conn, spec, champion, detector, bad, fence) if detector.alarm else None
    newest = _newest_losses(conn, spec, champion, bad)
    missed = missed_goals(conn, spec, list(newest.values()), evidence_block=max(newest, default=""), fence=fence)
    return [*([signal] if signal is not None else []), *missed]


def _newest_losses(conn: Connection, spec: ModelSpec, champion: str, bad: set[str]) -> dict[str, float]:
    """Block -> loss of the champion's newest matured blocks, newest first, quarantined days left out."""
    rows = store.select(conn, BlockRow, model=spec.model, topic="loss", order="block", newest_first=True, limit=28)
    return {
        row.block: float(str(row.body["loss"]))
        for row in rows
        if row.body.get("version") == champion and not bad & set(days_of_block(row.block, spec))
    }


ALARM_BLOCKS = 7


def _alarm(
    conn: Connection, spec: ModelSpec, champion: str, detector: EDetector, bad: set[str], fence: Fence
) -> Signal | None:
    """The signal of an alarmed detector; None where the same alarm was raised before and has not grown since."""
    reference = detector.reference
    known = store.get(conn, DetectorRow, f"{spec.model}/alarm/{champion}")
    rows = store.select(conn, BlockRow, model=spec.model, topic="loss", order="block", newest_first=True, limit=28)
    ours = [r for r in rows if r.body.get("version") == champion and not bad & set(days_of_block(r.block, spec))]
    newest = ours[0].block if ours else ""
    if known is not None:
        # Growth is judged on a whole window of newer blocks, so that one slow fall is one signal.
        ours = [r for r in ours if r.block > str(known.state["block"])]
        if len(ours) < ALARM_BLOCKS:
            return None
    recent = [float(str(r.body["loss"])) for r in ours[:ALARM_BLOCKS]]
    mean = float(np.mean(recent)) if recent else reference.null
    size, floor = mean - reference.mean, reference.null - reference.mean
    if known is not None and size <= float(str(known.state["size"])) + floor:
        return None
    raised = DetectorRow(
        id=f"{spec.model}/alarm/{champion}", model=spec.model, state={"size": size, "block": newest}
    )  # fmt: skip
    store.put(conn, raised, fence=fence)
    return Signal(
        name="loss_alarm",
        text=f"{spec.objective.metric} loss {mean:.4f} over the last {len(recent)} blocks against a reference of "
        f"{reference.mean:.4f} (tolerated: {reference.null:.4f})",
        size=size,
        floor=floor,
        details={"loss": mean, "reference": reference.mean, "null": reference.null, "log_e": detector.log_e},
    )


def _new_detector(conn: Connection, spec: ModelSpec, champion: str) -> EDetector | None:
    """A detector against the champion's out-of-sample block losses, which its training recorded as evidence."""
    row = store.get(conn, DetectorRow, f"{spec.model}/reference/{champion}")
    losses = row.state.get("losses") if row is not None else None
    if not isinstance(losses, list) or len(losses) < 2:
        return None
    reference = reference_from_losses([float(str(loss)) for loss in losses], tolerance=spec.monitoring.tolerance)
    # Half of the false-alarm budget is for the whole, the other half is kept for segments.
    return EDetector(reference=reference, false_alarm_blocks=2 * spec.monitoring.false_alarm_blocks)


def _judge_drift(
    crew: Crew, conn: Connection, spec: ModelSpec, champion: str, cursor: Cursor, fence: Fence
) -> list[Signal]:
    """Test a whole, non-overlapping window once it is full; the year's alpha is spread over its windows."""
    window = spec.monitoring.drift_window
    if cursor.drift + window > cursor.traffic:
        return []
    start, end = cursor.drift, cursor.drift + window
    cursor.drift = end
    reference = reference_profile(crew.platform, spec.model, champion)
    current = _window_profile(conn, spec, champion, reference, start, end)
    if not len(current):
        return []
    verdict = decide_drift(
        reference, current, alpha=window_alpha(spec.monitoring.drift_alpha_per_year, window),
        rng=np.random.default_rng(int(start.timestamp())),
    )  # fmt: skip
    return _drift_signals(crew, conn, spec, verdict, start, end, fence)


def _window_profile(
    conn: Connection, spec: ModelSpec, champion: str, reference: Profile, start: datetime, end: datetime
) -> Profile:
    """The sum of the window's block profiles, faulty blocks left out; blocks counted against other bins are not comparable.

    A block that training ended in is in the reference too: two windows that share one say less of each other.
    """
    names = {block_name(start + i * spec.monitoring.block, spec) for i in range((end - start) // spec.monitoring.block)}
    names -= set(reference.blocks)
    rows = store.select(conn, BlockRow, model=spec.model, topic=f"profile/{champion}", order="block")
    profiles = [
        decode_profile(reference.bins, str(row.body["profile"]))
        for row in rows
        if row.block in names and not row.body.get("hard") and row.body.get("n_rows")
    ]
    return merge(profiles, reference.bins)


def _drift_signals(
    crew: Crew, conn: Connection, spec: ModelSpec, verdict: DriftVerdict, start: datetime, end: datetime, fence: Fence
) -> list[Signal]:
    features = [
        {"name": f.name, "kind": f.kind, "statistic": f.statistic, "p_value": f.p_value, "level": f.level}
        for f in verdict.features
    ]
    moved = list(dict.fromkeys(f.name for f in verdict.drifted))
    body: dict[str, Any] = {
        "from": start.isoformat(), "until": end.isoformat(), "level": verdict.level, "features": features,
        "moved": moved, "calibrated": verdict.calibrated,
    }  # fmt: skip
    evidence_id = keep_evidence(crew, conn, model=spec.model, topic="drift", body=body, fence=fence)
    text = f"{start:%Y-%m-%d} to {end:%Y-%m-%d}: drift {verdict.level}" + (
        f" in {', '.join(moved[:6])}" if moved else ""
    )
    observe(
        crew, conn, model=spec.model, topic="drift", verdict=verdict.level, summary=text + ".",
        actor='Agent::"monitoring"', evidence_ids=[evidence_id], details={"moved": list(moved)},
    )  # fmt: skip
    store.put(
        conn, DetectorRow(id=f"{spec.model}/drift", model=spec.model,
                          state={"level": verdict.level, "features": list(moved), "until": end.isoformat()}),
        fence=fence,
    )  # fmt: skip
    if verdict.level != "major" or not verdict.calibrated:
        return []
    size = max((f.statistic for f in verdict.drifted), default=0.0)
    return [
        Signal(name="major_drift", text=text, size=size, details={"features": list(moved)}, evidence_ids=[evidence_id])
    ]
