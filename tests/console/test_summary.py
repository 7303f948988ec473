"""The summary of a replay, against figures computed from the raw records."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from console.summary import Summary, render_text, summarise
from state.errors import InputError
from state.rows import IncidentRow
from tests.console.replayed import DAY, END, FAULTY, HOSTILE, Replayed, replayed, tell_story
from tests.tools.control_rows import DELAY, START
from tools.packaging import PackageScorer

LABELLED_UNTIL = END - DELAY


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replayed, pl.DataFrame, Summary]]:
    with replayed(tmp_path_factory.mktemp("story")) as it:
        records = tell_story(it)
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform, wall_seconds=12.5)
        yield it, records, summary


def stretch(records: pl.DataFrame, start: datetime, end: datetime, version: str | None = None) -> pl.DataFrame:
    rows = records.filter(
        pl.col("event_time") >= start, pl.col("event_time") < end, pl.col("event_time") <= LABELLED_UNTIL
    )
    return rows if version is None else rows.filter(pl.col("version") == version)


def auc(rows: pl.DataFrame, score: np.ndarray | None = None) -> float:
    return float(roc_auc_score(rows["label"].to_numpy(), rows["score"].to_numpy() if score is None else score))


def test_periods_are_weeks_measured_on_rows_whose_labels_are_known(
    story: tuple[Replayed, pl.DataFrame, Summary],
) -> None:
    it, records, summary = story
    never = PackageScorer(it.registry.package("parcels", "1"))

    assert [period.name for period in summary.periods] == ["2026-03-02", "2026-03-09", "2026-03-16", "2026-03-23"]
    for period in summary.periods:
        rows = stretch(records, period.start, period.end)
        assert period.n_rows == rows.height
        assert period.served == pytest.approx(auc(rows))
        assert period.never == pytest.approx(auc(rows, never.score(rows)))
    assert summary.periods[0].always == summary.periods[0].never
    last = summary.periods[-1]
    assert last.always is not None
    assert last.never is not None
    assert last.always != last.never


def test_a_long_window_is_told_by_calendar_month(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        summary = summarise(it.workspace, "parcels", start=START, end=START + timedelta(days=70), platform=it.platform)

    assert [(p.name, p.start.day, p.end.day) for p in summary.periods] == [
        ("2026-03", 2, 1), ("2026-04", 1, 1), ("2026-05", 1, 11)
    ]  # fmt: skip


def test_versions_are_told_from_their_first_live_request_with_the_metric_before_during_and_after(
    story: tuple[Replayed, pl.DataFrame, Summary],
) -> None:
    _, records, summary = story
    one, two, three = summary.versions

    assert [(v.version, v.role, v.served_from, v.promoted_at, v.served_until) for v in (one, two, three)] == [
        ("1", "former champion", START, START, START + 15 * DAY),
        ("2", "champion", START + 12 * DAY, START + 15 * DAY, None),
        ("3", "rolled back", START + 20 * DAY, None, START + 21 * DAY),
    ]
    assert one.before.n_rows == 0
    assert one.during.served == pytest.approx(auc(stretch(records, START, START + 15 * DAY, "1")))
    assert one.after.served == pytest.approx(auc(stretch(records, START + 15 * DAY, END)))
    # 14 days of backtest before its first request reach behind the window.
    assert two.before.served == pytest.approx(auc(stretch(records, START, START + 12 * DAY)))
    assert two.during.served == pytest.approx(auc(stretch(records, START + 12 * DAY, END, "2")))
    assert two.after.n_rows == 0
    assert three.during.n_rows == 20
    assert three.n_answered == 20
    # 'linear' was fitted on the history whose labels were known at the start.
    assert one.trained_until is not None
    assert datetime.fromisoformat(one.trained_until) <= START - DELAY


def test_the_overall_figures_are_means_over_blocks_and_give_the_share_of_the_gain_that_was_kept(
    story: tuple[Replayed, pl.DataFrame, Summary],
) -> None:
    _, records, summary = story
    days = [stretch(records, START + n * DAY, START + (n + 1) * DAY) for n in range(28)]
    by_day = [auc(rows) for rows in days if rows.height and rows["label"].n_unique() == 2]
    overall = summary.overall

    assert overall.served == pytest.approx(np.mean(by_day))
    assert overall.served is not None
    assert overall.never is not None
    assert overall.always is not None
    gain = (overall.served - overall.never) / (overall.always - overall.never)
    assert summary.gain_kept == pytest.approx(gain)
    assert len(summary.blocks) == 25


def test_a_challenger_that_won_by_too_little_says_so(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.run("c1", "cadence", "keep", START + 7 * DAY, outcome="lose")
        it.backtest(START + 7 * DAY, "c1", z=4.1, verdict="lose", evidence="e1", needed_difference=0.05)
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    (told,) = summary.challengers
    assert told.why == "better by less than the 0.0500 that is worth a rollout: the champion stays"


def test_challengers_say_what_became_of_them(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story

    told = [(c.verdict, c.z, c.adopted, c.near_miss, c.candidate, c.why) for c in summary.challengers]
    assert told == [
        ("lose", 1.61, False, True, None, "z 1.61 is below the 2.8 that adopts: the champion stays"),
        ("win", 4.2, True, False, "2", "promoted as version 2 on 2026-03-17"),
        ("lose", -2.4, False, False, "3", "not promoted: errors of version 3 rose"),
        ("no_verdict", None, False, False, None, "Paired comparison: z None, no_verdict."),
    ]
    # Records that do not name what their number of blocks needed are held against the spec's own bound.
    assert [c.needed_z for c in summary.challengers] == [2.8, 2.8, 2.8, None]
    assert [c.asked_by for c in summary.challengers] == ["cadence", "cadence", "goal", "cadence"]
    assert summary.challengers[0].mean_difference == pytest.approx(0.0161)


@pytest.mark.parametrize(
    ("losers", "near"),
    [
        pytest.param([1.4, 1.39], [True, False], id="half-of-what-wins-is-near"),
        pytest.param([0.3, 0.9, -1.0], [False, True, False], id="else-the-best"),
        pytest.param([-0.3, -0.2], [False, False], id="a-worse-challenger-came-nowhere-near"),
    ],
)
def test_near_misses(losers: list[float], near: list[bool], tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        for n, z in enumerate(losers):
            it.run(f"c{n}", "cadence", "keep", START)
            it.backtest(START + n * DAY, f"c{n}", z=z, verdict="lose", evidence=f"e{n}")
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert [c.near_miss for c in summary.challengers] == near


def test_what_was_needed_is_told_with_every_z(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.run("c1", "cadence", "keep", START)
        it.backtest(START, "c1", z=3.0, verdict="lose", evidence="e1", needed_z=3.294)
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    (told,) = summary.challengers
    assert (told.z, told.needed_z, told.near_miss) == (3.0, 3.294, True)
    assert told.why == "z 3.00 is below the 3.29 that adopts: the champion stays"


def test_a_win_that_is_refused_or_still_under_way_says_so(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.run(
            "i1", "incident", "one", START, outcome="not_remediable", facts={"story": "The candidate fails its gates."}
        )
        it.backtest(START, "i1", z=3.0, verdict="win", evidence="e1")
        it.run("i2", "incident", "two", START, status="waiting", waits_for="the dwell of the canary step")
        it.backtest(START + DAY, "i2", z=3.1, verdict="win", evidence="e2")
        it.run("c3", "cadence", "keep", START)
        it.backtest(START + 2 * DAY, "c3", z=3.2, verdict="win", evidence="e3")
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert [(c.adopted, c.why) for c in summary.challengers] == [
        (False, "won, not promoted: The candidate fails its gates."),
        (False, "won, under way: the dwell of the canary step"),
        (False, "won, nothing followed within the window"),
    ]


def test_incidents_faults_approvals_and_denials_are_told(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story

    assert [(i.id, i.resolution, [a.kind for a in i.actions]) for i in summary.incidents] == [
        ("broken", "quarantined", ["quarantine_data"]),
        ("aged", "recovered", ["shift_traffic", "run_ab_test", "promote"]),
    ]
    assert [(f.day, f.n_rows, f.quarantined, f.findings) for f in summary.faults] == [
        (FAULTY, 40, True, ["weight in pounds"])
    ]
    assert [(a.action, a.status, a.answered_by) for a in summary.approvals] == [("shift_traffic", "used", "ada")]
    assert summary.denials == {"freeze": 2, "budget": 1}


def test_traffic_counts_answers_errors_and_flags(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, records, summary = story
    traffic = summary.traffic
    n_heavy = records.filter(pl.col("weight") > 2).height

    assert traffic.n_answered == records.height == 28 * 40
    # Version 1's counter as last seen at the promotion, version 2's as it stands now.
    assert traffic.n_errors == 3 + 4
    assert traffic.n_flagged == n_heavy > 0
    assert traffic.flags == {"out_of_range:weight": n_heavy}
    assert [b.n_by_version for b in traffic.blocks[11:16:2]] == [{"1": 40}, {"1": 20, "2": 20}, {"2": 40}]


def test_the_gravest_test_of_each_feature_stands_for_it(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story
    [window] = summary.drift

    assert {(f.name, f.kind, f.level) for f in window.features} == {
        ("weight", "distribution", "major"), ("lane", "distribution", "none")
    }  # fmt: skip


def test_the_log_is_verified_and_the_timeline_keeps_what_matters(
    story: tuple[Replayed, pl.DataFrame, Summary],
) -> None:
    it, _, summary = story

    assert summary.log.ok, summary.log.problems
    assert summary.log.n_proven == summary.log.n_records > 40
    assert Path(summary.log.path) == it.workspace.home / "steady.db"
    told = [entry.what for entry in summary.timeline]
    assert told.count("promote") == 2
    assert {"incident opened", "backtest win", "denied", "rollback", "quarantine data", "major drift"} <= set(told)
    assert not any("allow" in entry.text for entry in summary.timeline)
    assert [entry.index for entry in summary.timeline] == sorted(entry.index for entry in summary.timeline)


def test_an_edited_log_is_reported(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.backtest(START, "c", z=1.0, verdict="lose", evidence="e")
        with it.workspace.db.transaction() as conn:
            conn.exec_driver_sql("update decisions set leaf = replace(leaf, 'lose', 'wins') where idx = 1")
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert not summary.log.ok
    assert any("record 1" in problem for problem in summary.log.problems)


def test_the_summary_is_json_and_comes_back_as_it_was(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story

    text = json.dumps(summary.model_dump(mode="json"), allow_nan=False)

    assert Summary.model_validate_json(text) == summary
    assert json.loads(text)["wall_seconds"] == 12.5


def test_the_controls_say_how_they_were_made(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story
    n_history = 20 * 40

    assert summary.controls.first_version == "1"
    # Day 8 was found faulty on day 9: it was due on day 11, so no refit may hold its 40 rows.
    assert [r.n_rows for r in summary.controls.refits] == [
        n_history + 4 * 40, n_history + 11 * 40 - 40, n_history + 18 * 40 - 40
    ]  # fmt: skip
    assert any("cadence of 7 days" in note and "3 refits" in note for note in summary.notes)


def test_without_labels_nothing_is_measured_and_nothing_fails(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.import_rows()
        it.make_packages()
        it.act("promote", START, subject="keep", run="first", args={"version": "1", "previous": None})
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert summary.blocks == []
    assert (summary.overall.served, summary.gain_kept) == (None, None)
    assert all(period.n_rows == 0 and period.served is None for period in summary.periods)
    assert any("nothing to measure" in note for note in summary.notes)
    assert "not measured" in printed(summary)


def test_a_control_that_cannot_be_made_does_not_cost_the_summary(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.act("promote", START, subject="keep", run="first", args={"version": "9", "previous": None})
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert "no version 9" in summary.controls.error
    assert [v.version for v in summary.versions] == ["9"]
    assert any("no version 9" in note for note in summary.notes)


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with replayed(tmp_path) as it, pytest.raises(InputError, match="letters"):
        summarise(it.workspace, "letters", start=START, end=END, platform=it.platform)


def test_a_metric_that_is_better_when_lower_turns_the_gain_around(tmp_path: Path) -> None:
    with replayed(tmp_path, objective={"metric": "log_loss", "op": "<=", "value": 0.7}) as it:
        tell_story(it)
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    overall = summary.overall
    assert summary.lower_is_better
    assert overall.served is not None
    assert overall.never is not None
    assert overall.always is not None
    assert overall.served < overall.never
    assert summary.gain_kept == pytest.approx((overall.never - overall.served) / (overall.never - overall.always))
    last = summary.periods[-1]
    assert last.served is not None
    assert last.never is not None
    assert last.served < last.never
    assert f"+{last.never - last.served:.4f}" in printed(summary)


def test_an_open_incident_is_told_as_open_and_one_of_another_time_is_not_told(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        for name, opened, closed in (
            ("open", START + DAY, None), ("before", START - 9 * DAY, START - DAY), ("later", END + DAY, None)
        ):  # fmt: skip
            it.put(
                IncidentRow(
                    id=name,
                    model="parcels",
                    status="closed" if closed else "open",
                    cause="concept_drift",
                    signal="loss_alarm",
                    opened_at=opened,
                    closed_at=closed,
                    title=name,
                )
            )
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert [(i.id, i.closed_at) for i in summary.incidents] == [("open", None)]


def test_a_baking_champion_that_is_rolled_back_hands_over_to_the_one_before(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.act("promote", START, subject="keep", run="a", args={"version": "1", "previous": None})
        it.act("shift_traffic", START + DAY, subject="i", run="b", args={"version": "2", "weights": {}})
        it.act("promote", START + 2 * DAY, subject="i", run="b", args={"version": "2", "previous": "1"})
        it.act("rollback", START + 3 * DAY, subject="i", run="b", args={"version": "2", "to": "1"})
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert [(v.version, v.role, v.served_from, v.served_until) for v in summary.versions] == [
        ("1", "former champion", START, START + 2 * DAY),
        ("2", "rolled back", START + DAY, START + 3 * DAY),
        ("1", "champion", START + 3 * DAY, None),
    ]


def test_a_share_that_was_given_by_hand_and_put_back_is_no_service(tmp_path: Path) -> None:
    with replayed(tmp_path) as it:
        it.act("promote", START, subject="keep", run="a", args={"version": "1", "previous": None})
        it.act("shift_traffic", START + DAY, subject="keep", run="b",
               args={"version": "9", "weights": {"1": 100, "9": 0}, "corrects": "77"})  # fmt: skip
        summary = summarise(it.workspace, "parcels", start=START, end=END, platform=it.platform)

    assert [(v.version, v.role, v.served_until) for v in summary.versions] == [("1", "champion", None)]


def test_what_people_wrote_is_printed_as_they_wrote_it(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story
    version = summary.versions[0].model_copy(update={"version": "[bold]7[/bold]"})

    text = printed(summary.model_copy(update={"versions": [version], "notes": [f"[red]{HOSTILE}"]}))

    assert "[bold]7[/bold]" in text
    assert f"[red]{HOSTILE}" in text


def test_the_text_holds_the_figures(story: tuple[Replayed, pl.DataFrame, Summary]) -> None:
    _, _, summary = story
    text = printed(summary)

    assert f"{summary.overall.served:.4f} as served" in text
    assert "near miss" in text
    assert "Denials by rule: freeze 2, budget 1." in text
    assert f"Quarantined days: {FAULTY}." in text
    assert "1120 answered, 7 errors" in text
    assert "verified" in text


def printed(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    for part in render_text(summary):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
