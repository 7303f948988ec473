"""Model specs from YAML files, with errors that name the file, the line, the field, its value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from state.canonical import sha256_hex
from state.errors import InputError
from state.spec import ModelSpec
from tools.datastore import RESERVED_COLUMNS

Location: TypeAlias = tuple[str | int, ...]
_MAX_SPEC_BYTES = 1 << 20
_NOT_YET = {
    "data": {"query": "rows from a SQL query are not read yet; export them to parquet files (data.kind: files)"},
    "training": {
        "command": "a training command is not run yet; the model is watched and advised upon (training.kind: recipe)",
        "pipeline": "an own pipeline is not run yet; the model is watched and advised upon (training.kind: recipe)",
    },
    "serving": {"endpoint": "an own endpoint is not called yet; the model is not served (serving.kind: managed)"},
    "delivery": {"git": "changes are not delivered as pull requests yet (delivery.kind: direct)"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSpec:
    spec: ModelSpec
    path: Path
    base_path: Path
    """Folder that the spec's relative paths start from."""
    sha256: str
    """Digest of the file's bytes."""
    notes: tuple[str, ...]
    """Parts that are valid and not served yet, in plain sentences."""


def load_spec(path: Path) -> LoadedSpec:
    """The model spec in the YAML file `path`.

    Raises:
        InputError: not a readable spec; every fault is named with line, field, value and remedy.
    """
    content = _read(path)
    node = _compose(path, content)
    lines = dict(_lines(node))
    value = _construct(path, node)
    if not isinstance(value, Mapping):
        raise InputError(
            f"{path}: a model spec is a mapping of fields, not {_kind(value)}",
            remedy="Begin with `model: <name>`, or let `steady init FILE` write one",
        )
    try:
        spec = ModelSpec.model_validate(value)
    except ValidationError as exc:
        raise _explain(path, exc, lines) from exc
    _refuse_reserved(path, spec, lines)
    return LoadedSpec(
        spec=spec,
        path=path,
        base_path=path.resolve().parent,
        sha256=sha256_hex(content),
        notes=tuple(_notes(spec)),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_SPEC_BYTES + 1)
    except FileNotFoundError as exc:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "`steady init FILE` writes a spec for a data file"
        raise InputError(f"{path} does not exist", remedy=hint) from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}", remedy="Give the path of a YAML file") from exc
    if len(content) > _MAX_SPEC_BYTES:
        raise InputError(f"{path} is larger than 1 MiB", remedy="Give the model spec, not the data file")
    return content


def _compose(path: Path, content: bytes) -> yaml.Node:
    try:
        node = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not UTF-8 text", remedy="Give the model spec, not the data file") from exc
    except (yaml.YAMLError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(exc, "problem", None) or str(exc)
        raise InputError(f"{where}: not valid YAML: {problem}", remedy="Check indentation, colons and quotes") from exc
    if node is None:
        raise InputError(f"{path} is empty", remedy="`steady init FILE` writes a spec for a data file")
    return node


def _construct(path: Path, node: yaml.Node) -> object:
    loader = yaml.SafeLoader("")
    try:
        _refuse_repeated_keys(path, node)
        value: object = loader.construct_document(node)
        return value
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise InputError(f"{path}: not a plain YAML document: {exc}", remedy="Use text, numbers, lists only") from exc
    finally:
        loader.dispose()


def _refuse_repeated_keys(path: Path, node: yaml.Node) -> None:
    """YAML keeps the last of two equal keys without a word; here that is an error."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(path, item)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise InputError(
                    f"{path}:{line}: {key.value!r} is set twice, first on line {seen[key.value]}",
                    remedy="Keep one of the two",
                )
            seen[str(key.value)] = key.start_mark.line + 1
            _refuse_repeated_keys(path, value)


def _lines(node: yaml.Node, at: Location = ()) -> Iterator[tuple[Location, int]]:
    """Where every field stands: location -> line, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, str(key.value))
            yield where, key.start_mark.line + 1
            yield from _lines(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*at, index), item.start_mark.line + 1
            yield from _lines(item, (*at, index))


def _explain(path: Path, exc: ValidationError, lines: Mapping[Location, int]) -> InputError:
    faults = exc.errors(include_url=False)
    told: list[str] = []
    remedies: list[str] = []
    for fault in faults:
        where = _without_tags(fault["loc"], lines)
        line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), 1)
        message, remedy = _fault(fault, where)
        told.append(f"{path}:{line}: {message}")
        remedies.append(remedy)
    shown = "\n".join(told[:20]) + (f"\n... and {len(told) - 20} more" if len(told) > 20 else "")
    return InputError(shown, remedy=remedies[0] if len(faults) == 1 else "; ".join(dict.fromkeys(remedies[:3])))


