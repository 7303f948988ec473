"""What happened to one model, told from its rows and its decision log: service, incidents, challengers, faults."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from console.figures import figure
from console.summary_types import (
    ActionTaken,
    ApprovalStory,
    Challenger,
    DriftWindow,
    FaultDay,
    FeatureMove,
    IncidentStory,
    Role,
    TimelineEntry,
    TrafficBlock,
)
from state import log, store
from state.clock import utc
from state.decisions import (
    ActionChanged,
    ActionDecided,
    AnyDecision,
    ApprovalChanged,
    Commanded,
    IncidentChanged,
    Observed,
)
from state.log import LogEntry
from state.rows import ActionRow, ApprovalRow, BlockRow, EvidenceRow, IncidentRow, RolloutRow, RunRow, SignalRow
from state.store import Database

HAPPENED = ("verified", "reverted")
"""States of an action whose effect was seen in the world."""
_LEVELS = ("none", "warn", "major")
_TOLD_ACTIONS = frozenset(
    {"train_candidates", "shift_traffic", "run_ab_test", "promote", "rollback", "quarantine_data", "restart_server",
     "rollback_features", "accept_drift", "hold", "resume"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Everything stored about one model up to a time, read in one snapshot."""

    model: str
    incidents: Sequence[IncidentRow]
    actions: Sequence[ActionRow]
    """Oldest first."""
    runs: dict[str, RunRow]
    signals: Sequence[SignalRow]
    rollouts: Sequence[RolloutRow]
    approvals: Sequence[ApprovalRow]
    drift: Sequence[EvidenceRow]
    profiles: Sequence[BlockRow]
    entries: Sequence[LogEntry]


def read_records(db: Database, model: str) -> Records:
    """The rows and records of `model`."""
    with db.snapshot() as conn:
        blocks = store.select(conn, BlockRow, model=model, order="block")
        return Records(
            model=model,
            incidents=store.select(conn, IncidentRow, model=model),
            actions=store.select(conn, ActionRow, model=model, order="log_index"),
            runs={run.id: run for run in store.select(conn, RunRow, model=model)},
            signals=store.select(conn, SignalRow, model=model),
            rollouts=store.select(conn, RolloutRow, model=model),
            approvals=store.select(conn, ApprovalRow, model=model),
            drift=store.select(conn, EvidenceRow, model=model, topic="drift", order="at"),
            profiles=[row for row in blocks if row.topic.startswith("profile/")],
            entries=log.read(conn, model=model),
        )


@dataclass(slots=True, kw_only=True)
class Stint:
    """One stretch of service of one version."""

    version: str
    role: Role
    start: datetime
    promoted_at: datetime | None
    end: datetime | None = None
    ended_by: str = ""


def stints(records: Records) -> list[Stint]:
    """Stretches of service in order of their first live request: champions, and candidates that took traffic."""
    # What puts a hand edit right names the version that loses its share again: it begins nothing.
    moves = [action for action in records.actions if action.state in HAPPENED and "corrects" not in action.args]
    moves.sort(key=lambda action: (_at(action), action.created_at))
    found: list[Stint] = []
    reigning: Stint | None = None
    candidate: Stint | None = None
    for action in moves:
        version = str(action.args.get("version", ""))
        match action.kind:
            case "shift_traffic" | "run_ab_test" if candidate is None or candidate.version != version:
                _end(candidate, _at(action), f"superseded by version {version}", "rolled back")
                candidate = Stint(version=version, role="candidate", start=_at(action), promoted_at=None)
                found.append(candidate)
            case "promote":
                _end(reigning, _at(action), f"promotion of version {version}", "former champion")
                if candidate is None or candidate.version != version:
                    candidate = Stint(version=version, role="champion", start=_at(action), promoted_at=None)
                    found.append(candidate)
                candidate.role, candidate.promoted_at = "champion", _at(action)
                reigning, candidate = candidate, None
            case "rollback":
                if candidate is not None and candidate.version == version:
                    _end(candidate, _at(action), "rollback", "rolled back")
                    candidate = None
                to = str(action.args.get("to", ""))
                if reigning is not None and reigning.version != to:
                    _end(reigning, _at(action), f"rollback to version {to}", "rolled back")
                    reigning = Stint(version=to, role="champion", start=_at(action), promoted_at=_at(action))
                    found.append(reigning)
            case "retire_version" if candidate is not None and candidate.version == version:
                _end(candidate, _at(action), "retired", "rolled back")
                candidate = None
            case _:
                pass
    return found


