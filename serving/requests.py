"""What a client sent: the JSON, and whose prediction at what time it asks for."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeAlias

import msgspec

from state.encoding import level_text

Row: TypeAlias = dict[str, Any]
Headers: TypeAlias = Mapping[bytes, bytes]

MAX_ID_CHARACTERS = 256
IDENTITY_FIELDS = frozenset({"request_id", "entity", "event_time"})
"""Body fields that say whose prediction at what time, for every model."""
MAX_BATCH_ROWS = 100_000
_LATEST_SECONDS = 253_402_300_799  # the end of year 9999, the last that a date can name
_process = os.urandom(8).hex()
_numbers = count(1)


class BadRequestError(Exception):
    """The request cannot be read; `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, kw_only=True)
class Identity:
    request_id: str
    entity: str
    event_microseconds: int
    arm: str | None
    mirrored: bool


def parse(body: bytes) -> Row:
    """The JSON object in `body`; NaN and numbers beyond a double are let through as non-finite floats.

    Raises:
        BadRequestError: not JSON, or not an object.
    """
    try:
        value = msgspec.json.decode(body)
    except RecursionError as exc:
        raise BadRequestError("the body is nested too deeply") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        value = _lenient(body, str(exc))
    if not isinstance(value, dict):
        raise BadRequestError(f"the body is a JSON {_json_type(value)}, not an object")
    return value


def _lenient(body: bytes, problem: str) -> Any:
    try:
        value = json.loads(body)
        # A lone surrogate is legal JSON but no text that can be stored.
        msgspec.json.encode(value)
    except (ValueError, RecursionError) as exc:
        raise BadRequestError(f"the body is not JSON: {problem}") from exc
    return value


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def batch_rows(body: Row) -> list[Row]:
    """The rows of `{"rows": [{...}]}` or `{"columns": {name: [...]}}`.

    Raises:
        BadRequestError: neither, both, or rows that are not objects, or columns that differ in length.
    """
    rows, columns = body.get("rows"), body.get("columns")
    if (rows is None) == (columns is None):
        raise BadRequestError("send either `rows`, a list of objects, or `columns`, an object of lists")
    chosen = _rows(rows) if columns is None else _transposed(columns)
    if len(chosen) > MAX_BATCH_ROWS:
        raise BadRequestError(f"{len(chosen)} rows: at most {MAX_BATCH_ROWS} in one request", 413)
    return chosen


def _rows(rows: object) -> list[Row]:
    if not isinstance(rows, list):
        raise BadRequestError(f"`rows` is a JSON {_json_type(rows)}, not an array")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadRequestError(f"rows[{index}] is a JSON {_json_type(row)}, not an object")
    return rows


def _transposed(columns: object) -> list[Row]:
    if not isinstance(columns, dict) or not all(isinstance(items, list) for items in columns.values()):
        raise BadRequestError("`columns` is not an object of arrays")
    lengths = {name: len(items) for name, items in columns.items()}
    if len(set(lengths.values())) > 1:
        raise BadRequestError(f"columns differ in length: {lengths}")
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class IdentityReader:
    """Reads request id, entity, event time, arm and the mirror's mark of one model's requests."""

    def __init__(self, *, time_field: str | None, entity_fields: Sequence[str]) -> None:
        self._time_field, self._entity_fields = time_field, entity_fields

    def read(self, row: Row, headers: Headers, flags: list[str]) -> Identity:
        """Body before header before default; what cannot be read gets the default and a flag."""
        request_id = _name(row.get("request_id"), flags, "request_id") or _header(headers, b"x-request-id")
        request_id = request_id or f"{_process}-{next(_numbers)}"
        entity = _name(row.get("entity"), flags, "entity") or _header(headers, b"x-steady-entity")
        return Identity(
            request_id=request_id,
            entity=entity or self._entity(row) or request_id,
            event_microseconds=self._event_time(row, headers, flags),
            arm=_header(headers, b"x-steady-arm"),
            mirrored=is_mirrored(headers),
        )

    def _entity(self, row: Row) -> str | None:
        # As the history is read: a part that is missing is empty, and an entity without any part is none.
        parts = [level_text(row.get(name)) for name in self._entity_fields]
        if all(part is None for part in parts):
            return None
        return "|".join(part or "" for part in parts)[:MAX_ID_CHARACTERS]

    def _event_time(self, row: Row, headers: Headers, flags: list[str]) -> int:
        value = row.get("event_time")
        if value is None and b"x-event-time" in headers:
            value = headers[b"x-event-time"].decode("latin-1")
        if value is None and self._time_field is not None:
            value = row.get(self._time_field)
        if value is not None:
            microseconds = event_microseconds(value)
            if microseconds is not None:
                return microseconds
            flags.append("unparsable:event_time")
        return time.time_ns() // 1_000


def is_mirrored(headers: Headers) -> bool:
    """Whether Envoy sent this as a shadow: it appends `-shadow` to the host, before the port."""
    return headers.get(b"host", b"").partition(b":")[0].endswith(b"-shadow")


def event_microseconds(value: object) -> int | None:
    """Microseconds since 1970 of an ISO 8601 time (naive is UTC), or of seconds or milliseconds; None for neither."""
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            return None
        since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    # 1e11 seconds lie in year 5138, 1e11 milliseconds in 1973: clients send both.
    seconds = value if abs(value) < 1e11 else value / 1_000
    return round(seconds * 1_000_000) if 0 <= seconds <= _LATEST_SECONDS else None


def _name(value: object, flags: list[str], field: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value[:MAX_ID_CHARACTERS]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)[:MAX_ID_CHARACTERS]
    flags.append(f"unparsable:{field}")
    return None


def _header(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return value.decode("latin-1")[:MAX_ID_CHARACTERS] if value else None
