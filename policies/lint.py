"""Reads a policy set from files and refuses one that could not be trusted to answer.

Cedar's parse errors carry no line, so a file is cut into its policies first and each is checked alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cedarpy

from state.canonical import digest, sha256_hex
from state.errors import InputError
from state.plans import ActionKind

SCHEMA_FILE = "schema.cedarschema"
KILL_SWITCH = "kill-switch"
ROLES = ("viewer", "operator", "approver", "auditor", "admin")
ACTIONS: tuple[ActionKind, ...] = get_args(ActionKind)

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|;', re.DOTALL)
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
POLICY_CHANGED = "policy-changed"
RESERVED_IDS = frozenset({"no-permit", "bad-context", "engine-error", POLICY_CHANGED})
"""Rules that a verdict names where no policy decided."""
_ID_HINT = re.compile(r'@id\s*\(\s*"((?:\\.|[^"\\])*)"')
_HALTED = {".": {"left": {"Var": "context"}, "attr": "halted"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """One policy as it stands in its file."""

    id: str
    why: str
    role: str | None
    """The role whose approval lifts it; None where none does."""
    effect: str
    file: str
    line: int
    text: str
    ast: Mapping[str, Any]
    """Cedar's own JSON form."""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def facts(self) -> frozenset[str]:
        """Context keys that the policy mentions."""
        return frozenset(
            node["attr"]
            for node in _nodes(self.ast["conditions"])
            if node.get("left") == {"Var": "context"} and isinstance(node.get("attr"), str)
        )

    def actions(self) -> frozenset[str]:
        """Actions that the policy names, groups included."""
        return frozenset(node["id"] for node in _nodes(self.ast) if node.get("type") == "Action" and "id" in node)


def read_sources(directory: Path) -> dict[str, str]:
    """Text of the schema and of every `*.cedar` file of `directory`, by file name.

    Raises:
        InputError: the folder, the schema or every policy file is missing, or one is not readable UTF-8.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such policy folder", remedy="Name a folder that holds *.cedar files")
    paths = sorted(path for path in directory.iterdir() if path.suffix == ".cedar" or path.name == SCHEMA_FILE)
    sources: dict[str, str] = {}
    for path in paths:
        try:
            sources[path.name] = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise InputError(f"{path}: cannot be read: {exc}", remedy="Restore the file as UTF-8 text") from exc
    if SCHEMA_FILE not in sources:
        raise InputError(f"{directory / SCHEMA_FILE}: missing", remedy="Restore the schema of the policy set")
    if len(sources) == 1:
        raise InputError(f"{directory}: holds no *.cedar file", remedy="Restore the policy files")
    return sources


def sources_digest(sources: Mapping[str, str]) -> str:
    """Digest of a policy set: over the names and bytes of the schema and of every policy file."""
    return digest({name: sha256_hex(text.encode()) for name, text in sources.items()})


def check_sources(sources: Mapping[str, str]) -> list[PolicySource]:
    """The policies of a set, in the order of file name and line.

    Raises:
        InputError: the set breaks a rule of loading; the message names file, line, policy and remedy.
    """
    policies, wrong = examine(sources)
    if wrong:
        raise wrong[0]
    return policies


def examine(sources: Mapping[str, str]) -> tuple[list[PolicySource], list[InputError]]:
    """The policies of a set that are sound by themselves, and everything that is wrong with the set.

    What only the whole set can be judged by is looked at once every policy is sound.
    """
    try:
        schema = check_schema(sources[SCHEMA_FILE])
    except InputError as exc:
        return [], [exc]
    policies: list[PolicySource] = []
    wrong: list[InputError] = []
    for name in sorted(sources):
        for line, chunk in split_policies(sources[name]) if name != SCHEMA_FILE else ():
            try:
                policies.append(_policy(name, line, chunk, schema))
            except InputError as exc:
                wrong.append(exc)
    for check in () if wrong else (_check_unique, _check_kill_switch, _check_named):
        try:
            check(policies)
        except InputError as exc:
            wrong.append(exc)
    return policies, wrong


def check_schema(text: str) -> cedarpy.Schema:
    """The parsed schema.

    Raises:
        InputError: it does not parse or declares nothing; Cedar takes an empty schema for no schema at all.
    """
    try:
        schema = cedarpy.Schema.from_str(text)
        empty = not cedarpy.validate_policies("permit (principal, action, resource);", text).validation_passed
    except ValueError as exc:
        raise InputError(f"{SCHEMA_FILE}: {exc}", remedy="Correct the schema") from exc
    if empty or not text.strip():
        raise InputError(f"{SCHEMA_FILE}: declares no action", remedy="Restore the schema of the policy set")
    return schema


def split_policies(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every policy of a file; comments between two policies belong to the second."""
    start = 0
    for token in _TOKEN.finditer(text):
        if token.group() == ";":
            yield _chunk(text, start, token.end())
            start = token.end()
    rest = re.sub(r"//[^\n]*", "", text[start:])
    if rest.strip():
        yield _chunk(text, start, len(text))


