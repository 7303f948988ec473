"""Losses inside segments: how they are measured, which are watched, and what a rise is confined to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from state.spec import ModelSpec
from tests.tools.training_support import make_frame, make_rows, make_spec
from tools.drift.performance import EDetector, block_loss
from tools.drift.segments import (
    MAX_SEGMENTS,
    MIN_BLOCKS,
    Losses,
    SegmentLoss,
    cells_of,
    confined,
    losses_of,
    references,
    segment_features,
    segment_losses,
)
from tools.evaluation import compare_blocks, losses_by_block, scored_rows

FEATURES = {"plan": "categorical", "mobile": "boolean"}
N_DAYS = 40


def rows(seed: int = 0, *, n_blocks: int = 3, n_rows: int = 400) -> dict[str, Any]:
    """Rows in no order of their blocks, with a rare level and cells without a level."""
    rng = np.random.default_rng(seed)
    n = n_blocks * n_rows
    plan: list[str | None] = rng.choice(["a", "b", "c", "rare"], n, p=[0.5, 0.3, 0.18, 0.02]).tolist()
    plan[::17] = [None] * len(plan[::17])
    mobile = rng.choice([0.0, 1.0, np.nan], n, p=[0.4, 0.5, 0.1])
    label = (rng.random(n) < 0.4).astype(np.float64)
    return {
        "label": label, "score": np.clip(0.3 * label + rng.random(n) * 0.7, 0, 1),
        "blocks": rng.choice([f"2026-01-0{day + 1}" for day in range(n_blocks)], n),
        "columns": {"plan": plan, "mobile": mobile},
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "rmse", "f1"])
@pytest.mark.parametrize(("seed", "decimals"), [(1, 15), (2, 15), (2, 1)], ids=["one", "two", "ties"])
def test_a_segment_has_the_loss_of_its_own_rows_and_of_all_others(metric: Any, seed: int, decimals: int) -> None:
    data = rows(seed)
    data["score"] = np.round(data["score"], decimals)
    plan, mobile = np.array(data["columns"]["plan"], dtype=object), data["columns"]["mobile"]

    found = segment_losses(metric, **data, features=FEATURES)

    assert list(found) == ["2026-01-01", "2026-01-02", "2026-01-03"]
    for block, cells in found.items():
        assert set(cells) == {"plan=a", "plan=b", "plan=c", "mobile=true", "mobile=false"}
        here = data["blocks"] == block
        for segment, hit in (("plan=b", plan == "b"), ("mobile=false", mobile == 0.0)):
            inside, outside = here & hit, here & ~hit
            assert cells[segment].n == inside.sum()
            assert cells[segment].loss == block_loss(metric, data["label"][inside], data["score"][inside])
            assert cells[segment].outside == block_loss(metric, data["label"][outside], data["score"][outside])


def test_a_level_that_is_nearly_all_rows_is_no_segment_and_neither_is_one_whose_loss_is_undefined() -> None:
    data = rows(n_blocks=1)
    data["columns"]["plan"] = ["a"] * 380 + ["b"] * 20
    of_one_class = data["columns"]["mobile"] == 1.0
    data["label"][of_one_class] = 1.0

    assert set(segment_losses("roc_auc", **data, features=FEATURES)["2026-01-01"]) == {"mobile=false"}


def test_the_largest_segments_of_many_are_measured() -> None:
    rng = np.random.default_rng(0)
    shop = np.repeat([f"s{n:02d}" for n in range(20)], [200 - 5 * n for n in range(20)])
    label = (rng.random(len(shop)) < 0.5).astype(np.float64)
    one: dict[str, Any] = {"label": label, "score": rng.random(len(shop)), "blocks": ["2026-01-01"] * len(shop)}

    (cells,) = segment_losses(
        "log_loss", **one, columns={"shop": shop.tolist()}, features={"shop": "categorical"}
    ).values()

    assert list(cells) == [f"shop=s{n:02d}" for n in range(MAX_SEGMENTS)]


def test_several_classes_are_measured_as_well() -> None:
    data = rows(n_blocks=1)
    score = np.random.default_rng(0).dirichlet([1, 1, 1], len(data["label"]))

    cells = segment_losses("log_loss", **{**data, "score": score}, features=FEATURES)["2026-01-01"]

    hit = data["columns"]["mobile"] == 1.0
    assert cells["mobile=true"].loss == block_loss("log_loss", data["label"][hit], score[hit])


def test_the_levels_of_categories_and_flags_are_segments_unless_the_spec_names_others() -> None:
    def of(segments: list[str] | None) -> list[str]:
        return list(segment_features(make_spec(monitoring={"segments": segments})))

    assert of(None) == ["city", "member"]
    assert of(["member"]) == ["member"]
    assert of([]) == []


def blocks(
    n: int, *, seed: int = 0, inside: float = 0.0, outside: float = 0.0, n_rows: int = 80, first: int = 0
) -> Losses:
    """Blocks of one segment of 80 rows with losses near 0.25, raised by `inside` and `outside`; rows decide the spread."""
    rng = np.random.default_rng(seed)
    sd = 0.06 * (80 / n_rows) ** 0.5
    return {
        f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}": {
            "plan=a": SegmentLoss(
                loss=0.25 + inside + sd * rng.normal(), n=n_rows, outside=0.22 + outside + 0.03 * rng.normal()
            )
        }
        for day in range(first, first + n)
    }  # fmt: skip


def test_a_segment_is_watched_from_enough_reference_blocks_on() -> None:
    assert references(blocks(MIN_BLOCKS - 1), tolerance=0.02) == {}
    (known,) = references(blocks(MIN_BLOCKS), tolerance=0.02).values()
    assert known.n_usual == 80
    assert known.inside.mean == pytest.approx(0.25, abs=0.04)
    assert known.contrast == pytest.approx(known.inside.mean - known.outside.mean)


def test_losses_survive_json() -> None:
    data = segment_losses("roc_auc", **rows(), features=FEATURES)

    assert losses_of(cells_of(data)) == data


@pytest.mark.parametrize(
    ("inside", "outside", "n", "is_confined"),
    [
        pytest.param(0.3, 0.0, 3, True, id="within-three-blocks-of-a-turn"),
        pytest.param(0.3, 0.3, 7, False, id="labels-flipped-in-all-rows"),
        pytest.param(0.3, 0.1, 7, False, id="much-worse-inside-and-worse-outside"),
        pytest.param(0.0, 0.0, 14, False, id="healthy"),
        pytest.param(0.0, 0.3, 7, False, id="worse-outside-only"),
        pytest.param(0.05, 0.0, 3, False, id="too-small-for-so-few-blocks"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_rise_is_confined_where_it_is_clear_inside_and_absent_outside(
    inside: float, outside: float, n: int, is_confined: bool, seed: int
) -> None:
    known = references(blocks(N_DAYS, seed=seed), tolerance=0.02)

    found = confined(known, blocks(n, seed=100 + seed, inside=inside, outside=outside, first=N_DAYS))

    assert (found is not None) == is_confined
    if found is not None:
        assert (found.segment, found.n_blocks) == ("plan=a", n)
        assert found.loss > 0.4 > found.outside


def test_half_of_the_rows_brings_no_more_alarms() -> None:
    """As in the champion's arm of an A/B test: the spread of its blocks is 1.4 times that of the reference."""
    alarms = {"weighed": 0, "as-it-is": 0}
    for seed in range(40):
        (known,) = references(blocks(N_DAYS, seed=seed), tolerance=0.02).values()
        detectors = {name: EDetector(reference=known.inside, false_alarm_blocks=8_000) for name in alarms}
        hit = set()
        for cells in blocks(200, seed=1_000 + seed, n_rows=40, first=N_DAYS).values():
            cell = cells["plan=a"]
            detectors["weighed"].update(known.weighed(cell))
            detectors["as-it-is"].update(cell.loss)
            hit |= {name for name, detector in detectors.items() if detector.alarm}
        for name in hit:
            alarms[name] += 1

    # P(alarm by block 200) is 2.5 %, one in 40.
    assert alarms["weighed"] <= 3
    assert alarms["as-it-is"] > 2 * alarms["weighed"] + 3


@pytest.fixture
def spec() -> ModelSpec:
    return make_spec()


def test_training_records_the_losses_of_segments_beside_those_of_the_whole(spec: ModelSpec) -> None:
    data = make_rows(spec, make_frame(n_rows=2_000, n_days=10))
    score = np.random.default_rng(0).random(len(data))

    found = losses_by_block(scored_rows(data, score), spec)

    assert all({"member=true", "member=false"} <= set(block.segments) for block in found)
    loss, n, outside = found[0].segments["member=true"]
    assert loss is not None and n is not None and outside is not None
    assert 30 <= n < found[0].n


def test_a_backtest_compares_inside_every_segment(spec: ModelSpec) -> None:
    data = make_rows(spec, make_frame(n_rows=2_000, n_days=10))
    good, bad = data.label * 0.8 + 0.1, 0.9 - data.label * 0.8

    assert {tuple(pair) for block in compare_blocks(data, bad, good, spec) for pair in block.segments.values()} == {
        (1.0, 0.0)
    }