def _fault(fault: ErrorDetails, where: Location) -> tuple[str, str]:
    field = _dotted(where)
    value = fault["input"]
    match fault["type"]:
        case "missing":
            return f"{field} is missing", f"Add `{where[-1]}`"
        case "extra_forbidden":
            near = difflib.get_close_matches(str(where[-1]), _fields_beside(where), n=1)
            known = (
                f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(_fields_beside(where)) or 'nothing'}"
            )
            return f"{field} is not a field of a model spec", known
        case "value_error":
            raised = fault.get("ctx", {}).get("error")
            message = str(raised) if raised else fault["msg"]
            return (f"{field}: {message}" if field else message), "Correct that field"
        case "literal_error" | "union_tag_invalid":
            context = fault.get("ctx", {})
            expected = str(context.get("expected") or context.get("expected_tags", ""))
            shown = value.get("kind") if isinstance(value, Mapping) else value
            names = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
            near = difflib.get_close_matches(str(shown), names, n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {expected}"
            return f"{field} is {shown!r}, not one of {expected}", hint
        case "union_tag_not_found":
            return (
                f"{field}.kind is missing",
                f"Add `kind: {_tags_of(field)[0]}`; also known: {', '.join(_tags_of(field)[1:])}",
            )
        case "string_pattern_mismatch" if where[-1] == "output_prefix":
            return f"{field} is {value!r}", "Begin with a lower-case letter; then letters, digits and underscores"
        case "string_pattern_mismatch":
            return f"{field} is {value!r}", "Use lower-case letters, digits and hyphens, at most 63 of them"
        case kind if kind.startswith("time_delta"):
            return f"{field} is {value!r}, not a duration", "Write ISO 8601 durations: P14D is 14 days, PT6H 6 hours"
    return f"{field} is {_short(value)}: {fault['msg'].lower()}", "Correct that field"


def _without_tags(location: Sequence[str | int], lines: Mapping[Location, int]) -> Location:
    """Pydantic puts a union's tag into the path (`data.files.time`); the file knows no such level."""
    where: Location = ()
    for index, step in enumerate(location):
        is_tag = (
            isinstance(step, str)
            and bool(where)
            and isinstance(location[index - 1], str)
            and step in _tags_of(str(where[-1]))
            and (*where, step) not in lines
        )
        where = where if is_tag else (*where, step)
    return where


def _tags_of(part: str) -> Sequence[str]:
    return {
        "data": ("files", "query"),
        "training": ("recipe", "command", "pipeline"),
        "serving": ("managed", "endpoint"),
        "delivery": ("direct", "git"),
    }.get(part, ())


def _fields_beside(where: Location) -> list[str]:
    """Field names that the spec knows at the place of the last step."""
    owner: type[BaseModel] | None = ModelSpec
    for step in where[:-1]:
        if isinstance(step, str) and owner is not None:
            owner = _model_of(owner, step)
    return list(owner.model_fields) if owner else []


def _model_of(owner: type[BaseModel], name: str) -> type[BaseModel] | None:
    info = owner.model_fields.get(name)
    pending: list[object] = [info.annotation] if info else []
    while pending:
        candidate = pending.pop(0)
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        pending.extend(getattr(candidate, "__args__", ()))
    return None


def _refuse_reserved(path: Path, spec: ModelSpec, lines: Mapping[Location, int]) -> None:
    for index, feature in enumerate(spec.features):
        if feature.name in RESERVED_COLUMNS:
            line = lines.get(("features", index, "name"), lines.get(("features", index), 1))
            raise InputError(
                f"{path}:{line}: features[{index}].name is {feature.name!r}, a column of every stored row",
                remedy=f"Rename that column in the data; reserved are {', '.join(RESERVED_COLUMNS)}",
            )
        if feature.name == spec.data.time:
            line = lines.get(("features", index, "name"), 1)
            raise InputError(
                f"{path}:{line}: features[{index}].name is {feature.name!r}, the event time",
                remedy="Derive a number from it, such as the hour, in the data",
            )


def _notes(spec: ModelSpec) -> Iterator[str]:
    for part, kinds in _NOT_YET.items():
        kind = getattr(spec, part).kind
        if kind in kinds:
            yield f"{part}.kind {kind}: {kinds[kind]}"


def _dotted(where: Location) -> str:
    text = ""
    for step in where:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "nothing")
