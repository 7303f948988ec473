"""The second remedy for a change of the world: the recipe, fitted on nothing but the rows since the change began.

A recipe that reads everything is fitted mostly on the world before the change for weeks after it, and its candidate can
miss a gate for as long, while the champion serves worse every day. Rows since the change are fewer, and all of them are
of the world as it is. Which of the two is worth more is not decided here: the narrower fit has to win a backtest and to
meet the gates like any other.
"""

from __future__ import annotations

from datetime import datetime

from agents.backtest import looks
from agents.training import shortest_training
from orchestrator.anew import ask_anew
from orchestrator.change import change_of
from orchestrator.crew import Crew, tell
from state.rows import IncidentRow, RunRow
from state.spec import ModelSpec, RecipeTraining
from state.store import Connection


def begin_narrower_fit(crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, incident: IncidentRow) -> bool:
    """Turn the run of an incident whose candidate misses a gate to the narrower fit, once; False where there is none.

    Only where the signal dates the change: a win of the cadence does not, and is tried again on newer rows. The next
    backtest comes once the gates can be measured on a fit that has learned from nothing but the change.
    """
    change, recipe = change_of(spec, incident), spec.training
    if not isinstance(recipe, RecipeTraining) or incident.signal == "challenger_better" or "fit_from" in run.facts:
        return False
    now = crew.clock.now()
    if recipe.window is not None and now - spec.data.label.delay - recipe.window >= change:
        return False  # the recipe reads nothing else as it is
    measurable = change + shortest_training(recipe) + spec.data.label.delay
    look_at: datetime = max(now, measurable, looks(spec, change, [])[0])
    ask_anew(run, at=look_at)
    run.facts["fit_from"] = change.isoformat()
    tell(
        crew, conn, key=f"narrower/{incident.id}", title=f"{incident.title}: open, and a gate is missed",
        text=f"A candidate fitted on all rows misses a gate of the spec; most of them are from before the change of about "
        f"{change:%Y-%m-%d}. A fit on the rows since then is compared with the champion on {look_at:%Y-%m-%d}.",
    )  # fmt: skip
    return True
