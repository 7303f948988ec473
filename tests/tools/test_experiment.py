from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from tests.tools.false_wins import false_wins
from tools.experiment import (
    ABTest,
    ab_test,
    assign,
    confidence_radius,
    needed_z,
    paired_comparison,
    sample_ratio_check,
)


def smooth(rng: np.random.Generator, n: int, correlation: float) -> np.ndarray:
    noise = rng.normal(size=n)
    values = np.empty(n)
    values[0] = noise[0]
    for at in range(1, n):
        values[at] = correlation * values[at - 1] + math.sqrt(1 - correlation**2) * noise[at]
    return values


@pytest.mark.parametrize(
    ("n_blocks", "gain", "verdict"),
    [
        pytest.param(28, 0.02, "win", id="better-every-day"),
        pytest.param(28, -0.02, "lose", id="worse-every-day"),
        pytest.param(28, 0.0, "lose", id="no-gain-is-no-win"),
        pytest.param(7, 0.02, "win", id="exactly-the-fewest-blocks"),
        pytest.param(6, 0.02, "no_verdict", id="one-block-too-few"),
        pytest.param(0, 0.0, "no_verdict", id="nothing"),
    ],
)
def test_paired_verdict(n_blocks: int, gain: float, verdict: str) -> None:
    rng = np.random.default_rng(3)
    weather = 0.3 + 0.05 * rng.normal(size=n_blocks)
    challenger = weather - gain + 0.004 * rng.normal(size=n_blocks)

    paired = paired_comparison(weather.tolist(), challenger.tolist())

    assert paired.verdict == verdict
    assert paired.n_blocks == n_blocks


@pytest.mark.parametrize(
    ("n_blocks", "needed"),
    [
        pytest.param(7, 3.767, id="a-week"),
        pytest.param(10, 3.294, id="ten"),
        pytest.param(27, 2.808, id="one-less-than-measured"),
        pytest.param(28, 2.8, id="as-measured"),
        pytest.param(90, 2.8, id="never-below"),
    ],
)
def test_fewer_blocks_need_a_higher_z_and_more_blocks_no_lower_one(n_blocks: int, needed: float) -> None:
    assert needed_z(2.8, n_blocks) == pytest.approx(needed, abs=0.001)
    rng = np.random.default_rng(2)
    noise = rng.normal(size=n_blocks)
    noise = (noise - noise.mean()).tolist()
    result = paired_comparison(noise, [0.0] * n_blocks)
    assert result.needed_z == needed_z(2.8, n_blocks)

    # The same blocks, moved until their z lies at the bound and a little short of it.
    for share, verdict in ((1.001, "win"), (0.999, "lose")):
        moved = [value + share * needed_z(2.8, n_blocks) * result.se for value in noise]
        assert paired_comparison(moved, [0.0] * n_blocks).verdict == verdict


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.008), (0.3, 0.022)])
def test_equal_models_win_no_more_often_over_few_blocks_than_over_many(correlation: float, most: float) -> None:
    for n_blocks in (7, 10, 14, 28):
        wins = false_wins(n_blocks, correlation, n_draws=4_000, seed=5)
        assert wins.by_length <= most
        if n_blocks < 14:
            assert wins.fixed > 1.5 * wins.by_length


def test_win_is_exactly_at_the_bound() -> None:
    champion, challenger = [1.0, 2.0, 3.0, 2.0, 1.0, 3.0, 2.0] * 4, [0.9, 1.8, 2.9, 1.9, 0.7, 2.8, 1.9] * 4
    z = paired_comparison(champion, challenger).z

    assert paired_comparison(champion, challenger, win_z=z).verdict == "win"
    assert paired_comparison(champion, challenger, win_z=math.nextafter(z, math.inf)).verdict == "lose"


@pytest.mark.parametrize(
    ("min_gain", "verdict"),
    [
        pytest.param(0.0, "win", id="any-gain"),
        pytest.param(0.0024, "win", id="just-worth-it"),
        pytest.param(0.0026, "lose", id="certain-and-not-worth-it"),
    ],
)
def test_a_gain_is_worth_a_share_of_the_champions_loss(min_gain: float, verdict: str) -> None:
    champion = [0.2 + 0.02 * (day % 3 - 1) for day in range(30)]
    challenger = [loss - 0.0005 for loss in champion]

    paired = paired_comparison(champion, challenger, min_gain=min_gain)

    assert paired.z > 1_000
    assert paired.verdict == verdict
    assert paired.needed_difference == pytest.approx(min_gain * 0.2)


def test_equal_models_tie_and_equal_steps_stay_finite() -> None:
    losses = [0.1 * k for k in range(10)]
    assert paired_comparison(losses, losses).z == 0
    stepped = paired_comparison(losses, [loss - 0.5 for loss in losses])
    assert stepped.verdict == "win"
    assert math.isfinite(stepped.z)


def test_autocorrelation_widens_the_error_and_never_narrows_it() -> None:
    rng = np.random.default_rng(5)
    rough, alternating = smooth(rng, 200, 0.8), np.tile([1.0, -1.0], 100) + 0.01 * rng.normal(size=200)
    zeros = [0.0] * 200

    assert paired_comparison(rough.tolist(), zeros).se > 1.8 * rough.std(ddof=1) / math.sqrt(200)
    independent = alternating.std(ddof=1) / math.sqrt(200)
    assert paired_comparison(alternating.tolist(), zeros).se == pytest.approx(independent)


