"""The rollout's pure judgements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agents.rollout import analyse, foreign_edit, next_step, put_back, steps
from evals.world.platform import example_spec
from state.spec import ModelSpec
from tools.metrics import ServiceWindow


def spec_with(**rollout: Any) -> ModelSpec:
    return example_spec(rollout={"minimum_requests": 30, **rollout})


def seen(n: int = 1_000, *, errors: float = 0.0, p99: float | None = 10.0) -> ServiceWindow:
    return ServiceWindow(n_requests=n, error_ratio=errors, p50_ms=p99, p99_ms=p99)


@pytest.mark.parametrize(
    ("declared", "maximum", "walked"),
    [
        pytest.param([20, 40, 60], 50, [20, 40, 50], id="c02-clamped-at-the-maximum"),
        pytest.param([1, 2, 10, 80], 100, [1, 2, 10, 80], id="c03-uneven-steps"),
        pytest.param([100], 100, [100], id="c04-blue-green"),
        pytest.param([60, 80], 50, [50], id="what-is-clamped-to-the-same-share-is-one-step"),
        pytest.param([0, 10], 50, [10], id="a-step-of-nothing-is-none"),
    ],
)
def test_c02_c03_c04_the_steps_are_the_declared_ones_within_the_maximum(
    declared: list[int], maximum: int, walked: list[int]
) -> None:
    spec = spec_with(steps=declared, max_percent=maximum)

    assert steps(spec) == walked
    assert [next_step(spec, i) for i in range(-1, len(walked))] == [*walked, None]


@pytest.mark.parametrize("declared", [[10, 5], [10, 10], [-1, 5], [50, 101]])
def test_c03_steps_that_do_not_rise_within_0_to_100_are_refused_by_name(declared: list[int]) -> None:
    with pytest.raises(ValueError, match=r"steps\[\d\] is "):
        spec_with(steps=declared)


@pytest.mark.parametrize(
    ("candidate", "stable"),
    [
        pytest.param(None, seen(), id="c20-no-window"),
        pytest.param(seen(29), seen(), id="c20-one-request-too-few"),
        pytest.param(seen(errors=math.nan), seen(), id="c21-nan-errors"),
        pytest.param(seen(p99=math.nan), seen(), id="c21-nan-latency"),
        pytest.param(seen(), seen(p99=math.nan), id="c21-nan-latency-of-the-champion"),
        pytest.param(seen(errors=0.9), seen(errors=math.nan), id="c21-nan-errors-of-the-champion"),
        pytest.param(seen(), seen(29), id="champion-with-too-few-requests-to-compare-latency"),
        pytest.param(seen(), None, id="champion-without-a-window"),
    ],
)
def test_c20_c21_no_data_is_neither_pass_nor_failure(
    candidate: ServiceWindow | None, stable: ServiceWindow | None
) -> None:
    found = analyse(spec_with(), candidate=candidate, stable=stable)

    assert found.verdict == "no_data"
    assert found.reasons


@pytest.mark.parametrize(
    ("candidate", "stable", "verdict"),
    [
        pytest.param(seen(), seen(), "pass", id="alike"),
        pytest.param(seen(30), seen(30), "pass", id="just-enough-requests"),
        pytest.param(seen(errors=0.01), seen(), "pass", id="errors-exactly-at-the-margin"),
        pytest.param(seen(errors=0.011), seen(), "fail", id="errors-above-the-margin"),
        pytest.param(seen(errors=0.10), seen(errors=0.095), "pass", id="both-fail-alike"),
        pytest.param(seen(errors=1.0, p99=None), None, "fail", id="nothing-but-errors-needs-no-champion"),
        pytest.param(seen(p99=60.0), seen(p99=30.0), "pass", id="latency-exactly-at-the-ratio"),
        pytest.param(seen(p99=61.0), seen(p99=30.0), "fail", id="latency-above-the-ratio"),
        pytest.param(seen(p99=24.0), seen(p99=1.0), "pass", id="latency-below-the-floor"),
        pytest.param(seen(p99=math.inf), seen(), "fail", id="c22-infinite-latency"),
    ],
)
def test_c22_the_candidate_is_held_against_the_champion_of_the_same_window(
    candidate: ServiceWindow, stable: ServiceWindow | None, verdict: str
) -> None:
    assert analyse(spec_with(), candidate=candidate, stable=stable).verdict == verdict


@pytest.mark.parametrize(
    ("observed", "kind"),
    [
        pytest.param({"1": 90, "2": 10}, "none", id="as-written"),
        pytest.param({"1": 50, "2": 50}, "raised", id="raised"),
        pytest.param({"1": 100, "2": 0}, "lowered", id="taken-off"),
        pytest.param({"1": 95, "2": 5}, "lowered", id="lowered"),
        pytest.param({"1": 100}, "lowered", id="taken-out"),
        pytest.param({"1": 80, "2": 10, "3": 10}, "raised", id="a-stranger-in-the-route-is-put-right"),
    ],
)
def test_c39_what_somebody_did_to_the_route_is_told_apart(observed: dict[str, int], kind: str) -> None:
    assert foreign_edit(expected={"1": 90, "2": 10}, observed=observed, judged="2", against="1") == kind


@pytest.mark.parametrize(
    ("observed", "judged", "against", "kind"),
    [
        pytest.param({"1": 30, "2": 70}, "2", "1", "lowered", id="bake-to-the-previous-one"),
        pytest.param({"1": 0, "2": 70, "3": 30}, "2", "1", "raised", id="bake-to-a-stranger"),
        pytest.param({"1": 20, "2": 70, "3": 10}, "2", "1", "lowered", id="bake-to-both"),
        pytest.param({"1": 30, "2": 70}, None, None, "raised", id="nothing-is-judged"),
        pytest.param({"2": 100}, None, None, "none", id="an-entry-without-traffic-is-gone"),
        pytest.param({"1": 0, "2": 100, "3": 0}, None, None, "none", id="an-entry-without-traffic-came"),
        pytest.param({}, "2", "1", "raised", id="the-route-is-gone"),
    ],
)
def test_c39_only_a_version_that_is_judged_may_be_lowered_and_only_for_the_one_it_is_held_against(
    observed: dict[str, int], judged: str | None, against: str | None, kind: str
) -> None:
    assert foreign_edit(expected={"1": 0, "2": 100}, observed=observed, judged=judged, against=against) == kind


def test_c39_the_written_split_comes_back_over_every_version_of_the_route() -> None:
    assert put_back(expected={"1": 0, "2": 100}, observed={"2": 60, "3": 30, "4": 10}) == (
        "3", {"2": 100, "3": 0, "4": 0},
    )  # fmt: skip
    assert put_back(expected={"1": 0, "2": 100}, observed={"1": 100}) is None
