"""The signing key: its loss is an error with a remedy, and another one is a decision."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from console.settings import Settings
from console.signing import load_signer, new_key
from console.wiring import this_process
from console.workspace import open_workspace
from state import leases, log
from state.errors import InputError
from state.keys import load, load_or_create
from tests.console.command import Steady, refused
from tests.e2e import datasets
from tools.processes import start_ticks


@pytest.fixture
def key(home: Path) -> Path:
    return home / "keys" / "log_ed25519"


def vkey(home: Path) -> str:
    with closing(open_workspace(Settings(home=home), create=False)) as workspace:
        return load_signer(workspace).vkey


def test_a_lost_key_stops_what_signs_and_is_never_replaced_by_itself(
    steady: Steady, home: Path, key: Path, tmp_path: Path
) -> None:
    key.unlink()
    spec = datasets.write(tmp_path / "data", "still")
    refused(steady("up", spec, "--home", home), str(key), "backup", "steady audit new-key")
    assert steady("status", "--home", home).code == 0
    verified = steady("audit", "verify", "--json", "--home", home)
    assert verified.code == 0
    assert any(str(key) in note for note in verified.json["notes"])
    assert not key.exists()


@pytest.mark.parametrize("content", [pytest.param("no key", id="garbage"), pytest.param(None, id="another-key")])
def test_a_file_that_is_not_the_logs_key_is_named(
    steady: Steady, home: Path, key: Path, tmp_path: Path, content: str | None
) -> None:
    key.unlink()
    if content is None:
        load_or_create(key, "steadyhand")
    else:
        key.write_text(content)
        key.chmod(0o600)
    before = key.read_bytes()
    refused(steady("up", datasets.write(tmp_path / "data", "still"), "--home", home), str(key), "backup")
    assert key.read_bytes() == before


def test_a_new_key_is_a_decision_that_the_old_key_signs_for(steady: Steady, home: Path, key: Path) -> None:
    old = vkey(home)
    answer = steady("audit", "new-key", "--reason", "yearly", "--json", "--home", home).json
    assert answer == {"old_key": old, "new_key": vkey(home)}
    assert answer["new_key"] != old
    assert key.stat().st_mode & 0o777 == 0o600
    assert not key.with_suffix(".new").exists()
    [record] = steady("audit", "list", "--kind", "key_changed", "--json", "--home", home).json["decisions"]
    assert (record["old_key"], record["new_key"], record["reason"]) == (old, answer["new_key"], "yearly")

    for keys in ([], ["--key", old], ["--key", answer["new_key"]]):
        verified = steady("audit", "verify", *keys, "--json", "--home", home)
        assert (verified.code, verified.json["problems"]) == (0, []), keys
        assert verified.json["n_proven"] == verified.json["n_records"]
    steady("halt", "--home", home)
    with closing(open_workspace(Settings(home=home), create=False)) as workspace:
        log.checkpoint(workspace.db, load_signer(workspace), workspace.second_place)
    assert steady("audit", "verify", "--key", old, "--json", "--home", home).json["problems"] == []


def test_after_a_loss_the_new_key_has_to_be_handed_over(steady: Steady, home: Path, key: Path) -> None:
    old = vkey(home)
    key.unlink()
    new = steady("audit", "new-key", "--reason", "the disk died", "--json", "--home", home).json["new_key"]
    assert new == vkey(home)
    assert steady("audit", "verify", "--home", home).code == 0
    doubted = steady("audit", "verify", "--key", old, "--json", "--home", home)
    assert doubted.code == 1
    assert any("changes the signing key" in problem for problem in doubted.json["problems"])
    assert steady("audit", "verify", "--key", old, "--key", new, "--home", home).code == 0


def test_a_change_of_key_that_was_killed_on_its_way_is_completed(
    home: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = vkey(home)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with closing(open_workspace(Settings(home=home), create=False)) as workspace:
        with monkeypatch.context() as patch:
            patch.setattr("console.signing._finish", killed)  # nothing else stops between the record and the files
            with pytest.raises(KeyboardInterrupt):
                new_key(workspace, "yearly")
        assert load(key).vkey == old
        completed = load_signer(workspace)
        assert completed.vkey == load(key).vkey != old
        assert not key.with_suffix(".new").exists()


def test_a_key_file_that_was_made_and_never_named_changes_nothing(home: Path, key: Path) -> None:
    old = vkey(home)
    load_or_create(key.with_suffix(".new"), "steadyhand")
    assert vkey(home) == old


def test_only_an_admin_changes_the_key_and_never_under_a_running_loop(steady: Steady, home: Path, key: Path) -> None:
    before = key.read_bytes()
    with closing(open_workspace(Settings(home=home), create=False)) as workspace, workspace.db.transaction() as conn:
        mine = f"/{os.getpid()}/{start_ticks(os.getpid())}"
        parent = this_process().replace(mine, f"/{os.getppid()}/{start_ticks(os.getppid())}")
        lease = leases.acquire(conn, "model/other", parent, 600)
        assert lease is not None
    refused(steady("audit", "new-key", "--reason", "x", "--home", home), f"process {os.getppid()}")
    with closing(open_workspace(Settings(home=home), create=False)) as workspace, workspace.db.transaction() as conn:
        leases.release(conn, lease)
    user = steady("status", "--json", "--home", home).json["user"]
    (home / "roles.toml").write_text(f'"{user}" = ["operator", "approver"]\n')
    refused(steady("audit", "new-key", "--reason", "x", "--home", home), "'admin'")
    assert key.read_bytes() == before
    assert steady("audit", "list", "--kind", "key_changed", "--json", "--home", home).json["decisions"] == []


def test_a_log_that_was_tampered_with_gets_no_new_key(home: Path, key: Path) -> None:
    with closing(open_workspace(Settings(home=home), create=False)) as workspace:
        with workspace.db.transaction() as conn:
            conn.exec_driver_sql("delete from decisions where idx = 3")
        with pytest.raises(InputError, match="the log gets no new key: record"):
            new_key(workspace, "yearly")
        with workspace.db.snapshot() as conn:
            assert log.read(conn, kind="key_changed") == []
