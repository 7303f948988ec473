"""What `steady up` says of the rows before it begins."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from console.cli.options import settings_of
from console.init import init_spec
from console.preflight import import_rows
from console.specs import load_spec
from console.workspace import open_workspace
from state.errors import InputError


def test_rows_that_are_set_aside_are_counted_with_the_reason(tmp_path: Path) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    lines = [f"{start + i * timedelta(hours=3):%Y-%m-%dT%H:%M:%SZ},{i * 7 % 31},{int(i % 3 == 0)}" for i in range(400)]
    file = tmp_path / "orders.csv"
    file.write_text("\n".join(["when,amount,bad", *lines]))
    spec = init_spec(file, out=tmp_path / "orders.yaml", label="bad").spec.path
    lines[100:103] = ["unknown,1,0", "unknown,2,1", f"{lines[102]},extra"]
    file.write_text("\n".join(["when,amount,bad", *lines]))

    said: list[str] = []
    home = tmp_path / "home"
    with closing(open_workspace(settings_of(home), create=True)) as workspace:
        import_rows(workspace, load_spec(spec), window=None, say=lambda who, text: said.append(text))

    kept = home / "rejects" / "orders.parquet"
    assert f"orders: 2 rows set aside: time unreadable; see {kept}" in said
    assert f"orders: 1 rows set aside: fields do not match the header; see {kept}" in said
    assert kept.exists()


def test_a_column_of_several_time_zones_is_named_with_what_is_made_of_it(tmp_path: Path) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    zones = ("Z", "-05:00", "")
    lines = [
        f"{start + i * timedelta(hours=3):%Y-%m-%dT%H:%M:%S}{zones[i % 3]},{i * 7 % 31},{i % 2}" for i in range(399)
    ]
    file = tmp_path / "orders.csv"
    file.write_text("\n".join(["when,amount,bad", *lines]))
    spec = init_spec(file, out=tmp_path / "orders.yaml", label="bad").spec.path

    said: list[str] = []
    with closing(open_workspace(settings_of(tmp_path / "home"), create=True)) as workspace:
        import_rows(workspace, load_spec(spec), window=None, say=lambda who, text: said.append(text))

    (warning,) = [text for text in said if "warning" in text]
    assert "orders: warning: column 'when' mixes times with a zone, +00:00 (133) and -05:00 (133), and 133" in warning


def test_offline_values_that_are_not_there_stop_the_start(tmp_path: Path) -> None:
    times = [datetime(2024, 1, 1, tzinfo=UTC) + i * timedelta(hours=3) for i in range(400)]
    lines = [f"{at:%Y-%m-%dT%H:%M:%SZ},u{i % 9},{i * 7 % 31},{i % 2}" for i, at in enumerate(times)]
    file = tmp_path / "orders.csv"
    file.write_text("\n".join(["when,user,amount,bad", *lines]))
    spec = init_spec(file, out=tmp_path / "orders.yaml", label="bad", entity=["user"]).spec.path
    spec.write_text(spec.read_text() + "\noffline: {path: nowhere.csv}\n")

    with (
        closing(open_workspace(settings_of(tmp_path / "home"), create=True)) as workspace,
        pytest.raises(InputError, match=r"nowhere\.csv does not exist"),
    ):
        import_rows(workspace, load_spec(spec), window=None, say=lambda who, text: None)
