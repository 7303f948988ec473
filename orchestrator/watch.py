"""Observation: one look a tick at whatever became complete since the last one, kept as rows so that looks are free."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from agents.base import matured_until
from agents.monitoring import Measured, Watch, decode_profile, look, reference_profile, sentence
from agents.skew import find_skew
from orchestrator.attendance import patience_of, read_attendance
from orchestrator.awaited import refilled, wake
from orchestrator.change import level_since, onset_of
from orchestrator.context import champion_of
from orchestrator.crew import Crew, keep_evidence, observe
from orchestrator.cursor import Cursor, block_name, block_start, read_cursor, save_cursor
from orchestrator.faulty_days import unjudged_days
from orchestrator.label_book import keep_labels, labels_before, served_rows, spoilt_days, take_late_labels
from orchestrator.label_watch import explain
from orchestrator.lasting import lasting, note_findings
from orchestrator.promises import missed_goals
from orchestrator.segment_watch import watch_segments
from orchestrator.signals import WINDOW_BLOCKS, Signal, days_of_block
from orchestrator.traffic_book import enter, read_before
from orchestrator.triage import take_in
from state import store
from state.profile import Profile, merge
from state.rows import BlockRow, DetectorRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.decision import DriftVerdict, decide_drift, window_alpha
from tools.drift.performance import EDetector, reference_from_losses

PREVIOUS_BLOCKS = 28


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
            cursor = read_cursor(crew, conn, spec)
            _pass_over(crew, conn, spec, cursor, fence)
            hole = refilled(crew, conn, spec)
            step = (
                _block_look(crew, conn, spec, champion, datetime.fromisoformat(hole).replace(tzinfo=UTC))
                if hole is not None
                else _next_look(crew, conn, spec, champion, cursor)
            )
        if step is None:
            return stood_out
        measured, raised = look(step, crew.platform)
        with crew.db.transaction() as conn:
            found = [_signal(item) for item in raised]
            _keep(crew, conn, spec, step, measured, fence)
            bad = unjudged_days(crew, conn, spec, found) | spoilt_days(spec, measured)
            alarms = _judge_losses(conn, spec, champion, measured, bad, fence)
            if measured.segments:
                alarms = watch_segments(conn, spec, champion, measured.segments, alarms, bad=bad, fence=fence)
            found += explain(crew, conn, spec, champion, alarms, fence) if measured.labelled else alarms
            if step.traffic_end is not None:
                cursor.traffic = max(cursor.traffic, step.traffic_end)
            if step.outcomes_until is not None:
                cursor.outcomes = step.outcomes_until
            found += _judge_drift(crew, conn, spec, champion, cursor, fence)
            save_cursor(conn, spec, cursor, fence)
            for signal in found:
                take_in(crew, conn, spec, signal, fence)
            if hole is not None:
                wake(conn, spec, hole, fence)
            if step.outcomes_until is not None:
                take_late_labels(crew, conn, spec, fence)
        stood_out |= bool(found)


def _signal(item: dict[str, Any]) -> Signal:
    return Signal(
        name=item["name"], text=item["text"], block=item.get("block"), blocks=item.get("blocks", []),
        size=item.get("size", 0.0),
        details={k: v for k, v in item.items() if k not in ("name", "text", "block", "blocks", "size")},
    )  # fmt: skip


def begin(crew: Crew, conn: Connection, spec: ModelSpec, *, fence: Fence) -> None:
    """Start the watch at the present block; does nothing where it has begun."""
    if store.get(conn, DetectorRow, f"{spec.model}/cursor") is None:
        save_cursor(conn, spec, read_cursor(crew, conn, spec), fence)


def _pass_over(crew: Crew, conn: Connection, spec: ModelSpec, cursor: Cursor, fence: Fence) -> None:
    """Go past blocks in which the system was stopped and nothing was served: there is nothing to measure in them."""
    attended = read_attendance(conn, spec.model)
    if attended is None:
        return
    start, block, patience = cursor.traffic, spec.monitoring.block, patience_of(crew, spec)
    while cursor.traffic + block <= crew.clock.now():
        end = cursor.traffic + block
        if not attended.away(cursor.traffic, end, patience=patience) or _served(crew, spec, cursor.traffic, end):
            break
        cursor.traffic, cursor.paused = end, cursor.paused + 1
    if cursor.traffic > start:
        save_cursor(conn, spec, cursor, fence)


def _served(crew: Crew, spec: ModelSpec, start: datetime, end: datetime) -> bool:
    return bool(crew.platform.outcomes.predictions(spec.model, start=start, end=end).height)


def _next_look(crew: Crew, conn: Connection, spec: ModelSpec, champion: str, cursor: Cursor) -> Watch | None:
    """The next complete block of traffic, and with it every outcome that has matured; None where nothing is new."""
    now, block = crew.clock.now(), spec.monitoring.block
    complete = cursor.traffic + block <= now
    matured = block_start(matured_until(now, spec.data.label.delay), spec)
    fresh = matured > cursor.outcomes
    if not complete and not fresh:
        return None
    step = _block_look(crew, conn, spec, champion, cursor.traffic if complete else None)
    if not fresh:
        return step
    return step.model_copy(
        update={
            "outcomes_from": cursor.outcomes, "outcomes_until": matured,
            "matured": served_rows(conn, spec, cursor.outcomes, matured), "labels_before": labels_before(conn, spec),
        }
    )  # fmt: skip


def _block_look(crew: Crew, conn: Connection, spec: ModelSpec, champion: str, start: datetime | None) -> Watch:
    """A look at the traffic of the block that begins at `start`, if any."""
    step = Watch(model=spec.model, spec=spec, now=crew.clock.now(), champion=champion, traffic_block=None)
    if start is None:
        return step
    attended, end = read_attendance(conn, spec.model), start + spec.monitoring.block
    rows = store.select(conn, BlockRow, model=spec.model, topic=f"profile/{champion}", order="block",
                        newest_first=True, limit=PREVIOUS_BLOCKS)  # fmt: skip
    ours = [row for row in reversed(rows) if attended is None or row.block >= attended.since]
    good = [row for row in ours if not row.body.get("hard") and not row.body.get("stopped")]
    return step.model_copy(
        update={
            "traffic_block": block_name(start, spec), "traffic_start": start, "traffic_end": end,
            "previous_profiles": [str(row.body["profile"]) for row in good],
            "lasting": lasting(conn, spec),
            "before": read_before(conn, spec, good, since=attended.since if attended is not None else ""),
            "counters": rows[0].body.get("counters") if rows else None,
            "stopped": attended is not None and attended.away(start, end, patience=patience_of(crew, spec)),
        }
    )  # fmt: skip


def _keep(crew: Crew, conn: Connection, spec: ModelSpec, step: Watch, measured: Measured, fence: Fence) -> None:
    """Store what was measured, once per block: profiles against the champion's bins, losses by version."""
    model = spec.model
    if step.traffic_block is not None:
        kinds = {f["kind"] for f in measured.findings if f["severity"] == "hard"}
        # Late rows spoil older blocks; what was served with skew is no history for the next block.
        skewed = find_skew(measured.compared, step.before.compared) is not None
        hard = bool(kinds - {"late_rows"}) or skewed
        body: dict[str, Any] = {
            "profile": measured.profile, "n_rows": measured.n_rows, "n_by_version": dict(measured.n_by_version),
            "findings": list(measured.findings), "hard": hard, "stopped": step.stopped, "odd": measured.intake.odd,
            "counters": measured.counters,
        }  # fmt: skip
        if measured.compared.n_keys:
            body["compared"] = measured.compared.model_dump(include={"n_keys", "n_differ"})
        enter(
            conn, spec, step.traffic_block, measured.n_rows, measured.intake, hole="no_rows" in kinds,
            counts=not step.stopped, fence=fence,
        )  # fmt: skip
        topic = f"profile/{step.champion}"
        row_id = f"{model}/{step.traffic_block}/{step.champion}/profile"
        store.put(conn, BlockRow(id=row_id, model=model, topic=topic, block=step.traffic_block, body=body), fence=fence)
        if measured.compared.no_data:
            observe(
                crew, conn, model=model, topic="left_alone", verdict="not_compared", actor='Agent::"monitoring"',
                summary=f"{step.traffic_block}: served values were not compared with offline ones: "
                f"{measured.compared.no_data}.",
                details={"block": step.traffic_block},
            )  # fmt: skip
        if measured.not_judged:
            observe(
                crew, conn, model=model, topic="left_alone", verdict="not_judged", actor='Agent::"monitoring"',
                summary=f"{step.traffic_block}: {'; '.join(measured.not_judged)}; not judged, for the system was stopped "
                "within that block.",
                details={"block": step.traffic_block},
            )  # fmt: skip
        note_findings(crew, conn, spec, step.traffic_block, measured, fence)
    warnings = [f for f in (*measured.findings, *measured.label_findings) if f["severity"] == "warn"]
    if warnings:
        observe(
            crew, conn, model=model, topic="data_quality", verdict="warn", actor='Agent::"monitoring"',
            summary=f"{step.traffic_block or 'labels'}: " + "; ".join(sentence(f) for f in warnings[:3]) + ".",
            details={"block": step.traffic_block, "findings": list(warnings)},
        )  # fmt: skip
    keep_labels(conn, spec, measured, fence)
    if measured.n_labelled:
        known = store.get(conn, DetectorRow, f"{model}/labels")
        n_before = int(str(known.state["n"])) if known is not None else 0
        state: dict[str, Any] = {"n": n_before + measured.n_labelled, "newest": measured.newest_label}
        store.put(conn, DetectorRow(id=f"{model}/labels", model=model, state=state), fence=fence)
    for version, losses in measured.losses.items():
        for block, loss in losses.items():
            row_id = f"{model}/{block}/{version}/loss"
            kept: dict[str, Any] = {"loss": loss, "version": version}
            store.put(conn, BlockRow(id=row_id, model=model, topic="loss", block=block, body=kept), fence=fence)


