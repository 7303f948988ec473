"""The checks of an audit: records against their bytes and checkpoints, actions against their records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import ValidationError

from state import ledger, log
from state.audit_rows import RowCheck
from state.audit_sources import StoredAction, StoredRecord
from state.canonical import canonical_json
from state.clock import utc
from state.decisions import ActionChanged, ActionDecided, AnyDecision, ApprovalChanged, Genesis, KeyChanged
from state.errors import SteadyError
from state.keys import Checkpoint
from state.merkle import CompactRange, leaf_hash
from state.rows import ActionRow


class RecordCheck:
    """Takes the records in the order in which they stand, and remembers what the later checks need."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.hashes: list[bytes] = []
        self.named: list[tuple[int, str]] = []
        """Index of every record that names a signing key, and the key."""
        self.rows = RowCheck()
        self.decided: dict[str, list[tuple[int, ActionDecided]]] = defaultdict(list)
        self.changed: dict[str, list[tuple[int, ActionChanged]]] = defaultdict(list)
        self.approved: dict[str, list[tuple[int, ApprovalChanged]]] = defaultdict(list)
        """People's yes, by the approval's id."""
        self._expected = 0
        self._ids: dict[str, int] = {}

    def add(self, record: StoredRecord) -> None:
        self._order(record.index)
        hashed = leaf_hash(record.leaf)
        self.hashes.append(hashed)
        if hashed.hex() != record.leaf_sha256:
            self._problem(record.index, "was edited: its bytes do not have the leaf hash that was stored with them")
        parsed = self._parse(record)
        if parsed is None:
            return
        decision, leaf_format = parsed
        first = self._ids.setdefault(decision.decision_id, record.index)
        if first != record.index:
            self._problem(record.index, f"was inserted: its id {decision.decision_id} is that of record {first}")
        for name, stored in (record.columns or {}).items():
            said = getattr(decision, name)
            said = utc(said).isoformat(timespec="microseconds") if isinstance(said, datetime) else said
            if stored != said:
                self._problem(record.index, f"was edited: column {name} is {stored!r}, and the record says {said!r}")
        self._remember(record.index, decision)
        self.rows.add(record.index, decision, leaf_format=leaf_format)

    def _order(self, index: int) -> None:
        if index > self._expected:
            self.problems.append(f"{_span(self._expected, index)} missing: deleted")
        elif index < self._expected:
            self._problem(index, f"is out of order: record {self._expected} was due")
        self._expected = index + 1

    def _parse(self, record: StoredRecord) -> tuple[AnyDecision, int] | None:
        try:
            decision = log.parse_leaf(record.leaf)
            content = json.loads(record.leaf)
            canonical = canonical_json(content) == record.leaf
        except (ValueError, SteadyError, RecursionError) as exc:
            self._problem(record.index, f"is not a decision record: {_first_line(exc)}")
            return None
        if not canonical:
            self._problem(record.index, "was edited: it is not canonical JSON")
        return decision, int(content["format"])

    def _remember(self, index: int, decision: AnyDecision) -> None:
        if isinstance(decision, Genesis) and not self.named:
            self.named.append((index, decision.signing_key))
        elif isinstance(decision, KeyChanged):
            self.named.append((index, decision.new_key))
        elif isinstance(decision, ActionDecided):
            self.decided[decision.action_key].append((index, decision))
        elif isinstance(decision, ActionChanged):
            self.changed[decision.action_key].append((index, decision))
        elif isinstance(decision, ApprovalChanged) and decision.change == "approved":
            self.approved[decision.approval_id].append((index, decision))

    def _problem(self, index: int, what: str) -> None:
        self.problems.append(f"record {index} {what}")


def check_roots(hashes: list[bytes], signed: Mapping[int, Checkpoint]) -> tuple[int, list[str]]:
    """How many records are proven unchanged by a checkpoint, and where the log leaves what was signed."""
    tree = CompactRange()
    proven = 0
    problems = []
    for size in sorted(signed):
        if size > len(hashes):
            here, was = len(hashes), max(signed)
            problems.append(
                f"{_span(here, was)} gone: {was} records were signed, and {here} are here (cut short or older)"
            )
            break
        for hashed in hashes[tree.size : size]:
            tree.append(hashed)
        if tree.root() == signed[size].root:
            proven = size
        elif not problems:
            problems.append(
                f"{_span(proven, size)} not as signed: at least one was edited, inserted, deleted or moved, "
                f"and the checkpoint over {size} records does not match"
            )
    return proven, problems


def check_approvals(records: RecordCheck) -> list[str]:
    """Where an action was allowed on an approval that no earlier record gives to it."""
    allowed = [item for found in records.decided.values() for item in found if item[1].verdict == "allow"]
    return [
        f"record {index} allows {decision.action} on approval {decision.approval_id}, which no record before it gives"
        for index, decision in sorted(allowed, key=lambda item: item[0])
        if decision.facts.get("approved_by") and not _given(decision, index, records)
    ]


def _given(decision: ActionDecided, index: int, records: RecordCheck) -> bool:
    answers = records.approved.get(decision.approval_id or "", [])
    return any(at < index and yes.action_key == decision.action_key for at, yes in answers)


def check_actions(actions: Iterable[StoredAction], records: RecordCheck) -> list[str]:
    """Where the ledger and the log tell different stories."""
    problems = []
    known = set()
    for action in actions:
        known.add(action.key)
        problems += [f"action {action.key}: {problem}" for problem in _check_action(action, records)]
    for key, changes in records.changed.items():
        if key not in known:
            problems.append(
                f"action {key}: deleted from the ledger, and record {changes[-1][0]} says {changes[-1][1].state}"
            )
    return problems


def _check_action(action: StoredAction, records: RecordCheck) -> list[str]:
    try:
        fields = dict(action.fields)
        row = ActionRow.model_validate({**json.loads(fields.pop("body")), **fields})
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        return [f"cannot be read: {_first_line(exc)}"]
    decided, changed = records.decided.get(row.id, []), records.changed.get(row.id, [])
    if not decided:
        return ["no record decided it"]
    mismatches = [(index, ledger.commit_mismatch(row, decision)) for index, decision in decided]
    index, fewest = min(mismatches, key=lambda item: len(item[1]))
    if fewest:
        return [f"was edited: {problem} as in record {index}" for problem in fewest]
    allowed_at = {index for index, mismatch in mismatches if not mismatch}
    problems = _check_fold(row, changed)
    if action.log_index not in ({changed[-1][0]} if changed else allowed_at):
        problems.append(f"was edited: log_index {action.log_index} is not that of its last record")
    return problems


def _check_fold(row: ActionRow, changed: list[tuple[int, ActionChanged]]) -> list[str]:
    said = row.model_copy(update={"state": "intended", "observed": {}, "message": "", "finished_at": None})
    last = "the deciding record"
    for index, change in changed:
        try:
            said = ledger.advance(said, change)
        except SteadyError as exc:
            return [f"record {index} does not follow: {exc}"]
        last = f"record {index}"
    return [
        f"was edited: {name} is {getattr(row, name)!r}, and {last} makes it {getattr(said, name)!r}"
        for name in ("state", "observed", "message", "finished_at")
        if getattr(row, name) != getattr(said, name)
    ]


def _span(first: int, end: int) -> str:
    return f"record {first} is" if end - first == 1 else f"records {first} to {end - 1} are"


def _first_line(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        error = exc.errors()[0]
        return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
    return (str(exc) or type(exc).__name__).splitlines()[0]
