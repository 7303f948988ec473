"""A change that began shortly before it was noticed: what a backtest can say about it, and what happens until it can."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evals.world.platform import example_spec
from orchestrator.change import change_began, later_change, onset_of
from orchestrator.signals import Signal
from orchestrator.triage import take_in
from state.decisions import Observed
from state.rows import IncidentRow, RunRow
from tests.orchestrator.conftest import Quick
from tests.orchestrator.support import QUICK, Stage, Truth, days, resumed, staged
from tools.drift.performance import Reference

WATCHED = {**QUICK["monitoring"], "backtest": days(14), "min_blocks": 5, "cadence": days(14)}
SPEC: dict[str, Any] = {**QUICK, "monitoring": WATCHED, "training": {**QUICK["training"], "window": None}}
TRUTH = Truth(rows_per_day=200, history_days=40)


def turned(stage: Stage, magnitude: float = 0.6, **more: Any) -> datetime:
    """Twenty quiet days, then the concept turns; lives on until the incident is open and returns when it turned."""
    stage.start()
    stage.days(20)
    at = stage.clock.now()
    stage.drift("concept", magnitude, **more)
    for _ in range(20):
        stage.days(1)
        if stage.incidents():
            return at
    raise AssertionError("nothing was noticed")


def backtests(stage: Stage) -> list[Observed]:
    return [d for d in stage.log() if isinstance(d, Observed) and d.topic == "backtest"]


def details(found: Observed) -> dict[str, Any]:
    """The figures of a paired comparison, and the args of its action under `args`."""
    return dict(found.details)


def on(at: object) -> datetime:
    return datetime.fromisoformat(str(at))


@pytest.fixture(scope="module")
def noticed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the moment at which the loss alarm came: some days after the turn, the first backtest lost."""
    folder = tmp_path_factory.mktemp("change")
    (folder / "live").mkdir()
    with staged(folder / "live", truth=TRUTH, **SPEC) as stage:
        turned(stage)
        stage.copy_to(folder / "noticed")
    return folder / "noticed"


@pytest.fixture
def stage(noticed: Path, tmp_path: Path) -> Iterator[Stage]:
    with resumed(noticed, tmp_path / "stage") as stage:
        yield stage


def test_a_loss_that_could_not_have_learned_from_the_change_waits_and_the_recipe_is_adopted_later(stage: Stage) -> None:
    (incident,) = stage.incidents()
    began = on(incident.body["change_from"])
    assert (incident.signal, incident.cause) == ("loss_alarm", "concept_drift")
    # The concept turned on the 20th live day, and it took a good week to notice.
    assert timedelta(days=6) <= incident.opened_at - began <= timedelta(days=12)
    first = backtests(stage)[-1]
    assert (first.verdict, first.incident_id) == ("no_verdict", incident.id)
    assert details(first)["z"] < details(first)["needed_z"]
    assert on(details(first)["args"]["fit_until"]) < began + days(5)
    assert "has not learned from 5 blocks of it" in first.summary
    (run,) = stage.rows(RunRow, subject_id=incident.id)
    assert (run.status, incident.status) == ("waiting", "open")
    assert on(run.facts["look_at"]) == began + days(5 + 10)
    waits = f"waits/{incident.id}"
    (told,) = [m for m in stage.world.state.messages if m.key == waits]
    assert "predictions have become worse" in told.title
    assert f"the next backtest comes on {began + days(15):%Y-%m-%d}" in told.text

    stage = stage.again()
    stage.days((on(run.facts["look_at"]) - stage.clock.now()).days + 1)

    second = backtests(stage)[-1]
    assert (second.verdict, second.at) == ("win", began + days(15))
    assert details(second)["n_blocks"] == 10
    assert details(second)["z"] >= details(second)["needed_z"] > 3.2
    assert on(details(second)["args"]["fit_until"]) == began + days(5)
    keys = {a.id for a in stage.verified() if a.kind == "backtest_recipe" and a.subject_id == incident.id}
    assert len(keys) == 2

    stage.days(10)
    (incident,) = stage.incidents()
    assert (incident.resolution, stage.champion()) == ("recovered", "2")
    ended = [d for d in stage.log() if d.kind == "incident_changed" and d.change == "closed"]
    assert [d.resolution for d in ended] == ["recovered"]
    stage.check_books()


