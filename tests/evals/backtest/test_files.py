"""A team's files: what is read of them, and what is said of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evals.backtest.recording import Recording, late_by, record
from evals.world.world import midnight
from state.errors import InputError
from state.spec import ModelSpec
from tests.evals.backtest.history_files import START, History, history, no_progress

T0 = datetime(2025, 1, 6, 12, tzinfo=UTC)
Change = Callable[[History], History]


@pytest.fixture(scope="module")
def given() -> History:
    return history(n_days=6, n_rows=30, scored_from=4)


def read(history: History, folder: Path, spec: ModelSpec | None = None) -> Recording:
    predictions, labels = history.write(folder / "files")
    return record(spec or history.spec, predictions, labels, folder / "read", progress=no_progress)


def on_predictions(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    return lambda history: replace(history, predictions=change(history.predictions))


def on_labels(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    return lambda history: replace(history, labels=change(history.labels))


def set_at(column: str, row: int, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    at = pl.int_range(pl.len()) == row
    return lambda frame: frame.with_columns(pl.when(at).then(pl.lit(value)).otherwise(pl.col(column)).alias(column))


def first_scored_alone(history: History) -> History:
    """A history in which the first prediction alone has a score."""
    scored = pl.when(pl.int_range(pl.len()) == 0).then("score").alias("score")
    return replace(history, predictions=history.predictions.with_columns(scored))


def test_rows_and_labels_are_kept_by_day_with_what_was_known_when(given: History, tmp_path: Path) -> None:
    recording = read(given, tmp_path)

    assert sum(recording.days.values()) == recording.n_rows == given.predictions.height
    assert recording.n_labels == given.labels.height
    day = START.isoformat()
    early = recording.known([day], as_of=midnight(START) + timedelta(days=1)).collect()
    later = recording.known([day], as_of=midnight(START) + timedelta(days=4)).collect()
    assert early["label"].null_count() == early.height == recording.days[day]
    assert later["label"].null_count() < 5
    assert later["entity"].to_list() == recording.rows_of(day)["entity"].to_list()


def test_a_restated_label_counts_from_its_own_time_on(given: History, tmp_path: Path) -> None:
    name, label = given.labels.row(0)[:2]
    first = given.labels["available_at"][0]
    again = pl.DataFrame(
        {"request_id": [name], "label": [1 - label], "available_at": [first + timedelta(days=10)]},
        schema=given.labels.schema,
    )
    recording = read(replace(given, labels=pl.concat([again, given.labels])), tmp_path)

    def known(as_of: datetime) -> float:
        rows = recording.known(list(recording.days), as_of=as_of)
        return float(rows.filter(pl.col("request_id") == name).collect()["label"][0])

    assert known(first + timedelta(days=9)) == label
    assert known(first + timedelta(days=10)) == 1 - label
    assert recording.n_restated == 1


def test_a_fit_sees_each_label_as_it_stood_when_due_beside_the_newest(given: History, tmp_path: Path) -> None:
    """The spec's delay is two days, so a label of the first day is due on the third evening."""
    ids = given.predictions.filter(pl.col("event_time").dt.date() == START)["request_id"].head(3).to_list()
    others = given.labels.filter(~pl.col("request_id").is_in(ids))
    first = midnight(START) + timedelta(days=2)
    stated = [(ids[0], 0.0, first), (ids[0], 1.0, first + timedelta(days=3)), (ids[1], 1.0, first + timedelta(days=1)),
              (ids[2], 1.0, first + timedelta(days=1, minutes=1))]  # fmt: skip
    labels = pl.DataFrame(stated, schema=given.labels.schema, orient="row")
    recording = read(replace(given, labels=pl.concat([others, labels])), tmp_path)

    end = midnight(START) + timedelta(days=6)
    rows = recording.training_rows(start=None, end=end, as_of=end, excluded_days=())

    by_id = {row["request_id"]: (row["label"], row["label_when_due"]) for row in rows.iter_rows(named=True)}
    assert [by_id[name] for name in ids] == [(1.0, 0.0), (1.0, 1.0), (1.0, None)]


