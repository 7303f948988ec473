"""Somebody edits the policy files under a running loop: it does not act under them, says so, and goes on once approved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evals.world.records import Condition
from policies.current import CurrentPolicy
from policies.engine import SHIPPED, PolicySet
from state import log
from state.decisions import Genesis, Observed, PolicyApproved
from state.rows import RunRow
from tests.orchestrator.conftest import At
from tests.orchestrator.support import Stage


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "policies"))


@pytest.fixture
def stage(at: At, files: Path) -> Stage:
    """A canary at ten percent whose loop has its policy from files, as a workspace has."""
    stage = at("canary")
    policy = CurrentPolicy(files, PolicySet.load(files))
    stage.crew = replace(stage.crew, policy=policy)
    with stage.crew.db.transaction() as conn:
        log.append(
            conn,
            Genesis(**stage.crew.stamp(), actor='User::"ann"', summary="First start.", policy_sha256=policy.sha256,
                    signing_key=stage.crew.signer.vkey, roles={}),
        )  # fmt: skip
    return stage


def operation(stage: Stage) -> list[str]:
    return [d.verdict for d in stage.log() if isinstance(d, Observed) and d.topic == "operation"]


def edit(files: Path) -> None:
    path = files / "budgets.cedar"
    path.write_text(path.read_text().replace("actions_last_hour >= 30", "actions_last_hour >= 31"))
    assert "31" in path.read_text()


def approve(stage: Stage, files: Path) -> None:
    with stage.crew.db.transaction() as conn:
        log.append(
            conn,
            PolicyApproved(**stage.crew.stamp(), actor='User::"ann"', summary="ann approves.", old_sha256="",
                           policy_sha256=PolicySet.load(files).sha256, added=[], changed=["actions-per-hour"],
                           removed=[], schema_changed=False),
        )  # fmt: skip


def test_untouched_files_change_nothing(stage: Stage) -> None:
    stage.days(1)
    assert stage.weights() == {"1": 70, "2": 30}
    assert operation(stage) == []


def test_an_edited_file_stops_everything_but_a_rollback_and_is_said_once(stage: Stage, files: Path) -> None:
    before = stage.crew.policy.sha256
    edit(files)
    stage.days(2)
    assert stage.weights() == {"1": 90, "2": 10}
    assert stage.rollout().status == "running"
    assert operation(stage) == ["policy_changed"]
    [message] = [m for m in stage.messages() if "policy files" in m.title]
    assert "steady policy approve" in message.text
    [run] = stage.rows(RunRow, status="waiting")
    assert "steady policy approve" in run.waits_for
    denied = [d for d in stage.log() if d.kind == "action_decided" and d.verdict == "deny"]
    assert {(tuple(d.rules), d.policy_sha256) for d in denied} == {(("policy-changed",), before)}

    stage.world.degrade("churn", Condition(version="2", error_ratio=0.5))
    stage.days(1)
    assert stage.weights() == {"1": 100, "2": 0}


def test_an_approved_edit_is_taken_over_and_work_goes_on_under_it(stage: Stage, files: Path) -> None:
    edit(files)
    stage.days(1)
    approve(stage, files)
    stage.settle()
    assert operation(stage) == ["policy_changed", "policy_approved"]
    assert stage.weights() == {"1": 70, "2": 30}
    [decided] = [d for d in stage.log() if d.kind == "action_decided" and d.verdict == "allow"][-1:]
    assert decided.policy_sha256 == PolicySet.load(files).sha256


def test_restored_files_let_work_go_on(stage: Stage, files: Path) -> None:
    content = (files / "schema.cedarschema").read_text()
    (files / "schema.cedarschema").write_text("")
    stage.days(1)
    assert stage.weights() == {"1": 90, "2": 10}
    (files / "schema.cedarschema").unlink()
    stage.settle()
    (files / "schema.cedarschema").write_text(content)
    stage.settle()
    assert stage.weights() == {"1": 70, "2": 30}
    assert operation(stage) == ["policy_changed", "policy_changed", "policy_approved"]


def test_a_set_that_is_approved_before_its_files_are_there_waits_for_them(stage: Stage, files: Path) -> None:
    content = (files / "budgets.cedar").read_text()
    edit(files)
    approve(stage, files)
    (files / "budgets.cedar").write_text(content)
    stage.days(1)
    assert stage.weights() == {"1": 90, "2": 10}
    assert operation(stage) == ["policy_changed"]
