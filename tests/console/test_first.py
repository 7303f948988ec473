"""The first champion waits for people in live operation, and a replay says what they have to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from console.cli.main import _code
from console.first import first_champion
from console.preflight import Window
from console.settings import Settings
from console.up import Running
from orchestrator.people import throw_halt
from state.errors import ApprovalRequired, InputError
from state.rows import ApprovalRow
from tests.orchestrator.support import QUICK, SMALL, Stage, days, staged

START = Callable[..., Stage]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[START]:
    """A model of which the loop makes the first champion as far as policy lets it."""
    with ExitStack() as stack:

        def make(*, halted: bool = False, **changes: Any) -> Stage:
            (tmp_path / "world").mkdir()
            stage = stack.enter_context(staged(tmp_path / "world", truth=SMALL, **{**QUICK, **changes}))
            if halted:
                throw(stage, on=True)
            stage.start()
            return stage

        yield make


def throw(stage: Stage, *, on: bool) -> None:
    with stage.crew.db.transaction() as conn:
        throw_halt(conn, on=on, user="ann", reason="", stamp=stage.crew.stamp())


def up(stage: Stage, said: list[str], *, live: bool, on_say: Callable[[], None] = lambda: None) -> Running:
    """What stands while a model is up, over the simulated world."""

    def say(agent: str, text: str) -> None:
        said.append(text)
        on_say()

    now = stage.clock.now()
    workspace: Any = SimpleNamespace(settings=Settings(tick_seconds=0.0))
    return Running(
        workspace=workspace, platform=stage.crew.platform, crew=stage.crew, graph=stage.graph, spec=stage.spec,
        clock=stage.clock, say=say, window=None if live else Window(start=now, end=now + days(9)),
    )  # fmt: skip


def test_live_operation_says_once_how_to_approve_and_waits_for_the_answer(begin: START) -> None:
    stage = begin(autonomy={"promote": "approve"})
    said: list[str] = []
    questions: list[str] = []

    def person() -> None:
        for question in stage.rows(ApprovalRow, status="pending"):
            questions.append(question.id)
            stage.answer("approved")

    first_champion(up(stage, said, live=True, on_say=person))

    assert stage.champion() == "1"
    assert len(questions) == 1
    told = [text for text in said if "steady approve" in text]
    assert told == [
        f"churn waits for a person: promote has to be approved (`steady approve {questions[0]}`): there is no champion yet: "
        "the first version takes all traffic. the spec asks a person before every such action (autonomy = approve)"
    ]


def test_with_so_many_looks_it_waits_no_longer_and_ends_with_1(begin: START) -> None:
    stage = begin(autonomy={"promote": "approve"})
    with pytest.raises(ApprovalRequired, match="has no first champion yet: promote has to be approved") as caught:
        first_champion(up(stage, [], live=True), ticks=3)
    assert _code(caught.value) == 1


def test_a_replay_does_not_wait_and_goes_on_once_it_is_answered(begin: START) -> None:
    stage = begin(autonomy={"promote": "approve"})
    with pytest.raises(ApprovalRequired, match="steady approve"):
        first_champion(up(stage, [], live=False))
    stage.answer("approved")
    first_champion(up(stage, [], live=False))
    assert stage.champion() == "1"


def test_the_kill_switch_is_waited_for_as_well(begin: START) -> None:
    stage = begin(halted=True)
    with pytest.raises(ApprovalRequired, match="the kill switch is on"):
        first_champion(up(stage, [], live=False))
    said: list[str] = []
    first_champion(up(stage, said, live=True, on_say=lambda: throw(stage, on=False)))
    assert stage.champion() == "1"
    assert sum("kill switch" in text for text in said) == 1


def test_a_no_ends_it_with_what_was_said(begin: START) -> None:
    stage = begin(autonomy={"promote": "approve"})
    stage.answer("rejected", comment="not this month")
    with pytest.raises(InputError, match=r"no first champion: .*not this month"):
        first_champion(up(stage, [], live=True))


def test_a_first_version_that_misses_its_gates_is_a_question_with_its_figures(begin: START) -> None:
    stage = begin(gates=[{"metric": "roc_auc", "op": ">=", "value": 0.999}])
    with pytest.raises(
        ApprovalRequired, match=r"stage version has to be approved .*roc_auc 0\.\d+ \(needs >= 0\.999\)"
    ):
        first_champion(up(stage, [], live=False))
    stage.answer("rejected", comment="not good enough")
    with pytest.raises(InputError, match=r"no first champion: .*not good enough.*needs >= 0\.999") as caught:
        first_champion(up(stage, [], live=False))
    assert 'steady goal "retrain churn"' in caught.value.remedy
