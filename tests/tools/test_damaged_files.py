"""Damaged files of a workspace are named with what to do, never met as an error of some library."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from state.errors import ToolRejected
from tests.tools.training_support import START, make_frame, make_spec, make_workspace
from tools.data import traffic
from tools.importer import import_files
from tools.tracking import embedded_uri


@pytest.mark.parametrize("content", [b"no database at all " * 40, b"SQLite format 3\x00" + b"\xff" * 4_000])
def test_a_damaged_mlflow_database_is_named_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(content)

    with pytest.raises(ToolRejected, match=r"mlflow\.db: .*restore it from a backup"):
        embedded_uri(tmp_path)

    assert database.read_bytes() == content


def test_a_sound_or_absent_mlflow_database_is_taken(tmp_path: Path) -> None:
    assert embedded_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    (tmp_path / "mlflow" / "mlflow.db").touch()
    assert embedded_uri(tmp_path).endswith("mlflow.db")


def test_a_damaged_day_of_the_replay_is_named_and_comes_back_with_the_next_import(tmp_path: Path) -> None:
    spec, split = make_spec(), START + timedelta(days=10)
    make_workspace(tmp_path, spec, make_frame(n_rows=400))
    import_files(tmp_path, spec, tmp_path, until=split)

    def rows() -> list[pl.DataFrame]:
        return [block.rows for block in traffic(tmp_path, "demo", start=split, end=split + timedelta(days=2))]

    sound = rows()
    damaged = sorted((tmp_path / "replay" / "demo").glob("*.parquet"))[0]
    damaged.write_bytes(b"half a file")

    with pytest.raises(ToolRejected, match=rf"{damaged.name} is not a readable parquet file.*manifest\.json"):
        rows()

    (tmp_path / "history" / "demo" / "manifest.json").unlink()
    import_files(tmp_path, spec, tmp_path, until=split)
    assert [again.equals(before) for again, before in zip(rows(), sound, strict=True)] == [True, True]
