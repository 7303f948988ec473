"""The model server's HTTP interface, as a bare ASGI application."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from serving.records import Record, Recorder, Score
from serving.requests import (
    IDENTITY_FIELDS,
    BadRequestError,
    Headers,
    Identity,
    IdentityReader,
    Row,
    batch_rows,
    is_mirrored,
    parse,
)
from serving.scoring import Scorer
from serving.telemetry import Telemetry
from state.errors import TerminalError

log = logging.getLogger(f"steadyhand.{__name__}")

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

MAX_ROW_BYTES = 1 << 20
MAX_BATCH_BYTES = 64 << 20
DISCARDED_BYTES = 8 << 20
"""Read and dropped beyond a limit: a client that is still sending when we close never sees the answer."""
THREAD_ROWS = 256
TURNS_BETWEEN_ROWS = 4
"""Turns of the loop between two scored rows. libuv accepts one connection a turn, so that with fewer a burst of new
connections would queue unseen in the kernel, neither counted nor refused."""
MAX_EXTRA = 3
MAX_NAME_CHARACTERS = 64
"""Unknown fields that a record names, and how much of their names: the client chose them."""
JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Who this server is, as `/health` says it."""

    model: str
    version: str
    stage: str
    key: str


@dataclass(slots=True)
class Answer:
    body: bytes
    status: int = 200
    kind: tuple[bytes, bytes] = JSON
    extra: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class _Read:
    """One row, read and encoded."""

    row: Row
    identity: Identity
    vector: Any
    flags: list[str]
    extra: list[str]
    """Flags for the record alone: fields that no contract knows change nothing for the client."""


def problem(message: str, status: int, *extra: tuple[bytes, bytes]) -> Answer:
    return Answer(_encode({"error": message}), status, JSON, extra)