def _chunk(text: str, start: int, end: int) -> tuple[int, str]:
    chunk = text[start:end]
    lead = re.match(r"(?:\s|//[^\n]*(?:\n|\Z))*", chunk)
    offset = start + (lead.end() if lead else 0)
    return text.count("\n", 0, offset) + 1, text[offset:end]


def policy_id(chunk: str) -> str | None:
    """The `@id` that the text of a policy gives, whether or not it parses."""
    hint = _ID_HINT.search(chunk)
    return hint.group(1) if hint else None


def _policy(name: str, line: int, chunk: str, schema: cedarpy.Schema) -> PolicySource:
    known = policy_id(chunk)
    where = f"{name}:{line}" + (f" policy {known!r}" if known else "")
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(chunk))
    except ValueError as exc:
        raise InputError(f"{where}: does not parse: {exc}", remedy="Correct the policy") from exc
    if parsed["templates"] or len(parsed["staticPolicies"]) != 1:
        raise InputError(f"{where}: is not one static policy", remedy="Write one policy without ?slots")
    result = cedarpy.validate_policies(chunk, schema)
    if not result.validation_passed:
        errors = "; ".join(dict.fromkeys(str(error.error) for error in result.errors))
        raise InputError(f"{where}: does not fit {SCHEMA_FILE}: {errors}", remedy="Correct the policy")
    (ast,) = parsed["staticPolicies"].values()
    return _checked(ast, name=name, line=line, text=chunk, where=where)


def _checked(ast: dict[str, Any], *, name: str, line: int, text: str, where: str) -> PolicySource:
    annotations: dict[str, str | None] = ast.get("annotations", {})
    for wanted, remedy in (("id", 'Add @id("...")'), ("why", 'Add @why("...") with one plain sentence')):
        if not (annotations.get(wanted) or "").strip():
            raise InputError(f"{where}: has no @{wanted}", remedy=remedy)
    if not _ID.fullmatch(str(annotations["id"])) or annotations["id"] in RESERVED_IDS:
        raise InputError(
            f"{where}: the @id is reserved or not lower-case words joined by hyphens",
            remedy='Write it like @id("step-size")',
        )
    role = annotations.get("needs_approval")
    if "needs_approval" in annotations:
        _check_approval(ast, role, where)
    if ast["effect"] == "permit":
        _check_permit(ast, where)
    return PolicySource(
        id=str(annotations["id"]),
        why=str(annotations["why"]),
        role=role,
        effect=ast["effect"],
        file=name,
        line=line,
        text=text,
        ast=ast,
    )


def _check_permit(ast: Mapping[str, Any], where: str) -> None:
    if ast["action"]["op"] == "All":
        raise InputError(f"{where}: permits every action", remedy="Name the actions that it permits")
    conditions = [item["body"] for item in ast["conditions"]]
    if all(body in ({"Value": True}, {"!": {"arg": {"Value": False}}}) for body in conditions):
        raise InputError(f"{where}: permits without a condition", remedy="Add `when { ... }`")


def _check_approval(ast: Mapping[str, Any], role: str | None, where: str) -> None:
    if ast["effect"] != "forbid":
        raise InputError(f"{where}: @needs_approval stands on a permit", remedy="Put it on a forbid")
    if role not in ROLES:
        raise InputError(f"{where}: @needs_approval names {role!r}", remedy=f"Use one of {', '.join(ROLES)}")
    approved = {
        "contains": {"left": {".": {"left": {"Var": "context"}, "attr": "approved_by"}}, "right": {"Value": role}}
    }
    if {"kind": "unless", "body": approved} not in ast["conditions"]:
        raise InputError(
            f"{where}: an approval could not lift it",
            remedy=f'Add `unless {{ context.approved_by.contains("{role}") }}`',
        )


def _check_unique(policies: list[PolicySource]) -> None:
    seen: dict[str, PolicySource] = {}
    for policy in policies:
        if policy.id in seen:
            raise InputError(
                f"{policy.where} policy {policy.id!r}: the same @id stands at {seen[policy.id].where}",
                remedy="Give every policy its own @id",
            )
        seen[policy.id] = policy


def _check_kill_switch(policies: list[PolicySource]) -> None:
    switch = next((policy for policy in policies if policy.id == KILL_SWITCH), None)
    if switch is None:
        raise InputError(f"policy set: no policy has the @id {KILL_SWITCH!r}", remedy="Restore killswitch.cedar")
    everything = all(switch.ast[part]["op"] == "All" for part in ("principal", "action", "resource"))
    whens = [item["body"] for item in switch.ast["conditions"] if item["kind"] == "when"]
    if switch.effect != "forbid" or not everything or whens != [_HALTED] or switch.role:
        raise InputError(
            f"{switch.where} policy {KILL_SWITCH!r}: does not stop everything",
            remedy="Write `forbid (principal, action, resource) when { context.halted } unless { ... }`",
        )


def _check_named(policies: list[PolicySource]) -> None:
    named = frozenset[str]().union(*(policy.actions() for policy in policies))
    unnamed = [action for action in ACTIONS if action not in named]
    if unnamed:
        raise InputError(
            f"policy set: no policy names the action {', '.join(unnamed)}",
            remedy="Permit it under a condition, or forbid it explicitly",
        )


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(item)
