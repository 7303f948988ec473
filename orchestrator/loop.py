"""The reconcile loop: lease, observe, settle what is open, triage, advance by one effect. Nothing here blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from pydantic import JsonValue

from orchestrator.attendance import attend
from orchestrator.bake import watch_bake
from orchestrator.crew import Crew, tell
from orchestrator.doubt import held_for_answer
from orchestrator.execute import MAX_RETRIES, recover
from orchestrator.gate import expire_approvals
from orchestrator.graph import GRAPH_VERSION, Desk, Graph
from orchestrator.heed import heed_policy
from orchestrator.route import watch_route
from orchestrator.triage import cadence_due, cadence_signal, look_again, note_cadence, start_cadence, take_in
from orchestrator.watch import begin, watch
from state import leases, ledger, store
from state import log as decision_log
from state.canonical import digest
from state.errors import RetryableError, ToolRejected
from state.rows import DetectorRow, OutboxRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence

log = logging.getLogger(f"steadyhand.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What one tick made of one model."""

    outcome: Literal["progressed", "busy", "quiet", "not_ours"]
    """`busy`: something outside is still running; `not_ours`: another worker holds the lease."""


def tick(crew: Crew, graph: Graph, spec: ModelSpec) -> Tick:
    """One pass over one model. Reacts to what the rows and the platform say now, never to the memory of an event."""
    with crew.db.transaction() as conn:
        lease = leases.acquire(conn, f"model/{spec.model}", crew.owner, crew.lease_seconds)
        if lease is None:
            return Tick(outcome="not_ours")
        fence = lease.fence
        attend(crew, conn, spec, fence=fence)
        heed_policy(crew, conn)
        expire_approvals(crew, conn, spec.model)
        begin(crew, conn, spec, fence=fence)
        runs, actions = _open_runs(conn, spec.model), ledger.open_actions(conn, spec.model)
        outages = store.get(conn, DetectorRow, _outages_id(spec))
    attempt = partial(_attempt, crew, spec, outages.state if outages is not None else {})
    busy = recover(crew, spec, actions, {run.id: run for run in runs}, fence=fence)
    looks = [
        attempt("watch", lambda: watch(crew, spec, fence=fence)),
        attempt("route", lambda: watch_route(crew, spec, fence=fence)),
        attempt("bake", lambda: watch_bake(crew, spec, fence=fence)),
        attempt("cadence", lambda: _answer_wins(crew, spec, fence)),
    ]
    if not {"unavailable", "stuck"} & {*looks}:
        looks.append(attempt("due", lambda: _begin_cadence(crew, spec, fence)))
    progressed = "progressed" in looks
    with crew.db.snapshot() as conn:
        runs = _open_runs(conn, spec.model)
    for run in runs:
        if not busy and _awake(run, crew.clock.now()):
            looks.append(attempt(f"run/{run.id}", partial(_advance, crew, graph, spec, run, fence)))
            progressed |= looks[-1] == "progressed"
    with crew.db.snapshot() as conn:
        pending = store.select(conn, OutboxRow, status="pending")
        under_way = any(action.state == "acting" for action in ledger.open_actions(conn, spec.model))
    _send(crew, pending)
    if progressed:
        return Tick(outcome="progressed")
    return Tick(outcome="busy" if under_way or "unavailable" in looks else "quiet")


Look = Literal["progressed", "still", "unavailable", "stuck"]
Outages = dict[str, JsonValue]
"""What does not answer -> how often in a row, and since when; the row that the tick began with."""


def _outages_id(spec: ModelSpec) -> str:
    return f"{spec.model}/outages"


def _attempt(crew: Crew, spec: ModelSpec, outages: Outages, what: str, step: Callable[[], bool]) -> Look:
    """One part of a tick. An outside system that does not answer holds this part alone; a lasting outage calls a person."""
    row_id = f"{spec.model}/outage/{what}"
    try:
        progressed = step()
    except RetryableError as exc:
        return _outage(crew, spec, outages, what, str(exc))
    except ToolRejected as exc:
        # Reading was refused: asking again at once would be refused again.
        log.warning("%s of %s is refused: %s", what, spec.model, exc)
        with crew.db.transaction() as conn:
            tell(crew, conn, key=f"refused/{row_id}/{digest(str(exc))[:16]}", title=f"{spec.model} needs a person",
                 text=f"An outside system refuses: {exc}")  # fmt: skip
        return "stuck"
    if outages.pop(what, None) is not None:
        with crew.db.transaction() as conn:
            store.put(conn, DetectorRow(id=_outages_id(spec), model=spec.model, state=outages), fence=None)
    return "progressed" if progressed else "still"