class Application:
    """Answers predictions while a model is loaded, and 503 before.

    At most `max_waiting` requests may stand between read and answered; one more gets 503 at once, so that a burst
    costs its own surplus and not everybody's latency.
    """

    def __init__(self, about: About, *, token_file: Path | None = None, max_waiting: int = 128) -> None:
        self._about, self._token_file, self._max_waiting = about, token_file, max_waiting
        self._scorer: Scorer | None = None
        self._recorder: Recorder | None = None
        self._names: list[str] = []
        self._known: frozenset[str] = frozenset()
        self._identities = IdentityReader(time_field=None, entity_fields=())
        self._telemetry = Telemetry(model=about.model, version=about.version, stage=about.stage)
        self._waiting = 0
        self._turn, self._batches = asyncio.Lock(), asyncio.Lock()
        self.on_shutdown: Callable[[], None] = lambda: None

    def load(self, scorer: Scorer, recorder: Recorder | None) -> None:
        contract = scorer.contract
        self._names = [feature.name for feature in contract.features]
        self._known = frozenset(self._names) | IDENTITY_FIELDS | {*contract.entity, contract.time or ""}
        self._identities = IdentityReader(time_field=contract.time, entity_fields=contract.entity)
        self._scorer, self._recorder = scorer, recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = dict(scope["headers"])
        path, method = scope["path"], scope["method"]
        try:
            if path == "/predict" and method == "POST":
                answer = await self._predict(headers, receive)
            elif path == "/predict/batch" and method == "POST":
                answer = await self._predict_batch(headers, receive)
            else:
                answer = await self._other(path, method, headers)
        except BadRequestError as exc:
            self._refused(headers, str(exc.status))
            answer = problem(str(exc), exc.status)
        except TerminalError as exc:
            log.error("no prediction: %s", exc)
            self._refused(headers, "500")
            answer = problem(str(exc), 500)
        length = str(len(answer.body)).encode()
        fields = [answer.kind, (b"content-length", length), *answer.extra]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    def _refused(self, headers: Headers, reason: str) -> None:
        if not is_mirrored(headers):
            self._telemetry.refused(reason)

    async def _other(self, path: str, method: str, headers: Headers) -> Answer:
        allowed = {"/predict": "POST", "/predict/batch": "POST", "/flush": "POST", "/shutdown": "POST"}
        allowed |= {"/health": "GET", "/metrics": "GET"}
        if path not in allowed:
            return problem(f"no such path: {path}", 404)
        if method != allowed[path]:
            return problem(f"{path} takes {allowed[path]}", 405, (b"allow", allowed[path].encode()))
        if path == "/health":
            return self._health()
        if path == "/metrics":
            dropped = self._recorder.dropped if self._recorder else 0
            return Answer(self._telemetry.render(dropped_records=dropped).encode(), 200, TEXT)
        if not self._admitted(headers):
            return problem(f"{path} needs the bearer token of this server", 401, (b"www-authenticate", b"Bearer"))
        if path == "/flush":
            return await self._flush()
        self.on_shutdown()
        return Answer(_encode({"status": "stopping"}), 202)

    def _health(self) -> Answer:
        loaded = self._scorer is not None
        about = self._about
        body = {
            "status": "healthy" if loaded else "loading",
            "model": about.model,
            "version": about.version,
            "stage": about.stage,
            "key": about.key,
        }
        return Answer(_encode(body), 200 if loaded else 503)

    def _admitted(self, headers: Headers) -> bool:
        if self._token_file is None:
            return False
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        token = self._token_file.read_bytes().strip()
        return scheme.lower() == b"bearer" and bool(token) and hmac.compare_digest(given.strip(), token)

    async def _flush(self) -> Answer:
        if self._recorder is not None:
            try:
                await asyncio.to_thread(self._recorder.flush)
            except OSError as exc:
                return problem(f"records: {exc}", 503)
        return Answer(_encode({"status": "flushed"}))

    def _ready(self) -> Scorer:
        if self._scorer is None:
            raise BadRequestError("no model is loaded", 503)
        return self._scorer

    async def _predict(self, headers: Headers, receive: Receive) -> Answer:
        scorer = self._ready()
        body = await read_body(headers, receive, MAX_ROW_BYTES)
        if self._waiting >= self._max_waiting:
            self._refused(headers, "overloaded")
            return problem("overloaded, try again", 503, (b"retry-after", b"1"))
        began = time.perf_counter()
        self._waiting += 1
        try:
            await self._turn.acquire()
            self._pass_turn(TURNS_BETWEEN_ROWS)
            read = self._read(scorer, parse(body), headers)
            scores = scorer.score(read.vector[None])
        finally:
            self._waiting -= 1
        answer = self._result(scorer, read, scores[0].tolist())
        if answer["prediction"] is None:
            raise TerminalError(f"version {self._about.version} of {self._about.model} gave no finite score")
        seconds = time.perf_counter() - began
        if not read.identity.mirrored:
            self._telemetry.answered(seconds)
        answer["prediction_time_ms"] = round(seconds * 1_000, 3)
        return Answer(_encode(answer))

    def _pass_turn(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._pass_turn, turns - 1)
        else:
            self._turn.release()

    def _read(self, scorer: Scorer, row: Row, headers: Headers) -> _Read:
        vector, flags = scorer.encoder.encode_row(row)
        if flags and scorer.contract.out_of_range == "refuse":
            refusal = scorer.encoder.refusal(row)
            if refusal is not None:
                raise BadRequestError(refusal, 422)
        unknown = sorted(row.keys() - self._known)[:MAX_EXTRA] if not row.keys() <= self._known else []
        extra = [f"extra:{name[:MAX_NAME_CHARACTERS]}" for name in unknown]
        return _Read(row, self._identities.read(row, headers, flags), vector, flags, extra)

    def _result(self, scorer: Scorer, read: _Read, score: Score) -> dict[str, Any]:
        """Record and count one scored row, and describe it to its client."""
        if not np.isfinite(score).all():  # type: ignore[arg-type]  # a float or a list of floats
            read.flags.append("no_score:")
            score = None
        self._record(read, score)
        answer = describe(scorer, score)
        if score is not None and not read.identity.mirrored:
            self._telemetry.predicted(predicted_class(scorer, score), read.flags)
        answer["model_version"] = self._about.version
        answer["request_id"] = read.identity.request_id
        answer["flags"] = read.flags
        return answer

    def _record(self, read: _Read, score: Score) -> None:
        if self._recorder is None:
            return
        values = [read.row.get(name) for name in self._names]
        if read.flags:
            # Lists and objects are no value of any feature, and could nest deeper than the journal can write.
            values = [None if isinstance(value, dict | list) else value for value in values]
        who = read.identity
        arm = who.arm or self._about.version
        recorded = time.time_ns() // 1_000
        record: Record = (
            who.request_id, who.entity, who.event_microseconds, arm, who.mirrored, score, [*read.flags, *read.extra],
            recorded, values,
        )  # fmt: skip
        self._recorder.add(record)

    async def _predict_batch(self, headers: Headers, receive: Receive) -> Answer:
        scorer = self._ready()
        body = await read_body(headers, receive, MAX_BATCH_BYTES)
        began = time.perf_counter()
        # One batch at a time, and a large one in a thread: single rows keep being answered meanwhile.
        async with self._batches:
            rows = batch_rows(parse(body))
            if len(rows) > THREAD_ROWS:
                reads, scores = await asyncio.to_thread(self._score_batch, scorer, rows, headers)
            else:
                reads, scores = self._score_batch(scorer, rows, headers)
        results = [self._result(scorer, read, score) for read, score in zip(reads, scores, strict=True)]
        seconds = time.perf_counter() - began
        if not is_mirrored(headers):
            self._telemetry.answered(seconds)
        answer: dict[str, Any] = {
            "predictions": [result["prediction"] for result in results],
            "probabilities": [result.get("probability") for result in results],
            "count": len(results),
            "model_version": self._about.version,
            "request_ids": [result["request_id"] for result in results],
            "flags": [result["flags"] for result in results],
            "prediction_time_ms": round(seconds * 1_000, 3),
        }
        if scorer.contract.task == "regression":
            del answer["probabilities"]
        return Answer(_encode(answer))

    def _score_batch(self, scorer: Scorer, rows: Sequence[Row], headers: Headers) -> tuple[list[_Read], list[Score]]:
        # A header names one request; every row of a batch is a request of its own.
        shared = {name: value for name, value in headers.items() if name != b"x-request-id"}
        reads = [self._read(scorer, row, shared) for row in rows]
        if not reads:
            return [], []
        return reads, scorer.score(np.stack([read.vector for read in reads])).tolist()


