"""Whoever edits, inserts, deletes, moves or cuts records is found out, and the record or action is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa

from state import audit, log, store
from state.audit import AuditResult
from state.canonical import canonical_json
from state.database import Database
from state.decisions import ApprovalChanged, Genesis
from state.errors import InputError
from state.keys import Checkpoint, Signer
from state.leases import Fence
from state.merkle import CompactRange, leaf_hash
from state.rows import ApprovalRow
from state.tables import decisions
from tests.state.support import AT, IDS, Sql, allowing, commit, observation, proposal, walk

SIGNER = Signer("steadyhand.test/log", bytes(32))


@pytest.fixture
def second(db: Database, fence: Fence, tmp_path: Path) -> Path:
    """A log of 12 records - genesis, two actions, observations - signed at 5, 8 and 11 of them; its second place."""
    folder = tmp_path / "checkpoints"
    with db.transaction() as conn:
        genesis = Genesis(
            decision_id=IDS.new_id(), at=AT, recorded_at=AT, actor='System::"steadyhand"', summary="First start.",
            policy_sha256="p" * 64, signing_key=SIGNER.vkey, roles={"ann": ["admin"]},
        )  # fmt: skip
        log.append(conn, genesis)
        intent = commit(conn, fence)
    walk(db, fence, intent, "acting", "done", "verified")
    log.checkpoint(db, SIGNER, folder)
    add(db, 3)
    log.checkpoint(db, SIGNER, folder)
    with db.transaction() as conn:
        other = commit(conn, fence, proposal(args={"data": "d2"}))
    walk(db, fence, other, "acting")
    add(db, 1)
    log.checkpoint(db, SIGNER, folder)
    add(db, 1)
    return folder


def add(db: Database, n: int) -> None:
    with db.transaction() as conn:
        for _ in range(n):
            log.append(conn, observation())


def verify(db: Database, second: Path | None) -> AuditResult:
    return audit.verify(db, second, SIGNER.vkey)


def exported(db: Database, tmp_path: Path) -> Path:
    path = tmp_path / "export.jsonl"
    audit.export(db, path)
    return path


def found(result: AuditResult, pattern: str) -> bool:
    return not result.ok and any(re.search(pattern, problem) for problem in result.problems)


def rewrite(db: Database, index: int, *, and_hash: bool) -> None:
    """Edit a record as somebody would who knows the format; with `and_hash`, leaving nothing to see in the row."""
    with db.transaction() as conn:
        row = sa.text("select leaf from decisions where idx = :i")
        content = json.loads(bytes(conn.execute(row, {"i": index}).scalar_one()))
        content["record"]["summary"] = "Nothing happened."
        leaf = canonical_json(content)
        conn.execute(sa.text("update decisions set leaf = :leaf where idx = :i"), {"leaf": leaf, "i": index})
        if and_hash:
            set_hash = sa.text("update decisions set leaf_sha256 = :hash where idx = :i")
            conn.execute(set_hash, {"hash": leaf_hash(leaf).hex(), "i": index})


def renumber(db: Database, after: int, by: int) -> None:
    with db.transaction() as conn:
        for sign in (-1, 1):  # by way of negative numbers, so that no index is there twice
            condition = f"idx > {after}" if sign == -1 else "idx < -1000"
            change = f"-(idx + {by}) - 2000" if sign == -1 else "-(idx + 2000)"
            conn.exec_driver_sql(f"update decisions set idx = {change} where {condition}")


def test_an_untouched_log_is_in_order(db: Database, second: Path) -> None:
    result = verify(db, second)

    assert result == AuditResult(
        n_records=12,
        n_actions=2,
        n_proven=11,
        problems=[],
        notes=["1 of 12 records are not covered by a valid checkpoint."],
    )


def test_an_export_stands_alone(db: Database, second: Path, tmp_path: Path) -> None:
    path = exported(db, tmp_path)

    result = audit.verify(path, None, SIGNER.vkey)

    assert (result.problems, result.n_records, result.n_actions, result.n_proven) == ([], 12, 2, 11)
    assert result.notes[-1].startswith("No second place was given")
    assert audit.verify(path, second, SIGNER.vkey).ok
    own = audit.verify(path, second, None)
    assert own.ok
    assert own.notes[0].startswith("Signatures were checked with the key that the log itself names")


def test_an_export_carries_the_exact_leaves(db: Database, tmp_path: Path) -> None:
    with db.transaction() as conn:
        log.append(conn, observation("Größe\u2028\u0000 'x'"))
        leaf = bytes(conn.execute(sa.text("select leaf from decisions")).scalar_one())

    assert audit.export(db, tmp_path / "e.jsonl") == 1

    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [*lines[1]["record"]["leaf"].encode()] == [*leaf]
    assert audit.verify(tmp_path / "e.jsonl", None, SIGNER.vkey).ok


def delete_and_renumber(db: Database, sql: Sql) -> None:
    sql("delete from decisions where idx = 6")
    renumber(db, 6, -1)


def insert_a_copy(db: Database, sql: Sql) -> None:
    renumber(db, 5, 1)
    sql(
        "insert into decisions select 6, 'x', kind, model, incident_id, run_id, at, leaf, leaf_sha256 "
        "from decisions where idx = 5"
    )


def swap(db: Database, sql: Sql) -> None:
    for old, new in ((5, 99), (6, 5), (99, 6)):
        sql(f"update decisions set idx = {new} where idx = {old}")


Tamper = Callable[[Database, Sql], None]
CASES = [
    pytest.param(lambda db, sql: rewrite(db, 6, and_hash=False), "record 6 was edited", id="edit"),
    pytest.param(
        lambda db, sql: rewrite(db, 6, and_hash=True),
        "records 5 to 7 are not as signed: at least one was edited",
        id="edit-with-its-hash",
    ),
    pytest.param(
        lambda db, sql: sql("update decisions set leaf = '{}' where idx = 6"),
        "record 6 is not a decision",
        id="empty-leaf",
    ),
    pytest.param(
        lambda db, sql: sql("delete from decisions where idx = 6"), "record 6 is missing: deleted", id="delete-middle"
    ),
    pytest.param(
        lambda db, sql: sql("delete from decisions where idx in (6, 7)"),
        "records 6 to 7 are missing",
        id="delete-several",
    ),
    pytest.param(
        delete_and_renumber,
        "records 5 to 7 are not as signed",
        id="delete-and-renumber",
    ),
    pytest.param(
        lambda db, sql: sql("delete from decisions where idx >= 10"),
        "record 10 is gone: 11 records were signed, and 10 are here",
        id="delete-last",
    ),
    pytest.param(
        lambda db, sql: sql("delete from decisions where idx >= 9"), "records 9 to 10 are gone", id="truncate"
    ),
    pytest.param(
        insert_a_copy,
        "record 6 was inserted: its id .* is that of record 5",
        id="insert-a-copy",
    ),
    pytest.param(
        swap,
        "records 5 to 7 are not as signed",
        id="swap",
    ),
    pytest.param(
        lambda db, sql: sql("update decisions set idx = -4 where idx = 5"),
        "record -4 is out of order",
        id="hide-before-first",
    ),
    pytest.param(
        lambda db, sql: sql("update decisions set incident_id = 'other' where idx = 6"),
        "record 6 was edited: column incident_id is 'other', and the record says None",
        id="edit-a-column",
    ),
    pytest.param(
        lambda db, sql: sql("update log_checkpoints set note = replace(note, '8', '9')"),
        "checkpoint over 8 records in the database: ",
        id="edit-a-checkpoint",
    ),
]


@pytest.mark.parametrize(("tamper", "pattern"), CASES)
def test_tampering_with_the_log_is_found(
    db: Database, second: Path, sql: Sql, tamper: Tamper, pattern: str, tmp_path: Path
) -> None:
    tamper(db, sql)

    assert found(verify(db, second), pattern), verify(db, second).problems
    assert found(verify(db, None), pattern)
    if "column" not in pattern:  # an export holds the leaves, not the columns
        pattern = pattern.replace("the database", "the export")
        assert found(audit.verify(exported(db, tmp_path), None, SIGNER.vkey), pattern)


def test_an_insertion_before_the_last_checkpoint_is_found(db: Database, second: Path) -> None:
    """A forged record with a fresh id and a right hash: only the signed root speaks against it."""
    renumber(db, 9, 1)
    forged = observation("All was well.")
    leaf = log.leaf_bytes(forged)
    with db.transaction() as conn:
        conn.execute(
            sa.text(
                "insert into decisions (idx, decision_id, kind, model, at, leaf, leaf_sha256) "
                "values (10, :id, 'observed', 'flights', '2026-03-01T12:00:00.000000+00:00', :leaf, :hash)"
            ),
            {"id": forged.decision_id, "leaf": leaf, "hash": leaf_hash(leaf).hex()},
        )

    assert found(verify(db, second), "records 8 to 10 are not as signed: at least one was edited, inserted")


def test_only_the_second_place_shows_a_log_cut_short_with_its_checkpoints(db: Database, second: Path, sql: Sql) -> None:
    for statement in (
        "delete from decisions where idx >= 5",
        "delete from actions where log_index >= 5",
        "delete from log_checkpoints where size > 5",
    ):
        sql(statement)

    assert verify(db, None).ok
    assert verify(db, second).problems == [
        "records 5 to 10 are gone: 11 records were signed, and 5 are here (cut short or older)"
    ]


def forge_checkpoint(db: Database, signer: Signer) -> None:
    """A checkpoint over the whole log, past the log's own rule about its key."""
    tree = CompactRange()
    with db.transaction() as conn:
        for found in log.stored(conn, decisions.c.leaf_sha256):
            tree.append(bytes.fromhex(found.leaf_sha256))
        note = signer.sign(Checkpoint(origin=signer.name, size=tree.size, root=tree.root()).text)
        conn.execute(
            sa.text("insert into log_checkpoints (size, root_sha256, note, frontier) values (:n, :root, :note, '[]')"),
            {"n": tree.size, "root": tree.root().hex(), "note": note},
        )