@pytest.mark.parametrize("losses", [([0.1], [0.1, 0.2]), ([math.nan, 0.1], [0.1, 0.2])])
def test_unusable_losses_are_refused(losses: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"losses|finite"):
        paired_comparison(*losses)


@pytest.mark.parametrize(
    ("gain", "n_blocks", "n_samples", "verdict"),
    [
        pytest.param(0.05, 28, 1_000, "better", id="better"),
        pytest.param(-0.05, 28, 1_000, "worse", id="worse"),
        pytest.param(0.0, 28, 1_000, "equivalent", id="equal-within-the-margin"),
        pytest.param(-0.015, 60, 1_000, "equivalent", id="harm-that-was-declared-to-be-none"),
        pytest.param(0.05, 28, 999, "undecided", id="one-row-too-few"),
        pytest.param(0.05, 6, 9_000, "undecided", id="one-block-too-few"),
        pytest.param(0.0, 8, 9_000, "undecided", id="still-wide"),
    ],
)
def test_ab_verdict(gain: float, n_blocks: int, n_samples: int, verdict: str) -> None:
    rng = np.random.default_rng(11)
    champion = 0.3 + 0.01 * rng.normal(size=n_blocks)
    challenger = 0.3 - gain + 0.01 * rng.normal(size=n_blocks)

    result = ab_test(champion.tolist(), challenger.tolist(), n_samples=n_samples, margin=0.025)

    assert result.verdict == verdict, result.reason
    if result.low is not None and result.high is not None:
        assert result.low <= result.difference <= result.high


def test_looking_every_day_does_not_make_equal_arms_differ() -> None:
    rng = np.random.default_rng(13)
    rule = ABTest(margin=0.001, minimum_samples=1)
    n_runs, n_false = 150, 0
    for _ in range(n_runs):
        a, b = rng.normal(size=(2, 40))
        looks = [rule.judge(a[:t].tolist(), b[:t].tolist(), n_samples=10).verdict for t in range(2, 41)]
        n_false += any(verdict in ("better", "worse") for verdict in looks)

    assert n_false <= 0.07 * n_runs


def test_bounds_find_a_large_difference_within_the_horizon() -> None:
    rng = np.random.default_rng(17)
    found = sum((d := rng.normal(1.0, 1.0, size=28)).mean() > confidence_radius(d) for _ in range(100))

    assert found >= 85


@pytest.mark.parametrize(
    ("n_challenger", "n_champion", "share", "ok"),
    [
        pytest.param(1_000, 9_000, 0.1, True, id="as-asked"),
        pytest.param(40, 960, 0.1, False, id="4-percent-of-a-thousand"),
        pytest.param(560, 9_440, 0.1, False, id="weight-times-u"),
        pytest.param(0, 0, 0.5, True, id="nobody-yet"),
        pytest.param(3, 0, 0.5, True, id="too-few-to-say"),
    ],
)
def test_sample_ratio(n_challenger: int, n_champion: int, share: float, ok: bool) -> None:
    assert sample_ratio_check(n_challenger, n_champion, share).ok is ok


def test_sample_ratio_may_be_looked_at_every_day() -> None:
    rng = np.random.default_rng(19)
    n_false = 0
    for _ in range(200):
        counts = np.cumsum(rng.binomial(100, 0.5, size=60))
        n_false += any(
            not sample_ratio_check(int(n), int(100 * (day + 1) - n), 0.5, alpha=0.05).ok for day, n in enumerate(counts)
        )

    assert n_false <= 10


def test_a_test_without_two_arms_is_refused() -> None:
    with pytest.raises(ValueError, match="two arms"):
        sample_ratio_check(1, 1, 1.0)


def test_assignment_keeps_shares_and_moves_few() -> None:
    entities = [f"N{k}" for k in range(20_000)]
    before = [assign(e, {"1": 90, "2": 10}, key="test") for e in entities]
    after = [assign(e, {"1": 75, "2": 25}, key="test") for e in entities]

    assert Counter(before)["2"] / len(entities) == pytest.approx(0.10, abs=0.007)
    assert Counter(after)["2"] / len(entities) == pytest.approx(0.25, abs=0.01)
    assert all(new == "2" for old, new in zip(before, after, strict=True) if old == "2")
    assert len({tuple(assign(e, {"1": 1, "2": 1}, key=k) for e in entities[:50]) for k in "abc"}) == 3
    assert assign("x", {"1": 0, "2": 1}, key="test") == "2"
    with pytest.raises(ValueError, match="positive"):
        assign("x", {"1": 0}, key="test")


def test_assignment_is_the_same_in_another_process() -> None:
    program = "print(''.join(assign(str(i), {'a': 1, 'b': 1}, key='k') for i in range(64)))"
    code = f"from tools.experiment import assign; {program}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "".join(assign(str(i), {"a": 1, "b": 1}, key="k") for i in range(64))
