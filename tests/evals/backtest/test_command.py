"""`steady backtest` from files to its result, its page and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from console.backtest import BacktestRequest, backtest
from console.backtest_page import render_page
from console.backtest_story import condensed
from console.backtest_text import headline, way_rows
from console.backtest_types import BacktestResult, Moment
from console.cli.app import app
from evals.world.truth import Drift
from state.errors import InputError
from tests.evals.backtest.history_files import START, History, history
from tests.evals.backtest.test_live import FIRST_LIVE, N_BEFORE


def files(given: History, folder: Path, *, n_days: int | None = None) -> BacktestRequest:
    predictions, labels = given.write(folder)
    spec = folder / "churn.yaml"
    spec.write_text(yaml.safe_dump(given.spec.model_dump(mode="json")))
    return BacktestRequest(spec=spec, predictions=predictions, labels=labels, history_days=N_BEFORE, n_days=n_days)


@pytest.fixture(scope="module")
def turned() -> History:
    """The concept turns on the second live day, and labels come and are restated late."""
    turn = Drift(kind="concept", start=str(FIRST_LIVE.replace(day=FIRST_LIVE.day + 1)), magnitude=1.0)
    return history(turn, n_days=N_BEFORE + 25, n_rows=140, late_ratio=0.05, restated_ratio=0.05, gates=[])


@pytest.fixture(scope="module")
def result(turned: History, tmp_path_factory: pytest.TempPathFactory) -> BacktestResult:
    return backtest(files(turned, tmp_path_factory.mktemp("files")))


def test_the_result_tells_what_was_done_and_what_it_was_worth(result: BacktestResult, turned: History) -> None:
    assert result.promotions == result.cost.served_changes == 1
    assert result.trainings >= 1
    assert result.data.n_restated > 0
    assert result.data.n_late > 0
    assert result.n_rows == turned.predictions.height
    assert result.first_live_day == FIRST_LIVE.isoformat()
    assert [row.cause for row in result.incidents][:1] == ["concept_drift"]
    metric = result.metric
    assert metric.served is not None and metric.never is not None
    assert metric.always is not None and metric.classic is not None
    assert metric.served > metric.never
    assert metric.always > metric.never
    assert result.harm.served is not None and result.harm.served.net < 0
    assert result.cost.always_refits == 2
    assert 0 < result.cost.classic_refits <= result.cost.classic_looks == 3
    assert [m.what for m in result.timeline if m.what.startswith("promoted")] == [
        "promoted: version 1", "promoted: version 2",
    ]  # fmt: skip


def test_the_same_files_give_the_same_digest_and_others_another(
    result: BacktestResult, turned: History, tmp_path: Path
) -> None:
    again = backtest(files(turned, tmp_path / "again", n_days=3))
    assert again.digest == backtest(files(turned, tmp_path / "elsewhere", n_days=3)).digest
    assert again.digest != result.digest
    assert [m for m in result.timeline if m.day <= again.last_live_day] == again.timeline


def test_never_retraining_is_the_recorded_score_and_served_is_it_until_a_change(result: BacktestResult) -> None:
    first = [block for block in result.blocks if block.block <= result.incidents[0].opened]

    assert first
    assert all(block.served == block.never for block in first)
    assert any(block.served != block.never for block in result.blocks)


def test_the_page_stands_alone_and_tells_every_incident(result: BacktestResult) -> None:
    page = render_page(result)

    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 2
    for incident in result.incidents:
        assert incident.opened in page
    assert headline(result) in page


def test_a_history_that_allows_no_training_has_no_controls(turned: History, tmp_path: Path) -> None:
    only = turned.predictions.select("request_id", "event_time", "score")
    bare = History(spec=turned.spec, predictions=only, labels=turned.labels)

    found = backtest(files(bare, tmp_path, n_days=16))

    assert not found.trains
    [wanted] = [line for line in condensed(found.timeline) if line.moment.what == "would have: backtest recipe"]
    assert wanted.moment.why.startswith("nothing can be trained here")
    assert found.metric.always is None and found.metric.classic is None
    assert found.metric.served == found.metric.never
    assert [row[4] for row in way_rows(found)][2:] == ["nothing can be trained here"] * 2
    assert any("entity of its own" in note for note in found.notes)


def test_a_denial_is_told_in_the_words_of_policy(tmp_path: Path) -> None:
    turn = Drift(kind="concept", start=str(FIRST_LIVE), magnitude=1.0)
    given = history(turn, n_days=N_BEFORE + 14, n_rows=120, autonomy={"backtest_recipe": "observe"})

    found = backtest(files(given, tmp_path))

    [denied] = [line for line in condensed(found.timeline) if line.moment.what == "denied: backtest recipe"]
    assert "autonomy-watch-only" in denied.moment.why
    assert "lets the system observe" in denied.moment.why
    assert found.denied["autonomy-watch-only"] >= denied.times
    assert found.backtests == found.trainings == 0


def test_what_repeats_itself_is_told_on_each_day_and_read_once() -> None:
    def moment(day: int, what: str, why: str, about: str = "") -> Moment:
        return Moment(day=f"2026-03-{day:02}", what=what, why=why, about=about)

    told = [
        moment(2, "quarantined: 2026-03-02", "data fault"),
        moment(3, "quarantined: 2026-03-03", "data fault"),
        moment(3, "question: quarantine data?", "21 days", about="run"),
        moment(4, "quarantined: 2026-03-04", "data fault"),
        moment(9, "question: quarantine data?", "27 days", about="run"),
        moment(9, "quarantined: 2026-03-09", "data fault"),
        moment(9, "backtest: lost", "z 1.0"),
        moment(10, "backtest: lost", "z 2.0"),
    ]

    lines = condensed(told)

    assert [(line.moment.day, line.times, line.until) for line in lines] == [
        ("2026-03-02", 3, "2026-03-04"), ("2026-03-03", 2, "2026-03-09"), ("2026-03-09", 1, None),
        ("2026-03-09", 1, None), ("2026-03-10", 1, None),
    ]  # fmt: skip
    assert lines[1].moment.why == "27 days"
    assert told[2].why == "21 days" and "about" not in told[2].model_dump()


def called(*args: object) -> Any:
    return CliRunner().invoke(app, ["backtest", *map(str, args)], standalone_mode=False)


def test_the_command_prints_one_object_and_writes_its_page(turned: History, tmp_path: Path) -> None:
    request = files(turned, tmp_path)
    page = tmp_path / "page.html"

    answer = called(
        request.spec, "--predictions", request.predictions, "--labels", request.labels, "--history", N_BEFORE, "--days",
        2, "--json", "--html", page,
    )  # fmt: skip

    assert answer.exception is None
    document = json.loads(answer.stdout)
    assert document["model"] == "churn"
    assert document["last_live_day"] == str(FIRST_LIVE.replace(day=FIRST_LIVE.day + 1))
    assert {"incidents", "timeline", "actions", "questions", "quarantined", "metric", "harm", "cost", "digest"} <= set(
        document
    )
    assert START.isoformat() < document["first_live_day"]
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--predictions", "nowhere.parquet", "does not exist"),
        ("--labels", "nowhere.csv", "does not exist"),
        ("--answers", "perhaps", "--answers 'perhaps' is not known"),
        ("--html", "no/such/folder/page.html", "there is no folder"),
        ("--days", "0", "greater than or equal to 1"),
    ],
)
def test_the_command_refuses_bad_options(
    turned: History, tmp_path: Path, option: str, value: str, message: str
) -> None:
    request = files(turned, tmp_path)
    options = {"--predictions": request.predictions, "--labels": request.labels, option: value}

    answer = called(request.spec, *[part for pair in options.items() for part in pair])

    assert answer.exception is not None
    assert message in str(answer.exception)
    assert isinstance(answer.exception, InputError) or option == "--days"


def test_a_fault_of_the_spec_is_named_by_line_and_field(turned: History, tmp_path: Path) -> None:
    request = files(turned, tmp_path)
    request.spec.write_text(request.spec.read_text().replace("task: binary", "task: ternary"))

    answer = called(request.spec, "--predictions", request.predictions, "--labels", request.labels)

    assert isinstance(answer.exception, InputError)
    assert "task" in answer.exception.message
