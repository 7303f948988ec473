"""`steady eval` as it is typed: a new scenario, its check, a run, a comparison, and one made from an incident."""

from __future__ import annotations

import json
from pathlib import Path

from tests.console.command import Steady

TINY = """\
id: tiny
title: Nothing happens
family: limits
difficulty: easy
seeds: [1]
days: 1
models: [{name: churn, rows_per_day: 60, history_days: 20}]
truth: {cause: []}
wanted: [{state: incident, count: WANTED}]
deadline_days: 0
twin: false
"""


def test_a_new_scenario_passes_its_check_and_is_not_overwritten(steady: Steady) -> None:
    assert steady("eval", "new", "my-fault.yaml").code == 0
    checked = steady("eval", "check", "my-fault.yaml", "--json")

    assert json.loads(checked.out)["scenarios"] == [{"id": "my-fault", "file": "my-fault.yaml", "family": "drift"}]
    again = steady("eval", "new", "my-fault.yaml")
    assert again.code == 2
    assert "exists already" in again.err


def test_a_failed_run_says_so_in_every_form_and_is_worse_than_one_that_passed(steady: Steady) -> None:
    newer = TINY.replace("{state: incident, count: WANTED}", "{state: champion, version: newer}")
    Path("tiny.yaml").write_text(newer)

    run = steady("eval", "run", "tiny.yaml", "--jobs", "1", "--json", "--html", "page.html")

    assert run.code == 1
    assert "1 of 1  failed  tiny seed 1  wanted: champion version=newer" in run.err
    document = json.loads(run.out)
    verdict = document["scenarios"][0]
    assert (verdict["id"], verdict["passed"], verdict["pass_ratio"]) == ("tiny", False, 0.0)
    assert document["families"]["limits"]["passed"] == 0
    page = Path("page.html").read_text()
    assert "tiny <small>" in page
    assert "wanted (seed 1): " in page
    Path("after.json").write_text(run.out)
    verdict["passed"] = True
    Path("before.json").write_text(json.dumps(document))
    assert steady("eval", "compare", "after.json", "after.json").code == 0
    worse = steady("eval", "compare", "before.json", "after.json", "--json")
    assert worse.code == 1
    assert json.loads(worse.out)["changes"] == [{"id": "tiny", "before": "passed", "after": "failed", "worse": True}]


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(steady: Steady) -> None:
    Path("tiny.yaml").write_text(TINY.replace("WANTED", "0"))
    for option, place in (
        ("--html", "no/such/page.html"),
        ("--html", "."),
        ("--mlflow", "gopher://x"),
        ("--mlflow", "tiny.yaml"),
    ):
        refused = steady("eval", "run", "tiny.yaml", "--jobs", "1", option, place)

        assert refused.code == 2, (place, refused.err)
        assert place in refused.err
        assert "tiny seed 1" not in refused.err


def test_an_incident_becomes_a_scenario_or_says_why_not(steady: Steady, home: Path) -> None:
    made = steady("eval", "from-incident", "aged", "--to", "aged.yaml", "--home", home)
    unknown = steady("eval", "from-incident", "nobody", "--home", home)
    vague = steady("eval", "from-incident", "broken", "--home", home)

    assert made.code == 0, made.err
    assert steady("eval", "check", "aged.yaml").code == 0
    printed = json.loads(steady("eval", "from-incident", "aged", "--json", "--home", home).out)
    assert (printed["id"], printed["text"]) == ("incident-aged", Path("aged.yaml").read_text())
    assert "inject: concept" in Path("aged.yaml").read_text()
    assert (unknown.code, vague.code) == (2, 2)
    assert "incident 'nobody' does not exist" in unknown.err
    assert "cannot be expressed" in vague.err


WORDY = TINY.replace("id: tiny", "id: wordy\nneeds: language_model").replace("WANTED", "0").replace(
    "truth:", "timeline: [{day: 0, inject: goal, text: 'say how churn is doing'}]\ntruth:"
)  # fmt: skip


def test_rules_mode_skips_a_goal_in_free_words_and_says_so(steady: Steady) -> None:
    Path("tiny.yaml").write_text(TINY.replace("WANTED", "0"))
    Path("wordy.yaml").write_text(WORDY)

    run = steady("eval", "run", "tiny.yaml", "wordy.yaml", "--jobs", "1", "--json")

    assert run.code == 0, run.err
    assert "skipped wordy" in run.err
    document = json.loads(run.out)
    assert document["skipped"] == ["wordy"]
    assert document["language"] is None
    assert [scenario["id"] for scenario in document["scenarios"]] == ["tiny"]
    assert steady("eval", "run", "tiny.yaml", "wordy.yaml", "--jobs", "1", "--json").out == run.out


def test_a_cassette_without_the_answer_is_an_error_that_names_scenario_and_remedy(steady: Steady) -> None:
    Path("wordy.yaml").write_text(WORDY)
    Path("empty.json").write_text('{"format": 1, "answers": {}}')

    run = steady("eval", "run", "wordy.yaml", "--jobs", "1", "--mode", "cassette", "--cassette", "empty.json", "--json")

    assert run.code == 1
    error = json.loads(run.out)["scenarios"][0]["error"]
    assert "scenario wordy, seed 1" in error
    assert "--mode live --record FILE" in error


def test_a_mode_without_what_it_needs_is_refused(steady: Steady) -> None:
    Path("tiny.yaml").write_text(TINY.replace("WANTED", "0"))
    for options, said in (
        (("--mode", "magic"), "'magic' is not known"),
        (("--mode", "cassette"), "Add --cassette FILE"),
        (("--mode", "live"), "Add --model PROVIDER:NAME"),
        (("--mode", "live", "--model", "gpt"), "names no provider"),
        (("--cassette", "a.json"), "--cassette means nothing with --mode rules"),
        (("--mode", "cassette", "--cassette", "none.json"), "none.json cannot be read"),
        (("--mode", "live", "--model", "nobody:none"), "nobody:none"),
    ):
        run = steady("eval", "run", "tiny.yaml", *options)
        assert run.code == 2, options
        assert said in run.err