def _outage(crew: Crew, spec: ModelSpec, outages: Outages, what: str, message: str) -> Look:
    """Count answers that did not come; after many in a row nothing is waited for, and a person is told once."""
    row_id = f"{spec.model}/outage/{what}"
    log.warning("%s: %s", row_id, message)
    known = outages.get(what)
    n, since = (known["n"], known["since"]) if isinstance(known, dict) else (0, crew.clock.now().isoformat())
    n = int(str(n)) + 1
    outages[what] = {"n": n, "since": since}
    with crew.db.transaction() as conn:
        store.put(conn, DetectorRow(id=_outages_id(spec), model=spec.model, state=outages), fence=None)
        if n < MAX_RETRIES:
            return "unavailable"
        tell(crew, conn, key=f"{row_id}/{since}", title=f"{spec.model}: an outside system does not answer",
             text=f"No answer {n} times in a row: {message}. What needs it holds until it answers.")  # fmt: skip
    return "stuck"


def let_go(crew: Crew, model: str) -> None:
    """Give the model's lease back, so that the next process need not wait for it to expire."""
    with crew.db.transaction() as conn:
        lease = leases.holder(conn, f"model/{model}")
        if lease is not None and lease.owner == crew.owner:
            leases.release(conn, lease)


def run_until_quiet(crew: Crew, graph: Graph, spec: ModelSpec, *, max_ticks: int = 200) -> Tick:
    """Tick until nothing moves by itself; `busy` where something outside is still running."""
    last = Tick(outcome="quiet")
    for _ in range(max_ticks):
        last = tick(crew, graph, spec)
        if last.outcome != "progressed":
            return last
    return last


def _open_runs(conn: Connection, model: str) -> list[RunRow]:
    return store.select(conn, RunRow, model=model, status=["ready", "waiting"])


def _awake(run: RunRow, now: datetime) -> bool:
    return run.wake_at is None or run.wake_at <= now


def _advance(crew: Crew, graph: Graph, spec: ModelSpec, run: RunRow, fence: Fence) -> bool:
    """One pass of the graph for one run, on a thread that may be thrown away."""
    thread = f"{run.id}/{run.plan_revision}"
    state = graph.invoke(
        {"run_id": run.id},
        {"configurable": {"thread_id": thread}, "metadata": {"graph_version": GRAPH_VERSION}},
        context=Desk(crew=crew, fence=fence, spec=spec),
        durability="sync",
    )
    with crew.db.transaction() as conn:
        after = store.get(conn, RunRow, run.id)
        if after is not None and after.status == "finished" and after.facts.get("remedy_known"):
            # The cadence counts from the last time that the question was answered.
            note_cadence(crew, conn, spec, fence=fence, due=look_again(after))
    if after is None or after.status == "finished" or after.plan_revision != run.plan_revision:
        _forget(graph, thread)
    return bool(state.get("progressed"))


def _forget(graph: Graph, thread: str) -> None:
    saver = graph.checkpointer
    if saver is not None and not isinstance(saver, bool):
        saver.delete_thread(thread)


def _begin_cadence(crew: Crew, spec: ModelSpec, fence: Fence) -> bool:
    with crew.db.transaction() as conn:
        if not cadence_due(crew, conn, spec):
            return False
        start_cadence(crew, conn, spec, fence=fence)
    return True


def _answer_wins(crew: Crew, spec: ModelSpec, fence: Fence) -> bool:
    """A finished cadence run that won is a signal like any other; its row remembers that it was taken in."""
    with crew.db.transaction() as conn:
        newest = store.select(conn, RunRow, model=spec.model, status="finished", newest_first=True, limit=5)
    answered = False
    for run in newest:
        signal = cadence_signal(run) if run.subject_kind == "cadence" and not run.body.get("answered") else None
        if signal is None:
            continue
        with crew.db.transaction() as conn:
            if not held_for_answer(crew, conn, spec, signal):
                take_in(crew, conn, spec, signal, fence)
            run.body["answered"] = True
            store.put(conn, run, fence=fence)
        answered = True
    return answered


def _send(crew: Crew, pending: list[OutboxRow]) -> None:
    """Deliver queued messages; one that cannot be delivered stays queued and is counted."""
    for row in pending:
        try:
            delivered = crew.platform.notifier.send(title=row.title, text=row.text, key=row.key)
        except RetryableError as exc:
            log.warning("message %s was not delivered: %s", row.id, exc)
            continue
        if not delivered:
            return  # no channel is configured: the messages stay readable in `steady status`
        with crew.db.transaction() as conn:
            row.status, row.n_attempts = "sent", row.n_attempts + 1
            store.put(conn, row, fence=None)


def checkpoint(crew: Crew) -> None:
    """Sign the log as it stands now, into the database and into the second place."""
    decision_log.checkpoint(crew.db, crew.signer, crew.second_place)
