"""Scenario files: read, checked against the world that they describe, and their published schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from pydantic import JsonValue, ValidationError

from evals.contradictions import Problem, contradictions, people_problems
from evals.replays import foreign_parts, replay_problems, team_parts, with_whole_paths
from evals.scenario import QuarantineIs, Scenario, WorldModel
from evals.timeline_checks import timeline_problems, unknown_model, why_not_taken
from evals.world.platform import example_spec
from evals.world_checks import MAX_ROWS, world_problems
from orchestrator.goals.reading import read_goal
from state.errors import InputError
from state.spec import ModelSpec
from tools.yaml_documents import Document, Kind, faults_of_part, read_document

SCENARIOS = Path(__file__).parent / "scenarios"
_EARLIEST, _LATEST = date(2000, 1, 1), date(2100, 1, 1)
SCHEMA_FILE = Path(__file__).parent / "scenario.schema.json"
_SPEC = Kind(name="model spec", first_line="model: <name>", written_by="steady init DATA")
_KIND = Kind(name="scenario", first_line="id: <name>", written_by="steady eval new FILE")
QUICK: dict[str, JsonValue] = {
    "monitoring": {"cadence": "P10D", "backtest": "P10D", "min_blocks": 5, "recovery": "P2D"},
    "rollout": {
        "steps": [10, 30], "dwell": "P1D", "bake": "P2D", "minimum_requests": 10, "deadline": "P3D",
        "ab_test": {"percent": 50, "horizon": "P4D", "minimum_samples": 100, "margin": 0.02},
    },
}  # fmt: skip
"""A pace at which a whole remedy, from onset to sustained health, takes four weeks of domain time."""


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
    example = example_spec(model.name).model_dump(mode="json", include={"training", "objective"})
    changed = _merged(_merged(example, parts), model.spec)
    return example_spec(model.name, label_delay_days=model.label_delay_days, **changed)


def _merged(parts: Mapping[str, JsonValue], more: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Parts of a spec with what `more` says: of a part with fields the named ones change, of one of another kind all."""
    merged = dict(parts)
    for name, given in more.items():
        known = merged.get(name)
        alike = (
            isinstance(known, dict)
            and isinstance(given, dict)
            and given.get("kind", known.get("kind")) == known.get("kind")
        )
        merged[name] = {**known, **given} if alike else given  # type: ignore[dict-item]
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
    if not _EARLIEST <= scenario.start <= _LATEST:
        yield ("start",), f"start is {scenario.start}, not between {_EARLIEST} and {_LATEST}"
    specs, broken = _specs(scenario)
    yield from broken
    if broken:
        return  # what is said of features and models would be wrong without their specs
    yield from timeline_problems(scenario, specs)
    yield from people_problems(scenario)
    yield from _wanted_problems(scenario, specs)
    yield from contradictions(scenario)
    if scenario.goal is not None:
        for why in _goal_problems(scenario.goal, specs):
            yield ("goal",), f"goal: {why}"


def _specs(scenario: Scenario) -> tuple[dict[str, ModelSpec], list[Problem]]:
    """The spec of every model, and what is wrong with the models."""
    specs: dict[str, ModelSpec] = {}
    problems: list[Problem] = []
    for index, model in enumerate(scenario.models):
        at, where = ("models", index), f"models[{index}]"
        if model.name in specs:
            problems.append(((*at, "name"), f"{where}.name: {model.name!r} is there twice"))
        foreign = [part for part in foreign_parts(model) if part in model.spec]
        whose = "the replayed spec" if model.replay is not None else "the simulated world"
        problems += [((*at, "spec", part), f"{where}.spec.{part} is that of {whose}") for part in foreign]
        if foreign:
            continue
        unfit = list(replay_problems(model, index, scenario))
        problems += unfit
        if unfit:
            continue
        try:
            specs[model.name] = spec = spec_of(model)
        except ValidationError as exc:
            for inside, said in faults_of_part(exc, ModelSpec, _SPEC):
                problems.append(((*at, "spec", *inside), f"{where}.spec{'.' if inside else ': '}{said}"))
            continue
        known = set(spec.feature_names())
        for table, features in model.tables.items():
            for name in [name for name in features if name not in known]:
                problems.append(((*at, "tables", table), f"{where}.tables.{table}: no feature {name!r}"))
        unfit_world = world_problems(model, spec) if model.replay is None else ()
        problems += [((*at, *field), f"{where}.{'.'.join(field)}: {why}") for field, why in unfit_world]
    made = [model for model in scenario.models if model.replay is None]
    n_rows = sum(model.rows_per_day * (model.history_days + scenario.days) for model in made)
    if n_rows > MAX_ROWS:
        problems.append((("models",), f"models: about {n_rows:,} rows in all, more than {MAX_ROWS:,}; take fewer"))
    return specs, problems


def _goal_problems(text: str, specs: Mapping[str, ModelSpec]) -> Iterator[str]:
    try:
        goal = read_goal(text)
    except InputError as exc:
        yield str(exc).removeprefix("goal: ")
        return
    if goal.intent != "maintain":
        yield f"{goal.intent!r} is done once; say so on a day of the timeline, with `inject: goal`"
    elif why := why_not_taken(goal, specs, named=False):
        yield why


def _wanted_problems(scenario: Scenario, specs: dict[str, ModelSpec]) -> Iterator[Problem]:
    for name in [name for name in scenario.truth.models if name not in specs]:
        yield ("truth", "models"), f"truth.models: {name!r} is no model of this scenario"
    for index, wanted in enumerate(scenario.wanted):
        at, where = ("wanted", index), f"wanted[{index}]"
        yield from unknown_model(getattr(wanted, "model", None), specs, (*at, "model"), f"{where}.model")
        if isinstance(wanted, QuarantineIs):
            late = [day for day in wanted.days if day >= scenario.days]
            if late:
                yield (*at, "days"), f"{where}.days: day {late[0]} is after the end"
    for index, pattern in enumerate(scenario.must):
        yield from unknown_model(pattern.model, specs, ("must", index, "model"), f"must[{index}].model")
    for index, pattern in enumerate(scenario.must_not):
        yield from unknown_model(pattern.model, specs, ("must_not", index, "model"), f"must_not[{index}].model")
    injected = {entry.inject for entry in scenario.timeline}
    for part, patterns in (("must", scenario.must), ("must_not", scenario.must_not)):
        for index, pattern in enumerate(patterns):
            if pattern.after is not None and pattern.after not in injected:
                yield (part, index, "after"), f"{part}[{index}].after: the timeline has no `{pattern.after}`"
