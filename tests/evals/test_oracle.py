"""The oracle that regret is measured against: it learns only from labels that had come, and serves only what was rolled out."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from evals.oracle import oracle_harm, shortest_rollout
from evals.scenario import Scenario
from evals.scene import Scene
from evals.stage import set_stage
from evals.twins import harm_by_day

WAITS = {"monitoring": {"cadence": "P60D", "backtest": "P60D"}}
"""A crew that does nothing in so short a time, so that the first champion serves throughout."""


def scene(tmp_path: Path, *timeline: dict[str, Any], days: int = 14) -> Scene:
    stage = set_stage(Scenario.model_validate({
        "id": "one", "title": "one", "family": "drift", "difficulty": "easy", "days": days, "timeline": [*timeline],
        "models": [{"name": "churn", "rows_per_day": 150, "history_days": 20, "label_delay_days": 1, "spec": WAITS}],
        "truth": {"cause": []}, "wanted": [{"state": "champion", "version": "first"}], "deadline_days": 0, "twin": False,
    }), seed=1, folder=tmp_path / "run")  # fmt: skip
    for _ in stage.play():
        continue
    assert {effect.args["version"] for effect in stage.scene.world.effects if effect.method.endswith("champion")} == {
        "1"
    }
    return stage.scene


def served_harm(scene: Scene, since: int) -> float:
    return sum(harm for day, harm in harm_by_day(scene).items() if day >= since)


TURNED = {"day": 3, "inject": "concept", "magnitude": 1.0}


def test_until_a_refit_could_have_been_rolled_out_the_oracle_serves_the_first_champion(tmp_path: Path) -> None:
    played = scene(tmp_path, TURNED, days=6)

    assert shortest_rollout(played.world.specs["churn"]).days == 2
    assert oracle_harm(played, since=3) == pytest.approx(served_harm(played, 3), abs=1e-6)


def test_after_a_change_that_can_be_learned_the_oracle_does_less_harm_than_the_champion(tmp_path: Path) -> None:
    played = scene(tmp_path, TURNED)

    harm = oracle_harm(played, since=3)
    days = [day for day in harm_by_day(played) if 3 <= day < 7]
    unavoidable = sum(harm_by_day(played)[day] for day in days)
    assert unavoidable < harm < 0.6 * served_harm(played, 3)
    assert oracle_harm(played, since=3) == harm


def test_the_oracle_suffers_as_well_what_no_refit_could_have_mended(tmp_path: Path) -> None:
    fault = {"day": 4, "inject": "unit", "features": ["spend"], "magnitude": 1000, "until_day": 8}
    played = scene(tmp_path, fault)

    spoiled = sum(harm for day, harm in harm_by_day(played).items() if 4 <= day < 6)
    assert spoiled > 100
    assert spoiled <= oracle_harm(played, since=4) <= served_harm(played, 4) + 1e-6


def test_an_outage_of_the_champion_is_no_harm_of_the_oracle(tmp_path: Path) -> None:
    played = scene(tmp_path, {"day": 3, "inject": "server", "version": "champion", "error_ratio": 1.0}, days=5)

    n_rows = sum(
        played.world.rows("churn", date.fromisoformat(s.day)).frame.height for s in played.world.model("churn").days[3:]
    )
    assert served_harm(played, 3) == n_rows
    assert oracle_harm(played, since=3) < 0.1 * n_rows
