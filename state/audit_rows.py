"""The checks of rows that repeat the log: incidents, questions, goals, rollouts, and what people switched.

A row is compared with the records that made it, wherever these carry the fact. Logs that an older release began left
some of it out: there a row without a record is passed over rather than suspected.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from state.audit_sources import StoredRow
from state.decisions import (
    ActionDecided,
    AnyDecision,
    ApprovalChanged,
    Commanded,
    Genesis,
    IncidentChanged,
    Observed,
    PolicyApproved,
)
from state.rows import ApprovalRow, GoalRow, IncidentRow, RolloutRow, Row, SwitchRow

R = TypeVar("R", bound=Row)
ONE_TRANSACTION = timedelta(minutes=1)
Pairs = Mapping[str, tuple[object, object]]
"""Name of a field -> what the row holds, what the log makes it."""

ANSWERS = ("approved", "rejected")
_PHASES: dict[str, tuple[str, ...]] = {
    "stage_version": ("staged",),
    "shift_traffic": ("staged", "canary", "ab_test", "bake", "initialised", "completed"),
    "run_ab_test": ("ab_test",),
    "promote": ("bake", "initialised", "completed"),
    "rollback": ("rolled_back", "completed"),
}
"""What a rollout's newest traffic action makes its phase; `shift_traffic` may also correct somebody else's edit."""
_ENDS: dict[str, tuple[str, ...]] = {
    "stage_version": ("running", "failed"),
    "shift_traffic": ("running", "completed", "failed"),
    "run_ab_test": ("running", "failed"),
    "promote": ("running", "completed", "failed"),
    "rollback": ("rolled_back", "superseded", "completed"),
}


class RowCheck:
    """Remembers what records say of rows, and compares the rows with it at the end."""

    def __init__(self) -> None:
        self.strict = False
        """Whether the log carries everything from its first record on."""
        self.policies: list[tuple[int, str]] = []
        """Index of the record that approved a policy set, and the set's digest."""
        self.problems: list[str] = []
        self._incidents: dict[str, list[IncidentChanged]] = defaultdict(list)
        self._approvals: dict[str, list[ApprovalChanged]] = defaultdict(list)
        self._goals: dict[str, Commanded] = {}
        self._ended: dict[str, str] = {}
        self._halt: Commanded | None = None
        self._held: dict[str, bool] = {}
        self._moves: dict[str, list[tuple[ActionDecided, dict[str, Any]]]] = defaultdict(list)
        self._decided: dict[str, ActionDecided] = {}

    def add(self, index: int, decision: AnyDecision, *, leaf_format: int) -> None:
        """Take the next record in."""
        match decision:
            case Genesis():
                self.strict = leaf_format >= 2
                self.policies.append((index, decision.policy_sha256))
            case PolicyApproved():
                self.policies.append((index, decision.policy_sha256))
            case IncidentChanged(incident_id=str(incident_id)):
                self._incidents[incident_id].append(decision)
            case ApprovalChanged():
                self._approvals[decision.approval_id].append(decision)
            case Commanded():
                self._command(decision)
            case Observed(details={"goal_id": str(goal_id), "status": str(status)}):
                self._ended[goal_id] = status
            case ActionDecided():
                self._under_policy(index, decision)
                if decision.verdict == "allow":
                    self._decided[decision.action_key] = decision
            case _ if decision.kind == "action_changed" and decision.state == "verified":
                self._verified(decision.action_key, decision.observed)
            case _:
                pass

    def _under_policy(self, index: int, decision: ActionDecided) -> None:
        if self.strict and decision.policy_sha256 not in {sha256 for _, sha256 in self.policies}:
            self.problems.append(
                f"record {index} was decided under the policy set {decision.policy_sha256}, which no record before it approves"
            )

    def _command(self, decision: Commanded) -> None:
        goal_id = decision.details.get("goal_id")
        if isinstance(goal_id, str):
            self._goals[goal_id] = decision
        if decision.command in ("halt", "unhalt"):
            self._halt = decision
        elif decision.command in ("hold", "resume") and decision.model is not None:
            self._held[decision.model] = decision.command == "hold"

    def _verified(self, key: str, observed: dict[str, Any]) -> None:
        decided = self._decided.get(key)
        if decided is None or decided.model is None:
            return
        if decided.action in ("hold", "resume"):
            self._held[decided.model] = decided.action == "hold"
        rollout = decided.args.get("rollout")
        if isinstance(rollout, str) and rollout and decided.action in _PHASES:
            self._moves[rollout].append((decided, observed))

    def check(self, rows: Iterable[StoredRow]) -> list[str]:
        """Where rows and log tell different stories."""
        problems = list(self.problems)
        seen: dict[str, set[str]] = defaultdict(set)
        for stored in rows:
            row_id = str(stored.fields.get("id"))
            seen[stored.table].add(row_id)
            problems += [f"{_ONE[stored.table]} {row_id} {text}" for text in self._judge(stored, row_id)]
        for table, known in (
            ("incidents", self._incidents),
            ("approvals", self._approvals),
            ("goals", self._goals),
            ("rollouts", self._moves),
        ):
            problems += [
                f"{_ONE[table]} {row_id} was deleted: the log speaks of it"
                for row_id in known
                if row_id not in seen[table]
            ]
        if self._halt is not None and self.strict and "halt" not in seen["switches"]:
            problems.append("switch halt was deleted: the log speaks of it")
        return problems

    def _judge(self, stored: StoredRow, row_id: str) -> Iterator[str]:
        try:
            match stored.table:
                case "incidents":
                    yield from self._incident(_row(IncidentRow, stored))
                case "approvals":
                    yield from self._approval(_row(ApprovalRow, stored))
                case "goals":
                    yield from self._goal(_row(GoalRow, stored))
                case "rollouts":
                    yield from self._rollout(_row(RolloutRow, stored))
                case "models":
                    yield from self._model(row_id, json.loads(stored.fields["body"]))
                case _:
                    yield from self._halted(_row(SwitchRow, stored).body)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            yield f"cannot be read: {(str(exc) or type(exc).__name__).splitlines()[0]}"

    def _unrecorded(self) -> Iterator[str]:
        if self.strict:
            yield "was inserted: no record speaks of it"

    def _incident(self, row: IncidentRow) -> Iterator[str]:
        said = self._incidents.get(row.id)
        if not said:
            yield from self._unrecorded()
            return
        first, last = said[0], said[-1]
        closed = last.change == "closed"
        pairs: dict[str, tuple[object, object]] = {
            "model": (row.model, first.model),
            "status": (row.status, "closed" if closed else "open"),
            "cause": (row.cause, last.cause),
            "resolution": (row.resolution, last.resolution if closed else None),
            "opened_at": _times(row.opened_at, first.at),
            "closed_at": _times(row.closed_at, last.at if closed else None),
        }
        titles = [change.title for change in said if change.title is not None]
        if titles:
            pairs["title"] = (row.title, titles[-1])
        yield from _different(pairs)

    def _approval(self, row: ApprovalRow) -> Iterator[str]:
        said = self._approvals.get(row.id)
        if not said:
            yield from self._unrecorded()
            return
        last = said[-1]
        pairs: dict[str, tuple[object, object]] = {
            "status": (row.status, "pending" if last.change == "asked" else last.change),
            "model": (row.model, last.model),
            "action": (row.action, last.action),
            "action_key": (row.action_key, last.action_key),
            "roles": (row.roles, last.roles),
            "run_id": (row.run_id, last.run_id),
        }
        answers = [record for record in said if record.change in ANSWERS]
        if answers and row.status in (*ANSWERS, "used"):
            by = "expiry" if answers[-1].actor.startswith("System::") else _user(answers[-1].actor)
            pairs["answered_by"] = (row.answered_by, by)
            pairs["comment"] = (row.comment, "" if by == "expiry" else answers[-1].reason)
        asked = next((record for record in said if record.change == "asked"), None)
        if asked is not None:
            pairs |= {
                "roles": (row.roles, asked.roles),
                "reason": (row.reason, asked.reason),
                "asked_at": _times(row.asked_at, asked.at),
            }
            for name in ("args", "binding_sha256"):
                if getattr(asked, name) is not None:
                    pairs[name] = (getattr(row, name), getattr(asked, name))
        lapses = [record.expires_at for record in said if record.expires_at is not None]
        if lapses:
            pairs["expires_at"] = (row.expires_at, lapses[-1])
        yield from _different(pairs)

    def _goal(self, row: GoalRow) -> Iterator[str]:
        said = self._goals.get(row.id)
        if said is None:
            yield from self._unrecorded()
            return
        pairs: dict[str, tuple[object, object]] = {
            "model": (row.model, said.model),
            "goal": (row.goal, said.details.get("goal", row.goal)),
            "text": (row.text, said.details.get("text", row.text)),
            "asked_by": (row.asked_by, said.details.get("asked_by", _user(said.actor))),
            "asked_at": _times(row.asked_at, said.at),
        }
        if row.id in self._ended:
            pairs["status"] = (row.status, self._ended[row.id])
        elif self.strict:
            done = row.goal.get("intent") == "report"
            pairs["status"] = (row.status, "achieved" if done else "active")
        yield from _different(pairs)

    def _rollout(self, row: RolloutRow) -> Iterator[str]:
        moves = self._moves.get(row.id)
        if not moves:
            if row.phase != "new":
                yield from self._unrecorded()
            return
        decided, observed = moves[-1]
        begun = str(moves[0][0].args.get("version"))
        if row.candidate != begun:
            yield f"was edited: candidate is {row.candidate!r}, and its first action is about {begun!r}"
        if row.phase not in _PHASES[decided.action] and row.status != "failed" and not _taken_off(row):
            yield f"was edited: phase is {row.phase!r}, and the last that was done for it is {decided.action}"
        if row.status not in _ENDS[decided.action] and not _taken_off(row):
            yield f"was edited: status is {row.status!r}, and the last that was done for it is {decided.action}"
        weights = observed.get("weights")
        if decided.action != "stage_version" and weights is not None and row.body.get("weights") != weights:
            yield f"was edited: weights are {row.body.get('weights')!r}, and {decided.action} made them {weights!r}"

    def _model(self, name: str, body: dict[str, Any]) -> Iterator[str]:
        said = self._held.get(name, False if self.strict else body["held"])
        yield from _different({"held": (body["held"], said)})

    def _halted(self, body: dict[str, Any]) -> Iterator[str]:
        if self._halt is not None:
            yield from _different(
                {
                    "on": (body["on"], self._halt.command == "halt"),
                    "by": (body["by"], _user(self._halt.actor)),
                    "reason": (body["reason"], self._halt.details.get("reason")),
                }
            )
        elif body["on"]:
            yield from self._unrecorded()


_ONE = {
    "incidents": "incident",
    "approvals": "approval",
    "goals": "goal",
    "rollouts": "rollout",
    "models": "model",
    "switches": "switch",
}


def _taken_off(row: RolloutRow) -> bool:
    """A candidate that never had traffic leaves without a rollback: its version was retired."""
    return row.phase == "rolled_back" and row.status in ("rolled_back", "superseded")


def _row(row_type: type[R], stored: StoredRow) -> R:
    fields = dict(stored.fields)
    return row_type.model_validate({**json.loads(fields.pop("body")), **fields})


def _user(actor: str) -> str:
    """The name in `User::"name"`."""
    return actor.partition("::")[2].strip('"')


def _times(found: datetime | None, said: datetime | None) -> tuple[object, object]:
    """A row and its record are made in one transaction, and each reads the clock."""
    near = found is not None and said is not None and abs(found - said) <= ONE_TRANSACTION
    return (said, said) if near else (found, said)


def _different(pairs: Pairs) -> Iterator[str]:
    return (
        f"was edited: {name} is {found!r}, and the log makes it {said!r}"
        for name, (found, said) in pairs.items()
        if found != said
    )
