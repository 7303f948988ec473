"""`steady policy`: a set is looked over, tested and approved; until then nothing risky is done under it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from console.settings import Settings
from console.workspace import open_workspace
from policies.engine import SHIPPED, PolicySet
from state.errors import InputError
from tests.console.command import Answer, Steady, refused

NEW_POLICY = """
@id("no-sundays")
@why("nobody is here on Sundays")
forbid (principal, action in Action::"risky", resource)
when { context.actions_today >= 79 };
"""
NEW_CASE = """
- {name: busy day, agent: deployment, action: promote, facts: {actions_today: 79}, expect: deny, rules: [no-sundays]}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy folder of the team's own, which every command uses."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "policies", ignore=shutil.ignore_patterns("*.py", "__pycache__")))
    monkeypatch.setenv("STEADYHAND_POLICY_DIR", str(folder))
    return folder


@pytest.fixture
def home(steady: Steady, files: Path, tmp_path: Path) -> Path:
    """A workspace that approved the set as it was."""
    monkey = tmp_path / "ws"
    open_workspace(Settings(home=monkey, policy_dir=files), create=True).close()
    return monkey


def add_policy(files: Path) -> None:
    (files / "sundays.cedar").write_text(NEW_POLICY)
    (files / "sundays.test.yaml").write_text(NEW_CASE)


def edit(files: Path) -> None:
    path = files / "budgets.cedar"
    path.write_text(path.read_text().replace("context.actions_last_hour >= 30", "30 <= context.actions_last_hour"))
    assert "30 <=" in path.read_text()


def decisions(steady: Steady, home: Path) -> list[dict[str, Any]]:
    answer = steady("audit", "list", "--kind", "policy_approved", "--json", "--home", home)
    return list(answer.json["decisions"])


def test_check_names_every_policy_and_what_differs_from_the_approved_set(
    steady: Steady, home: Path, files: Path
) -> None:
    same = steady("policy", "check", "--json", "--home", home).json
    assert (same["ok"], same["problems"], same["changes"]) == (True, [], None)
    assert same["sha256"] == same["approved_sha256"] == PolicySet.load(files).sha256
    named = {p["id"]: p["why"] for file in same["files"] for p in file["policies"]}
    assert named["kill-switch"].startswith("the kill switch is on")
    assert len(named) == len(PolicySet.load(files).policies)

    add_policy(files)
    edit(files)
    (files / "killswitch.cedar").write_text("// moved\n" + (files / "killswitch.cedar").read_text())
    differs = steady("policy", "check", "--json", "--home", home).json
    assert differs["ok"]
    assert differs["changes"] == {
        "added": ["no-sundays"], "changed": ["actions-per-hour"], "removed": [], "schema_changed": False,
    }  # fmt: skip
    text = steady("policy", "check", "--home", home).out
    assert "not the approved set" in text
    assert "added: no-sundays" in text


def test_check_names_every_problem_of_every_file_and_ends_with_1(steady: Steady, files: Path, tmp_path: Path) -> None:
    (files / "a.cedar").write_text('@id("a")\nforbid (principal, action, resource) when { context.halted };\n')
    (files / "b.cedar").write_text('@id("b") @why("x")\npermit (principal, action, resource);\nnonsense;\n')
    answer = steady("policy", "check", "--json", "--home", tmp_path / "nowhere")
    assert answer.code == 1
    assert answer.json["ok"] is False
    assert answer.json["approved_sha256"] is None
    said = [problem["message"] for problem in answer.json["problems"]]
    assert [text.partition(":")[0] for text in said] == ["a.cedar", "b.cedar", "b.cedar"]
    assert "has no @why" in said[0]
    assert "permits every action" in said[1]
    assert "does not parse" in said[2]
    assert all(problem["remedy"] for problem in answer.json["problems"])
    assert steady("policy", "check", "--home", tmp_path / "nowhere").out.count("problem: ") == 3


def test_a_set_that_lacks_something_as_a_whole_is_named(steady: Steady, files: Path, tmp_path: Path) -> None:
    (files / "killswitch.cedar").unlink()
    answer = steady("policy", "check", "--json", "--home", tmp_path / "nowhere")
    assert answer.code == 1
    assert any("kill-switch" in problem["message"] for problem in answer.json["problems"])


@pytest.mark.parametrize("command", ["check", "test"])
def test_a_folder_without_a_set_is_refused(steady: Steady, command: str, tmp_path: Path) -> None:
    refused(steady("policy", command, tmp_path / "nowhere"), "nowhere", "no such policy folder")
    (tmp_path / "empty").mkdir()
    refused(steady("policy", command, tmp_path / "empty"), "schema.cedarschema")


def test_the_test_files_are_run_and_a_failing_case_is_named(steady: Steady, files: Path) -> None:
    answer = steady("policy", "test", "--json")
    assert (answer.code, answer.json["ok"], answer.json["n_failed"]) == (0, True, 0)
    assert answer.json["n_cases"] > 50

    case = "name: a busy hour, agent: deployment, action: promote, facts: {actions_last_hour: 30}"
    (files / "budgets.test.yaml").write_text(f"- {{{case}, expect: allow, rules: [x]}}\n")
    failed = steady("policy", "test", "--json")
    assert failed.code == 1
    [failure] = failed.json["failures"]
    assert (failure["file"], failure["case"], failure["expected"]) == ("budgets.test.yaml", "a busy hour", "allow")
    assert (failure["got"], failure["rules"]) == ("deny", ["actions-per-hour"])
    assert "a busy hour: expected allow by x, got deny by actions-per-hour" in steady("policy", "test").out