def test_a_log_rewritten_with_another_key_is_found(db: Database, second: Path, sql: Sql) -> None:
    sql("delete from log_checkpoints")
    rewrite(db, 3, and_hash=True)
    forge_checkpoint(db, Signer(SIGNER.name, b"\x01" * 32))

    result = verify(db, second)

    assert found(result, "checkpoint over 12 records in the database: not signed by")
    assert found(result, "records 0 to 4 are not as signed")


def test_a_deleted_checkpoint_file_is_found(db: Database, second: Path) -> None:
    (second / "8.txt").unlink()

    assert found(verify(db, second), "checkpoint over 8 records is missing from the second place")


def test_a_checkpoint_file_under_another_name_is_found(db: Database, second: Path) -> None:
    (second / "8.txt").write_text((second / "5.txt").read_text(encoding="utf-8"), encoding="utf-8")

    assert found(verify(db, second), r"checkpoint over 8 records in .*8\.txt: it covers 5 records")


def test_two_histories_signed_over_one_size_are_found(db: Database, second: Path, sql: Sql, tmp_path: Path) -> None:
    rewrite(db, 3, and_hash=True)
    sql("delete from log_checkpoints")
    log.checkpoint(db, SIGNER, tmp_path / "elsewhere")
    (second / "12.txt").write_bytes((tmp_path / "elsewhere" / "12.txt").read_bytes())

    assert found(verify(db, second), "records 0 to 4 are not as signed")


