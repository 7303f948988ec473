"""The loop over a recorded history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from evals.backtest.live import Answers, Lived, Wish, default_history, history_needed, live, rollout_to_live
from evals.backtest.recording import record
from evals.world.platform import example_spec
from evals.world.truth import Drift
from evals.world.world import midnight
from policies.engine import SHIPPED
from state import log, store
from state.errors import InputError
from state.rows import ApprovalRow, IncidentRow
from state.spec import Rollout
from tests.evals.backtest.history_files import QUICK, START, History, history, no_progress

N_BEFORE = 22
FIRST_LIVE = START + timedelta(days=N_BEFORE)


def lived(given: History, folder: Path, *, answers: Answers = "none", n_days: int | None = None) -> Lived:
    predictions, labels = given.write(folder / "files")
    recording = record(given.spec, predictions, labels, folder / "history", progress=no_progress)
    (folder / "run").mkdir()
    wish = Wish(history_days=N_BEFORE, n_days=n_days, answers=answers, policy_dir=SHIPPED)
    return live(recording, folder / "run", wish, told=no_progress)


def said(run: Lived, folder: Path, until: date) -> list[str]:
    """Every record of the decision log up to the evening of `until`, without the place where it was written."""
    end = datetime(until.year, until.month, until.day, tzinfo=run.world.clock.now().tzinfo) + timedelta(days=1)
    with run.crew.db.snapshot() as conn:
        entries = log.read(conn, model=run.recording.spec.model)
    return [e.decision.model_dump_json().replace(str(folder), "") for e in entries if e.decision.at <= end]


def incidents(run: Lived) -> list[IncidentRow]:
    with run.crew.db.snapshot() as conn:
        return store.select(conn, IncidentRow, model=run.recording.spec.model)


def effects(run: Lived) -> set[str]:
    """What was done to the world after the start."""
    return {effect.method for effect in run.world.effects if effect.at[:10] > FIRST_LIVE.isoformat()}


@pytest.fixture(scope="module")
def changing() -> History:
    """A concept that turns on the eighth live day, a unit fault before it, labels that are late and restated."""
    return history(
        Drift(kind="concept", start=(FIRST_LIVE + timedelta(days=7)).isoformat(), magnitude=1.0),
        Drift(
            kind="unit", start=(FIRST_LIVE + timedelta(days=3)).isoformat(), magnitude=1000.0, features=("spend",),
            until=(FIRST_LIVE + timedelta(days=5)).isoformat(),
        ),
        n_days=49, n_rows=150, late_ratio=0.05, restated_ratio=0.05, gates=[],
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(changing: History, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lived, Path]]:
    folder = tmp_path_factory.mktemp("whole")
    run = lived(changing, folder)
    yield run, folder
    run.close()


def test_a_fault_is_quarantined_and_a_change_of_the_world_is_answered_by_a_promotion(
    whole: tuple[Lived, Path],
) -> None:
    run, _ = whole

    causes = {row.cause for row in incidents(run)}
    assert {"data_fault", "concept_drift"} <= causes
    first, last = FIRST_LIVE + timedelta(days=3), FIRST_LIVE + timedelta(days=4)
    quarantined = run.crew.platform.outcomes.quarantined(run.recording.spec.model)
    assert {first.isoformat(), last.isoformat()} <= set(quarantined)
    assert run.world.model(run.recording.spec.model).aliases["champion"] != "1"
    assert run.pipelines.n_fits > 0
    assert run.stuck_days == []


@pytest.mark.parametrize("n_live", [5, 20])
def test_what_came_after_a_day_changes_no_decision_up_to_it(
    changing: History, whole: tuple[Lived, Path], tmp_path: Path, n_live: int
) -> None:
    run, folder = whole
    day = FIRST_LIVE + timedelta(days=n_live - 1)
    cut = changing.until(day)
    assert cut.predictions.height < changing.predictions.height

    alone = lived(cut, tmp_path)

    assert alone.last_day == day
    known = said(alone, tmp_path, day)
    assert len(known) > 20
    assert known == said(run, folder, day)
    alone.close()


def test_a_healthy_model_is_left_alone(tmp_path: Path) -> None:
    run = lived(history(n_days=37, seed=5), tmp_path)

    assert incidents(run) == []
    assert effects(run) <= {"pipelines.submit"}
    assert run.world.model(run.recording.spec.model).aliases["champion"] == "1"
    run.close()


def test_scores_alone_are_watched_and_nothing_is_trained(changing: History, tmp_path: Path) -> None:
    only = changing.predictions.select("request_id", "event_time", "customer", "score")
    run = lived(replace(changing, predictions=only), tmp_path, n_days=13)

    assert not run.recording.can_train
    assert run.pipelines.n_fits == 0
    assert any("scores and no features" in note for note in run.notes)
    assert "loss_alarm" in {row.signal for row in incidents(run)}
    assert effects(run).isdisjoint({"registry.register", "mesh.set_weights"})
    run.close()


@pytest.mark.parametrize(("answers", "status"), [("none", "pending"), ("approve", "used")])
def test_questions_are_answered_as_asked_for(tmp_path: Path, answers: Answers, status: str) -> None:
    fault = Drift(
        kind="unit", start=(FIRST_LIVE + timedelta(days=2)).isoformat(), magnitude=1000.0, features=("spend",),
        until=(FIRST_LIVE + timedelta(days=3)).isoformat(),
    )  # fmt: skip
    given = history(fault, n_days=N_BEFORE + 6, n_rows=80, autonomy={"quarantine_data": "approve"})
    run = lived(given, tmp_path, answers=answers)

    with run.crew.db.snapshot() as conn:
        [question] = [row for row in store.select(conn, ApprovalRow) if row.action == "quarantine_data"]
    assert question.status == status
    assert ("outcomes.quarantine" in effects(run)) is (answers == "approve")
    if question.answered_at is not None:
        assert question.answered_at - question.asked_at == timedelta(days=1)
    run.close()


def test_a_recipe_makes_the_first_champion_where_no_score_was_recorded(tmp_path: Path) -> None:
    run = lived(history(n_days=N_BEFORE + 2, scored_from=None), tmp_path)

    [version] = run.world.model(run.recording.spec.model).versions
    day = run.world.served(run.recording.spec.model, FIRST_LIVE.isoformat())
    assert version.version == "1"
    assert day is not None
    assert day.predictions["score"].is_between(0, 1).all()
    assert day.predictions["score"].n_unique() > 100
    run.close()


def test_the_gates_of_a_first_champion_are_waived_and_told(tmp_path: Path) -> None:
    gate = {"metric": "roc_auc", "op": ">=", "value": 0.99}
    run = lived(history(n_days=N_BEFORE + 2, scored_from=None, gates=[gate]), tmp_path)

    assert run.world.model(run.recording.spec.model).aliases["champion"] == "1"
    assert any("roc_auc is 0." in note and "has to be >= 0.99" in note for note in run.notes)
    run.close()


def test_a_start_that_allows_no_champion_ends_with_its_reason(tmp_path: Path) -> None:
    training = {**QUICK["training"], "holdout": "P40D"}
    with pytest.raises(InputError, match=r"no first champion.*a holdout of 40 days"):
        lived(history(n_days=N_BEFORE + 2, scored_from=None, training=training), tmp_path)


def test_a_start_without_a_label_says_so(tmp_path: Path) -> None:
    given = history(n_days=N_BEFORE + 2)
    late = given.labels.filter(pl.col("available_at") > midnight(FIRST_LIVE))
    with pytest.raises(InputError, match=r"no first champion.*no labelled row before"):
        lived(replace(given, labels=late), tmp_path)


def test_a_history_that_is_all_start_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"span 20 days.*22 days are needed") as refused:
        lived(history(n_days=20), tmp_path)
    assert "--history" in refused.value.remedy


def test_more_days_than_a_calendar_holds_are_a_wish_like_another(changing: History, tmp_path: Path) -> None:
    predictions, labels = changing.until(FIRST_LIVE + timedelta(days=1)).write(tmp_path / "files")
    recording = record(changing.spec, predictions, labels, tmp_path / "history", progress=no_progress)

    with pytest.raises(InputError, match="no live day is left"):
        live(recording, tmp_path, Wish(history_days=10**9, policy_dir=SHIPPED), told=no_progress)
    (tmp_path / "run").mkdir()
    run = live(
        recording, tmp_path / "run", Wish(history_days=N_BEFORE, n_days=10**12, policy_dir=SHIPPED), told=no_progress
    )
    assert run.last_day == recording.last_day
    run.close()


def test_the_start_is_counted_from_the_first_day_and_covers_holdout_and_delay() -> None:
    short, long = example_spec(label_delay_days=2), example_spec(label_delay_days=30)

    assert default_history(short) == 42 + 14 + 2
    assert default_history(long) == 42 + 14 + 30


def test_the_start_of_a_sparse_history_waits_until_enough_rows_are_labelled(tmp_path: Path) -> None:
    sparse = history(n_days=90, n_rows=3, training={**QUICK["training"], "holdout": "P5D"})
    recording = record(sparse.spec, *sparse.write(tmp_path / "files"), tmp_path / "history", progress=no_progress)

    needed = history_needed(recording)

    assert needed > default_history(sparse.spec)
    start = midnight(START + timedelta(days=needed))
    assert sparse.labels.filter(pl.col("available_at") <= start).height >= 200
    assert sparse.labels.filter(pl.col("available_at") <= start - timedelta(days=1)).height < 200


@pytest.mark.parametrize(
    ("per_day", "steps", "deadline"),
    [
        pytest.param(100.0, [5, 25], "P7D", id="enough"),
        pytest.param(24.0, [36], "P7D", id="a-larger-step"),
        pytest.param(2.0, [50], "P60D", id="a-later-deadline"),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_rollout_that_no_candidate_can_come_through_is_mended_where_it_is_a_default_and_always_told(
    per_day: float, steps: list[int], deadline: str, declared: bool
) -> None:
    written = {"steps": [5, 25], "deadline": "P7D"} if declared else {"minimum_requests": 30}
    spec = example_spec(label_delay_days=2, **{**QUICK, "rollout": written})

    lived, said = rollout_to_live(spec, per_day=per_day)

    changed = steps != [5, 25]
    assert bool(said) == changed
    assert f"steps: {steps}" in said or not changed
    assert f"deadline: {deadline}" in said or deadline == "P7D"
    assert ("was lived with" in said) == (changed and not declared)
    mended = Rollout.model_validate({"steps": steps, "deadline": deadline})
    kept = mended if changed and not declared else spec.rollout
    assert (lived.rollout.steps, lived.rollout.deadline) == (kept.steps, kept.deadline)
