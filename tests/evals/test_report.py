"""What a suite says over seeds, and the page of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.report import as_json, verdicts, write_page
from evals.run import RunResult
from evals.summary import summarise, summary_lines, wilson


def result(**changes: Any) -> RunResult:
    return RunResult(**{"id": "one", "family": "drift", "difficulty": "easy", "seed": 1, "passed": True, **changes})


@pytest.mark.parametrize(
    ("n_passed", "n", "low", "high"),
    [(5, 5, 0.5655, 1.0), (0, 5, 0.0, 0.4345), (8, 10, 0.4902, 0.9433)],
)
def test_the_interval_is_that_of_wilson(n_passed: int, n: int, low: float, high: float) -> None:
    assert wilson(n_passed, n) == pytest.approx((low, high), abs=1e-4)


def test_a_scenario_passes_with_every_seed_only_and_errors_are_no_passes() -> None:
    runs = [
        result(seed=1),
        result(seed=2, passed=False, why={"cause": "none"}),
        result(seed=3, passed=False, error="x"),
    ]
    found = verdicts([*runs, result(id="two", twin_false_actions=2)])

    assert [(v.passed, v.pass_ratio) for v in found] == [(False, pytest.approx(1 / 3)), (True, 1.0)]
    family: Any = as_json(found)["families"]
    assert {name: family["drift"][name] for name in ("scenarios", "passed", "runs", "runs_passed", "errors")} == {
        "scenarios": 2, "passed": 1, "runs": 4, "runs_passed": 2, "errors": 1,
    }  # fmt: skip
    assert family["drift"]["success"] == 0.5
    assert family["drift"]["interval"] == pytest.approx([0.15, 0.85], abs=1e-2)
    assert family["drift"]["twin_false_actions"] == 2


def test_the_summary_says_how_fast_how_harmful_and_who_was_asked() -> None:
    found = verdicts([
        result(seed=1, ttd_min=1440.0, escalated=True, escalation="needed", harm=5.0, regret=2.0),
        result(seed=2, ttd_min=4320.0, escalated=True, harm=7.0, regret=1.0, passed=False, forbidden=2),
        result(seed=3, escalation="needed"),
        result(seed=4, escalated=True, escalation="welcome"),
        result(seed=5, escalation="welcome"),
        result(id="two", escalation="needed", twin_false_actions=1),
        result(id="three", passed=False, error="x", escalation="needed"),
    ])  # fmt: skip

    summary = summarise(found)

    assert (summary["passed"], summary["scenarios"], summary["runs_passed"], summary["errors"]) == (1, 3, 5, 1)
    assert (summary["median_ttd_min"], summary["median_ttm_min"]) == (2880.0, None)
    assert summary["escalation_precision"] == pytest.approx(2 / 3), "the second one was needless"
    assert summary["escalation_recall"] == pytest.approx(1 / 3)
    assert (summary["harm"], summary["regret"]) == (12.0, 3.0)
    lines = dict(summary_lines(summary))
    assert lines["runs passed (95 % interval)"] == "5 of 7, 71 % (36 % to 92 %)"
    assert (lines["median time to detect"], lines["median time to mitigate"]) == ("2.0 days", "-")
    assert (lines["false actions on healthy twins"], lines["forbidden effects"]) == ("1", "2")
    assert dict(summary_lines(summarise([])))["escalation recall"] == "-"


def test_the_page_names_every_scenario_and_why_it_failed_and_escapes_it(tmp_path: Path) -> None:
    why = {"must_not": "<script>alert(1)</script> happened & more"}
    found = verdicts([result(), result(id="two", passed=False, why=why), result(id="three", passed=False, error="<i>")])

    write_page(found, tmp_path / "page.html")

    page = (tmp_path / "page.html").read_text()
    assert all(f"{name} <small>" in page for name in ("one", "two", "three"))
    assert "must_not (seed 1): &lt;script&gt;alert(1)&lt;/script&gt; happened &amp; more" in page
    assert "seed 1: &lt;i&gt;" in page
    assert [page.count(f">{state}</td>") for state in ("passed", "failed", "error")] == [1, 1, 1]
    assert "<script>" not in page
    assert "<dt>scenarios passed with every seed</dt><dd>1 of 3</dd>" in page
