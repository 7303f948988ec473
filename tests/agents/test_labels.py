from __future__ import annotations

from datetime import date, timedelta

import pytest

from agents.labels import LabelledBlock, check_labels
from evals.world.platform import example_spec

SPEC = example_spec()


def block(day: int, *, n_rows: int | None = 300, n_labelled: int = 294, n_others: int = 90) -> LabelledBlock:
    name = (date(2026, 3, 2) + timedelta(days=day)).isoformat()
    return LabelledBlock(block=name, n_rows=n_rows, n_labelled=n_labelled, n_others=n_others)


def kinds(now: LabelledBlock, before: list[LabelledBlock]) -> list[tuple[str, str]]:
    return [(str(f["kind"]), str(f["severity"])) for f in check_labels([now], before, SPEC)]


GOOD = [block(day) for day in range(10)]


@pytest.mark.parametrize(
    ("now", "before", "found"),
    [
        pytest.param(block(10), GOOD, [], id="as-usual"),
        pytest.param(block(10, n_labelled=0, n_others=0), GOOD, [("labels_missing", "hard")], id="none-came"),
        pytest.param(block(10, n_labelled=140, n_others=40), GOOD, [("labels_missing", "hard")], id="half-came"),
        pytest.param(block(10, n_labelled=250), GOOD, [("labels_missing", "warn")], id="a-few-less"),
        pytest.param(block(10, n_labelled=280), GOOD, [], id="a-little-less"),
        pytest.param(
            block(10, n_labelled=0, n_others=0), [*GOOD, block(9, n_labelled=0, n_others=0)], [], id="gaps-are-usual"
        ),
        pytest.param(block(10, n_labelled=0, n_others=0), GOOD[:4], [], id="too-few-blocks-to-say"),
        pytest.param(block(10, n_labelled=0, n_others=0, n_rows=None), GOOD, [], id="rows-were-not-counted"),
        pytest.param(block(10, n_labelled=0, n_others=0, n_rows=0), GOOD, [], id="no-rows-no-labels"),
        pytest.param(block(10, n_others=0), GOOD, [("one_class", "hard")], id="one-class"),
        pytest.param(block(10, n_others=1), GOOD, [], id="a-single-other"),
        pytest.param(block(10, n_labelled=15, n_others=0, n_rows=16), GOOD, [], id="too-few-labels-for-a-class"),
        pytest.param(
            block(10, n_others=0), [block(day, n_others=day % 4) for day in range(10)], [], id="a-rare-class-may-miss"
        ),
    ],
)
def test_labels_of_a_block_are_judged_beside_those_before(
    now: LabelledBlock, before: list[LabelledBlock], found: list[tuple[str, str]]
) -> None:
    assert kinds(now, before) == found


def test_several_blocks_at_once_are_judged_in_order_and_faulty_ones_are_no_history() -> None:
    gone = [block(day, n_labelled=0, n_others=0) for day in (10, 11, 12)]

    found = check_labels(gone, GOOD, SPEC)

    assert [f["block"] for f in found] == [b.block for b in gone]


def test_a_number_has_no_classes() -> None:
    spec = example_spec(task="regression", objective={"metric": "rmse", "op": "<=", "value": 1}, gates=[],
                        training={"kind": "recipe", "candidates": [{"name": "ridge", "estimator": "ridge"}]})  # fmt: skip

    assert check_labels([block(10, n_others=0)], GOOD, spec) == []
