"""Scenario files: read, checked against the world that they describe, and their published schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import JsonValue, ValidationError

from evals.contradictions import Problem, contradictions
from evals.injections import (
    MAGNITUDES,
    TYPES,
    AnyInjection,
    DataChange,
    Misroute,
    PlatformFault,
    RouteEdit,
    Wish,
)
from evals.replays import foreign_parts, replay_problems, team_parts, with_whole_paths
from evals.scenario import IncidentIs, QuarantineIs, Scenario, WorldModel
from evals.world.faults import CALLS
from evals.world.platform import example_spec
from evals.world.truth import LEVELS
from orchestrator.goals.reading import NotUnderstood, read_goal
from state.errors import InputError
from state.spec import ModelSpec
from tools.yaml_documents import Document, Kind, read_document

SCENARIOS = Path(__file__).parent / "scenarios"
_EARLIEST, _LATEST = date(2000, 1, 1), date(2100, 1, 1)
SCHEMA_FILE = Path(__file__).parent / "scenario.schema.json"
_KIND = Kind(name="scenario", first_line="id: <name>", written_by="steady eval new FILE")
QUICK: dict[str, JsonValue] = {
    "monitoring": {"cadence": "P10D", "backtest": "P10D", "min_blocks": 5, "recovery": "P2D"},
    "rollout": {
        "steps": [10, 30], "dwell": "P1D", "bake": "P2D", "minimum_requests": 10, "deadline": "P3D",
        "ab_test": {"percent": 50, "horizon": "P4D", "minimum_samples": 100, "margin": 0.02},
    },
}  # fmt: skip
"""A pace at which a whole remedy, from onset to sustained health, takes four weeks of domain time."""
_PORTS = ("pipelines", "registry", "servers", "mesh", "metrics", "data", "outcomes", "features", "notifier")


def load_scenario(path: Path) -> Scenario:
    """The scenario in the YAML file `path`.

    Raises:
        InputError: not a scenario, or one that contradicts itself; every fault is named with line and field.
    """
    document = read_document(path, Scenario, _KIND)
    document = replace(document, value=with_whole_paths(document.value, path.resolve().parent))
    problems = [f"{path}:{document.line(*where)}: {text}" for where, text in _problems(document)]
    if problems:
        raise InputError(
            "\n".join(problems[:20]),
            remedy="See docs/evals.md for the fields; `steady eval new FILE` writes an example",
        )
    return document.value


def load_all(paths: Sequence[Path]) -> list[tuple[Path, Scenario]]:
    """The scenarios of files and of folders with all below them, in order of their names.

    Raises:
        InputError: no file, a file that is no scenario, or two with one id.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.yaml")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"no scenario files in {', '.join(map(str, paths))}", remedy="Name a YAML file or a folder")
    loaded = [(file, load_scenario(file)) for file in files]
    first: dict[str, Path] = {}
    for file, scenario in loaded:
        if scenario.id in first:
            raise InputError(f"{file}: id {scenario.id!r} is that of {first[scenario.id]} too", remedy="Rename one")
        first[scenario.id] = file
    return loaded


def spec_of(model: WorldModel) -> ModelSpec:
    """The model spec: the example's at the model's pace, with what the scenario changes of it.

    Raises:
        ValidationError: what it changes is wrong.
    """
    parts: dict[str, JsonValue] = dict(QUICK) if model.pace == "quick" else {}
    if model.replay is not None:
        return ModelSpec.model_validate(_merged(_merged(team_parts(model), parts), model.spec))
    return example_spec(model.name, label_delay_days=model.label_delay_days, **_merged(parts, model.spec))


