"""The timeline of a backtest in plain words, from the decision log and the ledger's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from console.backtest_types import Incident, Moment, Question
from console.chronicle import Records
from evals.backtest.pipelines import UNTRAINABLE
from evals.backtest.predictions import Release
from state.decisions import ActionChanged, ActionDecided, AnyDecision, ApprovalChanged, IncidentChanged, Observed
from state.rows import ActionRow, ApprovalRow

REPEATED = frozenset({"denied", "failed", "would", "question", "backtest", "told"})
"""First words of what may come again and again without anything new in it."""
QUARANTINED = "quarantined"
"""First word of what comes day by day while a fault lasts."""

OPEN = frozenset({"void", "unanswered"})
"""What becomes of a question that nobody answered: newer figures took its place, or it expired."""
VERDICTS = {"win": "won", "lose": "lost"}
"""What became of the newer fit."""


def live_day(at: datetime) -> str:
    """The day on whose evening something happened: the clock then stands at the midnight that ends it."""
    return (at - timedelta(microseconds=1)).date().isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a person reads of one moment, or of several that say the same."""

    moment: Moment
    times: int = 1
    until: str | None = None
    """The day on which it came the last time."""


def timeline(records: Records, *, first_champion: str) -> list[Moment]:
    """Every moment, oldest first, as it was told on its day: what comes later changes none of them."""
    actions = {action.id: action for action in records.actions}
    questions = {row.id: row for row in records.approvals}
    return [
        Moment(
            day=live_day(entry.decision.at), what=what, why=why, about=_asked_by(entry.decision, questions)
        )
        for entry in records.entries
        for what, why in _told(entry.decision, actions, questions, first_champion)
    ]  # fmt: skip


def condensed(moments: Sequence[Moment]) -> list[Line]:
    """The moments for reading: what only repeats itself stands once, in the words of the last time."""
    found: list[Line] = []
    place: dict[tuple[str, str], int] = {}
    for moment in moments:
        first = moment.what.split(maxsplit=1)[0].rstrip(":")
        key = (first if first == QUARANTINED else moment.what, moment.about or moment.why)
        at = place.get(key)
        if at is not None and (first in REPEATED or (first == QUARANTINED and _follows(moment, found[at]))):
            earlier = found[at]
            again = earlier.moment.model_copy(update={"why": moment.why})
            found[at] = Line(moment=again, times=earlier.times + 1, until=moment.day)
            continue
        place[key] = len(found)
        found.append(Line(moment=moment))
    return found


def _follows(moment: Moment, line: Line) -> bool:
    """Whether it came on the day of the line or the one after."""
    last = date.fromisoformat(line.until or line.moment.day)
    return date.fromisoformat(moment.day) - last <= timedelta(days=1)


def _asked_by(decision: AnyDecision, questions: dict[str, ApprovalRow]) -> str:
    """The run that asks, of a question: what it asks again with newer figures is the same question."""
    if not isinstance(decision, ApprovalChanged) or decision.change != "asked":
        return ""
    row = questions.get(decision.approval_id)
    return row.run_id if row is not None else ""


def with_releases(moments: Sequence[Moment], releases: Sequence[Release], last: date) -> list[Moment]:
    """The timeline with the days on which a later version of the team's own model first answered."""
    found = [
        Moment(
            day=r.first.date().isoformat(), what=f"recorded release: version {r.version}",
            why="your own model answered as this version for the first time; the loop knew nothing of it",
        )
        for r in releases[1:] if r.first.date() <= last
    ]  # fmt: skip
    return sorted([*moments, *found], key=lambda moment: moment.day)


def _told(
    decision: AnyDecision, actions: dict[str, ActionRow], questions: dict[str, ApprovalRow], first_champion: str
) -> Iterator[tuple[str, str]]:
    """What the decision is in the timeline, and why; nothing where it is left to the log."""
    match decision:
        case IncidentChanged(change="opened"):
            yield "incident opened", decision.summary
        case IncidentChanged(change="rediagnosed"):
            yield f"incident is about {_words(decision.cause)} after all", decision.summary
        case IncidentChanged(change="closed"):
            yield f"incident closed: {_words(decision.resolution or '')}", decision.summary
        case Observed(topic="backtest"):
            yield f"backtest: {VERDICTS.get(decision.verdict, _words(decision.verdict))}", decision.summary
        case Observed(topic="gates" | "analysis" | "ab_test"):
            name = {"gates": "gates", "analysis": "canary", "ab_test": "A/B test"}[decision.topic]
            yield f"{name}: {_words(decision.verdict)}", decision.summary
        case Observed(topic="drift", verdict="major"):
            yield "major drift", decision.summary
        case ActionDecided(verdict="deny"):
            yield f"denied: {_words(decision.action)}", _why_denied(decision)
        case ActionChanged(state="failed") if UNTRAINABLE in decision.message:
            yield f"would have: {_words(decision.action)}", decision.message.partition(": ")[2]
        case ActionChanged(state="failed" | "unknown"):
            yield f"{decision.state}: {_words(decision.action)}", decision.message or decision.summary
        case ActionChanged(state="verified") if decision.action_key in actions:
            yield from _done(actions[decision.action_key], first_champion)
        case ApprovalChanged(change="asked"):
            row = questions.get(decision.approval_id)
            why = row.reason if row is not None and row.reason else decision.reason or decision.summary
            yield f"question: {_words(decision.action)}? ({', '.join(decision.roles)})", why
        case ApprovalChanged(change="approved" | "rejected"):
            yield f"{decision.change}: {_words(decision.action)}", decision.summary
        case _:
            return


