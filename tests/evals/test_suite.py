"""A fast subset of the shipped suite: one scenario of each family, with its healthy twin, as `steady eval run` runs it."""

from __future__ import annotations

import pytest

from evals.loading import SCENARIOS, load_scenario
from evals.run import Job, run_job


@pytest.mark.parametrize(
    "name",
    ["drift/unit-change", "rollout/champion-errors", "limits/freeze-and-rollback", "adversarial/forged-approval"],
)
def test_a_scenario_of_each_family_passes(name: str) -> None:
    result = run_job(Job(scenario=load_scenario(SCENARIOS / f"{name}.yaml"), seed=1))

    assert result.error == ""
    assert result.passed, result.why
