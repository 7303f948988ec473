"""What a backtest is fitted and compared on, when it can say something, and what a loss is worth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import JsonValue

from agents.backtest import (
    judge_backtest,
    judge_pairs,
    learned_by,
    looks,
    next_look,
    next_on_cadence,
    stretch_of,
)
from agents.base import Learned, Propose, Situation, Wait
from agents.training import judge
from evals.world.platform import example_spec
from state.spec import ModelSpec

DAY = timedelta(days=1)
SPEC = example_spec(label_delay_days=2)  # backtest 28 days, 7 blocks of a day, cadence 14 days
CHANGE = datetime(2026, 5, 1, tzinfo=UTC)
CUT = "2026-01-31T23:00:00+00:00"


def situation(
    now: datetime, *, change: datetime | None = CHANGE, spec: ModelSpec = SPEC, cause: str | None = None
) -> Situation:  # fmt: skip
    return Situation(
        model="churn", spec=spec, spec_sha256="0" * 64, now=now, step="backtest_recipe", subject_id="i", run_id="r",
        cause=cause or ("concept_drift" if change else "cadence"), facts={}, pinned={}, champion="1", previous=None,
        candidate=None, last_traffic_key="", rollout=None, change_from=change,
    )  # fmt: skip


def args_at(
    now: datetime, *, cut: str | None = CUT, change: datetime | None = CHANGE, cause: str | None = None
) -> dict[str, Any]:  # fmt: skip
    move = judge_backtest(situation(now, change=change, cause=cause), {"champion_cut": cut, "quarantined": []})
    assert isinstance(move, Propose)
    return dict(move.proposal.args)


def outputs(n_blocks: int, gain: float) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    noise = rng.normal(0.0, 0.01, n_blocks)
    return {
        "blocks": [{"champion_loss": 0.3 + gain + e, "challenger_loss": 0.3} for e in noise]
        + [{"champion_loss": None, "challenger_loss": 0.3}]
    }


@pytest.mark.parametrize(
    ("days_after", "fit_until", "n_days"),
    [
        pytest.param(10, -20, 28, id="before-ten-newer-days-are-labelled-the-whole-stretch"),
        pytest.param(18, -12, 28, id="one-day-short"),
        pytest.param(19, 7, 10, id="fitted-up-to-seven-days-of-the-change-and-compared-on-ten"),
        pytest.param(30, 7, 21, id="the-stretch-grows"),
        pytest.param(37, 7, 28, id="until-it-is-whole"),
        pytest.param(50, 20, 28, id="and-moves-on"),
    ],
)
def test_an_incident_compares_on_what_is_newer_than_a_fit_that_has_learned(
    days_after: int, fit_until: int, n_days: int
) -> None:
    args = args_at(CHANGE + days_after * DAY)

    assert args["fit_until"] == args["compare_from"] == (CHANGE + fit_until * DAY).isoformat()
    assert args["compare_until"] == (CHANGE + (days_after - 2) * DAY).isoformat()
    assert (datetime.fromisoformat(args["compare_until"]) - CHANGE) / DAY - fit_until == n_days
    assert args["change_from"] == CHANGE.isoformat()


def test_a_narrower_fit_reads_the_rows_since_the_change_and_nothing_older() -> None:
    now = CHANGE + 40 * DAY
    narrow = situation(now).model_copy(update={"fit_from": CHANGE})
    tested = judge_backtest(narrow, {"champion_cut": CUT, "quarantined": []})
    trained = judge(narrow.model_copy(update={"step": "train_candidates"}), {"quarantined": []})

    assert isinstance(tested, Propose)
    assert isinstance(trained, Propose)
    assert tested.proposal.args["start"] == trained.proposal.args["start"] == CHANGE.isoformat()
    assert "from 2026-05-01 on" in tested.proposal.reason
    assert "start" not in args_at(now)


def test_a_recipe_with_a_shorter_window_keeps_it() -> None:
    window = SPEC.training.model_copy(update={"window": 10 * DAY})
    spec = SPEC.model_copy(update={"training": window})
    narrow = situation(CHANGE + 40 * DAY, spec=spec).model_copy(update={"fit_from": CHANGE, "step": "train_candidates"})
    trained = judge(narrow, {"quarantined": []})

    assert isinstance(trained, Propose)
    assert trained.proposal.args["start"] == (CHANGE + (38 - 10) * DAY).isoformat()


def test_the_cadence_always_compares_on_the_whole_stretch_and_knows_no_change() -> None:
    args = args_at(CHANGE + 19 * DAY, change=None)

    assert args["fit_until"] == (CHANGE + (17 - 28) * DAY).isoformat()
    assert "change_from" not in args


def test_an_incident_waits_for_rows_newer_than_the_cut_and_looks_every_block_whether_it_has_passed() -> None:
    cut, reading = "2026-04-28T12:00:00+00:00", {"champion_cut": "2026-04-28T12:00:00+00:00", "quarantined": []}
    move = judge_backtest(situation(CHANGE + 5 * DAY), reading)
    assert isinstance(move, Wait)
    assert move.until == CHANGE + 6 * DAY
    # Ten days that are newer than seven days of the change come before a whole backtest that is newer than the cut.
    assert "until 2026-05-20" in move.waits_for

    move = judge_backtest(situation(CHANGE + 5 * DAY, change=None), reading)
    assert isinstance(move, Learned)
    assert (move.verdict, move.facts["look_at"]) == ("no_verdict", (CHANGE + 19 * DAY).isoformat())
    move = judge_backtest(situation(datetime(2026, 5, 30, tzinfo=UTC), change=None), reading)
    assert isinstance(move, Learned)
    # The first midnight after the cut, 7 blocks, 28 days and the delay: sooner than the cadence.
    assert move.facts["look_at"] == (datetime(2026, 4, 29, tzinfo=UTC) + 37 * DAY).isoformat()
    assert args_at(datetime(2026, 6, 5, tzinfo=UTC), cut=cut, change=None)


def test_what_the_champion_was_fitted_on_is_no_change_to_it() -> None:
    args = args_at(datetime(2026, 7, 20, tzinfo=UTC), cut="2026-05-20T12:00:00+00:00")

    assert args["change_from"] == "2026-05-21T00:00:00+00:00"


@pytest.mark.parametrize(
    ("fit_until", "n_days", "gain", "verdict", "why"),
    [
        pytest.param(6, 28, 0.0, "no_verdict", "has not learned from 7 blocks of it", id="one-block-short"),
        pytest.param(7, 28, 0.0, "lose", "", id="learned-and-whole"),
        pytest.param(7, 27, 0.0, "no_verdict", "27 blocks are not the whole stretch", id="not-whole"),
        pytest.param(7, 28, -0.1, "lose", "", id="much-worse"),
        pytest.param(-20, 28, 0.1, "win", "", id="a-win-is-a-win-before-anything-was-learned"),
        pytest.param(7, 10, 0.1, "win", "", id="and-over-ten-blocks"),
        pytest.param(7, 6, 0.1, "no_verdict", "6 common blocks are too few, 7 are needed", id="too-few-blocks"),
    ],
)
def test_a_loss_is_a_verdict_only_where_the_fit_could_learn_from_the_change(
    fit_until: int, n_days: int, gain: float, verdict: str, why: str
) -> None:
    start = CHANGE + fit_until * DAY
    args: dict[str, JsonValue] = {
        "fit_until": start.isoformat(), "compare_until": (start + n_days * DAY).isoformat(), "excluded_days": [],
        "change_from": CHANGE.isoformat(),
    }  # fmt: skip
    paired = judge_pairs(SPEC, args, outputs(n_days, gain))

    assert paired["verdict"] == verdict
    assert why in str(paired["open_because"])
    assert bool(paired["open_because"]) == (verdict == "no_verdict")
    assert paired["n_blocks"] == n_days
    assert (paired["needed_z"] is None) == (n_days < 7)


def test_a_loss_on_the_cadence_is_a_verdict() -> None:
    assert judge_pairs(SPEC, {"fit_until": CHANGE.isoformat()}, outputs(28, 0.0))["verdict"] == "lose"


@pytest.mark.parametrize(
    ("min_gain", "verdict"),
    [pytest.param(0.03, "win", id="worth-a-rollout"), pytest.param(0.08, "lose", id="certain-and-too-small")],
)
def test_a_win_has_to_gain_what_the_args_ask_for(min_gain: float, verdict: str) -> None:
    args: dict[str, JsonValue] = {"fit_until": CHANGE.isoformat(), "min_gain": min_gain}

    paired = judge_pairs(SPEC, args, outputs(28, 0.02))

    assert paired["verdict"] == verdict
    assert paired["too_small"] == (verdict == "lose")


@pytest.mark.parametrize(
    ("cause", "asked_for"),
    [
        pytest.param("cadence", 0.01, id="nothing-is-wrong"),
        pytest.param("covariate_shift_harmless", 0.01, id="inputs-that-moved-and-do-no-harm"),
        pytest.param("concept_drift", None, id="predictions-are-worse"),
        pytest.param("goal", None, id="a-person-asked"),
    ],
)
def test_a_gain_has_to_be_worth_a_rollout_where_nothing_is_wrong(cause: str, asked_for: float | None) -> None:
    assert args_at(datetime(2026, 7, 20, tzinfo=UTC), cause=cause).get("min_gain") == asked_for


def test_a_gain_inside_a_segment_is_measured_there() -> None:
    paired = of_segment(inside=0.2, whole=0.0, min_gain=0.5)

    assert (paired["verdict"], paired["whole_holds"], paired["too_small"]) == ("lose", True, True)


def test_excluded_days_teach_nothing() -> None:
    days = [(CHANGE + n * DAY).date().isoformat() for n in (1, 2, 3)]

    assert learned_by(SPEC, CHANGE, []) == CHANGE + 7 * DAY
    assert learned_by(SPEC, CHANGE, days) == CHANGE + 10 * DAY
    weekly = example_spec(monitoring={"block": 7 * DAY, "min_blocks": 2})
    assert learned_by(weekly, CHANGE, days) == CHANGE + 14 * DAY


def test_a_backtest_without_a_verdict_comes_again_when_more_can_be_known_and_on_the_cadence() -> None:
    args: dict[str, JsonValue] = {"change_from": CHANGE.isoformat(), "excluded_days": []}
    first, whole = looks(SPEC, CHANGE, [])
    assert (first, whole) == (CHANGE + 19 * DAY, CHANGE + 37 * DAY)

    assert next_look(SPEC, CHANGE + 10 * DAY, args) == first
    assert next_look(SPEC, CHANGE + 2 * DAY, args) == CHANGE + 16 * DAY
    assert next_look(SPEC, first, args) == first + 14 * DAY
    assert next_look(SPEC, first + 14 * DAY, args) == whole
    assert next_look(SPEC, whole, args) == whole + 14 * DAY


def test_where_a_whole_backtest_is_short_there_is_no_shorter_one() -> None:
    spec = example_spec(label_delay_days=0, monitoring={"backtest": 4 * DAY, "min_blocks": 3})

    assert looks(spec, CHANGE, []) == (CHANGE + 7 * DAY, CHANGE + 7 * DAY)
    assert stretch_of(spec, CHANGE + 6 * DAY, CHANGE, []).start == CHANGE + 2 * DAY


@pytest.mark.parametrize(("n_blocks", "days"), [(5, 3.5), (2, 5), (0, 7)])
def test_the_cadence_comes_round_sooner_after_too_few_blocks(n_blocks: int, days: float) -> None:
    assert next_on_cadence(SPEC, CHANGE, n_blocks) == CHANGE + days * DAY
    short = example_spec(monitoring={"cadence": 2 * DAY})
    assert next_on_cadence(short, CHANGE, n_blocks) == CHANGE + 2 * DAY


def test_the_backtest_of_a_segment_names_it() -> None:
    now = CHANGE + 40 * DAY
    of_plan = situation(now).model_copy(update={"segment": "plan=a"})

    move = judge_backtest(of_plan, {"champion_cut": CUT, "quarantined": []})

    assert isinstance(move, Propose)
    assert move.proposal.args["segment"] == "plan=a"
    assert "plan=a" in move.proposal.reason
    assert "segment" not in args_at(now)


def of_segment(
    *, inside: float, whole: float, n_inside: int = 28, min_gain: float = 0.0
) -> dict[str, JsonValue]:  # fmt: skip
    """The verdict on 28 blocks with these gains; the margin of the spec is 0.02."""
    rng = np.random.default_rng(1)
    blocks = [
        {
            "champion_loss": 0.3 + whole + rng.normal(0.0, 0.01), "challenger_loss": 0.3,
            "segments": {"plan=a": [0.5 + inside + rng.normal(0.0, 0.02), 0.5]} if at < n_inside else {},
        }
        for at in range(28)
    ]  # fmt: skip
    args: dict[str, JsonValue] = {"fit_until": CHANGE.isoformat(), "segment": "plan=a", "min_gain": min_gain}
    return judge_pairs(SPEC, args, {"blocks": blocks})


@pytest.mark.parametrize(
    ("inside", "whole", "verdict"),
    [
        pytest.param(0.2, 0.0, "win", id="better-inside-and-the-same-on-the-whole"),
        pytest.param(0.2, -0.01, "win", id="worse-on-the-whole-within-the-margin"),
        pytest.param(0.2, -0.05, "lose", id="better-inside-at-the-cost-of-the-whole"),
        pytest.param(0.0, 0.2, "lose", id="better-on-the-whole-only"),
    ],
)
def test_a_segment_is_won_inside_it_and_not_lost_outside(inside: float, whole: float, verdict: str) -> None:
    paired = of_segment(inside=inside, whole=whole)

    assert paired["verdict"] == verdict
    assert paired["segment"] == "plan=a"
    assert paired["whole_holds"] == (whole > -0.02)


def test_too_few_blocks_of_a_segment_settle_nothing() -> None:
    paired = of_segment(inside=0.2, whole=0.0, n_inside=5)

    assert (paired["verdict"], paired["n_blocks"]) == ("no_verdict", 5)
    assert paired["open_because"]
