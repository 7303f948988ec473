"""Whether a simulated model can have a first champion at all: a scenario begins with one in service."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta

from agents.training import shortest_training
from evals.scenario import WorldModel
from orchestrator.context import minimum_rows
from state.spec import ManagedServing, ModelSpec, RecipeTraining

MAX_ROWS = 10_000_000
"""Rows of a world, history included: nobody waits for more, and they would not fit into memory."""
_DAY = timedelta(days=1)


def least_history(spec: ModelSpec) -> int:
    """Days of rows that a training needs."""
    recipe = spec.training
    if not isinstance(recipe, RecipeTraining):
        return 1
    return math.ceil(shortest_training(recipe) / _DAY)


def world_problems(model: WorldModel, spec: ModelSpec) -> Iterator[tuple[tuple[str, ...], str]]:
    """Field and reason of everything that keeps the first champion from being trained and served."""
    if spec.task == "multiclass":
        yield ("spec", "task"), "the simulated world has binary and regression models; 'multiclass' is neither"
    if not isinstance(spec.training, RecipeTraining):
        yield ("spec", "training"), f"the simulated world carries out a recipe, and no {spec.training.kind!r}"
    if not isinstance(spec.serving, ManagedServing):
        yield ("spec", "serving"), f"the simulated world serves by itself, and no {spec.serving.kind!r}"
    least = least_history(spec)
    if model.history_days < least:
        yield (
            ("history_days",),
            f"{model.history_days} days are too few to train a first champion on; {least} are needed",
        )
    if isinstance(spec.training, RecipeTraining) and spec.training.window is not None:
        shortest = shortest_training(spec.training)
        if spec.training.window < shortest:
            yield (
                ("spec", "training"),
                f"a window of {spec.training.window / _DAY:g} days is too short to train on; its holdout and folds need "
                f"{shortest / _DAY:g}",
            )
    n_labelled = model.rows_per_day * model.history_days * (1.0 - model.unlabelled_ratio)
    needed = minimum_rows(spec)
    if n_labelled < needed:
        yield (
            ("rows_per_day",),
            f"{model.rows_per_day} a day make about {n_labelled:.0f} labelled rows of history; {needed} are needed",
        )
    elif spec.task == "binary" and n_labelled * _rarer_share(model) < 1.0:
        yield ("intercept",), f"{model.intercept:g} leaves one class only, and nothing can be learned from it"


def _rarer_share(model: WorldModel) -> float:
    """About the share of the rarer class: the mean of a logistic whose argument is normal.

    Source: MacKay (1992), "The Evidence Framework Applied to Classification Networks", eq. 14.
    """
    spread = math.sqrt(1.0 + math.pi * (model.signal**2 + model.day_sd**2) / 8.0)
    return 1.0 / (1.0 + math.exp(min(abs(model.intercept) / spread, 700.0)))
