"""`steady policy`: look a policy set over, run its tests, approve it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from console import policy as service
from console.cli.options import Home, Json, settings_of
from console.cli.output import out, print_json, table
from console.policy import Looked
from console.settings import Settings
from console.workspace import MARKER, open_workspace
from policies.engine import SHIPPED

app = typer.Typer(help="Look a policy set over, run its tests, approve it.", no_args_is_help=True)
Directory = Annotated[Path | None, typer.Argument(help="Folder of the set; default: the one that the workspace uses.")]


@app.command("check", epilog="Example: steady policy check policies/")
def check(directory: Directory = None, json: Json = False, home: Home = None) -> None:
    """Load and lint a policy set; exit code 1 if a file has a problem. Shows what differs from the approved set."""
    settings = settings_of(home)
    folder = _folder(directory, settings)
    if (settings.home / MARKER).exists():
        with closing(open_workspace(settings, create=False)) as workspace:
            looked = service.check(folder, workspace)
    else:
        looked = service.check(folder, None)
    if json:
        print_json({"ok": not looked.problems, **_json(looked)})
    else:
        _print(looked)
    if looked.problems:
        raise typer.Exit(1)


@app.command("test", epilog="Example: steady policy test policies/")
def test(directory: Directory = None, json: Json = False, home: Home = None) -> None:
    """Run the *.test.yaml files beside the policy files; exit code 1 if a case fails."""
    folder = _folder(directory, settings_of(home))
    results = service.test(folder)
    failed = [result for result in results if not result.passed]
    if json:
        print_json(
            {
                "ok": not failed, "directory": str(folder), "n_cases": len(results), "n_failed": len(failed),
                "failures": [
                    {"file": r.file, "case": r.case.name, "expected": r.case.expect, "expected_rules": r.case.rules,
                     "got": r.effect, "rules": list(r.rules), "why": r.why}
                    for r in failed
                ],
            }
        )  # fmt: skip
    else:
        for result in failed:
            out.print(result.message, markup=False, soft_wrap=True)
        out.print(f"{folder}: {len(results) - len(failed)} of {len(results)} cases pass", markup=False)
    if failed:
        raise typer.Exit(1)


@app.command("approve", epilog="Example: steady policy approve --comment 'reviewed in pull request 41'")
def approve(
    comment: Annotated[str, typer.Option(help="Why; kept in the record.")] = "", json: Json = False, home: Home = None
) -> None:
    """Approve the policy set on disk: from the next look on, the loop asks it. Takes the role approver or admin."""
    with closing(open_workspace(settings_of(home), create=False)) as workspace:
        looked = service.approve(workspace, comment)
    is_new = looked.sha256 != looked.approved_sha256
    if json:
        print_json({"recorded": is_new, **_json(looked)})
        return
    if not is_new:
        out.print(f"{looked.directory}: {looked.sha256[:12]} is the approved set already", markup=False)
        return
    out.print(f"approved {looked.sha256[:12]} in the place of {str(looked.approved_sha256)[:12]}", markup=False)
    _print_changes(looked)


def _folder(directory: Path | None, settings: Settings) -> Path:
    return directory or settings.policy_dir or SHIPPED


def _json(looked: Looked) -> dict[str, Any]:
    changes = looked.changes
    return {
        "directory": str(looked.directory),
        "sha256": looked.sha256,
        "approved_sha256": looked.approved_sha256,
        "files": [
            {"file": file, "policies": [
                {"id": p.id, "why": p.why, "effect": p.effect, "line": p.line, "needs_approval": p.role} for p in policies
            ]}
            for file, policies in looked.files.items()
        ],
        "problems": [{"message": problem.message, "remedy": problem.remedy} for problem in looked.problems],
        "changes": None if changes is None else {
            "added": list(changes.added), "changed": list(changes.changed), "removed": list(changes.removed),
            "schema_changed": changes.schema_changed,
        },
    }  # fmt: skip


def _print(looked: Looked) -> None:
    rows = [
        [policy.where, policy.id, policy.effect + (f", {policy.role} may lift it" if policy.role else ""), policy.why]
        for policies in looked.files.values()
        for policy in policies
    ]
    table(str(looked.directory), ["file", "id", "effect", "why"], rows)
    for problem in looked.problems:
        out.print(f"problem: {problem.message}", markup=False, soft_wrap=True)
        out.print(f"     do: {problem.remedy}", markup=False, soft_wrap=True)
    digest = f"digest {looked.sha256[:12]}"
    if looked.approved_sha256 is None:
        out.print(digest, markup=False)
    elif looked.approved_sha256 == looked.sha256:
        out.print(f"{digest}: the approved set", markup=False)
    else:
        out.print(f"{digest}: not the approved set, which is {looked.approved_sha256[:12]}", markup=False)
        _print_changes(looked)


def _print_changes(looked: Looked) -> None:
    if looked.changes is None:
        out.print("  the text of the approved set is not kept here: nothing to compare with", markup=False)
        return
    for what, ids in (
        ("added", looked.changes.added), ("changed", looked.changes.changed), ("removed", looked.changes.removed),
    ):  # fmt: skip
        for name in ids:
            out.print(f"  {what}: {name}", markup=False)
    if looked.changes.schema_changed:
        out.print("  the schema changed", markup=False)
    if looked.changes.only_text:
        out.print("  comments and layout only", markup=False)