def _end(stint: Stint | None, at: datetime, why: str, role: Role) -> None:
    if stint is not None:
        stint.end, stint.ended_by, stint.role = at, why, role


def _at(action: ActionRow) -> datetime:
    """When the effect was seen."""
    return action.finished_at or action.created_at


def incident_stories(records: Records, start: datetime, end: datetime) -> list[IncidentStory]:
    """Incidents that were open at some time of the window, with the actions that served them."""
    rows = [row for row in records.incidents if row.opened_at <= end and (row.closed_at or end) >= start]
    return [
        IncidentStory(
            id=row.id, title=row.title, cause=row.cause, signal=row.signal, text=str(row.body.get("text", "")),
            opened_at=row.opened_at, closed_at=row.closed_at, resolution=row.resolution,
            actions=[
                ActionTaken(kind=a.kind, state=a.state, at=_at(a), message=a.message)
                for a in records.actions if a.subject_id == row.id
            ],
        )
        for row in sorted(rows, key=lambda row: (row.opened_at, row.id))
    ]  # fmt: skip


def challengers(records: Records, start: datetime, end: datetime, win_z: float) -> list[Challenger]:
    """Every paired comparison of the window with what became of it; losers that came close are marked."""
    found = [
        _challenger(records, entry.decision, win_z)
        for entry in records.entries
        if isinstance(entry.decision, Observed)
        and entry.decision.topic == "backtest"
        and start <= entry.decision.at <= end
    ]
    lost = [c for c in found if c.verdict == "lose" and not c.adopted and c.z is not None]
    close = [c for c in lost if c.z is not None and c.z >= (c.needed_z or win_z) / 2]
    if not close:
        close = [c for c in sorted(lost, key=lambda c: -(c.z or 0.0))[:1] if (c.z or 0.0) > 0]
    return [c.model_copy(update={"near_miss": True}) if c in close else c for c in found]


def _challenger(records: Records, decision: Observed, win_z: float) -> Challenger:
    args = decision.details.get("args")
    given: dict[str, Any] = args if isinstance(args, dict) else {}
    asked = records.runs.get(decision.run_id or "")
    run = _followed_run(records, decision)
    promotion = _promotion(records, run, decision.at)
    z = _number(decision.details.get("z"))
    n_blocks = _number(decision.details.get("n_blocks"))
    # Records from before the bound depended on the number of blocks do not name it.
    needed_z = _number(decision.details.get("needed_z", win_z))
    candidate = promotion.args.get("version") if promotion else given.get("candidate")
    if candidate is None and run is not None and decision.verdict == "win":
        candidate = run.facts.get("candidate")
    return Challenger(
        at=decision.at,
        asked_by=asked.subject_kind if asked is not None else "",
        champion=_text(given.get("champion")),
        candidate=_text(candidate),
        compare_from=_text(given.get("compare_from")),
        compare_until=_text(given.get("compare_until")),
        verdict=decision.verdict,
        z=z,
        needed_z=needed_z if z is not None else None,
        mean_difference=_number(decision.details.get("mean_difference")),
        n_blocks=int(n_blocks) if n_blocks is not None else None,
        adopted=promotion is not None,
        near_miss=False,
        why=_why(records, decision, run, promotion, z, needed_z or win_z, offered=given.get("candidate") is not None),
    )


