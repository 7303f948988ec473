"""The decision log: canonical leaves in strict order, and signed checkpoints over them.

Source: RFC 6962 (Merkle tree), C2SP tlog-checkpoint and signed-note (checkpoint text and signature).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from state.canonical import canonical_json
from state.database import Database, insert
from state.decisions import DECISIONS, AnyDecision, Decision, Genesis, KeyChanged, PolicyApproved
from state.errors import InputError
from state.files import write_once
from state.keyring import KeyRing
from state.keys import Checkpoint, NoteError, Signer
from state.merkle import CompactRange, leaf_hash
from state.statements import Statement
from state.tables import decisions, leaf_read_back, log_checkpoints

LEAF_FORMAT = 2
READABLE = (1, 2)
"""Formats that are read. 2 adds what format 1 left to the rows: an action's `prior`, a question's args, binding and
expiry, an incident's title, and the kinds `policy_approved` and `key_changed`."""
COLUMNS = ("decision_id", "kind", "model", "incident_id", "run_id", "at")
"""Fields of a record that are also columns of `decisions`."""
PAGE = 2_000
# One appender at a time on PostgreSQL; on SQLite the write transaction itself is that lock.
POSTGRES_LOCK = 0x57EAD2

_KNOWN = Statement(lambda _: sa.select(decisions.c.idx).where(decisions.c.decision_id == sa.bindparam("decision_id")))
_SIZE = Statement(lambda _: sa.select(sa.func.coalesce(sa.func.max(decisions.c.idx) + 1, 0)))
_INSERT = Statement(lambda _: sa.insert(decisions))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    index: int
    decision: AnyDecision


