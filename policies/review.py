"""What a person sees before approving a policy set: what is wrong with it, and what differs from the approved one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import cedarpy

from policies.engine import PolicySet
from policies.lint import SCHEMA_FILE, PolicySource, examine, policy_id, split_policies
from state.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The ids of policies that one set has and another has not, or has otherwise."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    schema_changed: bool

    @property
    def only_text(self) -> bool:
        """Whether nothing but comments, line breaks and names of files differs."""
        return not (self.added or self.changed or self.removed or self.schema_changed)


def review(sources: Mapping[str, str]) -> tuple[list[PolicySource], list[InputError]]:
    """The sound policies of a set and everything that keeps it from being loaded, in the order of file and line."""
    policies, wrong = examine(sources)
    if not wrong:
        try:
            PolicySet.from_sources(sources)
        except InputError as exc:
            wrong = [exc]
    return policies, wrong


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> Changes:
    """How `new` differs from `old`, by policy; a policy that does not parse is compared by its text."""
    before, after = _by_id(old), _by_id(new)
    return Changes(
        added=tuple(sorted(after.keys() - before.keys())),
        changed=tuple(sorted(name for name in after.keys() & before.keys() if after[name] != before[name])),
        removed=tuple(sorted(before.keys() - after.keys())),
        schema_changed=old.get(SCHEMA_FILE) != new.get(SCHEMA_FILE),
    )


def _by_id(sources: Mapping[str, str]) -> dict[str, str]:
    return {
        policy_id(chunk) or f"{name}:{line}": _meaning(chunk)
        for name, text in sources.items()
        if name != SCHEMA_FILE
        for line, chunk in split_policies(text)
    }


def _meaning(chunk: str) -> str:
    try:
        return json.dumps(json.loads(cedarpy.policies_to_json_str(chunk)), sort_keys=True)
    except ValueError:
        return chunk
