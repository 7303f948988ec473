from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from tests.tools.label_worlds import LabelWorld
from tools.drift.calibration import calibration_alarms, tolerated
from tools.drift.labels import LabelCounts, LabelReference, find_change, reference_of


def counts(world: LabelWorld, n_days: int) -> list[LabelCounts]:
    return [LabelCounts.of(d["block"][0], d["label"], d["score"]) for d in world.days(n_days)]


def reference(blocks: list[LabelCounts]) -> LabelReference:
    found = reference_of(blocks)
    assert found is not None
    return found


def alarms(world: LabelWorld, n_after: int) -> tuple[str, ...]:
    blocks = counts(world, 37 + n_after)
    return calibration_alarms(reference(blocks[:37]), blocks[37:], tolerance=0.02, false_alarm_blocks=8_000)


def test_the_tolerated_shifts_cost_the_tolerated_loss() -> None:
    ref = reference(counts(LabelWorld(seed=1, rows=2_000), 40))
    p, weights = ref.curve, ref.weights
    limit = tolerated(ref, 0.02)

    def loss(truth: np.ndarray, said: np.ndarray) -> float:
        return float(weights @ -(truth * np.log(said) + (1 - truth) * np.log(1 - said)))

    odds = float(limit.rate / (weights @ (p * (1 - p))))
    shifted = expit(logit(p) + odds)
    turned = np.clip(ref.mean + (1 - limit.slope) * (p - ref.mean), 1e-9, 1 - 1e-9)

    allowed = 0.02 * loss(p, p)
    assert loss(shifted, p) - loss(shifted, shifted) == pytest.approx(allowed, rel=0.15)
    assert loss(turned, p) - loss(turned, turned) == pytest.approx(allowed, rel=0.35)


@pytest.mark.parametrize(
    ("world", "found"),
    [
        pytest.param({"kind": "prior", "size": 0.9}, "more", id="more-positives-than-said"),
        pytest.param({"kind": "prior", "size": -0.9}, "fewer", id="fewer"),
        pytest.param({"kind": "fade", "size": 0.6}, "flatter", id="scores-that-say-less"),
    ],
)
def test_a_loss_of_calibration_is_found_within_three_weeks(world: dict[str, object], found: str) -> None:
    hits = [found in alarms(LabelWorld(seed=seed, **world), 21) for seed in range(6)]  # type: ignore[arg-type]

    assert sum(hits) >= 5


def test_a_shift_that_costs_less_than_is_tolerated_is_none() -> None:
    assert alarms(LabelWorld(seed=2, rows=2_000, kind="prior", size=0.15), 60) == ()


@pytest.mark.parametrize("rho", [0.0, 0.6])
@pytest.mark.parametrize("day_sd", [0.15, 0.5])
def test_half_a_healthy_year_raises_no_alarm(day_sd: float, rho: float) -> None:
    hits = [alarms(LabelWorld(seed=seed, rows=150, day_sd=day_sd, rho=rho), 180) for seed in range(8)]

    assert sum(bool(hit) for hit in hits) <= 1


def test_an_arm_of_an_ab_test_with_a_quarter_of_the_rows_raises_no_alarm() -> None:
    hits = 0
    for seed in range(12):
        days = LabelWorld(seed=seed, rows=100, day_sd=0.05).days(37 + 120)
        halves = [day if at < 37 else day.head(day.height // 4) for at, day in enumerate(days)]
        blocks = [LabelCounts.of(d["block"][0], d["label"], d["score"]) for d in halves]
        ref = reference(blocks[:37])
        hits += bool(calibration_alarms(ref, blocks[37:], tolerance=0.001, false_alarm_blocks=8_000))
        hits += find_change(ref, blocks[-28:]) is not None

    assert hits <= 1
