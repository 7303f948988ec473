from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.special import expit

from tests.tools.label_worlds import LabelWorld
from tools.drift.label_verdict import judge_change
from tools.drift.labels import EDGES, MIN_REFERENCE, N_CELLS, LabelCounts, find_change, reference_of, shift_of

SEEDS = range(12)


def said(**world: object) -> Counter[str]:
    """Verdicts over a dozen worlds, a week after the change."""
    verdicts = [LabelWorld(seed=seed, **world).verdict(7) for seed in SEEDS]  # type: ignore[arg-type]
    return Counter(verdict.kind if verdict is not None else "none" for verdict in verdicts)


def exact(block: str, curve: np.ndarray, n: int = 1_000) -> LabelCounts:
    """Counts whose labels are the curve's probabilities to the row."""
    cells = np.full(N_CELLS, n, dtype=np.int64)
    return LabelCounts(block=block, n=cells, y=np.rint(cells * curve).astype(np.int64))


CENTRES = expit(np.linspace(-6.2, 6.2, N_CELLS))


def test_rows_are_counted_by_score_cell_and_odd_scores_are_left_out() -> None:
    counts = LabelCounts.of("d", [0.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, np.nan])

    assert counts.n_rows == 3
    assert (counts.n[0], counts.n[-1]) == (1, 1)
    assert counts.y[np.searchsorted(EDGES, 0.5, side="right")] == 1
    assert counts.y[0] == 0


@pytest.mark.parametrize(
    ("broken", "rate", "slope"),
    [
        pytest.param(lambda p: p, 0.0, 0.0, id="healthy"),
        pytest.param(lambda p: p + 0.15 * (1 - 2 * p), 0.0, -0.3, id="flips-turn-the-line-about-a-half"),
        pytest.param(lambda p: 0.5 * p, -0.25, -0.5, id="lost-labels-turn-it-about-0"),
        pytest.param(lambda p: p + 0.2 * (1 - p), 0.1, -0.2, id="gained-labels-turn-it-about-1"),
    ],
)
def test_broken_labels_give_a_straight_line_of_the_published_slope(broken, rate: float, slope: float) -> None:  # type: ignore[no-untyped-def]
    reference = reference_of([exact(f"{day:02d}", CENTRES) for day in range(12)])
    assert reference is not None

    shift = shift_of(exact("now", broken(CENTRES)), reference.curve)

    assert shift is not None
    assert shift.rate == pytest.approx(rate, abs=0.002)
    assert shift.slope == pytest.approx(slope, abs=0.005)


def test_too_little_gives_no_reference_and_no_shift() -> None:
    days = [exact(f"{day:02d}", CENTRES) for day in range(MIN_REFERENCE)]
    assert reference_of(days) is not None
    assert reference_of(days[1:]) is None, "too few blocks"
    assert reference_of([LabelCounts(block=d.block, n=d.n, y=np.zeros_like(d.y)) for d in days]) is None, "one class"
    few = LabelCounts.of("few", [0.0, 1.0], [0.2, 0.8])
    assert shift_of(few, CENTRES) is None
    same = LabelCounts.of("same", [0.0, 1.0] * 20, [0.3] * 40)
    assert shift_of(same, CENTRES) is None, "scores that do not differ have no slope"


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("day_sd", [0.15, 0.5])
def test_healthy_worlds_are_hardly_ever_under_suspicion(rho: float, day_sd: float) -> None:
    """Twelve worlds that are looked at every day for eight weeks. The loop looks only after an alarm, which is rarer."""
    suspected = n_looks = 0
    for seed in SEEDS:
        days = LabelWorld(seed=seed, rho=rho, day_sd=day_sd).days(37 + 56)
        counts = [LabelCounts.of(d["block"][0], d["label"], d["score"]) for d in days]
        reference = reference_of(counts[:37])
        assert reference is not None
        for now in range(38, len(counts)):
            change = find_change(reference, counts[37:now])
            suspected += change is not None and judge_change(change, None, inputs_moved=False).kind != "world"
            n_looks += 1

    assert suspected <= 0.01 * n_looks


