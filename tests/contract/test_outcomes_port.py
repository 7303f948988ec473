from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from evals.world.platform import build
from tests.contract.support import MODEL, NO_OWN_LABELS, Side, at, served_world
from tools.outcomes import WorkspaceOutcomes
from tools.ports import Outcomes

COLUMNS = {
    "request_id": pl.Utf8, "entity": pl.Utf8, "event_time": pl.Datetime("us", "UTC"), "version": pl.Utf8,
    "mirrored": pl.Boolean, "score": pl.Float64, "flags": pl.List(pl.Utf8),
    "tenure": pl.Float32, "spend": pl.Float32, "visits": pl.Float32, "plan": pl.Utf8, "mobile": pl.Float32,
}  # fmt: skip


@pytest.fixture(params=["world", "laptop"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side[Outcomes]:
    """Three live days answered by version 1, of which no label is known yet."""
    world, _ = served_world(tmp_path / "world", NO_OWN_LABELS)
    world.advance(3)
    if request.param == "world":
        world.clock.advance_to(at(60))
        return Side(open=lambda: build(world).outcomes)
    root = tmp_path / "workspace"
    for number, served in enumerate(world.model(MODEL).days):
        record = world.served(MODEL, served.day)
        assert record is not None
        folder = root / f"predictions/{MODEL}/day={served.day}"
        folder.mkdir(parents=True)
        record.predictions.write_parquet(folder / f"1-100-{number}.parquet")
    return Side(open=lambda: WorkspaceOutcomes(root))


def ids(outcomes: Outcomes) -> list[str]:
    """The first four requests of the first day."""
    return outcomes.predictions(MODEL, start=at(0), end=at(1))["request_id"].to_list()[:4]


def statement(request_ids: list[str], label: float, known_at: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {"request_id": request_ids, "label": [label] * len(request_ids), "available_at": [known_at] * len(request_ids)}
    )


def known(outcomes: Outcomes, as_of: datetime) -> list[float]:
    return outcomes.labelled(MODEL, start=at(0), end=at(1), as_of=as_of)["label"].to_list()


def test_predictions_carry_the_agreed_columns_and_types(side: Side[Outcomes]) -> None:
    rows = side.open().predictions(MODEL, start=at(0), end=at(3))

    assert {name: rows.schema[name] for name in COLUMNS} == COLUMNS
    assert rows.height > 100
    assert rows["score"].is_between(0.0, 1.0).all()
    assert rows["version"].unique().to_list() == ["1"]


def test_predictions_come_once_oldest_first_from_start_inclusive_to_end_exclusive(side: Side[Outcomes]) -> None:
    outcomes = side.open()
    rows = outcomes.predictions(MODEL, start=at(0), end=at(3))
    middle = rows["event_time"][rows.height // 2]

    older = outcomes.predictions(MODEL, start=at(0), end=middle)
    newer = outcomes.predictions(MODEL, start=middle, end=at(3))

    assert rows["event_time"].is_sorted()
    assert rows["request_id"].n_unique() == rows.height
    assert older["request_id"].to_list() + newer["request_id"].to_list() == rows["request_id"].to_list()
    assert newer["event_time"][0] == middle


def test_a_window_without_predictions_is_empty_with_its_columns(side: Side[Outcomes]) -> None:
    rows = side.open().predictions(MODEL, start=at(40), end=at(50))

    assert rows.height == 0
    assert {"request_id", "event_time", "version", "score"} <= set(rows.columns)


def test_a_days_revision_stays_while_its_records_stay(side: Side[Outcomes]) -> None:
    revisions = side.open().revisions(MODEL)

    assert set(revisions) == {at(day).date().isoformat() for day in range(3)}
    assert all(number > 0 for number in revisions.values())
    assert side.open().revisions(MODEL) == revisions


def test_labels_are_stored_once_per_key_even_by_a_new_process(side: Side[Outcomes]) -> None:
    first, second, third, _ = ids(side.open())
    assert side.open().record(MODEL, statement([first, second], 1.0, at(3)), key="k1") == 2
    assert side.open().record(MODEL, statement([first, second, third], 0.0, at(4)), key="k1") == 0

    assert known(side.open(), at(9)) == [1.0, 1.0]


def test_another_key_adds_and_what_was_known_last_counts(side: Side[Outcomes]) -> None:
    first, second, third, _ = ids(side.open())
    outcomes = side.open()
    outcomes.record(MODEL, statement([first, second], 0.0, at(3)), key="k1")
    assert outcomes.record(MODEL, statement([first, third], 1.0, at(5)), key="k2") == 2

    assert known(side.open(), at(4)) == [0.0, 0.0]
    assert known(side.open(), at(5)) == [1.0, 0.0, 1.0]


def test_a_label_counts_from_the_moment_it_is_known(side: Side[Outcomes]) -> None:
    outcomes = side.open()
    outcomes.record(MODEL, statement(ids(outcomes)[:1], 1.0, at(5, hour=6)), key="k")

    assert known(outcomes, at(5, hour=5)) == []
    assert known(outcomes, at(5, hour=6)) == [1.0]


def test_labelled_rows_are_the_predictions_with_two_more_columns(side: Side[Outcomes]) -> None:
    outcomes = side.open()
    outcomes.record(MODEL, statement(ids(outcomes), 1.0, at(2)), key="k")
    rows = outcomes.labelled(MODEL, start=at(0), end=at(3), as_of=at(9))
    everything = outcomes.predictions(MODEL, start=at(0), end=at(3))

    answered = everything.filter(pl.col("request_id").is_in(ids(outcomes)))
    assert rows.select(answered.columns).equals(answered)
    assert {"label": pl.Float64, "available_at": pl.Datetime("us", "UTC")}.items() <= dict(rows.schema).items()


def test_quarantine_adds_up_once_and_leaves_predictions_alone(side: Side[Outcomes]) -> None:
    before = side.open().predictions(MODEL, start=at(0), end=at(3))
    assert list(side.open().quarantined(MODEL)) == []

    for _ in range(2):
        side.open().quarantine(MODEL, ["2026-03-03"], reason="grams", key="q1")
    side.open().quarantine(MODEL, ["2026-03-02", "2026-03-03"], reason="grams", key="q2")

    assert list(side.open().quarantined(MODEL)) == ["2026-03-02", "2026-03-03"]
    assert side.open().predictions(MODEL, start=at(0), end=at(3)).equals(before)
