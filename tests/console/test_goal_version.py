"""A goal that names a version: one that the registry does not have is refused when it is stated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from mlflow import MlflowClient

from console import services
from console.cli.main import main
from console.settings import Settings
from console.workspace import Workspace, open_workspace
from state import log, store
from state.decisions import Commanded
from state.errors import InputError
from state.rows import ActionRow, DetectorRow, GoalRow, ModelRow, RolloutRow, Row
from tests.tools.control_rows import START, spec_of
from tools.chat_models import ChatModel
from tools.tracking import embedded_uri, mlflow_errors


def promoted(version: str) -> ActionRow:
    return ActionRow(
        id=f"promote-{version}", model="parcels", subject_id="g", kind="promote", state="verified",
        args={"version": version}, args_sha256="", attempt=1, agent="deployment", run_id=None, prior={},
        evidence_ids=[], facts_sha256="", policy_sha256="", approval_id=None, epoch=1, created_at=START,
    )  # fmt: skip


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose registry holds versions 1, 2 and 3 of `parcels`; the first two served."""
    home = tmp_path_factory.mktemp("registered") / "ws"
    workspace = open_workspace(Settings(home=home), create=True)
    rows: list[Row] = [
        ModelRow(id="parcels", status="live", spec=spec_of().model_dump(mode="json"), spec_sha256="0" * 64,
                 base_path=".", added_at=START),
        DetectorRow(id="parcels/champion", model="parcels", state={"version": "2", "previous": "1"}),
    ]  # fmt: skip
    with workspace.db.transaction() as conn:
        for row in rows:
            store.put(conn, row, fence=None)
        for version in ("1", "2"):
            store.write(conn, promoted(version), log_index=int(version))
    workspace.close()
    with mlflow_errors("two versions"):
        client = MlflowClient(embedded_uri(home))
        client.create_registered_model("parcels")
        for _ in range(3):
            client.create_model_version("parcels", str(home / "package"))
    return home


@pytest.fixture
def workspace(registered: Path) -> Iterator[Workspace]:
    opened = open_workspace(Settings(home=registered), create=False)
    yield opened
    opened.close()


def goals(workspace: Workspace) -> list[GoalRow]:
    with workspace.db.transaction() as conn:
        return store.select(conn, GoalRow)


@pytest.mark.parametrize("text", [
    pytest.param("deploy version 99 of parcels", id="deploy"),
    pytest.param("promote version 99 of parcels", id="promote"),
    pytest.param("compare version 99 of parcels with the champion", id="compare"),
    pytest.param('{"intent": "rollback", "model": "parcels", "version": "99"}', id="rollback-as-json"),
    pytest.param('{"intent": "deploy", "version": "99"}', id="of-the-only-model"),
])  # fmt: skip
def test_a_version_that_does_not_exist_is_refused_with_those_that_do(workspace: Workspace, text: str) -> None:
    before = goals(workspace)
    with pytest.raises(InputError) as refused:
        services.submit_goal(workspace, text)

    assert "parcels has no version 99" in refused.value.message
    assert "1, 2, 3" in refused.value.remedy
    assert goals(workspace) == before


@pytest.mark.parametrize("version", ["0", "00", "-1", "1.0", "9" * 5_000, "\u0663", "", "v1"])
def test_what_is_no_version_number_is_refused_too(workspace: Workspace, version: str) -> None:
    text = f'{{"intent": "deploy", "model": "parcels", "version": "{version}"}}'
    with pytest.raises(InputError, match="parcels has no"):
        services.submit_goal(workspace, text)


def test_a_goal_that_needs_a_version_and_names_none_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="deploy needs a version"):
        services.submit_goal(workspace, '{"intent": "deploy", "model": "parcels"}')


@pytest.mark.parametrize(("given", "taken"), [("1", "1"), ("002", "2"), ("previous", "1")])
def test_a_version_that_exists_is_taken_in_by_its_number(workspace: Workspace, given: str, taken: str) -> None:
    row = services.submit_goal(workspace, f'{{"intent": "deploy", "model": "parcels", "version": "{given}"}}')
    assert row.goal["version"] == taken


def test_the_command_ends_with_code_2_and_names_the_versions(
    registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '{"intent": "deploy", "model": "parcels", "version": "99"}'
    monkeypatch.setattr(sys, "argv", ["steady", "goal", text, "--home", str(registered)])
    with pytest.raises(SystemExit) as ended:
        main()

    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "no version 99" in said.err
    assert "1, 2, 3" in said.err


def test_a_rollback_to_a_version_that_never_served_is_refused_with_those_that_did(workspace: Workspace) -> None:
    with pytest.raises(InputError) as refused:
        services.submit_goal(workspace, '{"intent": "rollback", "model": "parcels", "version": "3"}')
    assert "version 3 of parcels never served" in refused.value.message
    assert "1, 2" in refused.value.remedy

    row = services.submit_goal(workspace, '{"intent": "rollback", "model": "parcels", "version": "1"}')
    assert row.goal["version"] == "1"


def test_words_are_read_by_the_language_model_that_the_settings_name_and_the_record_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = '{"goal": {"intent": "investigate", "model": "parcels"}}'
    model = ChatModel(chat=GenericFakeChatModel(messages=iter([answer, answer])), name="scripted:one")
    monkeypatch.setattr(services, "language_model", lambda workspace: model)

    row = services.submit_goal(workspace, "what on earth is the matter with parcels?")

    with workspace.db.snapshot() as conn:
        asked = [e.decision for e in log.read(conn) if isinstance(e.decision, Commanded)][-1]
    assert (row.goal["intent"], row.text) == ("investigate", "what on earth is the matter with parcels?")
    read_by = asked.details["read_by"]
    assert isinstance(read_by, list)
    kept = read_by[0]
    assert isinstance(kept, dict)
    assert (kept["language_model"], kept["answer"], kept["input_tokens"]) == ("scripted:one", answer, None)


def test_a_language_model_that_cannot_be_opened_is_named_and_stands_in_the_way_of_no_sentence(
    workspace: Workspace,
) -> None:
    settings = workspace.settings.model_copy(update={"language_model": "nobody:none"})
    named = replace(workspace, settings=settings)
    assert services.submit_goal(named, "investigate parcels").goal["intent"] == "investigate"

    with pytest.raises(InputError, match="'nobody:none'"):
        services.submit_goal(named, "what on earth is the matter with parcels?")


def test_previous_is_what_traffic_would_return_to(workspace: Workspace) -> None:
    def meant() -> object:
        return services.submit_goal(workspace, "roll back parcels").goal["version"]

    assert meant() == "1"
    running = RolloutRow(
        id="running", model="parcels", status="running", candidate="3", stable="2", phase="canary", started_at=START
    )
    with workspace.db.transaction() as conn:
        store.put(conn, running, fence=None)
    assert meant() == "2"
    with workspace.db.transaction() as conn:
        store.put(conn, running.model_copy(update={"status": "completed"}), fence=None)
    assert meant() == "1"
