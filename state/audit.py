"""Export and verification of the decision log: from a database, or from an export that stands alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from state import log
from state.audit_checks import RecordCheck, check_actions, check_approvals, check_roots
from state.audit_keys import check_keys, open_notes, ring_of
from state.audit_sources import (
    Item,
    StoredAction,
    StoredNote,
    StoredRecord,
    StoredRow,
    Tail,
    database_items,
    export_items,
    export_lines,
    export_vkey,
    second_place_notes,
)
from state.database import Database
from state.decisions import Genesis
from state.errors import InputError
from state.keyring import KeyRing
from state.keys import NoteError, Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found; no problem means that nothing speaks against the log."""

    n_records: int
    n_actions: int
    n_proven: int
    """Records, from the first on, that a signed checkpoint proves unchanged."""
    problems: list[str]
    """One sentence each, with the index of the record or the key of the action."""
    notes: list[str] = field(default_factory=list)
    """What the audit could not look at, and other things to know that are no problem."""

    @property
    def ok(self) -> bool:
        return not self.problems


def export(db: Database, path: Path) -> int:
    """Write log, checkpoints and ledger as JSON lines to `path`, whole or not at all; return the number of records.

    Raises:
        InputError: the file cannot be written, or the database is damaged.
    """
    n_records = 0

    def counted(items: Iterable[Item]) -> Iterable[Item]:
        nonlocal n_records
        for item in items:
            n_records += isinstance(item, StoredRecord)
            yield item

    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file, db.snapshot() as conn:
                file.writelines(export_lines(iter(counted(database_items(conn))), _genesis_key(conn)))
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as exc:
        raise InputError(
            f"{path} cannot be written: {exc.strerror}", remedy="Name a file in a writable folder"
        ) from exc
    return n_records


def verify(
    source: Database | Path, checkpoints_dir: Path | None, vkey: str | Sequence[str] | None
) -> AuditResult:  # fmt: skip
    """Check every record, checkpoint and action, and the rows that repeat them, of a database or of an export alone.

    `checkpoints_dir` is the second place: without it, a log that was cut short together with its checkpoints
    looks whole. `vkey` is the public key as handed over at some earlier time, or several where it was changed since;
    without it, the key that the log itself names is taken, which somebody who replaced the whole log would have
    replaced too.

    Raises:
        InputError: the database, the export, the second place or the key cannot be read.
    """
    given = [] if vkey is None else [vkey] if isinstance(vkey, str) else list(vkey)
    for key in given:
        _check_key(key)
    # The second place is read first: whatever it holds was committed before.
    second = [] if checkpoints_dir is None else second_place_notes(checkpoints_dir)
    look = _Look()
    if isinstance(source, Database):
        with source.snapshot() as conn:
            look.take(database_items(conn))
    else:
        named = export_vkey(source)
        tail = Tail()
        look.take(export_items(source, tail))
        if named is not None and not look.records.named:
            look.records.named.append((-1, named))
        look.problems += [tail.problem] if tail.problem else []
        look.has_rows = tail.has_rows
    return look.judge(second, checkpoints_dir, given)


class _Look:
    """One pass over the items, and the judgement at its end."""

    def __init__(self) -> None:
        self.records = RecordCheck()
        self.stored: list[StoredNote] = []
        self.actions: list[StoredAction] = []
        self.rows: list[StoredRow] = []
        self.has_rows = True
        self.problems: list[str] = []
        self.notes: list[str] = []

    def take(self, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, StoredRecord):
                self.records.add(item)
            elif isinstance(item, StoredNote):
                self.stored.append(item)
            elif isinstance(item, StoredAction):
                self.actions.append(item)
            else:
                self.rows.append(item)

    def _ring(self, given: list[str]) -> KeyRing | None:
        """The keys that notes are opened with; without a given one, those that the log itself names."""
        if not given and self.records.named:
            self.notes.append("Signatures were checked with the key that the log itself names: compare it with yours.")
        try:
            return ring_of(self.records.named, given)
        except NoteError as exc:
            self.problems.append(f"the key that the log names is no public key: {exc}")
            return None

    def judge(self, second: list[StoredNote], folder: Path | None, given: list[str]) -> AuditResult:
        n_records, n_proven = len(self.records.hashes), 0
        ring = self._ring(given)
        problems = [*self.problems, *self.records.problems]
        if ring is not None:
            signed, bad_notes = open_notes([*second, *self.stored], ring)
            n_proven, bad_roots = check_roots(self.records.hashes, signed)
            bad_keys, notes = check_keys(self.records.named, given, ring, [*second, *self.stored], signed)
            problems += bad_notes + bad_roots + bad_keys
            self.notes += notes
        elif self.stored or second:
            problems.append("no public key is given and the log names none: no signature can be checked")
        if folder is not None:
            problems += self._missing_in(folder, second)
        problems += check_actions(self.actions, self.records) + check_approvals(self.records)
        if self.has_rows:
            problems += self.records.rows.check(self.rows)
        else:
            self.notes.append("The export is of format 1: incidents, questions, goals and rollouts are not in it.")
        if n_proven < n_records:
            self.notes.append(f"{n_records - n_proven} of {n_records} records are not covered by a valid checkpoint.")
        if folder is None:
            self.notes.append("No second place was given: a log cut short with its checkpoints would not show.")
        return AuditResult(
            n_records=n_records, n_actions=len(self.actions), n_proven=n_proven, problems=problems, notes=self.notes
        )

    def _missing_in(self, folder: Path, second: list[StoredNote]) -> list[str]:
        there = {note.size for note in second}
        here = {note.size for note in self.stored}
        if there - here:
            # A checkpoint that was killed between file and row leaves the same trace as a deleted row.
            self.notes.append(f"Checkpoints only in the second place: {', '.join(map(str, sorted(there - here)))}.")
        return [
            f"checkpoint over {size} records is missing from the second place {folder}: deleted"
            for size in sorted(here - there)
            # Looked at again: it may have been made since the folder was read.
            if not (folder / f"{size}.txt").exists()
        ]


def _check_key(vkey: str) -> None:
    try:
        Verifier(vkey)
    except NoteError as exc:
        raise InputError(
            f"not a public key: {exc}", remedy="Give `signing_key` of record 0, as taken down at the first start"
        ) from exc


def _genesis_key(conn: sa.Connection) -> str | None:
    try:
        found = [entry.decision for entry in log.read(conn, kind="genesis", limit=1)]
    except InputError:  # a damaged record is what an audit is for: it has to get into the export
        return None
    return next((genesis.signing_key for genesis in found if isinstance(genesis, Genesis)), None)
