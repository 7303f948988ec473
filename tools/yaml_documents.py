"""YAML files into pydantic types, with errors that name the file, the line, the field, its value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Annotated, Generic, Literal, TypeAlias, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from state.errors import InputError
from state.spec import NAME_PATTERN, PREFIX_PATTERN

T = TypeVar("T", bound=BaseModel)
Location: TypeAlias = tuple[str | int, ...]
_MAX_BYTES = 1 << 20
_MAX_FIELDS = 100_000
_PATTERN_REMEDIES = {
    NAME_PATTERN: "Use lower-case letters, digits and hyphens, at most 63 of them",
    PREFIX_PATTERN: "Begin with a lower-case letter; then letters, digits and underscores",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(Generic[T]):
    """A file that was read whole and is valid."""

    value: T
    content: bytes
    lines: Mapping[Location, int]
    """Where every field stands: location -> line, from 1."""

    def line(self, *where: str | int) -> int:
        """The line of a field, or of the nearest part around it."""
        return _line(self.lines, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a file is, in the words of its error messages."""

    name: str
    """`model spec`."""
    first_line: str
    """How such a file begins: `model: <name>`."""
    written_by: str
    """The command that writes one."""


def read_document(path: Path, value_type: type[T], kind: Kind) -> Document[T]:
    """The file at `path` as a `value_type`.

    Raises:
        InputError: not a readable file of this kind; every fault is named with line, field, value and remedy.
    """
    content = _read(path, kind)
    node = _compose(path, content, kind)
    lines = _line_map(path, node)
    found = _construct(path, node)
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path}: a {kind.name} is a mapping of fields, not {_kind(found)}",
            remedy=f"Begin with `{kind.first_line}`, or let `{kind.written_by}` write one",
        )
    try:
        value = value_type.model_validate(found)
    except ValidationError as exc:
        raise _Explainer(path=path, type=value_type, kind=kind, lines=lines).explain(exc) from exc
    return Document(value=value, content=content, lines=lines)


def faults_of_part(exc: ValidationError, value_type: type[BaseModel], kind: Kind) -> Iterator[tuple[Location, str]]:
    """Each fault of a value that stands inside another file: where in the value, and what is wrong, with the remedy."""
    explainer = _Explainer(path=Path(), type=value_type, kind=kind, lines={})
    for fault in exc.errors(include_url=False):
        where, beside = _located(value_type, fault["loc"])
        message, remedy = explainer.fault(fault, where, beside)
        yield where, f"{message}. {remedy}"


def _read(path: Path, kind: Kind) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"`{kind.written_by}` writes one"
        raise InputError(f"{path} does not exist", remedy=hint) from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}", remedy="Give the path of a YAML file") from exc
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path} is larger than 1 MiB", remedy=f"Give the {kind.name}, not a data file")
    return content


def _compose(path: Path, content: bytes, kind: Kind) -> yaml.Node:
    try:
        node = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not UTF-8 text", remedy=f"Give the {kind.name}, not a data file") from exc
    except (yaml.YAMLError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(exc, "problem", None) or str(exc)
        raise InputError(f"{where}: not valid YAML: {problem}", remedy="Check indentation, colons and quotes") from exc
    if node is None:
        raise InputError(f"{path} is empty", remedy=f"`{kind.written_by}` writes one")
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


def _line_map(path: Path, node: yaml.Node) -> dict[Location, int]:
    """Where every field stands; refuses aliases that make a small file endless or huge."""
    try:
        lines = dict(islice(_lines(node), _MAX_FIELDS + 1))
    except RecursionError as exc:
        raise InputError(
            f"{path}: an alias stands inside what it repeats, or lists are nested too deep", remedy="Write it out"
        ) from exc
    if len(lines) > _MAX_FIELDS:
        raise InputError(f"{path} has more than {_MAX_FIELDS} fields, aliases written out", remedy="Write less")
    return lines


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Explainer:
    path: Path
    type: type[BaseModel]
    kind: Kind
    lines: Mapping[Location, int]

    def explain(self, exc: ValidationError) -> InputError:
        faults = exc.errors(include_url=False)
        told: list[str] = []
        remedies: list[str] = []
        for fault in faults:
            where, beside = _located(self.type, fault["loc"])
            message, remedy = self.fault(fault, where, beside)
            told.append(f"{self.path}:{_line(self.lines, where)}: {message}")
            remedies.append(remedy)
        shown = "\n".join(told[:20]) + (f"\n... and {len(told) - 20} more" if len(told) > 20 else "")
        return InputError(shown, remedy=remedies[0] if len(faults) == 1 else "; ".join(dict.fromkeys(remedies[:3])))

    def fault(self, fault: ErrorDetails, where: Location, beside: Sequence[str]) -> tuple[str, str]:
        field = _dotted(where)
        value = fault["input"]
        context = fault.get("ctx", {})
        match fault["type"]:
            case "missing":
                return f"{field} is missing", f"Add `{where[-1]}`"
            case "extra_forbidden":
                near = difflib.get_close_matches(str(where[-1]), beside, n=1)
                known = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(beside) or 'nothing'}"
                return f"{field} is not a field of a {self.kind.name}", known
            case "value_error":
                raised = context.get("error")
                message = str(raised) if raised else fault["msg"]
                return (f"{field}: {message}" if field else message), "Correct that field"
            case "literal_error" | "union_tag_invalid":
                return _not_one_of(field, value, context)
            case "union_tag_not_found":
                tag = str(context.get("discriminator", "")).strip("'")
                return f"{field}.{tag} is missing", _tags_remedy(self.type, where, tag)
            case "string_pattern_mismatch":
                pattern = str(context.get("pattern", ""))
                return f"{field} is {value!r}", _PATTERN_REMEDIES.get(pattern, f"Write what matches {pattern}")
            case kind if kind.startswith("time_delta"):
                return (
                    f"{field} is {value!r}, not a duration",
                    "Write ISO 8601 durations: P14D is 14 days, PT6H 6 hours",
                )
        return f"{field} is {_short(value)}: {fault['msg'].lower()}", "Correct that field"