def _followed_run(records: Records, decision: Observed) -> RunRow | None:
    """The run that acted on the comparison: its own, or that of the incident which a win of the cadence opened."""
    run = records.runs.get(decision.run_id or "")
    if run is None or run.subject_kind != "cadence":
        return run
    cited = set(decision.evidence_ids)
    opened = [s for s in records.signals if s.name == "challenger_better" and cited & set(s.evidence_ids)]
    incident_ids = {signal.incident_id for signal in opened}
    return next((run for run in records.runs.values() if run.subject_id in incident_ids), None)


def _promotion(records: Records, run: RunRow | None, since: datetime) -> ActionRow | None:
    promotions = (
        a for a in records.actions
        if run is not None and a.run_id == run.id and a.kind == "promote" and a.state in HAPPENED
    )  # fmt: skip
    return next((action for action in promotions if action.created_at >= since), None)


def _why(
    records: Records, decision: Observed, run: RunRow | None, promotion: ActionRow | None, z: float | None,
    needed_z: float, *, offered: bool,
) -> str:  # fmt: skip
    if promotion is not None:
        version = promotion.args.get("version")
        undone = [
            a for a in records.actions
            if a.kind == "rollback" and a.state in HAPPENED and a.args.get("version") == version
            and _at(a) >= _at(promotion)
        ]  # fmt: skip
        end = f"; rolled back on {_at(undone[0]):%Y-%m-%d}" if undone else ""
        return f"promoted as version {version} on {_at(promotion):%Y-%m-%d}{end}"
    if decision.verdict == "win" or (offered and run is not None):
        prefix = "won, " if decision.verdict == "win" else ""
        if run is None:
            return f"{prefix}nothing followed within the window"
        if run.status != "finished":
            return f"{prefix}under way: {run.waits_for or 'next step'}"
        return f"{prefix}not promoted: {run.facts.get('story') or run.outcome.replace('_', ' ')}"
    if decision.details.get("too_small"):
        least = figure(_number(decision.details["needed_difference"]) or 0.0, ".4f")
        return f"better by less than the {least} that is worth a rollout: the champion stays"
    if decision.verdict == "lose" and z is not None:
        return f"z {figure(z, '.2f')} is below the {needed_z:.3g} that adopts: the champion stays"
    return decision.summary


def approval_stories(records: Records, end: datetime) -> list[ApprovalStory]:
    return [
        ApprovalStory(
            id=row.id, action=row.action, roles=row.roles, status=row.status, reason=row.reason, asked_at=row.asked_at,
            answered_by=row.answered_by, answered_at=row.answered_at, comment=row.comment,
        )
        for row in sorted(records.approvals, key=lambda row: (row.asked_at, row.id))
        if row.asked_at <= end
    ]  # fmt: skip


def denials(decisions: Iterable[AnyDecision]) -> dict[str, int]:
    """Denied proposals by rule, the most frequent first; a denial by several rules counts for each."""
    counted: dict[str, int] = {}
    for decision in decisions:
        if isinstance(decision, ActionDecided) and decision.verdict == "deny":
            for rule in decision.rules or ["no policy permits it"]:
                counted[rule] = counted.get(rule, 0) + 1
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def fault_days(records: Records, quarantined: Collection[str], start: datetime, end: datetime) -> list[FaultDay]:
    """Days of the window with a hard finding or in quarantine."""

    def inside(day: str) -> bool:
        begins = utc(datetime.fromisoformat(day))
        return begins + timedelta(days=1) > start and begins < end

    findings: dict[str, list[str]] = {day: [] for day in quarantined if inside(day)}
    n_rows: dict[str, int] = {}
    for row in records.profiles:
        day = row.block[:10]
        n_rows[day] = n_rows.get(day, 0) + int(_number(row.body.get("n_rows")) or 0)
        if row.body.get("hard") and inside(day):
            hard = [f for f in _dicts(row.body.get("findings")) if f.get("severity") == "hard"]
            findings.setdefault(day, []).extend(str(f.get("detail")) for f in hard)
    return [
        FaultDay(day=day, n_rows=n_rows.get(day), quarantined=day in quarantined, findings=found)
        for day, found in sorted(findings.items())
    ]