def _judge_losses(
    conn: Connection, spec: ModelSpec, champion: str, measured: Measured, bad: set[str], fence: Fence
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
    detector.update_all({block: loss for block, loss in losses.items() if not bad & set(days_of_block(block, spec))})
    state: dict[str, Any] = dict(detector.state())
    store.put(conn, DetectorRow(id=f"{spec.model}/loss/{champion}", model=spec.model, state=state), fence=fence)
    signal = _alarm(conn, spec, champion, detector, bad, fence) if detector.alarm else None
    newest = _newest_losses(conn, spec, champion, bad)
    missed = missed_goals(
        conn, spec, list(newest.values()), reference=detector.reference, evidence_block=max(newest, default=""), fence=fence
    )  # fmt: skip
    return [*([signal] if signal is not None else []), *missed]


def _newest_losses(conn: Connection, spec: ModelSpec, champion: str, bad: set[str]) -> dict[str, float]:
    """Block -> loss of the champion's newest matured blocks, newest first, quarantined days left out."""
    return {row.block: float(str(row.body["loss"])) for row in _loss_rows(conn, spec, champion, bad)}


def _loss_rows(conn: Connection, spec: ModelSpec, champion: str, bad: set[str]) -> list[BlockRow]:
    """The champion's newest matured blocks, newest first: without quarantined days and those of a replay that ended."""
    rows = store.select(conn, BlockRow, model=spec.model, topic="loss", order="block", newest_first=True, limit=28)
    attended = read_attendance(conn, spec.model)
    since = attended.since if attended is not None else ""
    return [
        row for row in rows
        if row.body.get("version") == champion and row.block >= since and not bad & set(days_of_block(row.block, spec))
    ]  # fmt: skip


def _alarm(
    conn: Connection, spec: ModelSpec, champion: str, detector: EDetector, bad: set[str], fence: Fence
) -> Signal | None:
    """The signal of an alarmed detector; None where the same alarm was raised before and has not grown since."""
    reference = detector.reference
    known = store.get(conn, DetectorRow, f"{spec.model}/alarm/{champion}")
    ours = _loss_rows(conn, spec, champion, bad)
    newest = ours[0].block if ours else ""
    if known is not None and known.state.get("over"):
        # It was healthy in between: this is a relapse, not the growth of an old alarm.
        ours, known = [r for r in ours if r.block > str(known.state["block"])], None
    if known is not None:
        # Growth is judged on a whole window of newer blocks, so that one slow fall is one signal.
        ours = [r for r in ours if r.block > str(known.state["block"])]
        if len(ours) < WINDOW_BLOCKS:
            return None
    recent = [float(str(r.body["loss"])) for r in ours[:WINDOW_BLOCKS]]
    mean = float(np.mean(recent)) if recent else reference.null
    size, floor = mean - reference.mean, reference.null - reference.mean
    if known is not None and size <= float(str(known.state["size"])) + floor:
        return None
    losses = {r.block: float(str(r.body["loss"])) for r in ours}
    level = known.state.get("level") if known is not None else None
    onset = onset_of(losses, reference, float(str(level)) if level is not None else None)
    state: dict[str, Any] = {"size": size, "block": newest, "level": level_since(losses, onset) if onset else level}
    raised = DetectorRow(id=f"{spec.model}/alarm/{champion}", model=spec.model, state=state)
    store.put(conn, raised, fence=fence)
    return Signal(
        name="loss_alarm",
        text=f"{spec.objective.metric} loss {mean:.4f} over the last {len(recent)} blocks against a reference of "
        f"{reference.mean:.4f} (tolerated: {reference.null:.4f})",
        size=size,
        floor=floor,
        onset=onset,
        details={"loss": mean, "reference": reference.mean, "null": reference.null, "log_e": detector.log_e},
    )


def _new_detector(conn: Connection, spec: ModelSpec, champion: str) -> EDetector | None:
    """A detector against the champion's out-of-sample block losses, which its training recorded as evidence."""
    row = store.get(conn, DetectorRow, f"{spec.model}/reference/{champion}")
    losses = row.state.get("losses") if row is not None else None
    if not isinstance(losses, list) or len(losses) < 2:
        return None
    reference = reference_from_losses([float(str(loss)) for loss in losses], tolerance=spec.monitoring.tolerance)
    # Half of the false-alarm budget is for the whole, the other half is for segments.
    return EDetector(reference=reference, false_alarm_blocks=2 * spec.monitoring.false_alarm_blocks)


def _judge_drift(
    crew: Crew, conn: Connection, spec: ModelSpec, champion: str, cursor: Cursor, fence: Fence
) -> list[Signal]:
    """Test a whole, non-overlapping window once it is full; the year's alpha is spread over its windows."""
    window = spec.monitoring.drift_window + cursor.paused * spec.monitoring.block
    if cursor.drift + window > cursor.traffic:
        return []
    start, end = cursor.drift, cursor.drift + window
    cursor.drift, cursor.paused = end, 0
    reference = reference_profile(crew.platform, spec.model, champion)
    current = _window_profile(conn, spec, champion, reference, start, end)
    if not len(current):
        return []
    verdict = decide_drift(
        reference, current, alpha=window_alpha(spec.monitoring.drift_alpha_per_year, spec.monitoring.drift_window),
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
        Signal(
            name="major_drift",
            text=text,
            size=size,
            onset=start.isoformat(),
            details={"features": list(moved)},
            evidence_ids=[evidence_id],
        )
    ]
