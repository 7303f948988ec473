"""Scenarios over a team's recorded rows: the spec that they run with, and what cannot be asked of a recording."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from pydantic import JsonValue

from evals.contradictions import Problem
from evals.injections import DataChange
from evals.scenario import Scenario, WorldModel
from evals.world.platform import example_spec
from evals.world.replayed import recorded_days, team_spec
from state.errors import InputError
from state.spec import RecipeTraining

OF_THE_TRUTH = ("concept", "signal_loss", "prior", "covariate", "segment")
"""Changes of how outcomes come about: of recorded rows nobody knows what they would have been."""
_SIMULATED = ("label_delay_days", "n_entities", "signal", "intercept", "day_sd", "unlabelled_ratio")
"""Fields of a model that say how rows are made."""


def with_whole_paths(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario with the specs of its replays as absolute paths; `folder` is that of its file."""
    models = list(scenario.models)
    for index, model in enumerate(models):
        if model.replay is not None:
            replay = model.replay.model_copy(update={"spec": str((folder / model.replay.spec).resolve())})
            models[index] = model.model_copy(update={"replay": replay})
    return scenario.model_copy(update={"models": models})


def foreign_parts(model: WorldModel) -> tuple[str, ...]:
    """Parts of the model spec that a scenario cannot change."""
    return ("model", "data") if model.replay is None else ("model", "data", "task", "features")


def team_parts(model: WorldModel) -> dict[str, JsonValue]:
    """The team's spec as fields, under the scenario's name of the model.

    The simulated world carries out a recipe: other kinds of training become the example's.
    """
    assert model.replay is not None
    team = team_spec(model.replay.spec)
    parts = team.model_dump(mode="json") | {"model": model.name}
    if not isinstance(team.training, RecipeTraining):
        parts["training"] = example_spec().training.model_dump(mode="json")
    return parts


def replay_problems(model: WorldModel, index: int, scenario: Scenario) -> Iterator[Problem]:
    """What keeps a model's replay from being played, by field."""
    replay, at, where = model.replay, ("models", index), f"models[{index}]"
    if replay is None:
        return
    for field in [field for field in _SIMULATED if field in model.model_fields_set]:
        yield (*at, field), f"{where}.{field} has no meaning beside `replay`: the recording decides"
    try:
        days = recorded_days(replay.spec)
    except InputError as exc:
        yield (*at, "replay", "spec"), f"{where}.replay.spec: {exc}"
        return
    first, last, end = min(days), max(days), replay.first_day + timedelta(days=scenario.days - 1)
    began = replay.first_day - timedelta(days=model.history_days)
    if not any(began <= day < replay.first_day for day in days):
        text = f"the recording begins on {first} and holds no day of the {model.history_days} before it"
        yield (*at, "replay", "first_day"), f"{where}.replay.first_day is {replay.first_day}: {text}"
    if end > last:
        text = f"the recording ends on {last}, and {scenario.days} live days from {replay.first_day} end on {end}"
        yield ("days",), f"days: {text}"
    for number, entry in enumerate(scenario.timeline):
        touched = entry.model in (None, model.name) and (getattr(entry, "table", None) in (None, *model.tables))
        if isinstance(entry, DataChange) and entry.inject in OF_THE_TRUTH and touched:
            text = f"`{entry.inject}` needs simulated rows: what recorded ones would have become is not known"
            yield ("timeline", number, "inject"), f"timeline[{number}].inject: {text}"
