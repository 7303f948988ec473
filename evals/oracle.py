"""What nobody could have served much better: the harm of an oracle, which regret is measured against.

From the first fault on it serves, on each day, the best of the first champion and of the refits that the recipe could
have made by then and rolled out in the shortest time that the spec allows. It knows which is best on each day, errs
never, and its servers and routes work. It knows no truth beyond that: its refits learn from the labels that had come.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta

import polars as pl

from evals.scene import Scene
from evals.world.data import history
from evals.world.models import Model
from evals.world.traffic import excess_loss
from evals.world.world import World, midnight, with_columns_of
from state.errors import ToolRejected
from state.spec import ModelSpec, RecipeTraining


def oracle_harm(scene: Scene, *, since: int) -> float:
    """Harm of the oracle from live day `since` to the end, in the unit of `World.harm`, summed over models."""
    return round(sum(_of_model(scene.world, model, scene.date_of(since)) for model in scene.models), 6)


def _of_model(world: World, model: str, first: date) -> float:
    days = [date.fromisoformat(served.day) for served in world.model(model).days]
    days = [day for day in days if day >= first]
    champion = _first_champion(world, model)
    if champion is None or not days:
        return 0.0
    choices = [(first, champion), *_refits(world, model, first, days[-1])]
    task, harm = world.specs[model].task, 0.0
    for day in days:
        rows = world.rows(model, day)
        if rows.frame.height:
            ready = [fitted for since, fitted in choices if since <= day]
            harm += min(excess_loss(fitted.score(rows.frame), rows.expected, task) for fitted in ready)
    return harm


def _first_champion(world: World, model: str) -> Model | None:
    served = world.model(model).days
    digest = served[0].arms[0].digest if served else None
    return world.models.decode(world.state.fitted[digest].encode()) if digest is not None else None


def _refits(world: World, model: str, first: date, last: date) -> Iterator[tuple[date, Model]]:
    """First day of service and model of each refit: 1, 2, 4, 8, ... days after the first fault.

    Each has twice the new rows of the one before, so that no time between two of them is worth much more, and a year
    takes nine. Each is made twice: as the recipe says, and on the rows since the fault alone, since a recipe may
    leave out what was before a change.
    """
    spec = world.specs[model]
    rollout = shortest_rollout(spec)
    labelled = _labelled(world, model)
    age = 1
    while (made := first + timedelta(days=age)) + rollout <= last:
        known = labelled.filter((pl.col("available_at") <= midnight(made)) & (pl.col("event_time") < midnight(made)))
        window = spec.training.window if isinstance(spec.training, RecipeTraining) else None
        starts: list[datetime | None] = [midnight(made) - window if window else None, midnight(first)]
        for start in starts:
            rows = known if start is None else known.filter(pl.col("event_time") >= start)
            try:
                yield made + rollout, world.models.fit(spec, rows)
            except ToolRejected:
                continue  # too little to learn from yet
        age *= 2


def shortest_rollout(spec: ModelSpec) -> timedelta:
    """From a fit to all traffic, where every look passes at once: the dwell of each step, in whole days."""
    dwell = spec.rollout.dwell * len(spec.rollout.steps)
    return timedelta(days=-(-dwell // timedelta(days=1)))


def _labelled(world: World, model: str) -> pl.DataFrame:
    """Every row of history and of live days with the label as reported and when that became known."""
    old = history(world, model, start=None, end=None)
    live = [
        with_columns_of(rows.frame, rows.labels, how="inner").select(old.columns)
        for served in world.model(model).days
        if (rows := world.rows(model, date.fromisoformat(served.day))).frame.height
    ]
    return pl.concat([old.filter(pl.col("label").is_not_null()), *live])
