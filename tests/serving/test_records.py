"""Prediction records: nothing that was answered is lost, and nothing counts twice."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from serving.records import JOURNALS, MAX_HELD_ROWS, Header, Record, Recorder, compact_leftovers
from serving.requests import IdentityReader, event_microseconds
from tests.serving.conftest import Start
from tests.serving.support import ROW, TOKEN, ServerProcess, call, write_package

HEADER = Header(
    version="3", multiclass=False, features=[("amount", "numeric"), ("online", "boolean"), ("shop", "categorical")]
)
NOON = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp() * 1e6)
DAY = 86_400_000_000


def record(number: int, *, event: int = NOON, values: list[Any] | None = None) -> Record:
    values = [float(number), True, "food"] if values is None else values
    return (f"r{number}", f"e{number}", event, "3", False, 0.25, [], event + 5, values)


def stored(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("day=*/*.parquet")), hive_partitioning=False).sort("request_id")


def journals(folder: Path) -> list[Path]:
    return sorted((folder / JOURNALS).iterdir())


def flush(server: ServerProcess) -> None:
    assert call(f"{server.url}/flush", b"", authorization=f"Bearer {TOKEN}").status == 200


def test_a_flush_leaves_one_file_a_day_with_every_column(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER)
    recorder.add(record(1))
    recorder.add(record(2, event=NOON + DAY, values=["12.5", "no", 7]))
    recorder.add(record(3, values=[math.nan, None, None]))
    recorder.flush()
    frame = stored(tmp_path)
    recorder.close()

    days = sorted(path.parent.name for path in tmp_path.glob("day=*/*.parquet"))
    assert days == ["day=2026-05-01", "day=2026-05-02"]
    assert all(path.name.startswith(f"3-{os.getpid()}-") for path in tmp_path.glob("day=*/*.parquet"))
    assert journals(tmp_path) == []
    assert frame.schema == {
        "request_id": pl.Utf8, "entity": pl.Utf8, "event_time": pl.Datetime("us", "UTC"), "version": pl.Utf8,
        "arm": pl.Utf8, "mirrored": pl.Boolean, "score": pl.Float64, "flags": pl.List(pl.Utf8),
        "recorded_at": pl.Datetime("us", "UTC"), "amount": pl.Float32, "online": pl.Float32, "shop": pl.Utf8,
    }  # fmt: skip
    assert frame["amount"].to_list() == [1.0, 12.5, None]
    assert frame["online"].to_list() == [1.0, 0.0, None]
    assert frame["shop"].to_list() == ["food", "7", None]
    assert frame["event_time"][0] == datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_several_classes_keep_every_probability(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, Header(version="3", multiclass=True, features=[("amount", "numeric")]))
    recorder.add(("r", "e", NOON, "3", False, [0.5, 0.25, 0.25], [], NOON, [1.0]))
    recorder.close()

    assert stored(tmp_path)["score"].to_list() == [[0.5, 0.25, 0.25]]


def test_the_journal_follows_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER)
    recorder.add(record(1))
    until = time.monotonic() + 5
    while not any(path.stat().st_size > 200 for path in journals(tmp_path)):
        assert time.monotonic() < until
        time.sleep(0.005)
    (journal,) = journals(tmp_path)
    lines = journal.read_bytes().splitlines()
    recorder.close()

    assert len(lines) == 2 and b'"r1"' in lines[1]


def test_rows_are_compacted_when_there_are_enough(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER)
    for number in range(5000):
        recorder.add(record(number))
    until = time.monotonic() + 10
    while not list(tmp_path.glob("day=*/*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.01)
    recorder.close()

    assert stored(tmp_path)["request_id"].n_unique() == len(stored(tmp_path)) == 5000


def test_a_full_disk_holds_the_rows_until_it_recovers(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER)
    recorder.add(record(1))
    recorder.flush()
    blocked = tmp_path / "day=2026-05-03"
    blocked.write_text("a file where the folder should be")
    recorder.add(record(2, event=NOON + 2 * DAY))
    with pytest.raises(OSError):
        recorder.flush()
    recorder.add(record(3, event=NOON + 2 * DAY))
    blocked.unlink()
    recorder.flush()
    recorder.close()

    assert stored(tmp_path)["request_id"].to_list() == ["r1", "r2", "r3"]


def test_more_rows_than_can_be_held_are_dropped_and_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER)
    recorder._held = [record(0)] * MAX_HELD_ROWS
    recorder.add(record(1))
    recorder._held = []
    recorder.close()

    assert recorder.dropped == 1


def test_a_leftover_journal_is_compacted_once_and_its_torn_line_left_out(tmp_path: Path) -> None:
    child = "import os, sys; from pathlib import Path; from tests.serving.test_records import *\n" \
        "r = Recorder(Path(sys.argv[1]), HEADER)\n" \
        "r.add(record(1)); r.add(record(2))\n" \
        "with r._lock: r._write()\n" \
        "os.write(r._journal.descriptor, b'[\"r3\",\"e3\",17')\n" \
        "os.kill(os.getpid(), 9)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", child, str(tmp_path)], timeout=30).returncode == -9
    (journal,) = journals(tmp_path)
    copy = journal.read_bytes()

    assert compact_leftovers(tmp_path, version="33") == 0
    assert compact_leftovers(tmp_path, version="3") == 1
    assert stored(tmp_path)["request_id"].to_list() == ["r1", "r2"]
    # Killed again after the parquet was named and before the journal was removed: the same file, not a second one.
    journal.write_bytes(copy)
    assert compact_leftovers(tmp_path) == 1
    assert stored(tmp_path)["request_id"].to_list() == ["r1", "r2"]
    assert journals(tmp_path) == []


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER)
    recorder.add(record(1))
    with recorder._lock:
        recorder._write()

    assert compact_leftovers(tmp_path) == 0
    recorder.close()
    assert stored(tmp_path)["request_id"].to_list() == ["r1"]


def test_records_survive_kill_9_and_the_next_server_of_the_version_compacts_them(start: Start, tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    server = start(package)
    for number in range(50):
        assert call(f"{server.url}/predict", {**ROW, "request_id": f"{number:03d}"}).status == 200
    time.sleep(0.2)  # the promise is 100 ms
    server.kill()
    folder = server.records / "fraud"
    assert not list(folder.glob("day=*/*.parquet"))
    start(package)

    assert stored(folder)["request_id"].to_list() == [f"{number:03d}" for number in range(50)]
    assert journals(folder) == []


def test_sigterm_keeps_every_record(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package"))
    reply = call(f"{server.url}/predict/batch", {"rows": [ROW] * 3000}).json
    assert server.stop() == 0

    assert stored(server.records / "fraud")["request_id"].to_list() == sorted(reply["request_ids"])


def test_a_record_says_who_when_and_for_which_arm(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package", time="at", entity=("user", "card")), version="9")
    url = f"{server.url}/predict"
    headers = {"x_request_id": "h-1", "x_steady_entity": "e-1", "x_event_time": "2026-05-01T10:00:00Z"}
    call(url, ROW, **headers, x_steady_arm="candidate")
    call(url, {**ROW, "request_id": "h-2", "user": "u", "card": 5, "at": "2026-05-02"}, host="fraud-shadow:80")
    call(url, {**ROW, "request_id": "h-3", "entity": "e-3", "event_time": 1_777_716_000, "amount": "5", "online": []})
    flush(server)
    rows = stored(server.records / "fraud").to_dicts()

    assert [row["request_id"] for row in rows] == ["h-1", "h-2", "h-3"]
    assert [row["entity"] for row in rows] == ["e-1", "u|5", "e-3"]
    assert [row["event_time"].isoformat() for row in rows] == [
        "2026-05-01T10:00:00+00:00", "2026-05-02T00:00:00+00:00", "2026-05-02T10:00:00+00:00",
    ]  # fmt: skip
    assert [(row["version"], row["arm"], row["mirrored"]) for row in rows] == [
        ("9", "candidate", False), ("9", "9", True), ("9", "9", False),
    ]  # fmt: skip
    assert rows[2]["flags"] == ["text_number:amount", "unparsable:online"]
    assert (rows[2]["amount"], rows[2]["online"]) == (5.0, None)


def test_a_record_names_fields_that_the_contract_does_not_know_and_the_client_is_not_bothered(
    start: Start, tmp_path: Path
) -> None:
    server = start(write_package(tmp_path / "package", time="at", entity=("user",)))
    known = {**ROW, "request_id": "1", "entity": "e", "event_time": NOON / 1e6, "at": "2026-05-01", "user": "u"}
    replies = [
        call(f"{server.url}/predict", known),
        call(f"{server.url}/predict", {**known, "request_id": "2", "n" * 100: 1, "b": [1], "c": None, "a": {}}),
    ]
    flush(server)

    assert [reply.json["flags"] for reply in replies] == [[], []]
    assert stored(server.records / "fraud")["flags"].to_list() == [[], ["extra:a", "extra:b", "extra:c"]]


def test_the_module_compacts_what_killed_servers_left(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package"))
    call(f"{server.url}/predict", {**ROW, "request_id": "only"})
    time.sleep(0.2)
    server.kill()
    folder = server.records / "fraud"
    subprocess.run([sys.executable, "-m", "serving.records", str(folder)], check=True, timeout=30)

    assert stored(folder)["request_id"].to_list() == ["only"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("2026-05-01T12:00:00Z", NOON, id="zulu"),
        pytest.param("2026-05-01T12:00:00", NOON, id="naive-is-utc"),
        pytest.param("2026-05-01T14:00:00.000005+02:00", NOON + 5, id="offset"),
        pytest.param(NOON / 1e6, NOON, id="seconds"),
        pytest.param(NOON // 1000, NOON, id="milliseconds"),
        pytest.param("1969-12-31", -DAY, id="before-1970"),
        pytest.param("yesterday", None, id="words"),
        pytest.param(True, None, id="boolean"),
        pytest.param(math.inf, None, id="infinite"),
        pytest.param(10**30, None, id="beyond-the-calendar"),
    ],
)
def test_event_times_are_read_in_the_forms_that_clients_send(value: object, expected: int | None) -> None:
    assert event_microseconds(value) == expected


def test_the_body_comes_before_the_headers_and_an_entity_before_the_request_id() -> None:
    reader = IdentityReader(time_field=None, entity_fields=("user",))
    headers = {b"x-request-id": b"from-header", b"x-event-time": b"2026-05-01T12:00:00Z"}

    assert reader.read({}, headers, []).entity == "from-header"
    assert reader.read({"user": "u", "request_id": "body"}, headers, []).entity == "u"
    assert reader.read({"request_id": "body"}, headers, []).request_id == "body"
    both = IdentityReader(time_field=None, entity_fields=("user", "card"))
    assert both.read({"user": None, "card": 5.0}, headers, []).entity == "|5"
    assert both.read({"user": None}, headers, []).entity == "from-header"
    assert reader.read({}, headers, []).event_microseconds == NOON
    assert reader.read({}, {}, []).request_id != reader.read({}, {}, []).request_id