def test_no_remedy_is_a_verdict_once_a_whole_backtest_has_learned_from_the_change(quick: Quick) -> None:
    with quick(monitoring={**WATCHED, "cadence": days(100)}, training=SPEC["training"], truth=TRUTH) as stage:
        stage.start()
        stage.days(20)
        stage.drift("signal_loss", 0.8)
        stage.days(6)
        (incident,) = stage.incidents()
        assert incident.status == "open"
        stage.days(16)

        incident = stage.incidents()[0]
        found = [d for d in backtests(stage) if d.incident_id == incident.id]
        assert [d.verdict for d in found[:-1]] == ["no_verdict"] * (len(found) - 1)
        assert (found[-1].verdict, incident.resolution) == ("lose", "not_remediable")
        assert found[-1].at == incident.closed_at == on(incident.body["change_from"]) + days(5 + 14)
        assert stage.kinds("train_candidates") == ["train_candidates"]
        stage.check_books()


def test_what_passes_by_itself_closes_as_recovered_and_a_relapse_is_news(quick: Quick) -> None:
    patient = {**WATCHED, "cadence": days(100), "min_blocks": 20}
    with quick(monitoring=patient, training=SPEC["training"], truth=TRUTH) as stage:
        stage.start()
        stage.days(20)
        until = (stage.clock.now() + days(10)).date().isoformat()
        stage.drift("concept", 0.6, until=until)
        stage.days(10)
        assert [i.status for i in stage.incidents()] == ["open"]
        stage.days(9)

        (incident,) = stage.incidents()
        assert (incident.status, incident.resolution) == ("closed", "recovered")
        assert stage.weights() == {"1": 100}
        assert stage.kinds("train_candidates") == ["train_candidates"]

        stage.drift("concept", 0.6)
        stage.days(12)
        assert [i.signal for i in stage.incidents()] == ["loss_alarm", "loss_alarm"]
        relapse = stage.incidents()[-1]
        assert relapse.status == "open"
        assert incident.closed_at is not None
        assert on(relapse.body["change_from"]) > incident.closed_at
        stage.check_books()


def test_an_incident_that_never_has_enough_blocks_says_so_in_the_end_and_looks_no_more_often_than_the_cadence(
    quick: Quick,
) -> None:
    # A backtest of four blocks where five are needed: no comparison ever has a verdict.
    watched = {**QUICK["monitoring"], "min_blocks": 5, "cadence": days(6)}
    kept = {"metric": "roc_auc", "op": ">=", "value": 0.5}
    with quick(monitoring=watched, objective=kept) as stage:
        stage.drift("concept", 0.6)
        stage.start()
        stage.days(40)

        incident = stage.incidents()[0]
        assert (incident.status, incident.resolution) == ("closed", "inconclusive")
        end = incident.opened_at + 2 * days(5 + 4)
        assert incident.closed_at is not None
        assert end <= incident.closed_at <= end + days(6)
        assert [m.id for m in stage.messages() if m.id.startswith("waits/")] == [f"waits/{incident.id}"]
        found = [d for d in backtests(stage) if d.incident_id == incident.id]
        assert {d.verdict for d in found} == {"no_verdict"}
        assert 2 <= len(found) <= 6
        assert stage.weights() == {"1": 100}
        assert [m for m in stage.messages() if "inconclusive" in m.title]
        assert stage.rows(IncidentRow, status="closed")[0].body["size"] is not None
        stage.check_books()


def test_a_win_on_the_cadence_is_a_win_for_the_incident_that_waits(stage: Stage) -> None:
    evidence = backtests(stage)[-1].evidence_ids[0]
    signal = Signal(
        name="challenger_better", text="the recipe beats the champion", size=4.0,
        details={"z": 4.0, "paired_z": 4.0, "paired_evidence": evidence}, evidence_ids=[evidence],
    )  # fmt: skip
    with stage.crew.db.transaction() as conn:
        take_in(stage.crew, conn, stage.spec, signal, None)  # type: ignore[arg-type]
    stage.settle()
    assert len(stage.incidents()) == 1
    assert stage.kinds("train_candidates") == ["train_candidates"] * 2