def test_a_checkpoint_row_that_was_never_written_is_only_noted(db: Database, second: Path, sql: Sql) -> None:
    sql("delete from log_checkpoints where size = 11")

    result = verify(db, second)

    assert result.ok
    assert "Checkpoints only in the second place: 11." in result.notes


@pytest.mark.parametrize(
    ("statement", "pattern"),
    [
        pytest.param("update actions set state = 'failed' where log_index = 4", "state is 'failed'", id="state"),
        pytest.param(
            "update actions set state = 'nonsense' where log_index = 4", "cannot be read: state", id="no-state"
        ),
        pytest.param("update actions set model = 'fraud' where log_index = 4", "model is 'fraud'", id="model"),
        pytest.param("update actions set kind = 'promote' where log_index = 4", "was edited: key is", id="kind"),
        pytest.param("update actions set subject_id = 'i2' where log_index = 4", "was edited: key is", id="subject"),
        pytest.param(
            "update actions set created_at = '2026-02-01T12:00:00.000000+00:00' where log_index = 4",
            "created_at is",
            id="time-that-budgets-count-by",
        ),
        pytest.param(
            "update actions set body = replace(body, '\"d1\"', '\"d9\"') where log_index = 4", "args is", id="args"
        ),
        pytest.param("update actions set body = replace(body, 'now verified', 'x')", "message is 'x'", id="message"),
        pytest.param("update actions set body = replace(body, 'pppp', 'qqqq')", "policy_sha256 is", id="policy"),
        pytest.param(
            'update actions set body = replace(body, \'"observed":{}\', \'"observed":{"ok":1}\') where log_index = 4',
            "observed is",
            id="observed",
        ),
        pytest.param("update actions set body = '{' where log_index = 4", "cannot be read", id="garbage"),
        pytest.param("update actions set log_index = 7 where log_index = 4", "log_index 7 is not", id="log-index"),
        pytest.param("update actions set id = 'x' where log_index = 4", "no record decided it", id="key"),
        pytest.param("delete from actions where log_index = 4", "deleted from the ledger, and record 4", id="deleted"),
        pytest.param(
            "insert into actions select 'k', model, subject_id, kind, 'verified', created_at, 3, body from actions "
            "where log_index = 4",
            "no record decided it",
            id="inserted",
        ),
    ],
)
def test_an_action_that_tells_another_story_than_the_log_is_found(
    db: Database, second: Path, sql: Sql, statement: str, pattern: str, tmp_path: Path
) -> None:
    sql(statement)

    result = verify(db, second)

    assert found(result, f"^action .*{pattern}"), result.problems
    assert result.n_proven == 11
    assert found(audit.verify(exported(db, tmp_path), None, SIGNER.vkey), f"^action .*{pattern}")


