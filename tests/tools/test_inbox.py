"""The inbox of outcomes: each file once, and a wrong one holds up no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tools.inbox import take_in
from tools.outcomes import WorkspaceOutcomes

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def known(root: Path) -> dict[str, float]:
    """Label by request id, as the workspace has it."""
    files = sorted((root / "outcomes" / "m").glob("*.parquet"))
    rows = (
        pl.concat([pl.read_parquet(file) for file in files]) if files else pl.DataFrame({"request_id": [], "label": []})
    )
    return dict(rows.select("request_id", "label").iter_rows())


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def test_a_class_is_given_by_name_or_index_and_a_row_without_one_is_left_out(inbox: Path, tmp_path: Path) -> None:
    (inbox / "a.csv").write_text("request_id,label\nr1,late\nr2,on time\nr3,1\nr4,\n")
    times = [NOW - timedelta(days=1), NOW]
    pl.DataFrame({"request_id": ["r5", "r6"], "label": [0.0, 1.0], "available_at": times}).write_parquet(
        inbox / "b.parquet"
    )

    taken = take_in(inbox, "m", WorkspaceOutcomes(tmp_path), classes=["on time", "late"], now=NOW)

    assert (taken.n_new, taken.refused) == (5, ())
    assert known(tmp_path) == {"r1": 1.0, "r2": 0.0, "r3": 1.0, "r5": 0.0, "r6": 1.0}
    assert sorted(path.name for path in (inbox / "done").iterdir()) == ["a.csv", "b.parquet"]


def test_the_same_file_again_counts_once(inbox: Path, tmp_path: Path) -> None:
    outcomes = WorkspaceOutcomes(tmp_path)
    for n_new in (1, 0):
        (inbox / "a.csv").write_text("request_id,label\nr1,1\n")
        assert take_in(inbox, "m", outcomes, classes=["no", "yes"], now=NOW).n_new == n_new


@pytest.mark.parametrize(("content", "said"), [
    pytest.param(b"request_id,outcome\nr1,1\n", "has no column label", id="column-missing"),
    pytest.param(b"request_id,label\nr1,maybe\n", "label 'maybe' is neither", id="unknown-class"),
    pytest.param(b"request_id,label,available_at\nr1,1,soon\n", "available_at holds a value that is no time", id="time"),
    pytest.param(b"", "a.csv", id="empty"),
    pytest.param(b"\xff\xfe\x00", "a.csv", id="not-text"),
])  # fmt: skip
def test_a_wrong_file_is_named_stays_and_holds_up_no_other(
    inbox: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    (inbox / "a.csv").write_bytes(content)
    (inbox / "b.csv").write_text("request_id,label\nr2,1\n")

    taken = take_in(inbox, "m", WorkspaceOutcomes(tmp_path), classes=["no", "yes"], now=NOW)

    assert taken.n_new == 1
    assert [said in refused.message for refused in taken.refused] == [True]
    assert taken.refused[0].remedy
    assert sorted(path.name for path in inbox.glob("*.csv")) == ["a.csv"]
    assert known(tmp_path) == {"r2": 1.0}
