"""The two arms of an A/B test: their ratio is known from whom they served, long before a label comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import polars as pl
import pytest

from agents.arms import ab_verdict, read_arms
from agents.base import Situation
from evals.world.platform import build, example_spec
from evals.world.world import World
from state.rows import RolloutRow
from tools.ports import Outcomes

SINCE = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Served:
    """Requests of the two arms, and no label yet."""

    n_candidate: int
    n_stable: int

    def predictions(self, model: str, *, start: datetime, end: datetime) -> pl.DataFrame:
        assert (start, end) == (SINCE, SINCE + 4 * DAY)
        versions = ["2"] * self.n_candidate + ["1"] * self.n_stable
        return pl.DataFrame({"version": versions, "entity": [f"e{n}" for n in range(len(versions))]})


def situation() -> Situation:
    rollout = RolloutRow(
        id="o", model="churn", candidate="2", stable="1", status="running", phase="ab_test", started_at=SINCE,
        body={"since": SINCE.isoformat()},
    )  # fmt: skip
    return Situation(
        model="churn", spec=example_spec(label_delay_days=7), spec_sha256="0" * 64, now=SINCE + 4 * DAY, step="run_ab_test",
        subject_id="i", run_id="r", cause="concept_drift", facts={}, pinned={}, champion="1", previous=None, candidate="2",
        last_traffic_key="", rollout=rollout,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("served", "verdict"),
    [
        pytest.param(Served(200, 205), "undecided", id="as-asked"),
        pytest.param(Served(16, 384), "sample_ratio_mismatch", id="four-percent-where-fifty-were-asked"),
    ],
)
def test_the_ratio_is_judged_while_no_label_has_come(served: Served, verdict: str, tmp_path: Path) -> None:
    platform = replace(build(World(tmp_path, seed=1)), outcomes=cast(Outcomes, served))
    arms = read_arms(situation(), platform)

    assert arms["losses"] == {}
    assert ab_verdict(situation(), arms)[0] == verdict