def test_a_record_that_does_not_follow_is_named(db: Database, fence: Fence, second: Path, sql: Sql) -> None:
    """The ledger would refuse it; here somebody appended the record past the ledger."""
    with db.transaction() as conn:
        row = sa.text("select leaf from decisions where idx = 4")
        verified = log.parse_leaf(bytes(conn.execute(row).scalar_one()))
        log.append(conn, verified.model_copy(update={"decision_id": IDS.new_id(), "state": "acting"}))

    assert found(verify(db, second), "record 12 does not follow: .* cannot go from verified to acting")


# --- exports changed by hand


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> Path:
    path.write_text("".join(change(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        pytest.param(lambda lines: lines[:3] + lines[4:], "record 2 is missing", id="line-deleted"),
        pytest.param(
            lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "record 2 is out of order", id="lines-swapped"
        ),
        pytest.param(lambda lines: [*lines[:4], lines[3], *lines[4:]], "record 2 is out of order", id="line-doubled"),
        pytest.param(lambda lines: lines[:-1], "the export is cut short or changed", id="end-cut"),
        pytest.param(lambda lines: lines[:10], "the export is cut short", id="half-cut"),
        pytest.param(
            lambda lines: [line.replace("healthy", "unhealthy") for line in lines],
            "record 5 was edited",
            id="text-edited",
        ),
        pytest.param(
            lambda lines: [line for line in lines if '{"checkpoint":{"size":8' not in line],
            "changed: it ends",
            id="note-removed",
        ),
    ],
)
def test_a_changed_export_is_found_out(
    db: Database, second: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], pattern: str
) -> None:
    path = edit(exported(db, tmp_path), change)

    assert found(audit.verify(path, None, SIGNER.vkey), pattern), audit.verify(path, None, SIGNER.vkey).problems


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(b"", "line 1 .*: the file is empty", id="empty"),
        pytest.param(b"garbage\n", "line 1 ", id="garbage"),
        pytest.param(b"\xff\xfe\x00\x00", "line 1 ", id="binary"),
        pytest.param(b"[]\n", "line 1 ", id="not-an-object"),
        pytest.param(b"{}\n", "line 1 .*holds 0 parts", id="no-part"),
        pytest.param(b'{"record":{"index":0,"leaf":"","leaf_sha256":""}}\n', "line 1 .*does not open", id="no-head"),
        pytest.param(b'{"export":{"format":3,"vkey":null}}\n', "line 1 .*format 3 is not 1 or 2", id="other-format"),
        pytest.param(b'{"export":{"format":1,"vkey":null}}\n{"rec', "line 2 ", id="cut-in-a-line"),
        pytest.param(b'{"export":{"format":1,"vkey":null}}\n{"record":{"index":"0"}}\n', "line 2 ", id="wrong-type"),
        pytest.param(b'{"export":{"format":1,"vkey":null}}\n' * 2, "line 2 .*no other", id="two-heads"),
        pytest.param(b'{"export":{"format":1,"vkey":null}}\n' + b"[" * 100_000, "line 2 ", id="deep"),
    ],
)
def test_a_file_that_is_no_export_is_named_with_its_line(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "export.jsonl"
    path.write_bytes(content)

    with pytest.raises(InputError, match=f"export.jsonl {named}") as caught:
        audit.verify(path, None, SIGNER.vkey)
    assert "steady audit verify --write-export" in caught.value.remedy


def test_missing_files_and_folders_are_named(db: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        audit.verify(tmp_path / "nowhere.jsonl", None, None)
    with pytest.raises(InputError, match="nowhere is not a folder of checkpoints"):
        audit.verify(db, tmp_path / "nowhere", None)
    with pytest.raises(InputError, match="cannot be written"):
        audit.export(db, tmp_path / "nowhere" / "export.jsonl")
    with pytest.raises(InputError, match="not a public key"):
        audit.verify(db, None, "nonsense")


def test_an_export_that_fails_leaves_the_old_one(db: Database, second: Path, sql: Sql, tmp_path: Path) -> None:
    path = exported(db, tmp_path)
    before = path.read_bytes()
    sql("drop table log_checkpoints")

    with pytest.raises(InputError, match="log_checkpoints"):
        audit.export(db, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir() if "export" in item.name] == ["export.jsonl"]


def test_a_key_in_the_log_that_is_no_key_is_a_problem(db: Database, tmp_path: Path) -> None:
    genesis = Genesis(
        decision_id="g", at=AT, recorded_at=AT, actor="x", summary="First start.", policy_sha256="p", signing_key="nonsense",
        roles={},
    )  # fmt: skip
    with db.transaction() as conn:
        log.append(conn, genesis)

    assert found(audit.verify(db, None, None), "the key that the log names is no public key")


def test_checkpoints_without_any_key_are_a_problem(db: Database, tmp_path: Path) -> None:
    add(db, 1)
    log.checkpoint(db, SIGNER, tmp_path)

    assert found(audit.verify(db, None, None), "no public key is given")


def test_an_empty_log_is_in_order(db: Database, tmp_path: Path) -> None:
    assert audit.verify(db, None, None).ok
    assert audit.verify(exported(db, tmp_path), None, None).ok


def answered(change: Literal["approved", "rejected"], key: str) -> ApprovalChanged:
    return ApprovalChanged(
        decision_id=IDS.new_id(), at=AT, recorded_at=AT, actor='User::"ann"', summary=f"ann {change} it.",
        model="flights", run_id="r",
        approval_id="a1", change=change, action="train_candidates", action_key=key, roles=["approver"],
    )  # fmt: skip


def question() -> ApprovalRow:
    return ApprovalRow(
        id="a1", model="flights", status="approved", action_key="k1", action="train_candidates", args={},
        binding_sha256="b", roles=["approver"], reason="", asked_at=AT, expires_at=AT, answered_by="ann", run_id="r",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "sound"),
    [
        pytest.param([("approved", "k1")], True, id="a-yes-before-it"),
        pytest.param([], False, id="a-row-that-somebody-wrote-by-hand"),
        pytest.param([("rejected", "k1")], False, id="a-no"),
        pytest.param([("approved", "k2")], False, id="a-yes-to-another-action"),
    ],
)
def test_an_action_on_an_approval_that_nobody_recorded_is_found(
    db: Database, tmp_path: Path, answers: list[tuple[Literal["approved", "rejected"], str]], sound: bool
) -> None:
    decision = allowing(proposal(), "k1", facts={"approved_by": ["approver"]}, approval_id="a1")
    with db.transaction() as conn:
        for change, key in answers:
            log.append(conn, answered(change, key))
        log.append(conn, decision)
        if sound:
            store.put(conn, question(), fence=None)
        if not answers:
            log.append(conn, answered("approved", "k1"))  # afterwards is too late
    log.checkpoint(db, SIGNER, tmp_path / "second")
    result = verify(db, tmp_path / "second")
    assert result.ok is sound
    assert sound or found(result, "allows train_candidates on approval a1, which no record before it gives")
