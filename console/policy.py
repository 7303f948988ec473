"""Policy sets as people handle them: look a set over, run its tests, and approve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.workspace import Workspace, domain_now, keep_sources, require_role
from orchestrator.people import let_denied_ask_again
from policies.engine import PolicySet
from policies.lint import PolicySource, read_sources, sources_digest
from policies.review import Changes, compare, review
from policies.testing import CaseResult, run_cases
from state import log, store
from state.clock import WallClock
from state.decisions import PolicyApproved
from state.errors import InputError
from state.ids import Uuid7Source
from state.rows import SwitchRow

APPROVERS = ("approver", "admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A policy set as it stands on disk, beside the approved one."""

    directory: Path
    sha256: str
    approved_sha256: str | None
    """None where no workspace was asked."""
    policies: Sequence[PolicySource]
    """Those that are sound by themselves."""
    problems: Sequence[InputError]
    changes: Changes | None
    """Against the approved set; None where it is the same, or where its text is not known."""

    @property
    def files(self) -> dict[str, list[PolicySource]]:
        """The sound policies by file."""
        found: dict[str, list[PolicySource]] = {}
        for policy in self.policies:
            found.setdefault(policy.file, []).append(policy)
        return found


def check(directory: Path, workspace: Workspace | None) -> Looked:
    """Everything that keeps the set in `directory` from being loaded, and what differs from the approved one.

    Raises:
        InputError: the folder holds no policy set at all.
    """
    sources = read_sources(directory)
    policies, problems = review(sources)
    approved = workspace.approved_sha256() if workspace is not None else None
    return Looked(
        directory=directory, sha256=sources_digest(sources), approved_sha256=approved, policies=policies,
        problems=problems, changes=_changes(workspace, approved, sources),
    )  # fmt: skip


def test(directory: Path) -> Sequence[CaseResult]:
    """The outcome of every case beside the policy files of `directory`.

    Raises:
        InputError: the set does not load, a test file cannot be read, or there is none.
    """
    return _cases(PolicySet.load(directory), directory)


def approve(workspace: Workspace, comment: str) -> Looked:
    """Approve the set on disk as the one that is asked from now on; nothing is recorded where it is approved already.

    Raises:
        InputError: the user may not, the set does not load, or a test of its own fails.
    """
    user = require_role(workspace, *APPROVERS)
    directory = workspace.policy_dir
    looked = check(directory, workspace)
    if looked.problems:
        more = f" (and {len(looked.problems) - 1} more: `steady policy check`)" if len(looked.problems) > 1 else ""
        raise InputError(
            f"the policy set in {directory} cannot be approved: {looked.problems[0].message}{more}",
            remedy=looked.problems[0].remedy,
        )
    _refuse_failing(test(directory), directory)
    if looked.sha256 != looked.approved_sha256:
        _record(workspace, user, looked, comment)
    return looked


def _record(workspace: Workspace, user: str, looked: Looked, comment: str) -> None:
    sources = read_sources(looked.directory)
    if sources_digest(sources) != looked.sha256:
        raise InputError(f"{looked.directory} changed while it was looked at", remedy="Look at it again, then approve")
    changes = looked.changes or Changes(added=(), changed=(), removed=(), schema_changed=False)
    stamp: dict[str, Any] = {
        "decision_id": Uuid7Source().new_id(), "at": domain_now(workspace), "recorded_at": WallClock().now(),
    }  # fmt: skip
    old = str(looked.approved_sha256)
    with workspace.db.transaction() as conn:
        log.append(
            conn,
            PolicyApproved(
                **stamp, actor=f'User::"{user}"', old_sha256=old, policy_sha256=looked.sha256,
                added=list(changes.added), changed=list(changes.changed), removed=list(changes.removed),
                schema_changed=changes.schema_changed, comment=comment,
                summary=f"{user} approves the policy set {looked.sha256[:12]} in the place of {old[:12]}: "
                f"{said(looked.changes)}.",
            ),
        )  # fmt: skip
        keep_sources(conn, looked.sha256, sources)
        let_denied_ask_again(conn)


def said(changes: Changes | None) -> str:
    """What differs, in words."""
    if changes is None:
        return "what differs is not known, for the old text is not kept here"
    parts = [
        f"{len(ids)} {what} ({', '.join(ids)})"
        for what, ids in (("added", changes.added), ("changed", changes.changed), ("removed", changes.removed))
        if ids
    ]
    if changes.schema_changed:
        parts.append("the schema changed")
    return "; ".join(parts) or "comments and layout only"


def _changes(workspace: Workspace | None, approved: str | None, sources: Mapping[str, str]) -> Changes | None:
    if workspace is None or approved is None or sources_digest(sources) == approved:
        return None
    with workspace.db.snapshot() as conn:
        row = store.get(conn, SwitchRow, f"policy/{approved}")
    kept = row.body.get("sources") if row is not None else None
    old = {str(name): str(text) for name, text in kept.items()} if isinstance(kept, dict) else {}
    # A row that says something else than what was approved is no text to compare with.
    return compare(old, sources) if sources_digest(old) == approved else None


def _cases(policy: PolicySet, directory: Path) -> Sequence[CaseResult]:
    results = run_cases(policy, directory)
    if not results:
        raise InputError(
            f"{directory} holds no *.test.yaml: nothing is tested",
            remedy="Write request -> verdict cases beside the files",
        )
    return results


def _refuse_failing(results: Sequence[CaseResult], directory: Path) -> None:
    failed = [result for result in results if not result.passed]
    if failed:
        raise InputError(
            f"the policy set in {directory} cannot be approved: {len(failed)} of its {len(results)} test cases fail; "
            f"the first: {failed[0].message}",
            remedy="Correct the policy or its case, and see `steady policy test`",
        )
