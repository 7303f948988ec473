"""The flights study: policies that cover the year without a gap or a look ahead, and a report of what was found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from console.specs import load_spec
from examples.flights import study
from examples.flights.study_report import write_report
from examples.flights.study_results import ArmsMonth, Backtest, Detector, DriftLook, Policy, Quality, Results
from examples.flights.year import END, LIVE, Segment, Year

SPEC = load_spec(Path(__file__).resolve().parents[2] / "examples/flights/flights.yaml").spec
DAY = timedelta(days=1)


class ScriptedYear:
    """Daily losses by formula: a model is better the newer its cut, from `better_from` on."""

    def __init__(self, better_from: datetime) -> None:
        self.spec = SPEC
        self._better_from = better_from

    def fit(self, cuts: object) -> None:
        pass

    def losses(self, cut: datetime, start: datetime, end: datetime) -> dict[str, float]:
        assert start >= cut
        found: dict[str, float] = {}
        for n in range((end - start) // DAY):
            day = start + n * DAY
            stale = (day - cut) / DAY if day >= self._better_from else 0.0
            found[day.date().isoformat()] = 0.3 + 0.0005 * stale + 0.001 * (day.day % 3)
        return found


def year(better_from: datetime = LIVE) -> Year:
    return cast(Year, ScriptedYear(better_from))


def assert_covers(segments: list[Segment]) -> None:
    assert segments[0].start == LIVE
    assert segments[-1].end == END
    for before, after in pairwise(segments):
        assert before.end == after.start
    assert all(segment.champion <= segment.start for segment in segments)


def test_weekly_retraining_covers_the_year_with_labels_known_at_the_time() -> None:
    segments = study.retrain_weekly(year())
    assert_covers(segments)
    late = [segment for segment in segments if segment.champion > LIVE]
    assert len(late) == 38
    assert all(segment.champion == segment.start - timedelta(days=7) for segment in late)


@pytest.mark.parametrize("rollout", [timedelta(0), timedelta(days=33)])
def test_the_rule_covers_the_year_and_adopts_only_after_a_win(rollout: timedelta) -> None:
    ruled = study.backtest_then_refit(year(datetime(2013, 7, 1, tzinfo=UTC)), rollout=rollout)
    assert_covers(ruled.segments)
    wins = [test.now for test in ruled.backtests if test.verdict == "win"]
    assert wins == [adoption[0] for adoption in ruled.adoptions]
    assert wins and wins[0] > datetime(2013, 7, 8, tzinfo=UTC)
    if rollout:
        shares = [s.percent for s in ruled.segments if s.challenger is not None][:4]
        assert shares == [5, 25, 50, 100]


def test_the_rule_never_adopts_where_newer_is_no_better() -> None:
    ruled = study.backtest_then_refit(year(END), rollout=timedelta(0))
    assert ruled.adoptions == []
    assert [segment.champion for segment in ruled.segments] == [LIVE]


def results(**changes: Any) -> Results:
    policy = Policy(auc=dict.fromkeys(range(4, 13), 0.7), daily_loss=0.3, share=0.5, promotions=2)
    test = Backtest(
        now=LIVE, start=LIVE, end=LIVE + 9 * DAY, n_blocks=9, difference=0.01, se=0.002, z=5.0, verdict="win"
    )
    look = DriftLook(
        reference="odd days", current="even days", level="none", alpha=0.05, classic=11, n_features=16, block_days=1,
        moved={"temp (distribution)": 0.2},
    )  # fmt: skip
    detector = Detector(
        reference=0.3, null=0.31, sd=0.03, n_blocks=60, threshold=9.68, path={"2013-04-01": 1.0}, alarm=None
    )
    quality = Quality(n_days=275, hard={"2013-05-13": ["temp: unit_step (C | F)"]}, warned={"2013-06-01": ["x"]})
    arms = ArmsMonth(
        month=6, n_rows=100, n_days=30, gain=0.01, auc_gain=0.02, se_paired=0.002, gain_two_arms=0.01,
        se_two_arms=0.005, days_won=0.7, start=LIVE, verdict="undecided",
    )  # fmt: skip
    base: dict[str, Any] = {
        "policies": dict.fromkeys(("frozen", "always", "rule", "rolled_out"), policy), "backtests": [test],
        "rolled_out": [test], "odd_even": look, "drift": [look], "detector": detector, "quality": quality,
        "quality_fault": quality, "arms": [arms], "adoptions": [arms], "n_rows": 10, "n_labelled": 9,
    }  # fmt: skip
    return Results(**{**base, **changes})


def test_the_report_tells_the_numbers_and_repeats_byte_for_byte(tmp_path: Path) -> None:
    write_report(results(), SPEC, tmp_path / "a")
    write_report(results(), SPEC, tmp_path / "b")
    page = (tmp_path / "a/flights.md").read_text()
    assert "The cadence backtest wins on 2013-04-01." in page
    assert "the detector stays silent all year" in page
    assert "| 2013-05-13 | temp: unit_step (C / F) |" in page
    assert "| odd days | even days | none | temp (distribution) 0.20 | 11 of 16 |" in page
    assert (tmp_path / "a/flights.svg").read_bytes() == (tmp_path / "b/flights.svg").read_bytes()
    assert page == (tmp_path / "b/flights.md").read_text()


def test_the_report_says_so_where_an_alarm_comes_and_nothing_wins(tmp_path: Path) -> None:
    lost = SimpleNamespace(**{**vars_of(results().backtests[0]), "verdict": "lose"})
    alarmed = Detector(
        reference=0.3, null=0.31, sd=0.03, n_blocks=60, threshold=9.68, path={"2013-07-04": 11.0}, alarm="2013-07-04"
    )
    write_report(results(backtests=[lost], detector=alarmed), SPEC, tmp_path)
    page = (tmp_path / "flights.md").read_text()
    assert "wins on no day" in page
    assert "it comes on 2013-07-04" in page


def vars_of(test: Backtest) -> dict[str, Any]:
    return {name: getattr(test, name) for name in Backtest.__slots__}
