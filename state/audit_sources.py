"""What an audit looks at, item by item: a database, or an export that stands alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from state import log
from state.errors import InputError
from state.tables import ROW_TABLES, actions, decisions, log_checkpoints

EXPORT_FORMAT = 2
READABLE = (1, 2)
"""Formats that are read. 1 has no rows but the ledger's."""
COMPARED = ("incidents", "approvals", "goals", "rollouts", "models", "switches")
"""Tables whose rows repeat what the log says; of the switches, those of people."""
SWITCHES = ("halt",)
FIRST_INDEX = -(2**62)
"""Below any index that a hand could have given a record to hide it before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    index: int
    leaf: bytes
    leaf_sha256: str
    columns: Mapping[str, str | None] | None = None
    """The columns that queries go by; None in an export, which has only the leaf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNote:
    size: int
    note: str
    where: str
    """As a person would say it: `the database`, or a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAction:
    key: str
    log_index: int
    fields: Mapping[str, Any]
    """The action's columns but `log_index`, with `body` still in JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """A row that repeats what the log says, for people and queries."""

    table: str
    fields: Mapping[str, Any]
    """Its columns, with `body` still in JSON."""


Item: TypeAlias = StoredRecord | StoredNote | StoredAction | StoredRow


@dataclass(slots=True)
class Tail:
    """Set while an export is read: whether its last line is there and counts what came before."""

    problem: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    has_rows: bool = True
    """Whether its format carries rows beside the ledger's."""


def database_items(conn: sa.Connection) -> Iterator[Item]:
    """Log, ledger and compared rows in one snapshot: records in order, then checkpoints, actions and other rows."""
    columns = [decisions.c[name] for name in log.COLUMNS]
    for found in log.stored(conn, decisions.c.leaf, decisions.c.leaf_sha256, *columns, first=FIRST_INDEX):
        values = {name: found._mapping[name] for name in log.COLUMNS}
        yield StoredRecord(index=found.idx, leaf=found.leaf, leaf_sha256=found.leaf_sha256, columns=values)
    for found in conn.execute(sa.select(log_checkpoints).order_by(log_checkpoints.c.size)):
        yield StoredNote(size=found.size, note=found.note, where="the database")
    for found in conn.execute(sa.select(actions).order_by(actions.c.log_index, actions.c.id)):
        fields = dict(found._mapping)
        yield StoredAction(key=found.id, log_index=fields.pop("log_index"), fields=fields)
    for name in COMPARED:
        table = ROW_TABLES[name]
        for found in conn.execute(sa.select(table).order_by(table.c.id)):
            if name != "switches" or found.id in SWITCHES:
                yield StoredRow(table=name, fields=_fields(name, found))


def _fields(table: str, found: sa.Row[Any]) -> dict[str, Any]:
    """The row as it stands; of a model only what people decide about it, for its spec is data of the team's own."""
    fields = dict(found._mapping)
    if table == "models":
        try:
            body = json.loads(fields["body"])
            fields["body"] = json.dumps({"held": body["held"]})
        except (ValueError, TypeError, KeyError):  # damaged: the audit says so
            pass
    return fields


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Head(_Part):
    format: int
    vkey: str | None


class _Record(_Part):
    index: int
    leaf: str
    leaf_sha256: str


class _Checkpoint(_Part):
    size: int
    note: str


class _Action(_Part):
    log_index: int
    fields: dict[str, Any]


class _Row(_Part):
    table: str
    fields: dict[str, Any]


class _Line(_Part):
    """Exactly one of these a line."""

    export: _Head | None = None
    record: _Record | None = None
    checkpoint: _Checkpoint | None = None
    action: _Action | None = None
    row: _Row | None = None
    end: dict[str, int] | None = None


_LINE = TypeAdapter(_Line)


