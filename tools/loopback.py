"""HTTP to processes of our own on this machine, with the client's errors translated in one place."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass

from state.errors import ToolUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    body: bytes


def request(
    method: str,
    path: str,
    *,
    port: int,
    host: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = 5.0,
) -> Reply:
    """One request without a body.

    Raises:
        ToolUnavailable: nothing listens there, or no answer within `timeout_seconds`.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Reply(status=response.status, body=response.read())
    except (OSError, http.client.HTTPException) as exc:
        raise ToolUnavailable(f"{method} http://{host}:{port}{path}: {exc or type(exc).__name__}") from exc
    finally:
        connection.close()
