"""A log's signing key may be changed by a record, and by nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from state import audit, log
from state.audit import AuditResult
from state.database import Database
from state.decisions import Genesis, KeyChanged
from state.errors import InputError
from state.keys import Checkpoint, Signer
from state.merkle import CompactRange
from state.tables import decisions
from tests.state.support import AT, IDS, Sql, observation

OLD = Signer("steadyhand.test/log", bytes(32))
NEW = Signer("steadyhand.test/log", b"\x01" * 32)
FORGER = Signer("steadyhand.test/log", b"\x02" * 32)


def begin(db: Database, key: Signer = OLD) -> None:
    with db.transaction() as conn:
        log.append(
            conn,
            Genesis(
                decision_id=IDS.new_id(), at=AT, recorded_at=AT, actor='User::"ann"', summary="First start.",
                policy_sha256="p" * 64, signing_key=key.vkey, roles={},
            ),
        )  # fmt: skip


def add(db: Database, n: int) -> None:
    with db.transaction() as conn:
        for _ in range(n):
            log.append(conn, observation())


def change_key(db: Database, old: Signer = OLD, new: Signer = NEW) -> None:
    with db.transaction() as conn:
        log.append(
            conn,
            KeyChanged(
                decision_id=IDS.new_id(), at=AT, recorded_at=AT, actor='User::"ann"', summary="A new key.",
                old_key=old.vkey, new_key=new.vkey, reason="lost",
            ),
        )  # fmt: skip


def verify(db: Database, second: Path, keys: str | Sequence[str] | None) -> AuditResult:
    return audit.verify(db, second, keys)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_another_key_than_the_one_that_the_log_names_signs_nothing(db: Database, second: Path) -> None:
    begin(db)
    log.checkpoint(db, OLD, second)
    add(db, 1)
    with pytest.raises(InputError, match=r"names the signing key .*, and this one is") as caught:
        log.checkpoint(db, NEW, second)
    assert "steady audit new-key" in caught.value.remedy
    assert [path.name for path in second.iterdir()] == ["1.txt"]


def test_a_checkpoint_by_another_key_is_found_out_without_any_key_given(
    db: Database, second: Path, sql: Sql, tmp_path: Path
) -> None:
    begin(db)
    add(db, 2)
    log.checkpoint(db, OLD, second)
    # Past the log: what somebody with a key of their own would leave.
    add(db, 1)
    tree = CompactRange()
    with db.snapshot() as conn:
        for found in log.stored(conn, decisions.c.leaf_sha256):
            tree.append(bytes.fromhex(found.leaf_sha256))
    text = Checkpoint(origin=FORGER.name, size=4, root=tree.root()).text
    (second / "4.txt").write_text(FORGER.sign(text))

    result = verify(db, second, None)

    assert any(re.search(r"checkpoint over 4 records in .*4\.txt: not signed by", text) for text in result.problems)
    assert result.n_proven == 3


def test_a_changed_key_that_the_old_one_signed_for_is_believed_by_either(db: Database, second: Path) -> None:
    begin(db)
    add(db, 2)
    log.checkpoint(db, OLD, second)
    change_key(db)
    log.checkpoint(db, NEW, second, vouched_by=OLD)
    add(db, 3)
    log.checkpoint(db, NEW, second)

    for keys in (OLD.vkey, NEW.vkey, [OLD.vkey, NEW.vkey], None):
        result = verify(db, second, keys)
        assert (result.problems, result.n_proven) == ([], 7), keys
        assert not any("changes the signing key" in note for note in result.notes)
    with pytest.raises(InputError, match="names the signing key"):
        log.checkpoint(db, OLD, second)


def test_a_changed_key_that_nobody_vouches_for_takes_both_keys_to_be_believed(db: Database, second: Path) -> None:
    begin(db)
    add(db, 2)
    log.checkpoint(db, OLD, second)
    change_key(db)
    add(db, 3)
    log.checkpoint(db, NEW, second)

    told = verify(db, second, None)
    assert told.ok
    assert any("record 3 changes the signing key" in note for note in told.notes)
    both = verify(db, second, [OLD.vkey, NEW.vkey])
    assert both.ok
    assert any("did not sign for it" in note for note in both.notes)
    doubted = verify(db, second, OLD.vkey)
    [problem] = doubted.problems
    assert problem.startswith("record 3 changes the signing key to ")
    assert "no key that is believed signed for it" in problem


def test_a_log_whose_first_key_is_a_forgers_is_found_by_the_key_of_today(db: Database, second: Path) -> None:
    """Everything was rewritten under a forger's key, and the last record names the real one, which signed nothing."""
    begin(db, FORGER)
    add(db, 2)
    log.checkpoint(db, FORGER, second)
    change_key(db, FORGER, NEW)

    [problem] = verify(db, second, NEW.vkey).problems
    assert "no key that was given signed over it" in problem


def test_a_first_key_that_was_not_handed_over_is_found(db: Database, second: Path) -> None:
    begin(db, FORGER)
    log.checkpoint(db, FORGER, second)
    result = verify(db, second, OLD.vkey)
    assert any("not signed by" in problem for problem in result.problems)
    assert result.n_proven == 0


def test_an_export_carries_the_change_of_key(db: Database, second: Path, tmp_path: Path) -> None:
    begin(db)
    change_key(db)
    log.checkpoint(db, NEW, second, vouched_by=OLD)
    audit.export(db, tmp_path / "e.jsonl")

    assert audit.verify(tmp_path / "e.jsonl", second, OLD.vkey).problems == []
    assert audit.verify(tmp_path / "e.jsonl", None, None).problems == []