def test_a_cadence_backtest_without_a_verdict_comes_again_as_soon_as_it_can_have_one(quick: Quick) -> None:
    watched = {**WATCHED, "cadence": days(16)}
    with quick(monitoring=watched, training=SPEC["training"], truth=TRUTH) as stage:
        stage.start()
        began = stage.clock.now()
        stage.days(37)

        assert stage.incidents() == []
        told = [(d.verdict, (d.at - began).days) for d in backtests(stage)]
        # Five blocks that the champion has not seen and fourteen to compare on; then the whole cadence again.
        assert told == [("no_verdict", 16), ("lose", 19), ("lose", 35)]


def test_about_when_a_change_began() -> None:
    spec = example_spec(label_delay_days=3)
    opened = datetime.fromisoformat("2026-05-20T09:00:00+00:00")

    assert change_began(spec, "2026-05-11", opened) == on("2026-05-11T00:00:00+00:00")
    assert change_began(spec, "2026-05-11T06:00:00+00:00", opened) == on("2026-05-11T06:00:00+00:00")
    # Nothing known: the oldest of the seven newest labelled days.
    assert change_began(spec, None, opened) == on("2026-05-10T00:00:00+00:00")


def test_a_further_change_makes_the_incident_wait_longer_but_not_for_ever() -> None:
    spec = example_spec(label_delay_days=3)
    opened = datetime.fromisoformat("2026-05-20T00:00:00+00:00")
    incident = IncidentRow(
        id="i", model="churn", status="open", cause="concept_drift", signal="loss_alarm", opened_at=opened, title="t",
        body={"change_from": "2026-05-11T00:00:00+00:00"},
    )  # fmt: skip

    assert later_change(spec, incident, "2026-05-01") == on("2026-05-11T00:00:00+00:00")
    assert later_change(spec, incident, "2026-06-01") == on("2026-06-01T00:00:00+00:00")
    assert later_change(spec, incident, "2027-01-01") == opened + days(7 + 28 + 3)


@pytest.mark.parametrize(("min_gain", "n_incidents"), [(0.01, 1), (0.9, 0)])
def test_a_sure_gain_on_the_cadence_starts_something_only_where_it_is_worth_a_rollout(
    quick: Quick, min_gain: float, n_incidents: int
) -> None:
    kept = {"metric": "roc_auc", "op": ">=", "value": 0.5}
    no_alarm = {**QUICK["monitoring"], "min_gain": min_gain, "tolerance": 5.0}
    with quick(monitoring=no_alarm, objective=kept) as stage:
        stage.drift("concept", 0.6)
        stage.start()
        stage.days(18)

        assert len(stage.incidents()[:1]) == n_incidents
        surely = [d for d in backtests(stage) if d.details["z"] >= (d.details["needed_z"] or 1e9)]  # type: ignore[operator]
        assert surely
        assert {d.verdict for d in surely} == {"win" if n_incidents else "lose"}
        said = "the recipe wins" if n_incidents else "that is worth a rollout: the champion stays"
        assert all(said in d.summary for d in surely)


def test_a_change_that_old_rows_outweigh_is_remedied_by_a_fit_on_the_new_ones(tmp_path: Path) -> None:
    recipe = {**QUICK["training"], "window": None, "holdout": days(10)}
    with staged(tmp_path, truth=TRUTH, **{**SPEC, "label_delay_days": 4, "training": recipe}) as stage:
        turned(stage, 1.0)
        stage.days(32)

        fits = [row.args for row in stage.verified() if row.kind == "train_candidates"][1:]
        assert [args["start"] is None for args in fits[:2]] == [True, False]
        assert any("a gate is missed" in message.title for message in stage.messages())
        # Its labels come after the horizon of its A/B test, which is no reason to take it back.
        assert stage.champion() == "2"
        assert [i.resolution for i in stage.incidents()] == ["recovered"]
        stage.check_books()


@pytest.mark.parametrize(
    ("newer", "onset"),
    [
        pytest.param([0.52, 0.44, 0.61, 0.47, 0.58, 0.50, 0.56], None, id="noise-of-what-the-model-does-not-know"),
        pytest.param([0.51, 0.49, 0.50, 0.70, 0.71, 0.69, 0.72, 0.70, 0.69, 0.71], "2026-03-05", id="worse-again"),
    ],
)
def test_a_further_change_lies_above_the_known_one_by_more_than_chance(newer: list[float], onset: str | None) -> None:
    reference = Reference(mean=0.30, sd=0.02, n=40, null=0.306)
    losses = {f"2026-03-{day:02}": loss for day, loss in enumerate(newer, start=2)}

    assert onset_of(losses, reference, level=0.50) == onset