def test_late_and_missing_labels_are_counted(given: History, tmp_path: Path) -> None:
    labels = given.labels.slice(5).with_columns(
        pl.when(pl.int_range(pl.len()) < 3).then(pl.col("available_at") + timedelta(days=20)).otherwise("available_at")
    )
    recording = read(replace(given, labels=labels.rename({"literal": "available_at"}, strict=False)), tmp_path)

    assert recording.n_late == 3
    assert recording.n_rows - recording.n_labels == given.predictions.height - labels.height


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        ({"request_id": "prediction_id", "score": "prediction_score", "event_time": "timestamp"}, {"label": "churned"}),
        ({"request_id": "ID", "score": "probability"}, {"request_id": "id", "available_at": "labelled_at"}),
        ({"request_id": "id", "score": "y_pred_proba"}, {"label": "y_true"}),
    ],
)
def test_other_names_and_csv_give_the_same_history(
    given: History, tmp_path: Path, predictions: dict[str, str], labels: dict[str, str]
) -> None:
    (tmp_path / "csv").mkdir()
    paths = tmp_path / "csv" / "predictions.csv", tmp_path / "csv" / "labels.csv"
    given.predictions.rename(predictions).write_csv(paths[0], datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
    given.labels.rename(labels).write_csv(paths[1], datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")

    plain = read(given, tmp_path / "plain")
    other = record(given.spec, *paths, tmp_path / "other", progress=no_progress)

    assert other.days == plain.days
    day = START.isoformat()
    assert other.rows_of(day)["recorded_score"].to_list() == pytest.approx(
        plain.rows_of(day)["recorded_score"].to_list()
    )
    assert other.labels_of(day).equals(plain.labels_of(day))


def test_ids_that_went_through_floats_are_the_same_ids(given: History, tmp_path: Path) -> None:
    number = {name: at for at, name in enumerate(given.predictions["request_id"])}

    def numbered(frame: pl.DataFrame, dtype: type[pl.DataType]) -> pl.DataFrame:
        ids = [number[name] for name in frame["request_id"]]
        return frame.with_columns(pl.Series("request_id", ids, dtype=pl.Int64).cast(dtype))

    (tmp_path / "csv").mkdir()
    numbered(given.labels, pl.Float64).write_csv(tmp_path / "csv" / "labels.csv")
    numbered(given.predictions, pl.Int64).write_parquet(tmp_path / "csv" / "predictions.parquet")

    paths = tmp_path / "csv" / "predictions.parquet", tmp_path / "csv" / "labels.csv"
    assert record(given.spec, *paths, tmp_path / "read", progress=no_progress).n_labels == given.labels.height


def test_a_folder_of_files_is_one_history(given: History, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    half = given.predictions.height // 2
    given.predictions.head(half).write_parquet(folder / "a.parquet")
    given.predictions.slice(half).write_parquet(folder / "b.parquet")
    given.labels.write_parquet(tmp_path / "labels.parquet")

    recording = record(given.spec, folder, tmp_path / "labels.parquet", tmp_path / "read", progress=no_progress)

    assert recording.n_rows == given.predictions.height


def test_a_date_without_a_time_counts_from_the_end_of_its_day(given: History, tmp_path: Path) -> None:
    bare = given.labels.with_columns(pl.col("available_at").dt.date())
    recording = read(replace(given, labels=bare), tmp_path)

    first = recording.labels_of(START.isoformat())["available_at"]
    assert set(first.dt.hour()) == {0}
    assert first.min() >= given.labels["available_at"].min()  # type: ignore[operator]
    assert any("end of that day" in note for note in recording.notes)


def test_labels_without_a_time_take_the_delay_of_the_spec(given: History, tmp_path: Path) -> None:
    recording = read(replace(given, labels=given.labels.drop("available_at")), tmp_path)

    rows = recording.rows_of(START.isoformat()).join(recording.labels_of(START.isoformat()), on="request_id")
    assert ((rows["available_at"] - rows["event_time"]) == timedelta(days=2)).all()
    assert any("spec's delay of 2 days" in note for note in recording.notes)


def test_labels_of_unknown_predictions_are_told_and_left_out(given: History, tmp_path: Path) -> None:
    stray = given.labels.head(2).with_columns(("stray-" + pl.col("request_id")).alias("request_id"))
    recording = read(replace(given, labels=pl.concat([given.labels, stray])), tmp_path)

    assert recording.n_labels == given.labels.height
    assert any("2 of" in note and "stray-" in note for note in recording.notes)


def test_predictions_without_a_score_are_told_and_left_out(given: History, tmp_path: Path) -> None:
    recording = read(on_predictions(set_at("score", 3, None))(given), tmp_path)

    assert recording.n_rows == given.predictions.height - 1
    assert any("1 predictions have no score" in note for note in recording.notes)
    assert any(note.endswith("are of predictions without a score, and were left out.") for note in recording.notes)
    assert not any("of no prediction that is given" in note for note in recording.notes)


def test_values_that_are_no_number_are_flagged_and_missing(given: History, tmp_path: Path) -> None:
    text = given.predictions.with_columns(pl.col("spend").cast(pl.String))
    recording = read(replace(given, predictions=set_at("spend", 0, "n/k")(text)), tmp_path)

    flagged = recording.rows_of(START.isoformat()).filter(pl.col("flags").list.len() > 0)
    assert flagged["flags"].to_list() == [["unparsable:spend"]]
    assert flagged["spend"].to_list() == [None]


def test_a_delay_that_the_spec_understates_is_told_from_the_history_alone(given: History, tmp_path: Path) -> None:
    slow = given.labels.with_columns(pl.col("available_at") + timedelta(days=5))
    recording = read(replace(given, labels=slow), tmp_path)

    assert "P7D" in late_by(recording, start=midnight(START) + timedelta(days=9))
    assert late_by(recording, start=midnight(START) + timedelta(days=2)) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(on_predictions(lambda f: f.drop("request_id")), "has no column for the id", id="no-id"),
        pytest.param(on_predictions(lambda f: f.drop("event_time")), "has no column for the event time", id="no-time"),
        pytest.param(on_predictions(lambda f: f.drop("spend", "plan")), "no column spend, plan .2 of 5", id="no-feature"),
        pytest.param(
            on_predictions(lambda f: f.drop("score", "spend", "plan", "tenure", "visits", "mobile")), "5 of 5", id="nothing"
        ),
        pytest.param(
            on_predictions(set_at("event_time", 7, None)), r"row 8 \(id .+\) has no readable event_time", id="a-time"
        ),
        pytest.param(
            on_predictions(lambda f: set_at("event_time", 7, "soon")(f.with_columns(pl.col("event_time").cast(pl.String)))),
            r"row 8 .*no readable event_time: it is 'soon'", id="no-such-time",
        ),
        pytest.param(on_predictions(set_at("request_id", 2, None)), "row 3 has no request_id", id="an-id"),
        pytest.param(on_predictions(lambda f: pl.concat([f, f.head(2)])), "2 prediction ids stand in more", id="twice"),
        pytest.param(on_predictions(set_at("score", 1, 1.5)), "row 2 .* no probability from 0 to 1", id="score"),
        pytest.param(
            on_predictions(lambda f: f.with_columns(pl.lit("x").alias("spend"))), "'spend' is declared numeric", id="type"
        ),
        pytest.param(
            on_predictions(set_at("event_time", 5, T0 + timedelta(days=9_000))), r"no prediction for 8\d+ days", id="year"
        ),
        pytest.param(
            on_predictions(lambda f: f.with_columns(pl.concat_list("spend").alias("spend"))), "'spend' holds lists", id="lists"
        ),
        pytest.param(on_predictions(lambda f: f.clear()), "does not read as a time", id="no-rows"),
        pytest.param(on_labels(lambda f: f.drop("label")), "has no column for the outcome", id="no-label-column"),
        pytest.param(on_labels(lambda f: f.with_columns(pl.lit(None).alias("label"))), "holds no label", id="no-label"),
        pytest.param(
            on_labels(lambda f: f.with_columns(pl.lit(1.0).alias("label"))), "every label is of one class", id="one-class"
        ),
        pytest.param(
            on_labels(lambda f: set_at("label", 4, "perhaps")(f.with_columns(pl.col("label").cast(pl.String)))),
            r"row 5 .*'perhaps', which is neither", id="value",
        ),
        pytest.param(on_labels(set_at("available_at", 3, None)), r"row 4 .*no readable available_at", id="available"),
        pytest.param(
            on_labels(set_at("available_at", 3, T0 - timedelta(days=9))), r"row 4 .*before its prediction", id="early"
        ),
        pytest.param(
            lambda h: replace(
                first_scored_alone(h), labels=h.labels.filter(pl.col("request_id") != h.predictions["request_id"][0])
            ),
            "all of .* are of predictions without a score", id="only-unscored",
        ),
        pytest.param(
            on_labels(lambda f: f.with_columns(("x" + pl.col("request_id")).alias("request_id"))),
            "are of no prediction", id="all-unknown",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_file_row_and_remedy(
    given: History, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read(change(given), tmp_path)

    assert str(tmp_path / "files") in refused.value.message
    assert refused.value.remedy


def test_a_label_of_a_regression_is_a_number(tmp_path: Path) -> None:
    given = history(
        n_days=5, n_rows=20, scored_from=4, task="regression", objective={"metric": "rmse", "op": "<=", "value": 9.0},
        gates=[], training={"kind": "recipe", "candidates": [{"name": "ridge", "estimator": "ridge"}]},
    )  # fmt: skip
    assert read(given, tmp_path / "sound").n_labels == given.labels.height
    text = given.labels.with_columns(pl.col("label").cast(pl.String))

    with pytest.raises(InputError, match=r"row 1 .*'many', which is no number"):
        read(replace(given, labels=set_at("label", 0, "many")(text)), tmp_path / "unsound")


def test_a_model_that_nobody_trained_or_scored_cannot_be_watched(given: History, tmp_path: Path) -> None:
    spec = given.spec.model_copy(
        update={"training": ModelSpec.model_validate(
            {**given.spec.model_dump(mode="json"), "training": {"kind": "command", "image": "x", "command": ["y"]}}
        ).training}
    )  # fmt: skip
    scored = read(given, tmp_path / "scored", spec)
    assert not scored.can_train
    assert "command" in scored.why_not

    with pytest.raises(InputError, match="there is no model to watch"):
        read(on_predictions(lambda f: f.drop("score"))(given), tmp_path / "unscored", spec)


def test_times_of_several_zones_are_named_with_their_column(given: History, tmp_path: Path) -> None:
    def spelled(frame: pl.DataFrame, column: str) -> pl.DataFrame:
        text = pl.col(column).dt.strftime("%Y-%m-%d %H:%M:%S%.f")
        zone = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("+00:00")).otherwise(pl.lit(""))
        return frame.with_columns((text + zone).alias(column))

    both = on_predictions(lambda frame: spelled(frame, "event_time"))(given)
    both = on_labels(lambda frame: spelled(frame, "available_at"))(both)

    recording = read(both, tmp_path)

    said = [note for note in recording.notes if "without one, which are read as UTC" in note]
    assert ["'event_time'" in said[0], "'available_at'" in said[1]] == [True, True]


def test_releases_of_the_recorded_model_are_told_in_order(given: History, tmp_path: Path) -> None:
    later = pl.col("event_time") >= midnight(START + timedelta(days=3))
    versioned = on_predictions(lambda f: f.with_columns(pl.when(later).then(2).otherwise(1).alias("model_version")))(
        given
    )

    releases = read(versioned, tmp_path).releases

    assert [release.version for release in releases] == ["1", "2"]
    assert releases[0].last < midnight(START + timedelta(days=3)) <= releases[1].first
