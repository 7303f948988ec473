"""Hand edits of the route: what somebody else wrote is put back, or respected until a person answers."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from agents import rollout as machine
from agents.base import Learned, Move, Situation, Wait, proposal

HELD_BY_EDIT = "a person: somebody changed the route by hand"
MAX_CORRECTIONS = 3
"""Corrections of one and the same split within a day; whoever writes it once more means it, or is a program."""


def judge_edit(situation: Situation, reading: dict[str, Any]) -> Move | None:
    """The answer to an edit of the route; None where it is as the last verified write left it.

    `machine.foreign_edit` says which edits are put back and which are respected.
    """
    rollout = situation.rollout if situation.rollout is not None and situation.rollout.status == "running" else None
    judged, against = (rollout.candidate, str(rollout.stable)) if rollout is not None else (None, None)
    observed, revision = reading["weights"], reading["revision"]
    kind = machine.foreign_edit(expected=situation.written, observed=observed, judged=judged, against=against)
    held = bool(situation.facts.get("held_by_edit"))
    if not situation.written or kind == "none":
        return _released(situation) if held else None
    if held:
        return Wait(until=None, waits_for=HELD_BY_EDIT)
    # A resume takes `held_by_edit` away and leaves the revision: that edit is answered, a later one is not.
    answered = situation.facts.get("edit_answered") == revision
    if kind == "lowered" and not answered:
        return _hold(situation, reading, "lowered", f"Somebody took traffic off version {judged}")
    if not answered and situation.corrected_today.count(observed) >= MAX_CORRECTIONS:
        return _hold(situation, reading, "insisted", f"Somebody writes the split {_split(observed)} again and again")
    if situation.cause == "route" and not answered and situation.facts.get("edit_seen") != revision:
        return _seen(situation, reading)
    return _put_back(situation, reading, answered=answered)


def restore(situation: Situation, reading: dict[str, Any]) -> Move:
    """The next move of a run that exists because of an edit: it ends with the route as it was written."""
    return judge_edit(situation, reading) or _released(situation)


def _released(situation: Situation) -> Learned:
    return Learned(
        topic="foreign_edit",
        verdict="released",
        summary=f"The route of {situation.model} is as it was written again.",
        facts={"held_by_edit": False, "traffic_shifted": True},
    )


def _hold(situation: Situation, reading: dict[str, Any], verdict: str, what: str) -> Learned:
    summary = (
        f"{what}: {_split(reading['weights'])} where {_split(situation.written)} was written. It stays so until a person "
        f"answers: `steady resume {situation.model}` puts it back, a goal (rollback, deploy) decides anew."
    )
    return Learned(
        topic="foreign_edit", verdict=verdict, summary=summary, details=_details(situation, reading),
        facts={"held_by_edit": True, "edit_answered": reading["revision"]},
    )  # fmt: skip


def _seen(situation: Situation, reading: dict[str, Any]) -> Learned:
    """The record of an edit that is put back."""
    summary = (
        f"Somebody changed the route by hand: {_split(reading['weights'])} where {_split(situation.written)} was written. "
        "No version gets a share that it was not judged for: state a goal (deploy, promote, rollback) to move traffic."
    )
    return Learned(
        topic="foreign_edit", verdict="raised", summary=summary, details=_details(situation, reading),
        facts={"edit_seen": reading["revision"]},
    )  # fmt: skip


def _put_back(situation: Situation, reading: dict[str, Any], *, answered: bool) -> Move:
    """The written split, unless a version of it cannot take its traffic."""
    observed = reading["weights"]
    undo = machine.put_back(expected=situation.written, observed=observed)
    if undo is None:
        return Wait(until=None, waits_for=f"a person: a version of {_split(situation.written)} is gone from the route")
    version, weights = undo
    for gaining in (name for name, weight in weights.items() if weight > observed[name]):
        if not reading["endpoints"].get(gaining, False):
            return Wait(until=None, waits_for=f"a person: version {gaining} is not ready to take its traffic back")
    args: dict[str, JsonValue] = {
        "rollout": situation.rollout.id if situation.rollout is not None else "",
        "version": version,
        "weights": dict(weights),
        "after": situation.last_traffic_key,
        "corrects": reading["revision"],
    }
    reason = (
        "a person lets the written split come back"
        if answered
        else f"somebody gave version {version} {observed[version]} % by hand; put it back"
    )
    move = proposal(situation, "deployment", args, reason)
    return move.model_copy(
        update={"proposal": move.proposal.model_copy(update={"args": args, "kind": "shift_traffic"})}
    )


def _details(situation: Situation, reading: dict[str, Any]) -> dict[str, JsonValue]:
    return {
        "expected": dict(situation.written), "observed": dict(reading["weights"]), "revision": reading["revision"],
    }  # fmt: skip


def _split(weights: dict[str, int]) -> str:
    return ", ".join(f"version {version}: {weight} %" for version, weight in weights.items()) or "no route"
