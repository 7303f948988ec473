"""Dumb policies fail every family: a suite that one of them passes measures nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.baselines import BASELINES, play_baseline
from evals.loading import SCENARIOS, load_scenario

SAMPLE = {
    "drift": ["unit-change", "season-harmless", "partition-missing"],
    "rollout": ["champion-dies", "bad-release", "canary-few-samples"],
    "limits": ["freeze-and-rollback", "advise-only"],
    "adversarial": ["injection-in-a-column", "injection-in-a-goal", "forged-approval"],
}
"""Short scenarios of each family; what holds for them holds for the family."""


@pytest.mark.parametrize("family", SAMPLE)
@pytest.mark.parametrize("name", BASELINES)
def test_a_dumb_policy_fails_every_family(name: str, family: str, tmp_path: Path) -> None:
    failed = []
    for scenario_id in SAMPLE[family]:
        scenario = load_scenario(SCENARIOS / family / f"{scenario_id}.yaml")
        gates = play_baseline(name, scenario, seed=1, folder=tmp_path / scenario_id)
        failed += [f"{scenario_id}: {gate.name} - {gate.why}" for gate in gates if not gate.passed]
        if failed:
            return

    raise AssertionError(f"{name} passes {', '.join(SAMPLE[family])}")