def _merged(parts: Mapping[str, JsonValue], more: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Parts of a spec with what `more` says: of a part with fields the named ones change."""
    merged = dict(parts)
    for name, given in more.items():
        known = merged.get(name)
        merged[name] = {**known, **given} if isinstance(known, dict) and isinstance(given, dict) else given
    return merged


def schema_text() -> str:
    """The JSON Schema of scenario files, as stored in `scenario.schema.json`."""
    schema: dict[str, JsonValue] = Scenario.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Steadyhand evaluation scenario"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def _problems(document: Document[Scenario]) -> Iterator[Problem]:
    scenario = document.value
    for index, seed in enumerate(scenario.seeds):
        if seed in scenario.seeds[:index]:
            yield ("seeds", index), f"seeds[{index}]: {seed} is there twice, and the same run is no second trial"
    specs: dict[str, ModelSpec] = {}
    for index, model in enumerate(scenario.models):
        if model.name in specs:
            yield ("models", index, "name"), f"models[{index}].name: {model.name!r} is there twice"
        foreign = [part for part in foreign_parts(model) if part in model.spec]
        for part in foreign:
            whose = "the replayed spec" if model.replay is not None else "the simulated world"
            yield ("models", index, "spec", part), f"models[{index}].spec.{part} is that of {whose}"
        if foreign:
            continue
        unfit = list(replay_problems(model, index, scenario))
        yield from unfit
        if unfit:
            continue
        try:
            specs[model.name] = spec_of(model)
        except ValidationError as exc:
            first = exc.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            yield ("models", index, "spec"), f"models[{index}].spec.{field}: {first['msg']}"
            continue
        known = set(specs[model.name].feature_names())
        for table, features in model.tables.items():
            for name in [name for name in features if name not in known]:
                yield ("models", index, "tables", table), f"models[{index}].tables.{table}: no feature {name!r}"
    yield from _timeline_problems(scenario, specs)
    yield from _wanted_problems(scenario, specs)
    yield from contradictions(scenario)
    if not _EARLIEST <= scenario.start <= _LATEST:
        yield ("start",), f"start is {scenario.start}, not between {_EARLIEST} and {_LATEST}"
    if scenario.goal is not None:
        try:
            goal = read_goal(scenario.goal)
        except InputError as exc:
            yield ("goal",), f"goal: {exc}"
            return
        if goal.model is not None and goal.model not in specs:
            yield ("goal",), f"goal: {goal.model!r} is no model of this scenario"


def _timeline_problems(scenario: Scenario, specs: dict[str, ModelSpec]) -> Iterator[Problem]:
    tables = {table for model in scenario.models for table in model.tables}
    if (
        scenario.needs is not None
        and scenario.twin
        and any(isinstance(e, Wish) and e.harmless for e in scenario.timeline)
    ):
        yield ("twin",), "twin: a twin asks no language model, so it cannot keep a harmless goal; write `twin: false`"
    for index, entry in enumerate(scenario.timeline):
        at, where = ("timeline", index), f"timeline[{index}]"
        yield from _unknown_model(entry.model, specs, (*at, "model"), f"{where}.model")
        if entry.day >= scenario.days:
            yield (*at, "day"), f"{where}.day is {entry.day}, and the scenario ends after {scenario.days} days"
        until = getattr(entry, "until_day", None)
        if entry.for_days is not None and (until is not None or not hasattr(entry, "until_day")):
            why = "until_day says it already" if until is not None else f"`{entry.inject}` has no end"
            yield (*at, "for_days"), f"{where}.for_days: {why}"
        if entry.when is not None and until is not None:
            yield (*at, "until_day"), f"{where}.until_day cannot be known with `when`; use `for_days`"
        if until is not None and until <= entry.day:
            yield (*at, "until_day"), f"{where}.until_day is {until}, not after day {entry.day}"
        for field, text in _entry_problems(entry, scenario, specs, tables):
            yield (*at, field), f"{where}.{field}: {text}"


def _entry_problems(
    entry: AnyInjection, scenario: Scenario, specs: dict[str, ModelSpec], tables: set[str]
) -> Iterator[tuple[str, str]]:
    match entry:
        case DataChange():
            touched = [specs[entry.model]] if entry.model in specs else list(specs.values())
            known = {name for spec in touched for name in spec.feature_names()}
            for name in [name for name in entry.features if name not in known]:
                yield "features", f"no model has a feature {name!r}; known are {', '.join(sorted(known))}"
            least, most = MAGNITUDES[entry.inject]
            if not least <= entry.magnitude <= most:
                yield (
                    "magnitude",
                    f"{entry.magnitude:g} is not from {least:g} to {most:g}, as `{entry.inject}` takes it",
                )
            if entry.table is not None and entry.table not in tables:
                yield "table", f"no model reads from {entry.table!r}; declare it under models[].tables"
            if entry.table is not None and entry.features:
                yield "features", "name the table or the features, not both"
            if entry.release is not None and entry.inject != "skew":
                yield "release", "only `skew` can have a release of the feature view behind it"
            types = {feature.name: feature.type for spec in touched for feature in spec.features}
            kind = TYPES.get(entry.inject)
            for name in [n for n in entry.features if kind is not None and types.get(n, kind) != kind]:
                yield "features", f"`{entry.inject}` changes {kind} features, and {name!r} is {types[name]}"
            replayed = any(model.replay is not None and model.name in specs for model in scenario.models)
            if not replayed and (why := _level_problem(entry, types)):
                yield "level", why
        case PlatformFault():
            port = entry.method.split(".")[0]
            if port != "*" and port not in _PORTS and not any(c in port for c in "*?["):
                yield "method", f"there is no port {port!r}; there are {', '.join(_PORTS)}"
            elif not any(fnmatchcase(call, entry.method) for call in CALLS):
                calls = ", ".join(sorted(call for call in CALLS if call.startswith(f"{port}.")))
                yield "method", f"no call is named {entry.method!r}" + (f"; there are {calls}" if calls else "")
        case RouteEdit() | Misroute():
            if sum(entry.weights.values()) != 100:
                yield "weights", f"they sum to {sum(entry.weights.values())}, not to 100"
        case Wish():
            try:
                goal = read_goal(entry.text)
            except InputError as exc:
                if entry.expect == "taken" and not (scenario.needs and isinstance(exc, NotUnderstood)):
                    yield "text", str(exc)
                return
            if entry.expect == "refused":
                yield "expect", "the text is a goal that would be taken"
            if goal.model is not None and goal.model not in specs:
                yield "text", f"{goal.model!r} is no model of this scenario"
        case _:
            if entry.model is None and len(scenario.models) > 1 and entry.inject in ("release", "server"):
                yield "model", f"of {len(scenario.models)} models, say which"


def _level_problem(entry: DataChange, types: Mapping[str, str]) -> str:
    """Why no row could be hit, which would leave a fault that never happened."""
    if entry.inject == "new_level" and entry.level in LEVELS:
        return f"{entry.level!r} is no new level; known are {', '.join(LEVELS)}"
    if entry.inject != "segment":
        return ""
    if not entry.features or entry.level is None:
        return "a segment is one feature and one of its levels"
    name = entry.features[0]
    levels = {"categorical": LEVELS, "boolean": ("true", "false")}.get(types.get(name, "categorical"), ())
    if not levels:
        return f"{name!r} is {types[name]} and has no levels"
    return "" if entry.level in levels else f"{name!r} has no level {entry.level!r}; it has {', '.join(levels)}"


def _wanted_problems(scenario: Scenario, specs: dict[str, ModelSpec]) -> Iterator[Problem]:
    for name in [name for name in scenario.truth.models if name not in specs]:
        yield ("truth", "models"), f"truth.models: {name!r} is no model of this scenario"
    for index, wanted in enumerate(scenario.wanted):
        at, where = ("wanted", index), f"wanted[{index}]"
        yield from _unknown_model(getattr(wanted, "model", None), specs, (*at, "model"), f"{where}.model")
        if isinstance(wanted, IncidentIs) and wanted.count == 0 and scenario.truth.cause:
            yield at, f"{where} wants no incident, and truth.cause names {', '.join(scenario.truth.cause)}"
        if isinstance(wanted, QuarantineIs):
            late = [day for day in wanted.days if day >= scenario.days]
            if late:
                yield (*at, "days"), f"{where}.days: day {late[0]} is after the end"
    for index, pattern in enumerate(scenario.must):
        yield from _unknown_model(pattern.model, specs, ("must", index, "model"), f"must[{index}].model")
    for index, pattern in enumerate(scenario.must_not):
        yield from _unknown_model(pattern.model, specs, ("must_not", index, "model"), f"must_not[{index}].model")
    injected = {entry.inject for entry in scenario.timeline}
    for part, patterns in (("must", scenario.must), ("must_not", scenario.must_not)):
        for index, pattern in enumerate(patterns):
            if pattern.after is not None and pattern.after not in injected:
                yield (part, index, "after"), f"{part}[{index}].after: the timeline has no `{pattern.after}`"


def _unknown_model(
    name: str | None, specs: dict[str, ModelSpec], at: tuple[str | int, ...], field: str
) -> Iterator[Problem]:
    if name is not None and name not in specs:
        yield at, f"{field}: {name!r} is no model of this scenario; it has {', '.join(specs)}"