def test_a_set_without_tests_or_with_a_broken_test_file_is_refused(steady: Steady, files: Path) -> None:
    (files / "data.test.yaml").write_text("- {name: x, agnt: y}\n")
    refused(steady("policy", "test"), "data.test.yaml")
    for path in files.glob("*.test.yaml"):
        path.unlink()
    refused(steady("policy", "test"), "no *.test.yaml")


def test_a_changed_set_is_approved_once_by_name_and_digest(steady: Steady, home: Path, files: Path) -> None:
    old = PolicySet.load(files).sha256
    add_policy(files)
    edit(files)
    new = PolicySet.load(files).sha256

    before = steady("status", "--json", "--home", home).json
    assert before["policy_sha256"] == old
    assert "steady policy approve" in before["policy_problem"]
    with pytest.raises(InputError, match="is the approved one") as caught:
        loaded(home, files)
    assert "steady policy approve" in caught.value.remedy

    answer = steady("policy", "approve", "--comment", "reviewed", "--json", "--home", home).json
    assert (answer["recorded"], answer["approved_sha256"], answer["sha256"]) == (True, old, new)
    assert answer["changes"]["added"] == ["no-sundays"]

    [record] = decisions(steady, home)
    assert (record["old_sha256"], record["policy_sha256"], record["comment"]) == (old, new, "reviewed")
    assert (record["added"], record["changed"], record["removed"]) == (["no-sundays"], ["actions-per-hour"], [])
    assert record["actor"] == f'User::"{before["user"]}"'
    after = steady("status", "--json", "--home", home).json
    assert (after["policy_sha256"], after["policy_problem"]) == (new, None)
    assert loaded(home, files) == new
    assert steady("audit", "verify", "--home", home).code == 0

    again = steady("policy", "approve", "--json", "--home", home).json
    assert (again["recorded"], len(decisions(steady, home))) == (False, 1)


def loaded(home: Path, files: Path) -> str:
    """Digest of the set that a loop would act by."""
    workspace = open_workspace(Settings(home=home, policy_dir=files), create=False)
    try:
        return workspace.load_policy().sha256
    finally:
        workspace.close()


def test_a_removed_policy_shows(steady: Steady, home: Path, files: Path) -> None:
    add_policy(files)
    assert steady("policy", "approve", "--home", home).code == 0
    (files / "sundays.cedar").unlink()
    (files / "sundays.test.yaml").unlink()
    said = steady("policy", "approve", "--home", home)
    assert "removed: no-sundays" in said.out
    assert [d["removed"] for d in decisions(steady, home)] == [[], ["no-sundays"]]


def unapproved(answer: Answer, steady: Steady, home: Path, *parts: str) -> None:
    refused(answer, *parts)
    assert decisions(steady, home) == []


def test_a_set_that_does_not_load_or_fails_its_tests_is_not_approved(steady: Steady, home: Path, files: Path) -> None:
    budgets = (files / "budgets.cedar").read_text()
    (files / "budgets.cedar").write_text(budgets.replace("@why", "@because", 2))
    unapproved(steady("policy", "approve", "--home", home), steady, home, "has no @why", "1 more", "policy check")
    (files / "budgets.cedar").write_text(budgets.replace(">= 30", ">= 300"))
    unapproved(steady("policy", "approve", "--home", home), steady, home, "test cases fail", "steady policy test")
    schema = (files / "schema.cedarschema").read_text()
    (files / "budgets.cedar").write_text(budgets)
    (files / "schema.cedarschema").write_text("")
    unapproved(steady("policy", "approve", "--home", home), steady, home, "schema.cedarschema")
    (files / "schema.cedarschema").write_text(schema)
    for path in files.glob("*.test.yaml"):
        path.unlink()
    unapproved(steady("policy", "approve", "--home", home), steady, home, "nothing is tested")


@pytest.mark.parametrize(("roles", "may"), [
    pytest.param(["viewer", "operator", "auditor"], False, id="neither"),
    pytest.param(["approver"], True, id="approver"),
    pytest.param(["admin"], True, id="admin"),
])  # fmt: skip
def test_only_an_approver_or_an_admin_approves(
    steady: Steady, home: Path, files: Path, roles: list[str], may: bool
) -> None:
    user = steady("status", "--json", "--home", home).json["user"]
    (home / "roles.toml").write_text(f'"{user}" = [{", ".join(map(repr, roles))}]\n')
    add_policy(files)
    answer = steady("policy", "approve", "--home", home)
    if may:
        assert answer.code == 0
        assert len(decisions(steady, home)) == 1
    else:
        unapproved(answer, steady, home, "'approver' or 'admin'", "roles.toml")


def test_reading_and_stopping_go_on_under_a_changed_set(steady: Steady, home: Path, files: Path) -> None:
    (files / "schema.cedarschema").write_text("")
    for command in (("status",), ("incidents",), ("audit", "list"), ("audit", "verify"), ("halt", "--reason", "edit")):
        assert steady(*command, "--home", home).code == 0, command
    assert "schema" in steady("policy", "check", "--home", home).out


def test_a_forged_switch_approves_nothing(steady: Steady, home: Path, files: Path) -> None:
    """What counts is the record: rows that an earlier release went by, or a kept text, say nothing."""
    workspace = open_workspace(Settings(home=home, policy_dir=files), create=False)
    edit(files)
    new = PolicySet.load(files).sha256
    with workspace.db.transaction() as conn:
        conn.exec_driver_sql(
            "insert into switches (id, body) values ('policy', ?)",
            (f'{{"body":{{"sha256":"{new}"}},"schema_version":1}}',),
        )
        conn.exec_driver_sql("update switches set body = replace(body, 'forbid', 'permit') where id like 'policy/%'")
    workspace.close()
    with pytest.raises(InputError, match="is the approved one"):
        loaded(home, files)
    assert steady("policy", "check", "--json", "--home", home).json["changes"] is None
