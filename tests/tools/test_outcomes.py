"""Predictions joined with the labels that came back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from state.errors import InputError, ToolRejected
from tools.outcomes import WorkspaceOutcomes

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def record_rows(root: Path, day: int, ids: list[str], *, seq: int = 0, **changes: object) -> Path:
    at = DAY + timedelta(days=day)
    n = len(ids)
    rows = pl.DataFrame({
        "request_id": ids, "entity": ids, "event_time": [at + timedelta(minutes=minute) for minute in range(n)],
        "version": ["1"] * n, "mirrored": [False] * n, "score": [0.25] * n, "flags": [["missing:amount"]] * n,
        "recorded_at": [at + timedelta(seconds=9 - seq)] * n, "amount": [1.0] * n,
    })  # fmt: skip
    rows = rows.with_columns(**{name: pl.lit(value) for name, value in changes.items()})
    folder = root / f"predictions/m/day={at.date().isoformat()}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"1-77-{seq}.parquet"
    rows.write_parquet(path)
    return path


def labels(ids: list[str], value: float, *, day: float) -> pl.DataFrame:
    return pl.DataFrame(
        {"request_id": ids, "label": [value] * len(ids), "available_at": [DAY + timedelta(days=day)] * len(ids)}
    )


def between(first: int, last: int) -> dict[str, datetime]:
    return {"start": DAY + timedelta(days=first), "end": DAY + timedelta(days=last)}


def test_a_request_answered_twice_counts_once_with_its_first_answer(tmp_path: Path) -> None:
    record_rows(tmp_path, 0, ["a", "b"])
    # Written later, because its server was killed, and answered earlier.
    record_rows(tmp_path, 0, ["b", "c"], seq=1, version="2")

    rows = WorkspaceOutcomes(tmp_path).predictions("m", **between(0, 1))

    assert rows.select("request_id", "version").rows() == [("a", "1"), ("b", "2"), ("c", "2")]
    assert {"entity", "event_time", "score", "flags", "amount"} <= set(rows.columns)


def test_a_days_revision_rises_with_every_file_of_records(tmp_path: Path) -> None:
    outcomes = WorkspaceOutcomes(tmp_path)
    assert outcomes.revisions("m") == {}
    record_rows(tmp_path, 0, ["a"])
    record_rows(tmp_path, 1, ["b"])
    before = outcomes.revisions("m")
    record_rows(tmp_path, 0, ["c"], seq=1)

    assert before == {"2026-03-01": 1, "2026-03-02": 1}
    assert outcomes.revisions("m") == {"2026-03-01": 2, "2026-03-02": 1}


def test_mirrored_records_and_other_days_are_left_out(tmp_path: Path) -> None:
    record_rows(tmp_path, 0, ["a"], mirrored=True)
    record_rows(tmp_path, 1, ["b"])
    record_rows(tmp_path, 2, ["c"])
    outcomes = WorkspaceOutcomes(tmp_path)

    assert outcomes.predictions("m", **between(0, 2))["request_id"].to_list() == ["b"]
    assert outcomes.predictions("m", **between(5, 9)).height == 0
    assert outcomes.predictions("other", **between(0, 9)).height == 0


def test_a_label_counts_once_it_is_known_and_the_last_known_wins(tmp_path: Path) -> None:
    record_rows(tmp_path, 0, ["a", "b"])
    outcomes = WorkspaceOutcomes(tmp_path)
    outcomes.record("m", labels(["a", "b"], 0.0, day=3), key="first")
    outcomes.record("m", labels(["a"], 1.0, day=5), key="restated")

    def known(day: float) -> list[tuple[str, float]]:
        rows = outcomes.labelled("m", **between(0, 1), as_of=DAY + timedelta(days=day))
        return [(str(name), float(value)) for name, value in rows.select("request_id", "label").rows()]

    assert known(2.9) == []
    assert known(3) == [("a", 0.0), ("b", 0.0)]
    assert known(5) == [("a", 1.0), ("b", 0.0)]


def test_rows_without_a_label_are_left_out_and_never_class_0(tmp_path: Path) -> None:
    record_rows(tmp_path, 0, ["a", "b", "c"])
    outcomes = WorkspaceOutcomes(tmp_path)
    nothing = outcomes.labelled("m", **between(0, 1), as_of=DAY + timedelta(days=9))
    outcomes.record("m", labels(["b"], 1.0, day=1), key="k")

    rows = outcomes.labelled("m", **between(0, 1), as_of=DAY + timedelta(days=9))

    assert rows.select("request_id", "label").rows() == [("b", 1.0)]
    assert nothing.height == 0
    assert set(nothing.columns) == set(rows.columns)


def test_labels_are_stored_once_per_key(tmp_path: Path) -> None:
    outcomes = WorkspaceOutcomes(tmp_path)
    assert outcomes.record("m", labels(["a", "b"], 1.0, day=1), key="k") == 2
    assert outcomes.record("m", labels(["a", "b", "c"], 0.0, day=2), key="k") == 0
    record_rows(tmp_path, 0, ["a", "b", "c"])
    rows = outcomes.labelled("m", **between(0, 1), as_of=DAY + timedelta(days=9))
    assert rows["label"].to_list() == [1.0, 1.0]


def test_records_of_an_older_feature_set_are_read_along(tmp_path: Path) -> None:
    record_rows(tmp_path, 0, ["a"])
    record_rows(tmp_path, 0, ["b"], seq=1, shop="x")
    rows = WorkspaceOutcomes(tmp_path).predictions("m", **between(0, 1))
    assert rows.select("request_id", "shop").rows() == [("a", None), ("b", "x")]


@pytest.mark.parametrize(("frame", "message"), [
    pytest.param(labels(["a"], 1.0, day=1).drop("label"), "no column 'label'", id="no-label-column"),
    pytest.param(labels(["a"], float("nan"), day=1), "1 of 1 labels are unusable", id="nan"),
    pytest.param(
        labels(["a"], 1.0, day=1).with_columns(pl.lit("yes").alias("label")), "label 'yes'", id="text-label"
    ),
    pytest.param(
        labels(["a"], 1.0, day=1).with_columns(pl.lit("today").alias("available_at")), "not a timestamp", id="text-time"
    ),
])  # fmt: skip
def test_unusable_labels_are_refused_whole(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WorkspaceOutcomes(tmp_path).record("m", frame, key="k")
    assert not (tmp_path / "outcomes").exists()


def test_quarantined_days_add_up_and_survive_a_restart(tmp_path: Path) -> None:
    WorkspaceOutcomes(tmp_path).quarantine("m", ["2026-03-02"], reason="celsius", key="k1")
    WorkspaceOutcomes(tmp_path).quarantine("m", ["2026-03-01", "2026-03-02"], reason="again", key="k2")
    assert WorkspaceOutcomes(tmp_path).quarantined("m") == ["2026-03-01", "2026-03-02"]
    assert '"celsius"' in (tmp_path / "quarantine/m.json").read_text()
    assert WorkspaceOutcomes(tmp_path).quarantined("other") == []


@pytest.mark.parametrize("day", ["2026-3-1", "yesterday", "20260301"])
def test_a_day_that_is_no_date_is_refused(tmp_path: Path, day: str) -> None:
    with pytest.raises(InputError, match="is not a day"):
        WorkspaceOutcomes(tmp_path).quarantine("m", [day], reason="r", key="k")


def test_a_damaged_quarantine_list_or_record_is_not_taken_for_empty(tmp_path: Path) -> None:
    outcomes = WorkspaceOutcomes(tmp_path)
    outcomes.quarantine("m", ["2026-03-02"], reason="celsius", key="k1")
    (tmp_path / "quarantine/m.json").write_text('{"days": [')
    with pytest.raises(ToolRejected, match="is damaged"):
        outcomes.quarantined("m")
    record_rows(tmp_path, 0, ["a"]).write_bytes(b"PAR1 torn")
    with pytest.raises(ToolRejected, match="move it away"):
        outcomes.predictions("m", **between(0, 1))
