"""`steady audit`: read the decision log and verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from console.cli.options import Home, Json, settings_of
from console.cli.output import out, print_json, table
from console.preflight import check_idle
from console.services import known_model
from console.signing import load_signer, new_key
from console.workspace import Workspace, open_workspace
from state import audit, log
from state.decisions import KINDS
from state.errors import InputError

app = typer.Typer(help="Read and verify the decision log.", no_args_is_help=True)


@app.command("list", epilog="Example: steady audit list --model flights --last 50")
def list_(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    incident: Annotated[str | None, typer.Option(help="Only this incident.")] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only this kind of record: {', '.join(KINDS)}.")] = None,
    last: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 30,
    json: Json = False,
    home: Home = None,
) -> None:
    """Decisions in order, one sentence each."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"--kind {kind!r} is not a kind of record", remedy=f"Use one of {', '.join(KINDS)}")
    workspace = open_workspace(settings_of(home), create=False)
    try:
        with workspace.db.snapshot() as conn:
            if model is not None:
                known_model(conn, model)
            entries = log.read(conn, model=model, incident_id=incident, kind=kind)
    finally:
        workspace.close()
    entries = entries[-last:] if last else entries
    if json:
        print_json({"decisions": [{"index": e.index, **e.decision.model_dump(mode="json")} for e in entries]})
        return
    rows = [[e.index, f"{e.decision.at:%Y-%m-%d %H:%M}", e.decision.actor, e.decision.summary] for e in entries]
    table("decisions", ["index", "at", "who", "what"], rows)


@app.command("show", epilog="Example: steady audit show 42")
def show(
    index: Annotated[int, typer.Argument(help="Index of the record.")], json: Json = False, home: Home = None
) -> None:
    """One record in full."""
    workspace = open_workspace(settings_of(home), create=False)
    try:
        with workspace.db.snapshot() as conn:
            entries = log.read(conn, since_index=index, limit=1)
    finally:
        workspace.close()
    if not entries or entries[0].index != index:
        raise InputError(f"record {index} does not exist", remedy="`steady audit list` shows the indices")
    record = entries[0].decision.model_dump(mode="json")
    if json:
        print_json({"index": index, **record})
    else:
        for name, value in record.items():
            out.print(f"{name}: {value}", markup=False)


@app.command("verify", epilog="Example: steady audit verify --export log.jsonl --checkpoints DIR --key VKEY")
def verify(
    export: Annotated[Path | None, typer.Option(help="Verify an exported log instead of the workspace.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="The second place of the checkpoints.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Public key (vkey) as handed over earlier; repeat it where the key was changed since."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write-export", help="Write the log here as JSON lines first.")
    ] = None,
    json: Json = False,
    home: Home = None,
) -> None:
    """Check every record, checkpoint and action; exit code 1 if anything was edited, inserted, deleted or cut off."""
    if export is not None:
        result = audit.verify(export, checkpoints, key or None)
    else:
        workspace = open_workspace(settings_of(home), create=False)
        try:
            if write is not None:
                audit.export(workspace.db, write)
            own, lost = _own_key(workspace)
            result = audit.verify(workspace.db, checkpoints or workspace.second_place, key or own or None)
            result.notes.extend(lost)
        finally:
            workspace.close()
    if json:
        print_json({"ok": result.ok, "n_records": result.n_records, "n_actions": result.n_actions,
                    "n_proven": result.n_proven, "problems": result.problems, "notes": result.notes})  # fmt: skip
    else:
        out.print(
            f"{'ok' if result.ok else 'NOT OK'}: {result.n_records} records, {result.n_actions} actions, "
            f"{result.n_proven} records proven by a signed checkpoint",
            markup=False,
        )
        for problem in result.problems:
            out.print(f"  problem: {problem}", markup=False, soft_wrap=True)
        for note in result.notes:
            out.print(f"  note: {note}", markup=False, soft_wrap=True)
    if not result.ok:
        raise typer.Exit(1)


def _own_key(workspace: Workspace) -> tuple[list[str], list[str]]:
    """The workspace's own public key, and what keeps it from being used."""
    try:
        return [load_signer(workspace).vkey], []
    except InputError as exc:
        return [], [f"New records cannot be signed: {exc}."]


@app.command("new-key", epilog="Example: steady audit new-key --reason 'the laptop was stolen'")
def new_key_(
    reason: Annotated[str, typer.Option(help="Why; kept in the record.")], json: Json = False, home: Home = None
) -> None:
    """Give the log another signing key, as a recorded decision of an admin; nothing may run meanwhile."""
    workspace = open_workspace(settings_of(home), create=False)
    try:
        check_idle(workspace)
        old, new = new_key(workspace, reason)
    finally:
        workspace.close()
    if json:
        print_json({"old_key": old, "new_key": new})
    else:
        out.print(f"the log was signed with  {old}\nand is signed from now on with  {new}", markup=False)
        out.print(
            "Hand the new public key to whoever verifies. The old private key, where it was there, lies beside it."
        )