def predicted_class(scorer: Scorer, score: float | list[float]) -> str | None:
    """The class that `score` predicts; None for regression."""
    contract = scorer.contract
    if contract.classes is None:
        return None
    if isinstance(score, list):
        return contract.classes[max(range(len(score)), key=score.__getitem__)]
    return contract.classes[int(score >= contract.decision_threshold)]


def describe(scorer: Scorer, score: Score) -> dict[str, Any]:
    """`prediction` and `probability` under the generic names, and under the contract's prefix; None without a score."""
    contract = scorer.contract
    if score is None:
        answer: dict[str, Any] = {"prediction": None, "probability": None}
    elif isinstance(score, list):
        answer = {"prediction": predicted_class(scorer, score), "probability": max(score)}
        answer["probabilities"] = dict(zip(contract.classes or (), score, strict=True))
    elif contract.task == "regression":
        answer = {"prediction": score}
    else:
        answer = {"prediction": int(score >= contract.decision_threshold), "probability": score}
    if contract.output_prefix:
        answer |= {f"{contract.output_prefix}_{name}": value for name, value in list(answer.items())}
    return answer


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        BadRequestError: longer than `limit`, or the client went away.
    """
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit + DISCARDED_BYTES:
        raise BadRequestError(f"the body has {int(declared)} bytes, at most {limit} are read", 413)
    chunks: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequestError("the client closed the connection")
        chunk = message.get("body", b"")
        length += len(chunk)
        if length <= limit:
            chunks.append(chunk)
        if not message.get("more_body", False) or length > limit + DISCARDED_BYTES:
            break
    if length > limit:
        raise BadRequestError(f"the body is longer than {limit} bytes", 413)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