def append(conn: sa.Connection, decision: Decision) -> int:
    """Record `decision` and return its index; one whose `decision_id` is stored keeps its index and bytes.

    Joins the caller's transaction, so a change and its record commit together or not at all, and several
    records cost one fsync. Indices are consecutive: on PostgreSQL appenders wait for each other's commit.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(POSTGRES_LOCK)))
    known = _KNOWN.one(conn, {"decision_id": decision.decision_id})
    if known is not None:
        return int(known[0])
    leaf = leaf_bytes(decision)
    index = size(conn)
    values = {name: getattr(decision, name) for name in COLUMNS}
    _INSERT.run(conn, {"idx": index, "leaf": leaf, "leaf_sha256": leaf_hash(leaf).hex(), **values})
    return index


def size(conn: sa.Connection) -> int:
    """Number of records, which is the next index."""
    return int(_SIZE.all(conn)[0][0])


def leaf_bytes(decision: Decision) -> bytes:
    """The exact bytes that are hashed: canonical JSON with a format version."""
    return canonical_json({"format": LEAF_FORMAT, "record": decision.model_dump(mode="json")})


def parse_leaf(leaf: bytes) -> AnyDecision:
    """The record in a leaf.

    Raises:
        ValueError: not a leaf of a format that is read.
    """
    content = json.loads(leaf)
    if not isinstance(content, dict) or set(content) != {"format", "record"} or content["format"] not in READABLE:
        raise ValueError(f"not a leaf of format {' or '.join(map(str, READABLE))}")
    return DECISIONS.validate_python(content["record"])


def read(
    conn: sa.Connection,
    *,
    model: str | None = None,
    incident_id: str | None = None,
    run_id: str | None = None,
    kind: str | None = None,
    since_index: int | None = None,
    limit: int | None = None,
    newest_first: bool = False,
) -> list[LogEntry]:
    """Records in log order; `since_index` is the first index wanted; None filters nothing.

    Raises:
        InputError: a stored leaf is damaged.
    """
    wanted: dict[str, Any] = {
        "model": model, "incident_id": incident_id, "run_id": run_id, "kind": kind, "since": since_index, "limit": limit,
    }  # fmt: skip
    values = {name: value for name, value in wanted.items() if value is not None}
    found = _records(frozenset(values), newest_first).all(conn, values)
    return [_entry(index, leaf_read_back(leaf)) for index, leaf in found]


@functools.cache
def _records(given: frozenset[str], newest_first: bool) -> Statement:
    query = sa.select(decisions.c.idx, decisions.c.leaf)
    for name in sorted(given - {"since", "limit"}):
        query = query.where(decisions.c[name] == sa.bindparam(name))
    if "since" in given:
        query = query.where(decisions.c.idx >= sa.bindparam("since"))
    query = query.order_by(decisions.c.idx.desc() if newest_first else decisions.c.idx)
    return Statement(lambda _: query.limit(sa.bindparam("limit", type_=sa.Integer())) if "limit" in given else query)


def stored(conn: sa.Connection, *columns: sa.ColumnElement[Any], first: int = 0) -> Iterator[sa.Row[Any]]:
    """`idx` and `columns` of the stored records from index `first` on, a page at a time."""
    query = sa.select(decisions.c.idx, *columns).order_by(decisions.c.idx).limit(PAGE)
    while page := conn.execute(query.where(decisions.c.idx >= first)).all():
        yield from page
        if not isinstance(page[-1].idx, int):  # SQLite keeps a text in a number's column
            raise InputError(f"the decision log has an index {page[-1].idx!r}", remedy="Restore the log from a backup")
        first = page[-1].idx + 1


def _entry(index: int, leaf: bytes) -> LogEntry:
    try:
        return LogEntry(index=index, decision=parse_leaf(leaf))
    except ValueError as exc:
        raise InputError(
            f"record {index} of the decision log cannot be read: {exc}",
            remedy="Run `steady audit verify`, and restore a backup if it finds damage",
        ) from exc


def approved_policy(conn: sa.Connection) -> str | None:
    """Digest of the policy set that was approved last; None before the first start.

    Raises:
        InputError: the record that says so is damaged.
    """
    for entry in [
        *read(conn, kind="policy_approved", newest_first=True, limit=1),
        *read(conn, kind="genesis", limit=1),
    ]:
        match entry.decision:
            case Genesis(policy_sha256=sha256) | PolicyApproved(policy_sha256=sha256):
                return sha256
            case _:  # somebody changed the column that queries go by
                pass
    return None


def signing_keys(conn: sa.Connection) -> list[tuple[int, str]]:
    """Index and vkey of every record that names a signing key: the first one, and each change of it.

    Raises:
        InputError: one of these records is damaged.
    """
    named: list[tuple[int, str]] = []
    for entry in [*read(conn, kind="genesis", limit=1), *read(conn, kind="key_changed")]:
        match entry.decision:
            case Genesis(signing_key=vkey) | KeyChanged(new_key=vkey):
                named.append((entry.index, vkey))
            case _:  # somebody changed the column that queries go by
                pass
    return named


def checkpoint(db: Database, signer: Signer, second_place: Path, *, vouched_by: Signer | None = None) -> Checkpoint:
    """Sign the log as it stands and keep the note in the database and as `second_place/<size>.txt`.

    Costs one hash per record since the last checkpoint. The file comes first: a note in the database is
    always in the second place too, and a killed call is completed by the next one. `vouched_by` is the key before a
    change: its signature beside the new one carries trust from the one to the other.

    Raises:
        InputError: the log does not extend what was signed before, so signing it would cover up tampering; or the log
            names another key.
    """
    with db.snapshot() as conn:
        ring = _ring(conn, signer)
        tree = _last_signed(conn, ring)
        signed = _signed_since(second_place, tree.size, ring)
        _compare(tree, signed)
        for leaf_sha256 in _leaf_hashes(conn, tree.size):
            tree.append(leaf_sha256)
            _compare(tree, signed)
    if signed:
        raise _not_extended(f"it has {tree.size} records, and {max(signed)} were signed")
    made = Checkpoint(origin=signer.name, size=tree.size, root=tree.root())
    note = signer.sign(made.text)
    if vouched_by is not None:
        note = vouched_by.cosign(note)
    write_once(second_place / f"{made.size}.txt", note.encode())
    frontier = json.dumps([subtree.hex() for subtree in tree.frontier])
    with db.transaction() as conn:
        conn.execute(
            insert(conn.dialect, log_checkpoints)
            .values(size=made.size, root_sha256=made.root.hex(), note=note, frontier=frontier)
            .on_conflict_do_nothing()
        )
    return made


def _ring(conn: sa.Connection, signer: Signer) -> KeyRing:
    named = signing_keys(conn)
    if not named:
        return KeyRing([(-1, signer.vkey)])
    if named[-1][1] != signer.vkey:
        raise InputError(
            f"the decision log names the signing key {named[-1][1]}, and this one is {signer.vkey}",
            remedy="Restore that key's file from a backup, or make the change a decision with `steady audit new-key`",
        )
    try:
        return KeyRing(named)
    except NoteError as exc:
        raise _not_extended(f"a record names a key that is none: {exc}") from exc


def _last_signed(conn: sa.Connection, ring: KeyRing) -> CompactRange:
    """The tree of the newest stored checkpoint, or an empty one where that row is missing or does not hold up."""
    newest = sa.select(log_checkpoints).order_by(log_checkpoints.c.size.desc()).limit(1)
    stored = conn.execute(newest).one_or_none()
    if stored is None:
        return CompactRange()
    try:
        signed = ring.checkpoint(stored.note, stored.size)
        tree = CompactRange(signed.size, [bytes.fromhex(subtree) for subtree in json.loads(stored.frontier)])
    except (ValueError, TypeError):
        return CompactRange()
    if tree.root() != signed.root:
        return CompactRange()
    if size(conn) < tree.size:
        raise _not_extended(f"it has {size(conn)} records, and {tree.size} were signed")
    return tree


def _signed_since(second_place: Path, first_size: int, ring: KeyRing) -> dict[int, Checkpoint]:
    """Checkpoints in the second place over at least `first_size` records, by size."""
    found = {}
    for path in second_place.glob("*.txt"):
        if not path.stem.isdigit() or int(path.stem) < first_size:
            continue
        try:
            checkpoint = ring.checkpoint(path.read_text(encoding="utf-8"), int(path.stem))
        except (OSError, ValueError) as exc:
            raise InputError(
                f"{path} is not a checkpoint of this log: {exc}",
                remedy="Run `steady audit verify`, then restore the file",
            ) from exc
        found[checkpoint.size] = checkpoint
    return found


def _compare(tree: CompactRange, signed: dict[int, Checkpoint]) -> None:
    if tree.size in signed and signed.pop(tree.size).root != tree.root():
        raise _not_extended(f"its first {tree.size} records are not the ones that were signed")


def _leaf_hashes(conn: sa.Connection, first: int) -> Iterator[bytes]:
    expected = first
    for found in stored(conn, decisions.c.leaf_sha256, first=first):
        if found.idx != expected:
            raise _not_extended(f"record {expected} is missing")
        yield _hash_bytes(found.idx, found.leaf_sha256)
        expected += 1


def _hash_bytes(index: int, leaf_sha256: str) -> bytes:
    try:
        return bytes.fromhex(leaf_sha256)
    except ValueError as exc:
        raise _not_extended(f"record {index} has no leaf hash") from exc


def _not_extended(why: str) -> InputError:
    return InputError(
        f"the decision log cannot be signed: {why}",
        remedy="Run `steady audit verify` and restore the log from a backup",
    )
