"""The key that signs the log: loading it, and giving the log another one as a recorded decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from console.workspace import Workspace, domain_now, require_role
from state import audit, log
from state.clock import WallClock
from state.decisions import KeyChanged
from state.errors import InputError
from state.ids import Uuid7Source
from state.keys import Signer, load, load_or_create

REMEDY = "Restore it from a backup; where it is lost for good, `steady audit new-key --reason ...` makes another one"


def load_signer(workspace: Workspace) -> Signer:
    """The key that the log names; a change of key that was killed on its way is completed.

    Raises:
        InputError: its file is missing, is no key, or is another key than the one that the log names.
    """
    path, pending = workspace.key_file, _pending(workspace)
    named = _named(workspace)
    if pending.exists() and load(pending).vkey == named:
        _finish(workspace, old=_loaded(path))
    if not path.exists():
        raise InputError(f"{path} is missing: it signs the decision log", remedy=REMEDY)
    signer = load(path)
    if signer.vkey != named:
        raise InputError(f"{path} holds {signer.vkey}, and the log is signed with {named}", remedy=REMEDY)
    return signer


def new_key(workspace: Workspace, reason: str) -> tuple[str, str]:
    """Give the log another signing key, as a decision; the old and the new public key.

    The old key, where it is still there, signs for the new one; whoever trusts the one may then trust the other. A
    process that holds the old key can sign nothing more: see to it that none runs (`preflight.check_idle`).

    Raises:
        InputError: the user is no admin, or the log is not as it was signed: a new key must not cover that up.
    """
    user = require_role(workspace, "admin")
    named = _named(workspace)
    old = _loaded(workspace.key_file)
    if old is not None and old.vkey != named:
        old = None
    _check_log(workspace, named)
    pending = load_or_create(_pending(workspace), named.partition("+")[0])
    if old is not None:
        log.checkpoint(workspace.db, old, workspace.second_place)
    how = "which signs for it" if old is not None else "which is lost and signs for nothing more"
    stamp: dict[str, Any] = {
        "decision_id": Uuid7Source().new_id(), "at": domain_now(workspace), "recorded_at": WallClock().now(),
    }  # fmt: skip
    with workspace.db.transaction() as conn:
        log.append(
            conn,
            KeyChanged(
                **stamp, actor=f'User::"{user}"', old_key=named, new_key=pending.vkey, reason=reason,
                summary=f"{user} gives the log another signing key in the place of {named}, {how}: "
                f"{reason or 'no reason given'}.",
            ),
        )  # fmt: skip
    _finish(workspace, old=old)
    return named, pending.vkey


def _check_log(workspace: Workspace, named: str) -> None:
    result = audit.verify(workspace.db, workspace.second_place, named)
    wrong = [problem for problem in result.problems if problem.startswith(("record", "checkpoint"))]
    if wrong:
        raise InputError(
            f"the log gets no new key: {wrong[0]}", remedy="Run `steady audit verify` and restore the log from a backup"
        )


def _pending(workspace: Workspace) -> Path:
    return workspace.key_file.with_suffix(".new")


def _named(workspace: Workspace) -> str:
    with workspace.db.snapshot() as conn:
        return log.signing_keys(conn)[-1][1]


def _loaded(path: Path) -> Signer | None:
    try:
        return load(path)
    except InputError:
        return None


def _finish(workspace: Workspace, *, old: Signer | None) -> None:
    """Sign the record that names the pending key, with both keys where there are two, and put its file in place."""
    path, pending = workspace.key_file, _pending(workspace)
    log.checkpoint(workspace.db, load(pending), workspace.second_place, vouched_by=old)
    if path.exists():
        path.replace(path.with_suffix(f".retired-{WallClock().now():%Y%m%dT%H%M%S}"))
    pending.replace(path)
