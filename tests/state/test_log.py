"""The log is strictly consecutive, append-only, and signed without hashing it all again."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from state import log
from state.canonical import canonical_json
from state.database import Database
from state.decisions import Observed
from state.errors import InputError
from state.keys import Signer
from state.merkle import root_hash
from tests.state.support import AT, IDS, Sql, observation

SIGNER = Signer("steadyhand.test/log", bytes(32))


def append(db: Database, n: int, **fields: object) -> list[Observed]:
    made = [observation(f"Number {i}.", **fields) for i in range(n)]
    with db.transaction() as conn:
        for decision in made:
            log.append(conn, decision)
    return made


def leaves(db: Database) -> list[bytes]:
    with db.snapshot() as conn:
        return [
            hashlib.sha256(b"\x00" + leaf).digest()
            for leaf in conn.scalars(sa.text("select leaf from decisions order by idx"))
        ]


def test_a_leaf_is_the_canonical_json_of_the_whole_record(db: Database) -> None:
    decision = observation("Größe\u2028 'quoted' \x00", details={"b": 1.0, "a": None})

    with db.transaction() as conn:
        assert log.append(conn, decision) == 0
        row = conn.execute(sa.text("select leaf, leaf_sha256, at, kind from decisions")).one()

    leaf = bytes(row.leaf)
    assert leaf == canonical_json({"format": 2, "record": decision.model_dump(mode="json")})
    assert row.leaf_sha256 == hashlib.sha256(b"\x00" + leaf).hexdigest()
    assert (row.at, row.kind) == ("2026-03-01T12:00:00.000000+00:00", "observed")
    with db.snapshot() as conn:
        assert log.read(conn) == [log.LogEntry(index=0, decision=decision)]


def test_the_same_record_again_keeps_its_index_and_bytes(db: Database) -> None:
    first, second = append(db, 2)

    with db.transaction() as conn:
        assert log.append(conn, first.model_copy(update={"summary": "Something else."})) == 0
        assert log.append(conn, second) == 1
        assert log.append(conn, observation()) == 2
    with db.snapshot() as conn:
        assert log.read(conn, limit=1)[0].decision == first


def test_an_index_that_was_rolled_back_is_used_again(db: Database) -> None:
    append(db, 2)
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        assert log.append(conn, observation()) == 2
        1 / 0  # noqa: B018

    with db.transaction() as conn:
        assert log.append(conn, observation()) == 2


def test_concurrent_appenders_leave_no_gap_and_no_double(db: Database) -> None:
    start = threading.Barrier(6)
    failures: list[BaseException] = []

    def work() -> None:
        start.wait()
        try:
            for size in (1, 3, 2, 1, 3):
                append(db, size)
        except BaseException as exc:  # noqa: BLE001 - shown by the assertion below
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with db.snapshot() as conn:
        entries = log.read(conn)
    assert [entry.index for entry in entries] == list(range(60))
    assert len({entry.decision.decision_id for entry in entries}) == 60


def test_reading_filters_and_pages(db: Database) -> None:
    append(db, 2, incident_id="i1", run_id="r1")
    append(db, 2, model="fraud", incident_id="i2")
    append(db, 1, model=None)

    def found(**query: object) -> list[int]:
        with db.snapshot() as conn:
            return [entry.index for entry in log.read(conn, **query)]  # type: ignore[arg-type]

    assert found() == [0, 1, 2, 3, 4]
    assert found(model="flights") == [0, 1]
    assert found(incident_id="i2") == [2, 3]
    assert found(run_id="r1") == [0, 1]
    assert found(kind="observed", since_index=3) == [3, 4]
    assert found(kind="genesis") == []
    assert found(since_index=1, limit=2) == [1, 2]
    assert found(newest_first=True, limit=2) == [4, 3]


def test_a_damaged_leaf_names_its_record(db: Database, sql: Sql) -> None:
    append(db, 2)
    sql("update decisions set leaf = substr(leaf, 2) where idx = 1")

    with pytest.raises(InputError, match="record 1 of the decision log"), db.snapshot() as conn:
        log.read(conn)


def test_a_checkpoint_signs_the_root_in_both_places(db: Database, tmp_path: Path) -> None:
    append(db, 5)

    made = log.checkpoint(db, SIGNER, tmp_path / "second")

    assert (made.size, made.root) == (5, root_hash(leaves(db)))
    note = (tmp_path / "second" / "5.txt").read_text(encoding="utf-8")
    assert SIGNER.verifier().checkpoint(note) == made
    with db.snapshot() as conn:
        assert conn.execute(sa.text("select note from log_checkpoints")).scalars().all() == [note]


def test_checkpoints_grow_with_the_log_and_never_hash_what_is_signed(db: Database, tmp_path: Path, sql: Sql) -> None:
    for n in (1, 1, 3, 8, 0, 4):
        append(db, n)
        made = log.checkpoint(db, SIGNER, tmp_path / "second")
        assert made.root == root_hash(leaves(db))
    # Were the records below 17 read again, this one would be noticed.
    sql("update decisions set leaf_sha256 = 'gone' where idx = 3")
    append(db, 1)

    assert log.checkpoint(db, SIGNER, tmp_path / "second").size == 18
    assert sorted(int(path.stem) for path in (tmp_path / "second").iterdir()) == [1, 2, 5, 13, 17, 18]


def test_an_empty_log_can_be_signed(db: Database, tmp_path: Path) -> None:
    assert log.checkpoint(db, SIGNER, tmp_path).root == hashlib.sha256(b"").digest()
    append(db, 1)
    assert log.checkpoint(db, SIGNER, tmp_path).size == 1


@pytest.mark.parametrize("lost", ["delete from log_checkpoints", "update log_checkpoints set frontier = '[]'"])
def test_a_checkpoint_starts_over_where_its_own_record_is_lost(
    db: Database, tmp_path: Path, sql: Sql, lost: str
) -> None:
    append(db, 5)
    log.checkpoint(db, SIGNER, tmp_path)
    append(db, 2)
    sql(lost)

    assert log.checkpoint(db, SIGNER, tmp_path).root == root_hash(leaves(db))


def test_a_killed_checkpoint_is_completed_by_the_next(db: Database, tmp_path: Path, sql: Sql) -> None:
    append(db, 5)
    first = log.checkpoint(db, SIGNER, tmp_path)
    sql("delete from log_checkpoints")  # killed after the file, before the row

    assert log.checkpoint(db, SIGNER, tmp_path) == first
    with db.snapshot() as conn:
        assert conn.execute(sa.text("select size from log_checkpoints")).scalars().all() == [5]


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        pytest.param("delete from decisions where idx >= 4", "it has 4 records, and 6 were signed", id="tail-cut"),
        pytest.param(
            "delete from decisions where idx >= 4; delete from log_checkpoints",
            "it has 4 records, and 6 were signed",
            id="tail-and-checkpoints-cut",
        ),
        pytest.param(
            "delete from log_checkpoints; update decisions set leaf_sha256 = (select leaf_sha256 from decisions "
            "where idx = 1) where idx = 0",
            "its first 6 records are not the ones that were signed",
            id="rewritten",
        ),
        pytest.param("update decisions set idx = 9 where idx = 7", "record 7 is missing", id="hole"),
        pytest.param("update decisions set leaf_sha256 = 'x' where idx = 7", "record 7 has no leaf hash", id="garbage"),
    ],
)
def test_a_log_that_does_not_extend_what_was_signed_is_not_signed(
    db: Database, tmp_path: Path, sql: Sql, tampering: str, named: str
) -> None:
    append(db, 6)
    log.checkpoint(db, SIGNER, tmp_path)
    append(db, 2)
    for statement in tampering.split("; "):
        sql(statement)

    with pytest.raises(InputError, match=named):
        log.checkpoint(db, SIGNER, tmp_path)
    assert [path.name for path in tmp_path.glob("*.txt")] == ["6.txt"]


def test_another_keys_checkpoint_in_the_second_place_is_named(db: Database, tmp_path: Path) -> None:
    append(db, 1)
    other = Signer("steadyhand.test/log", bytes(31) + b"\x01")
    log.checkpoint(db, other, tmp_path)

    with pytest.raises(InputError, match=r"1\.txt is not a checkpoint of this log: not signed by"):
        log.checkpoint(db, SIGNER, tmp_path)


def test_records_of_one_transaction_share_its_fate(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        for _ in range(3):
            log.append(conn, observation(at=AT, decision_id=IDS.new_id()))
        1 / 0  # noqa: B018

    with db.snapshot() as conn:
        assert log.size(conn) == 0