def export_lines(items: Iterator[Item], vkey: str | None) -> Iterator[str]:
    """The lines of an export: JSON objects of one key, the leaf as a string of its exact text."""
    counts = {"record": 0, "checkpoint": 0, "action": 0, "row": 0}
    yield _line("export", {"format": EXPORT_FORMAT, "vkey": vkey})
    for item in items:
        if isinstance(item, StoredRecord):
            kind = "record"
            # Bytes that are no UTF-8 were never written by the log; the audit names them by their hash.
            leaf = item.leaf.decode(errors="replace")
            yield _line(kind, {"index": item.index, "leaf": leaf, "leaf_sha256": str(item.leaf_sha256)})
        elif isinstance(item, StoredNote):
            kind = "checkpoint"
            yield _line(kind, {"size": item.size, "note": item.note})
        elif isinstance(item, StoredAction):
            kind = "action"
            yield _line(kind, {"log_index": item.log_index, "fields": dict(item.fields)})
        else:
            kind = "row"
            yield _line(kind, {"table": item.table, "fields": dict(item.fields)})
        counts[kind] += 1
    yield _line("end", counts)


def export_items(path: Path, tail: Tail) -> Iterator[Item]:
    """The items of an export file; `tail` tells afterwards whether the file was whole.

    Raises:
        InputError: the file cannot be read, or a line is not one of an export.
    """
    counts = {"record": 0, "checkpoint": 0, "action": 0, "row": 0}
    ended: dict[str, int] | None = None
    for number, line in _lines(path):
        if (number == 1) != (line.export is not None) or ended is not None:
            raise _not_export(path, number, "the first line, and no other, opens an export; nothing follows its end")
        if line.record:
            counts["record"] += 1
            yield StoredRecord(
                index=line.record.index, leaf=line.record.leaf.encode(), leaf_sha256=line.record.leaf_sha256
            )
        elif line.checkpoint:
            counts["checkpoint"] += 1
            yield StoredNote(size=line.checkpoint.size, note=line.checkpoint.note, where="the export")
        elif line.action:
            counts["action"] += 1
            fields = line.action.fields
            yield StoredAction(key=str(fields.get("id")), log_index=line.action.log_index, fields=fields)
        elif line.row:
            counts["row"] += 1
            yield StoredRow(table=line.row.table, fields=line.row.fields)
        elif line.export and line.export.format == 1:
            tail.has_rows = False
            del counts["row"]
        ended = line.end
    tail.counts = counts
    if ended != counts:
        tail.problem = f"the export is cut short or changed: it ends with {ended}, and it holds {counts}"


def export_vkey(path: Path) -> str | None:
    """The public key that the export itself names."""
    for _, line in _lines(path):
        if line.export is None:
            raise _not_export(path, 1, "it does not open an export")
        if line.export.format not in READABLE:
            known = " or ".join(map(str, READABLE))
            raise _not_export(path, 1, f"format {line.export.format} is not {known}")
        return line.export.vkey
    raise _not_export(path, 1, "the file is empty")


def second_place_notes(folder: Path) -> list[StoredNote]:
    """Checkpoints in the second place, smallest first.

    Raises:
        InputError: not a folder, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of checkpoints", remedy="Name the second place of the checkpoints")
    found = []
    for path in folder.glob("*.txt"):
        if not path.stem.isdecimal():
            continue
        try:
            note = path.read_text(encoding="utf-8", errors="replace")
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror}", remedy="Make it readable") from exc
        found.append(StoredNote(size=int(path.stem), note=note, where=str(path)))
    return sorted(found, key=lambda item: item.size)


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = _LINE.validate_json(raw)
                except ValidationError as exc:
                    raise _not_export(path, number, exc.errors()[0]["msg"]) from exc
                if len(line.model_fields_set) != 1:
                    raise _not_export(path, number, f"it holds {len(line.model_fields_set)} parts, not one")
                yield number, line
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}", remedy="Name an export file") from exc


def _line(kind: str, content: Mapping[str, Any]) -> str:
    return json.dumps({kind: content}, ensure_ascii=False, separators=(",", ":"), default=repr) + "\n"


def _not_export(path: Path, number: int, why: str) -> InputError:
    return InputError(
        f"{path} line {number} is not part of an export: {why}",
        remedy="Make it again with `steady audit verify --write-export FILE`",
    )
