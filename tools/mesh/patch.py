"""JSON Patch (RFC 6902): the operations that we write, and their meaning on plain dicts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from state.errors import ToolRejected, ToolUnavailable

Document: TypeAlias = dict[str, Any]


class Operation(TypedDict):
    op: Literal["test", "add", "replace", "remove"]
    path: str
    value: NotRequired[Any]


def pointer(*parts: str | int) -> str:
    """The JSON Pointer (RFC 6901) of nested keys."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def apply_patch(document: Document, operations: Sequence[Operation]) -> Document:
    """A patched copy of `document`; all operations or none.

    Raises:
        ToolUnavailable: a `test` fails, so the document is not the one that was read: read again.
        ToolRejected: a path leads nowhere.
    """
    patched = copy.deepcopy(document)
    for operation in operations:
        _apply(patched, operation)
    return patched


def _apply(document: Document, operation: Operation) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    target: Any = document
    try:
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        key: Any = last
        if isinstance(target, list):
            key = len(target) if last == "-" else int(last)
        _change(target, key, operation)
    except (KeyError, IndexError, ValueError, TypeError) as exc:
        if operation["op"] == "test":
            raise ToolUnavailable(f"{operation['path']} is gone since it was read") from exc
        raise ToolRejected(f"{operation['op']} {operation['path']}: no such place in the document") from exc


def _change(target: Any, key: Any, operation: Operation) -> None:
    kind = operation["op"]
    if kind == "add" and isinstance(target, list):
        target.insert(key, operation["value"])
    elif kind == "add":
        target[key] = operation["value"]
    elif kind == "remove":
        del target[key]
    elif kind == "replace":
        target[key]  # only what is there can be replaced
        target[key] = operation["value"]
    elif target[key] != operation["value"]:
        raise ToolUnavailable(f"{operation['path']} is {target[key]!r}, no longer {operation['value']!r}")
