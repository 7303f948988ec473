"""The command in this process, and a workspace for it to speak about."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from console.cli.main import main
from state.clock import WallClock
from state.decisions import ApprovalChanged
from state.rows import ApprovalRow, DetectorRow, ModelRow, RunRow
from tests.console.command import Answer, Steady
from tests.console.replayed import END, replayed, tell_story
from tests.tools.control_rows import START


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Steady]:
    """The command in this process, run from a folder of its own."""
    work = tmp_path / "cwd"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in [name for name in os.environ if name.startswith("STEADYHAND_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["steady", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return Answer(code, said.out, said.err)

    yield run


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after four weeks: incidents, actions, a champion, and a question that nobody has answered."""
    folder = tmp_path_factory.mktemp("told")
    with replayed(folder) as it:
        tell_story(it)
        now = WallClock().now()
        it.put(
            ModelRow(
                id="parcels", status="live", spec=it.spec.model_dump(mode="json"), spec_sha256="0" * 64,
                base_path=str(folder), added_at=START,
            ),
            DetectorRow(
                id="parcels/champion", model="parcels",
                state={"version": "2", "previous": "1", "since": END.isoformat()},
            ),
            RunRow(id="held-up", model="parcels", subject_id="wish", subject_kind="goal", status="waiting",
                   waits_for="approval of promote", started_at=START),
            ApprovalRow(
                id="00000000-question", model="parcels", status="pending", action_key="k", action="promote",
                args={"version": "3"}, binding_sha256="b", roles=["approver"], reason="tier is critical",
                asked_at=now, expires_at=now + timedelta(days=7), run_id="held-up",
            ),
        )  # fmt: skip
        it.say(
            ApprovalChanged, now, approval_id="00000000-question", change="asked", action="promote", action_key="k",
            roles=["approver"], reason="tier is critical", run_id="held-up", summary="asked",
        )  # fmt: skip
    return folder / "work"


@pytest.fixture
def home(told: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(told, tmp_path / "ws"))
