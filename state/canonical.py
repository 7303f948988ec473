"""Canonical JSON and digests: the same meaning gives the same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import InstanceOf, JsonValue

from state.errors import TerminalError

Json: TypeAlias = JsonValue
JSON_OBJECT = "JSON object"
"""Marks the fields of this kind in a model's metadata."""
JsonObject: TypeAlias = Annotated[dict[str, JsonValue], InstanceOf(), JSON_OBJECT]
"""A field that holds a JSON object: the very dict that was given. That all of it is JSON shows itself when it is written;
a walk through every value at every reading took longer than anything else in a tick."""


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces.

    Source: the ordering and separators of RFC 8785; numbers as Python's shortest repr, which is
    the same on every CPython.

    Raises:
        TerminalError: `value` holds NaN, an infinity, or something that JSON cannot express.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as exc:
        _refuse_non_finite(value, "$")  # names the place, which the encoder does not
        raise TerminalError(f"not expressible as canonical JSON: {exc}") from exc
    return text.encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` as lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return sha256_hex(canonical_json(value))


def action_key(*, subject_id: str, kind: str, args: Mapping[str, Json], attempt: int) -> str:
    """The ledger key of an action: from what it means, never from a clock or a step index.

    Args carry data digests, version ids and rollout ids; `attempt` rises only after a recorded `failed`.
    """
    return digest({"args": dict(args), "attempt": attempt, "kind": kind, "subject": subject_id})


def _refuse_non_finite(value: object, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise TerminalError(f"{path} is {value}: a stored number must be finite")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_non_finite(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{path}[{index}]")