def _line(lines: Mapping[Location, int], where: Location) -> int:
    """The line of the innermost part of `where` that the file has."""
    return next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), 1)


def _not_one_of(field: str, value: object, context: Mapping[str, object]) -> tuple[str, str]:
    expected = str(context.get("expected") or context.get("expected_tags", ""))
    tag = str(context.get("discriminator", "kind")).strip("'")
    shown = value.get(tag) if isinstance(value, Mapping) else value
    names = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
    near = difflib.get_close_matches(str(shown), names, n=2)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {expected}"
    return f"{field} is {shown!r}, not one of {expected}", hint


def _tags_remedy(root: type[BaseModel], where: Location, tag: str) -> str:
    tags = [str(name) for option in _options_at(root, where) for name in _tag_names(option, tag)]
    return f"Add `{tag}: {tags[0]}`; also known: {', '.join(tags[1:])}" if tags else f"Add `{tag}`"


def _located(root: type[BaseModel], location: Sequence[str | int]) -> tuple[Location, list[str]]:
    """The file's own place of an error, and the fields known beside its last step.

    Pydantic puts a union's tag into the path (`data.files.time`); the file knows no such level.
    """
    where: Location = ()
    options: list[object] = [root]
    beside: list[str] = []
    for step in location:
        narrowed = [option for option in options if len(options) > 1 and _bears_tag(option, step)]
        if narrowed:
            options = narrowed
            continue
        beside = [name for option in options if _is_model(option) for name in option.model_fields]
        where = (*where, step)
        options = [inner for option in options for inner in _below(option, step)]
    return where, beside


def _options_at(root: type[BaseModel], where: Location) -> list[object]:
    options: list[object] = [root]
    for step in where:
        options = [inner for option in options for inner in _below(option, step)]
    return options


def _below(annotation: object, step: str | int) -> list[object]:
    """What may stand at `step` inside a value of this type."""
    if isinstance(step, int) or get_origin(annotation) is dict:
        return [inner for part in get_args(annotation) for inner in _alternatives(part)]
    if _is_model(annotation) and step in annotation.model_fields:
        return _alternatives(annotation.model_fields[step].annotation)
    return []


def _alternatives(annotation: object) -> list[object]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [inner for part in get_args(annotation) for inner in _alternatives(part)]
    return [annotation]


def _is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _bears_tag(option: object, step: str | int) -> bool:
    return _is_model(option) and any(step in _literals(field) for field in option.model_fields.values())


def _tag_names(option: object, tag: str) -> tuple[object, ...]:
    return _literals(option.model_fields[tag]) if _is_model(option) and tag in option.model_fields else ()


def _literals(field: FieldInfo) -> tuple[object, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _dotted(where: Location) -> str:
    text = ""
    for step in where:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _short(value: object) -> str:
    text = str(value) if isinstance(value, timedelta) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "nothing")
