"""What people read: no minus before nought, one of a thing in the singular, agents in words, work that adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from console.cli.output import say
from console.figures import counted, figure
from console.work_time import WorkTime
from state.store import Database


@pytest.mark.parametrize(("value", "form", "text"), [
    pytest.param(-0.00001, "+.4f", "+0.0000", id="rounded-to-nought"),
    pytest.param(-0.0, ".4g", "0", id="minus-nought"),
    pytest.param(-0.4, ".0f", "0", id="percent"),
    pytest.param(-0.00005, "+.4f", "-0.0001", id="a-loss-that-shows"),
    pytest.param(0.00001, "+.4f", "+0.0000", id="a-gain-that-does-not"),
    pytest.param(-12.5, ".2f", "-12.50", id="negative"),
])  # fmt: skip
def test_nought_has_no_minus(value: float, form: str, text: str) -> None:
    assert figure(value, form) == text


def test_one_of_a_thing_is_singular() -> None:
    assert [counted(n, "new champion") for n in (0, 1, 2)] == ["0 new champions", "1 new champion", "2 new champions"]


def test_agents_are_named_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    say("data_validation", "quarantine data: day 3")
    say("data validation", "reading rows_of_march.csv")
    first, second = capsys.readouterr().err.splitlines()
    assert first.strip() == "data validation  quarantine data: day 3"
    assert second.strip() == "data validation  reading rows_of_march.csv"


def test_work_adds_up_over_processes_and_a_look_at_what_is_done_adds_nothing(tmp_path: Path) -> None:
    times = iter([0.0, 5.0, 5.0, 9.0, 9.0, 100.0, 103.0, 103.0, 200.0])
    with Database.open(f"sqlite:///{tmp_path / 'steady.db'}") as db:
        db.upgrade()

        def clock() -> float:
            return next(times)

        first = WorkTime(db, "loans", now=clock)
        assert first.seconds() is None
        first.note()
        first.note()
        assert first.seconds() == 9.0
        # Killed here; what it did since the last note is lost.
        second = WorkTime(db, "loans", now=clock)
        second.note()
        assert second.seconds() == 12.0
        assert WorkTime(db, "loans", now=clock).seconds() == 12.0
        assert WorkTime(db, "other", now=lambda: 0.0).seconds() is None