def known_bad_days(records: Records, quarantined: Collection[str]) -> Callable[[datetime], list[str]]:
    """By time: the days in quarantine that had been put there by then; days put there by hand always count."""
    since: dict[str, datetime] = {}
    for action in records.actions:
        days = action.args.get("days")
        if action.kind == "quarantine_data" and action.state in HAPPENED and isinstance(days, list):
            for day in days:
                since.setdefault(str(day), _at(action))
    return lambda at: [day for day in quarantined if day not in since or since[day] <= at]


def traffic_blocks(records: Records, start: datetime, end: datetime, length: timedelta) -> list[TrafficBlock]:
    """Answered rows by version in every complete block (of `length`) that reaches into the window."""
    by_block: dict[str, dict[str, int]] = {}
    for row in records.profiles:
        counts = row.body.get("n_by_version")
        begins = utc(datetime.fromisoformat(row.block))
        if isinstance(counts, dict) and begins + length > start and begins < end:
            by_block[row.block] = {str(v): int(str(n)) for v, n in counts.items()}
    return [TrafficBlock(block=block, n_by_version=counts) for block, counts in sorted(by_block.items())]


def drift_windows(records: Records, start: datetime, end: datetime) -> list[DriftWindow]:
    """Every drift test made in the window, each feature with the gravest of its tests."""
    windows = []
    for row in records.drift:
        gravest: dict[str, FeatureMove] = {}
        for test in _dicts(row.body.get("features")):
            move = FeatureMove.model_validate(test)
            known = gravest.get(move.name)
            if known is None or _gravity(move) > _gravity(known):
                gravest[move.name] = move
        windows.append(
            DriftWindow(
                start=datetime.fromisoformat(str(row.body["from"])), end=datetime.fromisoformat(str(row.body["until"])),
                level=str(row.body["level"]), calibrated=bool(row.body.get("calibrated")),
                features=list(gravest.values()),
            )
        )  # fmt: skip
    return [window for window in windows if window.end > start and window.start < end]


def _gravity(move: FeatureMove) -> tuple[int, float]:
    return (_LEVELS.index(move.level) if move.level in _LEVELS else 0, move.statistic)


def timeline(records: Records, start: datetime, end: datetime) -> list[TimelineEntry]:
    """The window's decisions that a person wants to read first, in log order; the log has the rest."""
    found = []
    for entry in records.entries:
        what = _important(entry.decision)
        if what and start <= entry.decision.at <= end:
            decision = entry.decision
            found.append(
                TimelineEntry(
                    index=entry.index, at=decision.at, what=what, actor=decision.actor, text=decision.summary
                )
            )  # fmt: skip
    return found


def _important(decision: AnyDecision) -> str:
    """What kind of entry of the timeline the decision is; empty where it is left to the log."""
    match decision:
        case IncidentChanged(change="opened" | "closed" | "rediagnosed"):
            return f"incident {decision.change}"
        case Observed(topic="plan"):
            return "plan"
        case Observed(topic="backtest" | "ab_test" | "foreign_edit" | "gates" | "analysis"):
            return f"{decision.topic} {decision.verdict}".replace("_", " ")
        case Observed(topic="drift", verdict="major"):
            return "major drift"
        case ActionDecided(verdict="deny"):
            return "denied"
        case ActionChanged(state="failed" | "unknown"):
            return f"{decision.action.replace('_', ' ')} {decision.state}"
        case ActionChanged(state="verified") if decision.action in _TOLD_ACTIONS:
            return decision.action.replace("_", " ")
        case ApprovalChanged(change="asked" | "approved" | "rejected" | "expired" | "void"):
            return f"approval {decision.change}"
        case Commanded():
            return decision.command.replace("_", " ")
        case _:
            return ""


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
