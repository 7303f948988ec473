"""The approved policy set as a running loop asks it: for as long as the files on disk are that set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from policies.engine import PolicyRequest, PolicySet, Verdict
from policies.lint import POLICY_CHANGED, read_sources, sources_digest
from state.errors import InputError
from state.plans import ActionKind


class Policy(Protocol):
    """What the gate asks."""

    @property
    def sha256(self) -> str:
        """Digest of the set that answers."""

    def decide(self, request: PolicyRequest) -> Verdict: ...

    def facts_used(self, action: ActionKind) -> frozenset[str]: ...


def difference(directory: Path, approved_sha256: str) -> str | None:
    """What keeps the files of `directory` from being the approved set, in a sentence; None where they are it."""
    try:
        found = sources_digest(read_sources(directory))
    except InputError as exc:
        return f"the policy files cannot be read: {exc}"
    if found == approved_sha256:
        return None
    return (
        f"the policy files in {directory} are not the approved set: their digest is {found[:12]}, and "
        f"{approved_sha256[:12]} is approved; restore them, or see what changed with `steady policy check` and approve "
        "it with `steady policy approve`"
    )


class CurrentPolicy:
    """An approved set with an eye on its folder.

    Where the files are no longer the approved set, the one in memory answers as under the kill switch: a rollback to the
    last healthy champion, messages and reading go on, and nothing else, until the files are restored or approved.
    """

    def __init__(self, directory: Path, approved: PolicySet) -> None:
        self.directory = directory
        self.changed: str | None = None
        """What is wrong with the files, in a sentence; None while they are the approved set."""
        self._set = approved

    @property
    def sha256(self) -> str:
        return self._set.sha256

    def look(self, approved_sha256: str) -> None:
        """Compare the folder with the set that is approved now, and take a newly approved one over."""
        self.changed = difference(self.directory, approved_sha256)
        if self.changed is None and approved_sha256 != self._set.sha256:
            try:
                self._set = PolicySet.load(self.directory, approved_sha256)
            except InputError as exc:
                self.changed = f"the approved policy set cannot be used: {exc}"

    def decide(self, request: PolicyRequest) -> Verdict:
        """The approved set's verdict; while the files differ from it, a denial of what the kill switch would stop."""
        verdict = self._set.decide(request)
        if self.changed is None or verdict.effect == "deny":
            return verdict
        halted = self._set.decide(replace(request, context={**request.context, "halted": True}))
        if halted.effect == "allow":
            return verdict
        return Verdict(effect="deny", rules=(POLICY_CHANGED,), why=self.changed)

    def facts_used(self, action: ActionKind) -> frozenset[str]:
        return self._set.facts_used(action)
