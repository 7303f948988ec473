"""Import of files, the history, the training window and the traffic to replay."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from state.errors import InputError, ToolUnavailable
from state.spec import ModelSpec
from tools import importer
from tools.data import WorkspaceData, traffic, training_window
from tools.importer import import_files
from tools.outcomes import WorkspaceOutcomes

START = datetime(2026, 1, 1, tzinfo=UTC)
FEATURES = [
    {"name": "amount", "type": "numeric"},
    {"name": "shop", "type": "categorical"},
    {"name": "present", "type": "boolean"},
]


def spec(path: str, **changes: Any) -> ModelSpec:
    label = {"column": "paid", "delay": "P2D", **changes.pop("label", {})}
    return ModelSpec.model_validate({
        "model": "churn", "owner": "team", "task": "binary",
        "data": {"kind": "files", "path": path, "time": "when", "entity": ["user"], "label": label},
        "features": FEATURES,
        "training": {"kind": "recipe", "candidates": [{"name": "hgb", "estimator": "hist_gradient_boosting"}]},
        "objective": {"metric": "roc_auc", "op": ">=", "value": 0.6},
        **changes,
    })  # fmt: skip


def frame(n_days: int = 20, *, per_day: int = 10, seed: int = 7) -> pl.DataFrame:
    rng = random.Random(seed)
    return pl.DataFrame([
        {
            "when": START + timedelta(days=day, minutes=rng.randrange(1_440)),
            "user": f"u{rng.randrange(9)}", "amount": rng.random() * 100, "shop": rng.choice("abc"),
            "present": rng.random() < 0.5, "paid": rng.random() < 0.4,
        }
        for day in range(n_days)
        for _ in range(per_day)
    ])  # fmt: skip


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], *, delimiter: str = ",") -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def rows_of(root: Path) -> pl.DataFrame:
    history = WorkspaceData(root).history("churn", start=None, end=None)
    return history.collect().sort("event_time", "request_id")


def test_rows_before_the_cut_are_history_and_later_rows_are_traffic(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "rows.parquet")
    until = START + timedelta(days=12, hours=6)

    manifest = import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path, until=until).manifest

    history = rows_of(tmp_path / "ws")
    blocks = list(traffic(tmp_path / "ws", "churn", start=until, end=START + timedelta(days=20)))
    replayed = pl.concat([block.rows for block in blocks])
    assert history["event_time"].max() < until <= replayed["event_time"].min()  # type: ignore[operator]
    assert history.height + replayed.height == manifest.n_rows == 200
    assert pl.concat([history, replayed])["request_id"].n_unique() == 200
    assert manifest.classes == ["false", "true"]
    assert manifest.first_replay_day == "2026-01-13"


def test_stored_rows_hold_the_values_of_the_source(tmp_path: Path) -> None:
    source = frame().sort("when", "user")
    source.write_parquet(tmp_path / "rows.parquet")

    import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path)

    stored = rows_of(tmp_path / "ws")
    assert stored.columns == ["request_id", "entity", "event_time", "amount", "shop", "present", "label"]
    both = stored.join(source, left_on=["event_time", "entity"], right_on=["when", "user"])
    assert both.height == 200
    assert (both["label"] == both["paid"].cast(pl.Float64)).all()
    assert (both["shop"] == both["shop_right"]).all()
    assert (both["amount"] == both["amount_right"].cast(pl.Float32)).all()
    assert (both["present"] == both["present_right"].cast(pl.Float32)).all()


def test_same_files_again_change_nothing(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "rows.parquet")
    first = import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ws").rglob("*.parquet")}

    again = import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path)

    assert (first.changed, again.changed) == (True, False)
    assert again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ws").rglob("*.parquet")} == before


def test_added_file_is_joined_to_what_is_there_and_a_changed_file_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    frame(6).write_parquet(folder / "a.parquet")
    first = import_files(tmp_path / "ws", spec("rows"), tmp_path).manifest
    frame(8, seed=8).write_parquet(folder / "b.parquet")
    second = import_files(tmp_path / "ws", spec("rows"), tmp_path).manifest
    joined = rows_of(tmp_path / "ws")

    frame(2, seed=9).write_parquet(folder / "a.parquet")
    third = import_files(tmp_path / "ws", spec("rows"), tmp_path).manifest

    assert (first.n_rows, second.n_rows, third.n_rows) == (60, 140, 100)
    assert joined.height == joined["request_id"].n_unique() == 140
    assert rows_of(tmp_path / "ws").height == 100
    assert len({m.sha256 for m in (first, second, third)}) == 3


def test_import_cut_short_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    frame(6).write_parquet(folder / "a.parquet")
    import_files(tmp_path / "ws", spec("rows"), tmp_path)
    frame(8, seed=8).write_parquet(folder / "b.parquet")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(importer, "write_manifest", killed)
        import_files(tmp_path / "ws", spec("rows"), tmp_path)
    manifest = import_files(tmp_path / "ws", spec("rows"), tmp_path).manifest

    stored = rows_of(tmp_path / "ws")
    assert stored.height == stored["request_id"].n_unique() == manifest.n_rows == 140


def test_first_import_cut_short_leaves_nothing_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame().write_parquet(tmp_path / "rows.parquet")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importer, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path)

    with pytest.raises(ToolUnavailable, match="import its files first"):
        training_window(tmp_path / "ws", "churn", start=None, end=None, as_of=START)


def test_many_small_groups_and_batches_give_the_same_rows_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame().sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "rows.parquet", row_group_size=37)
    import_files(tmp_path / "one", spec("rows.parquet"), tmp_path)
    monkeypatch.setattr(importer, "_GROUP_ROWS", 25)

    import_files(tmp_path / "many", spec("rows.parquet"), tmp_path)

    assert rows_of(tmp_path / "many").equals(rows_of(tmp_path / "one"))


def test_two_equal_rows_are_two_requests_and_a_late_label_keeps_the_id(tmp_path: Path) -> None:
    twice = {"when": "2026-01-01", "user": "u", "amount": "5", "shop": "a", "present": "1"}
    other = {**twice, "when": "2026-01-02", "paid": "0"}
    write_csv(tmp_path / "rows.csv", [{**twice, "paid": ""}, {**twice, "paid": "1"}, other])
    import_files(tmp_path / "ws", spec("rows.csv"), tmp_path)
    before = rows_of(tmp_path / "ws")
    write_csv(tmp_path / "rows.csv", [{**twice, "paid": "1"}, {**twice, "paid": "1"}, other])
    import_files(tmp_path / "ws", spec("rows.csv"), tmp_path)

    after = rows_of(tmp_path / "ws")
    assert before["request_id"].n_unique() == 3
    assert sorted(before["request_id"]) == sorted(after["request_id"])
    assert (before["label"].null_count(), after["label"].null_count()) == (1, 0)


@pytest.mark.parametrize("spelling", [
    pytest.param(lambda at: at.strftime("%Y-%m-%dT%H:%M:%SZ"), id="iso-utc"),
    pytest.param(lambda at: (at + timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S+02:00"), id="iso-offset"),
    pytest.param(lambda at: at.strftime("%d.%m.%Y %H:%M:%S"), id="german"),
    pytest.param(lambda at: at.strftime("%m/%d/%Y %I:%M:%S %p"), id="american"),
    pytest.param(lambda at: str(int(at.timestamp())), id="epoch-seconds"),
    pytest.param(lambda at: str(int(at.timestamp() * 1_000)), id="epoch-milliseconds"),
])  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_reads_like_parquet_whatever_the_spelling(tmp_path: Path, spelling, delimiter: str) -> None:  # type: ignore[no-untyped-def]
    source = frame().with_columns(pl.col("when").dt.truncate("1s")).sort("when", "user")
    source.write_parquet(tmp_path / "rows.parquet")
    point = "," if delimiter == ";" else "."
    rows = [
        {**row, "when": spelling(row["when"]), "amount": str(row["amount"]).replace(".", point)}
        for row in source.iter_rows(named=True)
    ]
    write_csv(tmp_path / "rows.csv", rows, delimiter=delimiter)
    import_files(tmp_path / "a", spec("rows.parquet"), tmp_path)

    import_files(tmp_path / "b", spec("rows.csv"), tmp_path)

    drop_id = pl.exclude("request_id")
    order = ["event_time", "entity", "amount"]
    assert (
        rows_of(tmp_path / "b").select(drop_id).sort(order).equals(rows_of(tmp_path / "a").select(drop_id).sort(order))
    )


def test_unreadable_rows_are_set_aside_with_reason_and_counted(tmp_path: Path) -> None:
    good = [
        {"when": f"2026-01-{day:02}", "user": "u", "amount": "5", "shop": "a", "present": "1", "paid": str(day % 2)}
        for day in range(1, 20)
    ]
    lines = [*good, {**good[0], "when": "yesterday"}, {**good[0], "when": ""}, {**good[0], "amount": "five"}]
    write_csv(tmp_path / "rows.csv", lines)
    with (tmp_path / "rows.csv").open("a") as stream:
        stream.write("2026-01-03,u,5\r\n")

    manifest = import_files(tmp_path / "ws", spec("rows.csv"), tmp_path).manifest

    assert manifest.rejects == {"time unreadable": 2, "fields do not match the header": 1}
    assert manifest.unparsable == {"amount": 1}
    assert manifest.n_rows == 20
    rejects = pl.read_parquet(tmp_path / "ws/rejects/churn.parquet")
    assert rejects["row"].to_list() == [19, 20, None]
    assert rejects["value"].to_list() == ["yesterday", None, None]


def test_multiclass_labels_are_indices_into_sorted_names_and_never_move(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    kinds = pl.Series("paid", (["red", "green", "blue"] * 20)[:60])
    frame(6).with_columns(kinds).write_parquet(folder / "a.parquet")
    changes = {"task": "multiclass", "objective": {"metric": "accuracy", "op": ">=", "value": 0.5}}
    first = import_files(tmp_path / "ws", spec("rows", **changes), tmp_path).manifest
    frame(6, seed=2).with_columns(pl.lit("amber").alias("paid")).write_parquet(folder / "b.parquet")

    second = import_files(tmp_path / "ws", spec("rows", **changes), tmp_path).manifest

    assert first.classes == ["blue", "green", "red"]
    assert second.classes == ["blue", "green", "red", "amber"]
    assert rows_of(tmp_path / "ws")["label"].value_counts().sort("label").rows() == [
        (0.0, 20), (1.0, 20), (2.0, 20), (3.0, 60),
    ]  # fmt: skip


def test_regression_labels_are_numbers_and_others_are_set_aside(tmp_path: Path) -> None:
    rows = frame(3, per_day=4).with_columns(pl.Series("paid", ["1.5", "oops", *["2"] * 10]))
    rows.write_parquet(tmp_path / "rows.parquet")
    changes = {"task": "regression", "objective": {"metric": "mae", "op": "<=", "value": 5.0}}

    manifest = import_files(tmp_path / "ws", spec("rows.parquet", **changes), tmp_path).manifest

    assert manifest.rejects == {"label is not a number": 1}
    assert manifest.classes == []
    assert sorted(rows_of(tmp_path / "ws")["label"]) == [1.5, *[2.0] * 10]


@pytest.mark.parametrize(("positive", "values"), [
    pytest.param(None, (True, False), id="booleans"),
    pytest.param(None, (1, 0), id="integers"),
    pytest.param(None, ("1", "0"), id="digits"),
    pytest.param("yes", ("yes", "no"), id="x"),
    pytest.param(True, ("Yes", "No"), id="yaml-reads-yes-as-true"),
    pytest.param(False, ("no", "yes"), id="yaml-reads-no-as-false"),
    pytest.param(2, (2.0, 1.0), id="whole-floats"),
    pytest.param("> 50K", (" > 50K", "<= 50K"), id="blanks-around"),
])  # fmt: skip
def test_the_positive_value_is_found_in_every_spelling(
    tmp_path: Path, positive: object, values: tuple[object, object]
) -> None:
    labels = pl.Series("paid", [values[row % 2] for row in range(20)])
    rows = frame(2).sort("when").with_columns(labels)
    rows.write_parquet(tmp_path / "rows.parquet")

    import_files(tmp_path / "ws", spec("rows.parquet", label={"positive": positive}), tmp_path)

    stored = WorkspaceData(tmp_path / "ws").history("churn", start=None, end=None).collect()
    both = stored.join(rows, left_on=["event_time", "entity"], right_on=["when", "user"])
    assert (both["label"] == (both["paid"] == values[0]).cast(pl.Float64)).all()


def bad(tmp_path: Path, rows: pl.DataFrame, name: str = "rows.parquet", **changes: Any) -> InputError:
    rows.write_parquet(tmp_path / name)
    with pytest.raises(InputError) as caught:
        import_files(tmp_path / "ws", spec("rows.parquet", **changes), tmp_path)
    assert not (tmp_path / "ws" / "history" / "churn").exists()
    return caught.value


def test_missing_file_is_named_with_near_names(tmp_path: Path) -> None:
    error = bad(tmp_path, frame(), name="row.parquet")
    assert "rows.parquet does not exist" in error.message
    assert error.remedy == "Did you mean row.parquet?"


@pytest.mark.parametrize(("renamed", "message", "remedy"), [
    pytest.param({"amount": "amuont"}, "no column 'amount' (features[0].name)", "Did you mean amuont?", id="feature"),
    pytest.param({"when": "When"}, "no column 'when' (data.time)", "Did you mean When?", id="time"),
    pytest.param({"paid": "zzz"}, "no column 'paid' (data.label.column)", "Its columns are when, user", id="label"),
])  # fmt: skip
def test_missing_column_is_named_with_near_names(
    tmp_path: Path, renamed: dict[str, str], message: str, remedy: str
) -> None:
    error = bad(tmp_path, frame().rename(renamed))
    assert message in error.message
    assert error.remedy.startswith(remedy)


@pytest.mark.parametrize(("change", "positive", "message"), [
    pytest.param(pl.lit("soon").alias("when"), None, "does not read as a time", id="no-times"),
    pytest.param(pl.lit(None, pl.Boolean).alias("paid"), None, "holds no label", id="no-labels"),
    pytest.param(pl.lit(True).alias("paid"), None, "one class only (values: 'true'", id="one-class"),
    pytest.param(pl.lit("many").alias("amount"), None, "declared numeric, and none of its values is: 'many'", id="x"),
    pytest.param(pl.col("shop").alias("paid"), "z", "one class only (values: ", id="positive-not-there"),
    pytest.param(pl.col("paid").cast(pl.Int8) + pl.col("present").cast(pl.Int8), None, "3 values", id="3"),
])  # fmt: skip
def test_unusable_columns_are_refused_before_anything_is_stored(
    tmp_path: Path, change: pl.Expr, positive: str | None, message: str
) -> None:
    assert message in bad(tmp_path, frame().with_columns(change), label={"positive": positive}).message


def test_mostly_unreadable_times_name_the_first_row(tmp_path: Path) -> None:
    texts = [f"2026-01-{day:02}" if day % 2 else "no day" for day in range(1, 31)]
    error = bad(tmp_path, frame(3).with_columns(pl.Series("when", texts)))
    assert "15 of 30 rows" in error.message
    assert "the first is row 1 of rows.parquet: time unreadable ('no day')" in error.message


def test_same_content_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    frame().write_parquet(folder / "a.parquet")
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes())
    with pytest.raises(InputError, match="every row would count twice"):
        import_files(tmp_path / "ws", spec("rows"), tmp_path)


def test_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("when,user,amount,amount,shop,present,paid\n2026-01-01,u,1,2,a,1,1\n")
    with pytest.raises(InputError, match="'amount' twice"):
        import_files(tmp_path / "ws", spec("rows.csv"), tmp_path)


def test_history_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="holds no history: its first day is 2026-01-01"):
        import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path, until=START)
    with pytest.raises(InputError, match="no rows in the window"):
        import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path, start=START + timedelta(days=99))


def test_a_window_without_rows_is_one_empty_block_after_another(tmp_path: Path) -> None:
    """Labels of monthly rows are released over windows that lie between two months."""
    gap = ~pl.col("when").dt.day().is_in([13, 14])
    frame().filter(gap).write_parquet(tmp_path / "rows.parquet")
    import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path, until=START + timedelta(days=10))

    blocks = list(traffic(tmp_path / "ws", "churn", start=START + timedelta(days=12), end=START + timedelta(days=14)))

    assert [block.rows.height for block in blocks] == [0, 0]
    assert "label" in blocks[0].rows.columns


def test_traffic_keeps_the_empty_blocks_of_a_gap(tmp_path: Path) -> None:
    gap = ~pl.col("when").dt.day().is_in([13, 14])
    frame().filter(gap).write_parquet(tmp_path / "rows.parquet")
    import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path, until=START + timedelta(days=10))

    blocks = list(traffic(tmp_path / "ws", "churn", start=START + timedelta(days=10), end=START + timedelta(days=15)))

    assert [block.rows.height for block in blocks] == [10, 10, 0, 0, 10]
    assert all(block.rows.columns == blocks[0].rows.columns for block in blocks)


def test_training_window_takes_only_labels_old_enough(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "rows.parquet")
    import_files(tmp_path / "ws", spec("rows.parquet"), tmp_path)
    as_of = START + timedelta(days=10)

    rows = training_window(tmp_path / "ws", "churn", start=None, end=None, as_of=as_of)

    assert rows.height == 80
    assert rows["event_time"].max() <= as_of - timedelta(days=2)  # type: ignore[operator]
    assert rows["event_time"].is_sorted()


def test_training_window_unites_history_and_captured_rows_with_restated_labels(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    frame().write_parquet(tmp_path / "rows.parquet")
    until = START + timedelta(days=10)
    import_files(root, spec("rows.parquet"), tmp_path, until=until)
    served = next(traffic(root, "churn", start=until, end=until + timedelta(days=1))).rows
    records = served.drop("label").with_columns(
        pl.lit("1").alias("version"), pl.lit(False).alias("mirrored"), pl.lit(0.3).alias("score"),
        pl.lit([], pl.List(pl.String)).alias("flags"),
    )  # fmt: skip
    folder = root / "predictions/churn/day=2026-01-11"
    folder.mkdir(parents=True)
    records.write_parquet(folder / "1-9-0.parquet")
    # Sent again after a crash, and answered by another process.
    records.head(4).write_parquet(folder / "1-8-0.parquet")
    old = rows_of(root)["request_id"][0]
    ids = [*served["request_id"].head(6), old]
    labels = pl.DataFrame({"request_id": ids, "label": [1.0] * 7, "available_at": [until + timedelta(days=3)] * 7})
    WorkspaceOutcomes(root).record("churn", labels, key="k1")

    early = training_window(root, "churn", start=None, end=None, as_of=until + timedelta(days=2))
    late = training_window(root, "churn", start=None, end=None, as_of=until + timedelta(days=4))
    thin = training_window(root, "churn", start=None, end=None, as_of=until + timedelta(days=4), max_rows=30)
    fewer = training_window(root, "churn", start=None, end=None, as_of=until + timedelta(days=4), max_rows=20)
    WorkspaceOutcomes(root).record(
        "churn",
        pl.DataFrame({"request_id": ids[:1], "label": [0.0], "available_at": [until + timedelta(days=5)]}),
        key="k2",
    )
    due = training_window(
        root, "churn", start=None, end=None, as_of=until + timedelta(days=6), block=timedelta(days=1)
    ).sort("event_time", "request_id")
    held = training_window(
        root, "churn", start=START, end=None, as_of=until + timedelta(days=4), excluded_days=["2026-01-11"],
        columns=["amount"],
    )  # fmt: skip

    assert (early.height, late.height, held.height) == (100, 106, 100)
    assert late.filter(pl.col("request_id").is_in(ids))["label"].to_list() == [1.0] * 7
    assert held.columns == ["request_id", "entity", "event_time", "amount", "label"]
    assert (thin.height, fewer.height) == (30, 20)
    assert set(fewer["request_id"]) < set(thin["request_id"]) < set(late["request_id"])
    by_id = {row["request_id"]: (row["label"], row["label_when_due"]) for row in due.iter_rows(named=True)}
    imported = rows_of(root).filter(pl.col("request_id") == old)["label"][0]
    assert by_id[old] == (1.0, imported)  # its block was judged long before it was restated
    assert by_id[ids[0]] == (0.0, 1.0)
    assert by_id[ids[1]] == (1.0, 1.0)


def test_folder_values_and_compressed_csv_are_read(tmp_path: Path) -> None:
    for shop in ("a", "b"):
        folder = tmp_path / "rows" / f"shop={shop}"
        folder.mkdir(parents=True)
        text = "when,user,amount,present,paid\n" + "".join(f"2026-01-{d:02},u,{d},1,{d % 2}\n" for d in range(1, 9))
        with gzip.open(folder / "part.csv.gz", "wt") as stream:
            stream.write(text.replace(",1,", f",{1 if shop == 'a' else 0},"))

    import_files(tmp_path / "ws", spec("rows"), tmp_path)

    assert rows_of(tmp_path / "ws")["shop"].value_counts().sort("shop").rows() == [("a", 8), ("b", 8)]


def test_a_feature_may_have_any_name_that_is_not_reserved(tmp_path: Path) -> None:
    features = [*FEATURES[1:], {"name": "known", "type": "numeric"}]
    frame().rename({"amount": "known"}).write_parquet(tmp_path / "rows.parquet")
    import_files(tmp_path / "ws", spec("rows.parquet", features=features), tmp_path)
    rows = training_window(tmp_path / "ws", "churn", start=None, end=None, as_of=START + timedelta(days=10))
    assert rows.height == 80
    assert rows["known"].max() > 1  # type: ignore[operator]
    assert set(rows["label"]) == {0.0, 1.0}