def _why_denied(decision: ActionDecided) -> str:
    """Policy's own words, and the rules that said so."""
    why = decision.summary.partition(" - ")[2] or decision.reason
    return f"{why} ({', '.join(decision.rules)})" if decision.rules else why


def _done(action: ActionRow, first_champion: str) -> Iterator[tuple[str, str]]:
    version = action.args.get("version")
    weights = action.args.get("weights")
    match action.kind:
        case "train_candidates" if action.observed.get("chosen") == "as_served":
            yield "first champion", f"version 1: {first_champion}"
        case "train_candidates":
            said = f"candidate {action.observed.get('chosen')} on {action.observed.get('n_rows')} labelled rows"
            yield "trained", f"{said} up to {str(action.observed.get('trained_until'))[:10]}"
        case "shift_traffic" | "run_ab_test":
            share = weights.get(str(version)) if isinstance(weights, dict) else None
            what = "A/B test begins" if action.kind == "run_ab_test" else "canary"
            yield what, f"version {version} answers {share} % of the requests"
        case "promote":
            yield f"promoted: version {version}", "it is the champion and answers every request"
        case "rollback":
            yield f"rolled back: version {version}", f"version {action.args.get('to', 'the champion')} answers again"
        case "quarantine_data":
            days = action.args.get("days")
            named = ", ".join(str(day) for day in days) if isinstance(days, list) else ""
            yield f"quarantined: {named}", f"{_words(str(action.args.get('reason')))}: not to be trained or judged on"
        case "accept_drift" | "hold" | "resume" | "restart_server":
            yield _words(action.kind), action.message or "done"
        case "notify":
            yield "told the owner", str(action.args.get("text"))
        case _:
            return


def incidents(records: Records) -> list[Incident]:
    rows = sorted(records.incidents, key=lambda row: (row.opened_at, row.id))
    return [
        Incident(
            opened=live_day(row.opened_at), closed=live_day(row.closed_at) if row.closed_at else None, cause=row.cause,
            resolution=row.resolution, title=row.title, why=str(row.body.get("text", "")),
        )
        for row in rows
    ]  # fmt: skip


def questions(records: Records, since: datetime) -> list[Question]:
    """What was asked from the first live day on; a question that was asked again, also with newer figures, stands once."""
    found: list[Question] = []
    place: dict[tuple[str, str], int] = {}
    for row in sorted(records.approvals, key=lambda row: (row.asked_at, row.id)):
        if row.asked_at < since or (row.asked_at == since and row.status == "used"):
            continue
        status = "unanswered" if row.status in ("pending", "expired") else row.status
        answered = live_day(row.answered_at) if row.answered_at else None
        keys = [(row.action, row.run_id), (row.action, row.reason)]
        at = next((place[key] for key in keys if key in place), len(found))
        if at < len(found) and (found[at].status in OPEN or found[at].why == row.reason):
            again = {"times": found[at].times + 1, "status": status, "answered": answered, "why": row.reason}
            found[at] = found[at].model_copy(update=again)
        else:
            at = len(found)
            asked = live_day(row.asked_at)
            found.append(
                Question(
                    asked=asked, action=row.action, roles=row.roles, why=row.reason, status=status, answered=answered
                )
            )
        place |= dict.fromkeys(keys, at)
    return found


def verified(actions: Sequence[ActionRow], since: datetime) -> dict[str, int]:
    """Verified actions by kind, those of the start left out."""
    counts: dict[str, int] = {}
    for action in actions:
        if action.state in ("verified", "reverted") and action.created_at > since:
            counts[action.kind] = counts.get(action.kind, 0) + 1
    return dict(sorted(counts.items()))


def _words(text: str) -> str:
    return text.replace("_", " ")
