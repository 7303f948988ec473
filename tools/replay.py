"""The replay client: recorded rows sent as live traffic, one row a request, in time order, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import polars as pl

from state.errors import ToolUnavailable

IN_FLIGHT = 32
"""Requests under way at once: enough to keep two cores busy, few enough that rows stay nearly in order."""
RETRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    n_rows: int
    n_failed: int
    """Requests that got no answer, or a 5xx, in every try."""


def send_rows(rows: pl.DataFrame, *, address: str, model: str, features: Sequence[str]) -> Sent:
    """Send every row of `rows` to `address` and wait for the answers.

    The request id travels in a header, so that a row sent again after a crash is the same request.

    Raises:
        ToolUnavailable: nothing answers at `address`.
    """
    if not rows.height:
        return Sent(n_rows=0, n_failed=0)
    return asyncio.run(_send(rows, address, model, list(features)))


async def _send(rows: pl.DataFrame, address: str, model: str, features: list[str]) -> Sent:
    queue = iter(rows.select("request_id", "entity", "event_time", *features).iter_rows(named=True))
    failed = 0
    encoder = msgspec.json.Encoder()

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        # One iterator shared by all workers: rows leave in time order, whoever takes them.
        for row in queue:
            headers = {
                "x-request-id": row["request_id"],
                "x-steady-entity": row["entity"] or row["request_id"],
                "x-event-time": row["event_time"].isoformat(),
                "x-steady-model": model,
                "content-type": "application/json",
            }
            body = encoder.encode({name: row[name] for name in features})
            failed += not await _post(session, address, headers, body)

    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(worker(session) for _ in range(min(IN_FLIGHT, rows.height))))
    except aiohttp.ClientConnectorError as exc:
        raise ToolUnavailable(f"{address} does not answer: {exc}") from exc
    return Sent(n_rows=rows.height, n_failed=failed)


async def _post(session: aiohttp.ClientSession, address: str, headers: dict[str, Any], body: bytes) -> bool:
    """Whether the row was answered; a broken connection or a 5xx is tried again, as a client of ours would."""
    for attempt in range(RETRIES):
        try:
            async with session.post(f"{address}/predict", data=body, headers=headers) as answer:
                await answer.read()
                if answer.status < 500:
                    return True
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, TimeoutError):
            if attempt == RETRIES - 1:
                return False
        await asyncio.sleep(0.02 * (attempt + 1))
    return False