@pytest.mark.parametrize(
    ("world", "kind", "at_least"),
    [
        pytest.param({"kind": "flip", "size": 0.4}, "fault", 11, id="forty-percent-flipped"),
        pytest.param({"kind": "flip", "size": 1.0}, "fault", 12, id="classes-swapped"),
        pytest.param(
            {"kind": "flip", "size": 1.0, "missed": 0.4}, "fault", 11, id="swapped-under-a-score-that-misses-much"
        ),
        pytest.param({"kind": "gained", "size": 0.2}, "fault", 10, id="a-fifth-of-class-0-reported-as-1"),
        pytest.param({"kind": "lost", "size": 0.5, "rows": 2_000}, "fault", 11, id="half-of-class-1-lost"),
        pytest.param({"kind": "concept", "size": 0.5}, "world", 12, id="a-turned-concept"),
        pytest.param({"kind": "concept", "size": 1.5}, "world", 12, id="a-concept-turned-beyond-a-quarter"),
        pytest.param({"kind": "fade", "size": 0.5}, "world", 11, id="a-fading-signal"),
        pytest.param({"kind": "prior", "size": 0.9}, "world", 11, id="other-odds"),
        pytest.param({"kind": "segment", "size": 1.0}, "world", 9, id="one-segment"),
    ],
)
def test_what_broke_is_named_where_a_week_can_tell(world: dict[str, object], kind: str, at_least: int) -> None:
    assert said(**world)[kind] >= at_least


@pytest.mark.parametrize(
    "world",
    [
        pytest.param({"kind": "flip", "size": 0.15}, id="fifteen-percent-flipped"),
        pytest.param({"kind": "lost", "size": 0.5}, id="half-of-class-1-lost-in-few-rows"),
    ],
)
def test_a_small_fault_is_suspected_even_where_it_cannot_be_told_for_certain(world: dict[str, object]) -> None:
    found = said(**world)

    assert found["fault"] + found["in_doubt"] >= 10


def test_the_same_change_is_the_worlds_where_it_comes_gradually() -> None:
    whole = LabelWorld(seed=3, rows=2_000, kind="flip", size=0.4).verdict(14)
    slow = LabelWorld(seed=3, rows=2_000, kind="flip", size=0.4, ramp=14).verdict(14)

    assert whole is not None
    assert whole.kind == "fault"
    assert slow is not None
    assert slow.kind == "world"
    assert any("gradually" in reason for reason in slow.evidence_against)


def test_labels_that_are_half_of_each_class_leave_flips_and_a_fading_signal_in_doubt() -> None:
    """At a label rate of one half a flip moves no mean: only how far the line bends at its ends could tell."""
    verdicts = [LabelWorld(seed=s, kind="flip", size=0.3, intercept=0.0).verdict(7) for s in range(6)]

    assert {verdict.kind for verdict in verdicts if verdict is not None} == {"in_doubt"}
    assert all("fit as well scores that say" in " ".join(v.evidence_against) for v in verdicts if v is not None)


def test_inputs_that_moved_and_features_that_matter_speak_against_a_label_fault() -> None:
    days = LabelWorld(seed=3, kind="flip", size=0.4).days(44)
    counts = [LabelCounts.of(d["block"][0], d["label"], d["score"]) for d in days]
    reference = reference_of(counts[:37])
    assert reference is not None
    change = find_change(reference, counts[30:])
    assert change is not None
    assert change.since == "0037"

    moved = judge_change(change, None, inputs_moved=True)
    concept = LabelWorld(seed=3, kind="concept", size=0.5).verdict(7)

    assert moved.kind == "in_doubt"
    assert "the inputs moved as well" in moved.evidence_against
    assert concept is not None
    assert any("at equal scores labels depend on" in reason for reason in concept.evidence_against)


def test_the_strength_of_a_flip_is_measured() -> None:
    days = LabelWorld(seed=5, rows=5_000, kind="flip", size=0.25, day_sd=0.05).days(44)
    counts = [LabelCounts.of(d["block"][0], d["label"], d["score"]) for d in days]
    reference = reference_of(counts[:37])
    assert reference is not None
    change = find_change(reference, counts[37:])
    assert change is not None

    assert change.fits[0].hypothesis == "flip"
    assert change.fits[0].strength == pytest.approx(0.25, abs=0.03)
