"""The first champion: trained, approved where policy asks a person, and serving, before anything else is done."""

from __future__ import annotations

import time
from collections.abc import Sequence

from console.up import Running
from orchestrator.loop import run_until_quiet
from orchestrator.replay import POLL_SECONDS
from orchestrator.triage import note_cadence
from state import log, store
from state.decisions import Observed
from state.errors import ApprovalRequired, InputError, ToolUnavailable
from state.rows import ActionRow, ApprovalRow, DetectorRow, RunRow

PATIENCE_SECONDS = 3600.0
"""How long work outside may take; a person may take longer."""


def first_champion(running: Running, *, ticks: int | None = None) -> None:
    """Run the loop until the first champion serves.

    In live operation a person's answer is waited for, for `ticks` looks where they are limited. A replay does not wait:
    its time stands still meanwhile.

    Raises:
        InputError: the run ended without one; the message says why.
        ApprovalRequired: a person has to do something first, and this does not wait for it.
        ToolUnavailable: what runs outside does not come to an end.
    """
    begun, looks, told = time.monotonic(), 0, ""
    while time.monotonic() < begun + PATIENCE_SECONDS:
        last = run_until_quiet(running.crew, running.graph, running.spec)
        if _serves(running):
            return
        if last.outcome != "quiet":
            time.sleep(POLL_SECONDS)
            continue
        held = _held(running)
        if held is None:
            raise _no_champion(running)
        looks += 1
        if running.window is not None or (ticks is not None and looks >= ticks):
            raise ApprovalRequired(f"{running.spec.model} has no first champion yet: {held}")
        if held != told:
            running.say("orchestrator", f"{running.spec.model} waits for a person: {held}")
            told = held
        time.sleep(running.workspace.settings.tick_seconds)
        begun = time.monotonic()
    raise ToolUnavailable(f"{running.spec.model} has no first champion after {PATIENCE_SECONDS / 60:.0f} minutes")


def _serves(running: Running) -> bool:
    """Whether there is a champion; from its first day on the cadence counts."""
    model = running.spec.model
    with running.crew.db.transaction() as conn:
        champion = store.get(conn, DetectorRow, f"{model}/champion")
        if champion is None:
            return False
        if store.get(conn, DetectorRow, f"{model}/cadence") is None:
            note_cadence(running.crew, conn, running.spec, fence=None)
    route = running.platform.mesh.read(model)
    if route is not None:
        running.say("deployment", f"version {champion.state['version']} serves at {route.address}/predict")
    return True


def _held(running: Running) -> str | None:
    """What a person has to do before the run can go on; None where none can."""
    with running.crew.db.snapshot() as conn:
        asked = store.select(conn, ApprovalRow, model=running.spec.model, status="pending")
        runs = store.select(conn, RunRow, model=running.spec.model, status="waiting")
    if asked:
        said = [
            f"{row.action.replace('_', ' ')} has to be approved (`steady approve {row.id}`): {row.reason.rstrip('.')}"
            for row in asked
        ]
        return "; ".join([*said, *_failed_gates(running)])
    stopped = [run.waits_for for run in runs if run.waits_for.startswith("policy:")]
    return "; ".join(stopped) or None


def _failed_gates(running: Running) -> list[str]:
    """The newest verdict on the model's gates, where it is that they are missed."""
    with running.crew.db.snapshot() as conn:
        observed = [entry.decision for entry in log.read(conn, model=running.spec.model, kind="observed")]
    gates = [d for d in observed if isinstance(d, Observed) and d.topic == "gates"]
    return [d.summary.rstrip(".") for d in gates[-1:] if d.verdict == "failed"]


def _no_champion(running: Running) -> InputError:
    """What every run waits for or ended with, which gates failed, and why the newest failed action failed."""
    model = running.spec.model
    with running.crew.db.snapshot() as conn:
        runs: Sequence[RunRow] = store.select(conn, RunRow, model=model)
        failed = store.select(
            conn, ActionRow, model=model, state="failed", order="created_at", newest_first=True, limit=1
        )
    said = [run.waits_for or run.outcome.replace("_", " ") for run in runs]
    said += [str(run.facts["story"]).rstrip(".") for run in runs if run.status == "finished" and run.facts.get("story")]
    said += _failed_gates(running)
    said += [f"{action.kind} failed: {action.message}" for action in failed]
    return InputError(
        f"{model} has no first champion: {'; '.join(dict.fromkeys(said))}",
        remedy="See `steady status` and `steady audit list`; correct the spec or the data, or ask anew: "
        f'`steady goal "retrain {model}"`',
    )
