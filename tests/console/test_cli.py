"""Every command: what it prints as JSON, its exit code, and one clear message for every kind of bad input."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from orchestrator.goals.reading import KEYS, NOT_YET, SENTENCES
from policies.engine import SHIPPED
from state import store
from state.goals import Goal
from state.rows import GoalRow, ModelRow, RunRow
from tests.console.command import Answer, Steady, refused
from tests.e2e import datasets

STEADY = Path(sys.executable).parent / "steady"
FROM = f"{datasets.day(datasets.REPLAY_DAY):%Y-%m-%d}"


def nothing_begun(home: Path) -> None:
    """No model, no process and no key of an effect: the next try starts from nothing."""
    assert not (home / "servers").exists()
    assert not (home / "envoy").exists()
    assert not (home / "pipelines").exists()
    if (home / "steady.db").exists():
        with store.Database.open(f"sqlite:///{home / 'steady.db'}") as db, db.snapshot() as conn:
            assert store.select(conn, ModelRow) == []
            assert store.select(conn, RunRow) == []


# --- what the commands answer -------------------------------------------------------------------------------------


def test_status_tells_models_traffic_waits_and_questions(steady: Steady, told: Path) -> None:
    state = steady("status", "--json", "--home", told).json

    assert set(state) == {
        "home", "user", "domain_time", "halted", "policy_sha256", "policy_problem", "models", "approvals",
    }  # fmt: skip
    [model] = state["models"]
    assert set(model) == {
        "model", "status", "held", "champion", "champion_since", "weights", "rollout", "goals",
        "open_incidents", "runs", "actions",
    }  # fmt: skip
    assert (model["model"], model["champion"], model["held"]) == ("parcels", "2", False)
    assert model["runs"][0]["waits_for"] == "approval of promote"
    assert sum(model["actions"].values()) == model["actions"]["verified"] == 8
    [asked] = state["approvals"]
    assert set(asked) == {"id", "model", "action", "roles", "reason", "expires_at"}
    assert (asked["action"], asked["roles"]) == ("promote", ["approver"])


def test_incidents_tell_cause_evidence_and_actions(steady: Steady, told: Path) -> None:
    found = steady("incidents", "--model", "parcels", "--json", "--home", told).json["incidents"]

    assert [(i["cause"], i["resolution"]) for i in found] == [
        ("stale_model", "recovered"),
        ("data_fault", "quarantined"),
    ]
    assert set(found[0]) == {
        "id", "model", "status", "cause", "signal", "title", "what", "part_of", "opened_at", "closed_at", "resolution", "days",
        "quarantined", "diagnoses", "actions",
    }  # fmt: skip
    assert {a["kind"]: a["state"] for a in found[0]["actions"]} == {
        "shift_traffic": "verified", "run_ab_test": "verified", "promote": "verified",
    }  # fmt: skip
    refused(steady("incidents", "--model", "nope", "--home", told), "'nope'", "parcels")


def test_a_goal_is_taken_in_once_and_recorded(steady: Steady, home: Path) -> None:
    answer = steady("goal", "keep parcels's roc_auc above 0.65", "--json", "--home", home).json
    assert set(answer) == {"goal_id", "status", "goal"}
    assert set(answer["goal"]) == {
        "intent", "model", "version", "baseline", "strategy", "traffic_percent", "objectives", "constraints", "window",
        "deadline", "every", "approval", "dry_run",
    }  # fmt: skip
    assert answer["goal"]["objectives"] == [{"metric": "roc_auc", "op": ">=", "value": 0.65}]

    report = steady("goal", "report on parcels", "--json", "--home", home).json
    assert (report["status"], report["report"]["models"][0]["model"]) == ("achieved", "parcels")
    typed = steady("goal", '{"intent": "deploy", "model": "parcels", "version": "champion"}', "--json", "--home", home)
    assert typed.json["goal"]["version"] == "2"

    last = steady("audit", "list", "--last", "3", "--json", "--home", home).json["decisions"]
    assert [d["details"]["goal_id"] for d in last] == [answer["goal_id"], report["goal_id"], typed.json["goal_id"]]


@pytest.mark.parametrize(("text", "parts"), [
    pytest.param("make it better", ["goal"], id="no-form-of-ours"),
    pytest.param("retrain lorries", ["'lorries'", "parcels"], id="unknown-model"),
    pytest.param("keep parcels's beauty above 0.5", ["beauty", "roc_auc"], id="unknown-metric"),
    pytest.param('{"intent": "deploy"', ["goal"], id="broken-json"),
    pytest.param('{"intent": "burn", "model": "parcels"}', ["intent", "deploy"], id="unknown-intent"),
    pytest.param('{"intent": "retrain", "modle": "parcels"}', ["modle"], id="unknown-key"),
    pytest.param("", ["goal"], id="empty"),
])  # fmt: skip
def test_a_goal_that_cannot_be_read_is_refused_and_leaves_nothing(
    steady: Steady, home: Path, text: str, parts: list[str]
) -> None:
    refused(steady("goal", text, "--json", "--home", home), *parts)
    with store.Database.open(f"sqlite:///{home / 'steady.db'}") as db, db.snapshot() as conn:
        assert store.select(conn, GoalRow) == []


@pytest.mark.parametrize(("verb", "status"), [("approve", "approved"), ("reject", "rejected")])
def test_a_question_is_answered_once_by_its_id_or_the_end_of_it(
    steady: Steady, home: Path, verb: str, status: str
) -> None:
    answer = steady(verb, "question", "--comment", "seen", "--json", "--home", home).json
    assert answer == {
        "approval_id": "00000000-question", "status": status, "action": "promote", "model": "parcels",
    }  # fmt: skip
    refused(steady(verb, "00000000-question", "--home", home), f"is {status} already")
    refused(steady(verb, "nonsense", "--home", home), "'nonsense' does not exist", "none")
    assert steady("status", "--json", "--home", home).json["approvals"] == []


def test_without_the_role_nothing_is_answered_halted_or_asked(steady: Steady, home: Path) -> None:
    roles = home / "roles.toml"
    held = roles.read_text()
    user = steady("status", "--json", "--home", home).json["user"]
    roles.write_text(f'"{user}" = ["viewer"]\n')
    for arguments, role in [
        (("approve", "question"), "approver"), (("halt",), "operator"), (("goal", "retrain parcels"), "operator"),
        (("hold", "parcels"), "operator"), (("halt", "--release"), "admin"),
    ]:  # fmt: skip
        refused(steady(*arguments, "--home", home), role, str(roles))
    for broken in ("user = [", f'"{user}" = "approver"\n'):
        roles.write_text(broken)
        refused(steady("approve", "question", "--home", home), str(roles))
    roles.write_bytes(b"\xff\xfe")
    refused(steady("approve", "question", "--home", home), str(roles))
    roles.write_text(held)
    assert steady("status", "--json", "--home", home).json["halted"] is False


def test_resuming_a_model_under_the_kill_switch_says_that_it_is_still_on(steady: Steady, home: Path) -> None:
    assert "kill switch" not in steady("resume", "parcels", "--home", home).out
    steady("halt", "--home", home)
    assert "`steady halt --release`" in steady("resume", "parcels", "--home", home).out
    assert steady("halt", "--release", "--home", home).code == 0


def test_what_is_asked_or_approved_under_the_kill_switch_says_that_it_is_on(steady: Steady, home: Path) -> None:
    assert "kill switch" not in steady("goal", "retrain parcels", "--home", home).out
    steady("halt", "--home", home)
    assert "steady halt --release" in steady("goal", "investigate parcels", "--home", home).out
    assert "asked anew" in steady("approve", "question", "--home", home).out


def test_halt_hold_and_their_inverses_show_in_status_and_log(steady: Steady, home: Path) -> None:
    assert steady("halt", "--reason", "outage", "--json", "--home", home).json == {"halted": True}
    assert steady("hold", "parcels", "--json", "--home", home).json == {"model": "parcels", "held": True}
    state = steady("status", "--json", "--home", home).json
    assert (state["halted"], state["models"][0]["held"]) == (True, True)
    assert steady("halt", "--release", "--json", "--home", home).json == {"halted": False}
    assert steady("resume", "parcels", "--json", "--home", home).json == {"model": "parcels", "held": False}
    state = steady("status", "--json", "--home", home).json
    assert (state["halted"], state["models"][0]["held"]) == (False, False)
    refused(steady("hold", "lorries", "--home", home), "'lorries'", "parcels")

    told = steady("audit", "list", "--kind", "commanded", "--last", "4", "--json", "--home", home).json["decisions"]
    assert [d["command"] for d in told] == ["halt", "hold", "unhalt", "resume"]


def test_the_log_is_listed_shown_and_verified(steady: Steady, home: Path, tmp_path: Path) -> None:
    listed = steady("audit", "list", "--last", "0", "--json", "--home", home).json["decisions"]
    assert [d["index"] for d in listed] == list(range(len(listed)))
    assert steady("audit", "list", "--last", "2", "--json", "--home", home).json["decisions"] == listed[-2:]
    shown = steady("audit", "show", 0, "--json", "--home", home).json
    assert shown == listed[0]
    assert shown["kind"] == "genesis"
    refused(steady("audit", "show", len(listed), "--home", home), f"record {len(listed)} does not exist")
    refused(steady("audit", "list", "--model", "nope", "--home", home), "'nope'")
    refused(steady("audit", "list", "--kind", "nonsense", "--home", home), "'nonsense'", "action_decided", "commanded")

    export = tmp_path / "log.jsonl"
    checked = steady("audit", "verify", "--write-export", export, "--json", "--home", home).json
    assert set(checked) == {"ok", "n_records", "n_actions", "n_proven", "problems", "notes"}
    assert (checked["ok"], checked["n_records"], checked["problems"]) == (True, len(listed), [])
    alone = steady(
        "audit", "verify", "--export", export, "--checkpoints", home / "checkpoints", "--key", shown["signing_key"],
        "--json",
    )  # fmt: skip
    assert (alone.code, alone.json["ok"]) == (0, True)


def test_an_edited_export_fails_with_code_1_and_names_the_record(steady: Steady, home: Path, tmp_path: Path) -> None:
    export = tmp_path / "log.jsonl"
    assert steady("audit", "verify", "--write-export", export, "--home", home).code == 0
    lines = export.read_text().splitlines(keepends=True)
    export.write_text("".join(line.replace("promote is verified.", "promote is verified!") for line in lines))

    answer = steady("audit", "verify", "--export", export, "--checkpoints", home / "checkpoints", "--json")

    assert answer.code == 1
    assert answer.json["ok"] is False
    assert any("record" in problem for problem in answer.json["problems"])
    assert steady("audit", "verify", "--export", export).code == 1


def test_an_export_that_is_not_there_or_a_key_that_is_none_is_refused(steady: Steady, home: Path) -> None:
    refused(steady("audit", "verify", "--export", "nowhere.jsonl"), "nowhere.jsonl")
    refused(steady("audit", "verify", "--key", "nonsense", "--home", home), "not a public key")
    refused(steady("audit", "verify", "--checkpoints", "nowhere", "--home", home), "nowhere")


def test_init_and_spec_check_answer_in_json(steady: Steady, tmp_path: Path) -> None:
    datasets.write(tmp_path, "still")
    made = steady("init", tmp_path / "loans.parquet", "--out", tmp_path / "made.yaml", "--json").json
    assert made == {"spec": str(tmp_path / "made.yaml")}
    checked = steady("spec", "check", tmp_path / "made.yaml", "--json").json
    assert (checked["ok"], checked["model"], len(checked["sha256"]), checked["notes"]) == (True, "loans", 64, [])
    refused(steady("init", tmp_path / "loans.parquet", "--out", tmp_path / "made.yaml"), "made.yaml exists already")


def test_init_says_on_screen_which_feature_its_name_keeps_out(steady: Steady, tmp_path: Path) -> None:
    datasets.write(tmp_path, "still")
    rows = pl.read_parquet(tmp_path / "loans.parquet")
    rows.with_columns((pl.int_range(rows.height) * 7 % 101 / 3).alias("score")).write_parquet(
        tmp_path / "scored.parquet"
    )
    made = steady("init", tmp_path / "scored.parquet", "--out", tmp_path / "made.yaml")
    assert made.code == 0
    assert "left out: score (a name that every stored row has: rename it in the data to use it)" in " ".join(
        made.out.split()
    )


def test_text_output_says_the_same_without_json(steady: Steady, home: Path) -> None:
    status = steady("status", "--home", home)
    assert (status.code, "parcels" in status.out, "promote" in status.out) == (0, True, True)
    assert "data_fault" in steady("incidents", "--home", home).out.replace("\n", "")
    assert "holds every role" in " ".join(steady("audit", "show", 0, "--home", home).out.split())
    assert "records" in steady("audit", "verify", "--home", home).out


def test_help_has_an_example_for_every_command(steady: Steady) -> None:
    for command in (
        "init", "up", "spec check", "goal", "status", "incidents", "approve", "reject", "halt", "hold", "resume",
        "audit list", "audit show", "audit verify", "audit new-key", "policy check", "policy test", "policy approve",
        "demo",
    ):  # fmt: skip
        answer = steady(*command.split(), "--help")
        assert (answer.code, f"Example: steady {command}" in answer.out) == (0, True), command


def test_the_help_of_goal_lists_every_sentence_and_every_key(steady: Steady) -> None:
    said = steady("goal", "--help").out
    for sentence in SENTENCES:
        assert sentence in said
    known = [name for name in Goal.model_fields if re.search(rf"\b{name}\b", said)]
    assert known == list(Goal.model_fields)
    assert set(KEYS) | set(NOT_YET) == set(Goal.model_fields)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "parts"), [
    pytest.param(("nonsense",), ["nonsense"], id="unknown-command"),
    pytest.param(("status", "--jsn"), ["--jsn"], id="unknown-option"),
    pytest.param(("approve",), ["approval", "steady approve --help"], id="argument-missing"),
    pytest.param(("audit", "show", "three"), ["index", "steady audit show --help"], id="not-a-number"),
    pytest.param(("audit", "list", "--last", "-1"), ["--last"], id="below-the-least"),
    pytest.param(("status",), [".steady is not a workspace", "steady up"], id="no-workspace"),
    pytest.param(("goal", "report"), [".steady is not a workspace"], id="no-workspace-for-a-goal"),
    pytest.param(("spec", "check", "nowhere.yaml"), ["nowhere.yaml does not exist"], id="spec-missing"),
    pytest.param(("init", "nowhere.csv"), ["nowhere.csv"], id="data-missing"),
    pytest.param(("up", "nowhere.yaml"), ["nowhere.yaml does not exist"], id="up-without-spec"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_message(
    steady: Steady, arguments: tuple[str, ...], parts: list[str]
) -> None:
    refused(steady(*arguments), *parts)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("name", "content"), [
    pytest.param("a.csv", b"", id="empty"),
    pytest.param("a.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, id="an-image"),
    pytest.param("a.parquet", b"PAR1 and nothing more", id="half-a-parquet-file"),
    pytest.param("a.csv", b"only,a,header\n", id="header-only"),
    pytest.param("a.csv", b"text\n" + b"word\n" * 300, id="no-time-and-no-label"),
    pytest.param("a.xlsx", b"PK\x03\x04", id="another-format"),
    pytest.param("a.csv", b'a,b\n"open quote,1\n' * 50, id="broken-quotes"),
    pytest.param("a.csv", b"when,amo\0unt,bad\n" + b"2020-01-01,1,0\n" * 50, id="a-nul-byte-in-a-name"),
    pytest.param("a.csv", b",when,bad\n" + b"1,2020-01-01,0\n" * 50, id="an-unnamed-column"),
])  # fmt: skip
def test_init_on_a_file_that_holds_no_rows_names_it(steady: Steady, name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    refused(steady("init", name), name.partition(".")[0])
    assert [path.name for path in Path.cwd().iterdir()] == [name]


def test_init_on_an_empty_folder_a_wrong_column_or_a_wrong_metric(steady: Steady, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(steady("init", tmp_path / "empty"), "empty")
    datasets.write(tmp_path, "still")
    data = tmp_path / "loans.parquet"
    refused(steady("init", data, "--label", "repayed"), "repayed", "repaid")
    refused(steady("init", data, "--time", "when"), "when", "asked_at")
    refused(steady("init", data, "--metric", "beauty"), "beauty", "roc_auc")
    assert list(Path.cwd().iterdir()) == []


def one_class(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.lit(1).alias("repaid"))


def no_labels(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.lit(None, pl.Int64).alias("repaid"))


def times_as_words(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.lit("soon").alias("asked_at"))


@pytest.mark.parametrize(("bend", "parts"), [
    pytest.param(lambda r: r.drop("repaid"), ["loans.parquet", "repaid"], id="label-missing"),
    pytest.param(no_labels, ["loans.parquet", "repaid", "no label"], id="label-always-empty"),
    pytest.param(one_class, ["loans.parquet", "repaid", "one class"], id="one-class"),
    pytest.param(lambda r: r.drop("debt"), ["loans.parquet", "debt"], id="feature-missing"),
    pytest.param(lambda r: r.drop("asked_at"), ["loans.parquet", "asked_at"], id="time-missing"),
    pytest.param(times_as_words, ["loans.parquet", "asked_at", "soon"], id="time-that-is-none"),
    pytest.param(lambda r: r.rename({"region": "debt2"}), ["region"], id="wrong-column"),
    pytest.param(lambda r: r.head(0), ["loans.parquet"], id="no-rows"),
    pytest.param(
        lambda r: r.with_columns(pl.lit("much").alias("income")), ["income", "numeric", "much"], id="numbers-as-words"
    ),
])  # fmt: skip
def test_data_that_does_not_fit_begins_nothing(
    steady: Steady, tmp_path: Path, bend: Callable[[pl.DataFrame], pl.DataFrame], parts: list[str]
) -> None:
    spec = datasets.write(tmp_path, "still", rows=bend(datasets.loans("still")))
    refused(steady("up", spec, "--replay", FROM, "--home", tmp_path / "ws"), *parts)
    nothing_begun(tmp_path / "ws")
    assert steady("status", "--json", "--home", tmp_path / "ws").json["models"] == []


@pytest.mark.parametrize(("options", "parts"), [
    pytest.param(["--replay", "soon"], ["--replay", "'soon'", "2013-04-01"], id="no-date"),
    pytest.param(["--replay", FROM, "--until", "never"], ["--until", "'never'"], id="no-end-date"),
    pytest.param(["--until", FROM], ["--until needs --replay"], id="end-without-start"),
    pytest.param(["--replay", FROM, "--until", FROM], ["empty", FROM], id="empty-window"),
    pytest.param(["--replay", "2031-01-01"], ["no row lies after 2031-01-01"], id="after-the-last-row"),
    pytest.param(["--replay", "2019-01-01"], ["no history", "2025-03-03", "2019-01-01"], id="before-the-first-row"),
    pytest.param(["--replay", FROM, "--html", "nowhere/report.html"], ["nowhere/report.html"], id="report-nowhere"),
    pytest.param(["--ticks", "0"], ["--ticks"], id="no-look-at-all"),
])  # fmt: skip
def test_a_window_or_option_that_does_not_fit_begins_nothing(
    steady: Steady, tmp_path: Path, options: list[str], parts: list[str]
) -> None:
    spec = datasets.write(tmp_path, "still")
    refused(steady("up", spec, *options, "--home", tmp_path / "ws"), *parts)
    nothing_begun(tmp_path / "ws")


def test_a_window_between_the_rows_is_refused_before_anything_is_trained(steady: Steady, tmp_path: Path) -> None:
    rows = datasets.loans("still")
    gap = pl.col("asked_at").is_between(datasets.day(26), datasets.day(30))
    spec = datasets.write(tmp_path, "still", rows=rows.filter(~gap))
    until = f"{datasets.day(28):%Y-%m-%d}"
    refused(
        steady("up", spec, "--replay", FROM, "--until", until, "--home", tmp_path / "ws"), FROM, until, "2025-04-02"
    )
    nothing_begun(tmp_path / "ws")


def test_a_spec_that_cannot_be_read_names_file_line_and_field(steady: Steady, tmp_path: Path) -> None:
    spec = datasets.write(tmp_path, "still")
    good = spec.read_text()
    line = good[: good.index("metric: roc_auc")].count("\n") + 1
    spec.write_text(good.replace("metric: roc_auc", "metric: auc", 1))
    for command in (["spec", "check", spec], ["up", spec, "--replay", FROM, "--home", tmp_path / "ws"]):
        refused(steady(*command), f"{spec}:{line}: objective.metric is 'auc'", "roc_auc")
    for broken in ("model: [", "- a\n- b\n", "\x00", "model: loans\nmodel: loans\n"):
        spec.write_text(broken)
        refused(steady("up", spec, "--replay", FROM, "--home", tmp_path / "ws"), str(spec))
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(("part", "value"), [
    ("training", {"kind": "command", "image": "x", "command": ["y"]}),
    ("serving", {"kind": "endpoint", "url": "http://x"}),
    ("delivery", {"kind": "git", "repository": "r"}),
])  # fmt: skip
def test_kinds_that_are_not_carried_out_are_refused_by_name(
    steady: Steady, tmp_path: Path, part: str, value: dict[str, Any]
) -> None:
    changes: Any = {part: value}
    spec = datasets.write(tmp_path, "still", **changes)
    assert steady("spec", "check", spec, "--json").json["notes"]
    refused(steady("up", spec, "--home", tmp_path / "ws"), f"{part}.kind is {value['kind']!r}")
    nothing_begun(tmp_path / "ws")


def test_a_taken_port_is_refused_by_field_before_anything_starts(steady: Steady, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        spec = datasets.write(tmp_path, "still", serving={"kind": "managed", "port": port})
        refused(
            steady("up", spec, "--replay", FROM, "--home", tmp_path / "ws"), str(spec), f"serving.port {port}", "in use"
        )
    nothing_begun(tmp_path / "ws")


@pytest.mark.parametrize("command", [
    ["status"], ["incidents"], ["goal", "report on parcels"], ["approve", "question"], ["halt"], ["audit", "verify"],
    ["up", "SPEC"],
], ids=lambda command: " ".join(command))  # fmt: skip
def test_a_damaged_database_is_named_and_left_as_it_is(
    steady: Steady, home: Path, tmp_path: Path, command: list[str]
) -> None:
    spec = datasets.write(tmp_path / "data", "still")
    damaged = b"this was a database once" * 400
    (home / "steady.db").write_bytes(damaged)
    for name in ("steady.db-wal", "steady.db-shm"):
        (home / name).unlink(missing_ok=True)
    arguments = [spec if part == "SPEC" else part for part in command]
    refused(steady(*arguments, "--home", home), str(home / "steady.db"), "backup")
    assert (home / "steady.db").read_bytes() == damaged


def test_a_damaged_document_of_the_mesh_is_named(steady: Steady, home: Path) -> None:
    (home / "mesh").mkdir(exist_ok=True)
    (home / "mesh" / "parcels.yaml").write_text("kind: [")
    refused(steady("status", "--home", home), str(home / "mesh" / "parcels.yaml"), "restore")


def bent_policies(folder: Path, change: Callable[[str], str]) -> Path:
    """A copy of the shipped set with one policy file changed."""
    copy = Path(shutil.copytree(SHIPPED, folder / "policies", ignore=shutil.ignore_patterns("*.py", "__pycache__")))
    file = sorted(copy.glob("*.cedar"))[0]
    file.write_text(change(file.read_text()))
    return copy


@pytest.mark.parametrize(("change", "part"), [
    pytest.param(lambda text: text + "\nforbid (principal, action", "does not parse", id="does-not-parse"),
    pytest.param(
        lambda text: text + '\n@id("x") @why("y")\nforbid (principal, action, resource) when { context.nonsense };\n',
        "nonsense", id="unknown-fact",
    ),
    pytest.param(
        lambda text: text + '\n@id("x") @why("y")\npermit (principal, action, resource);\n', "permits", id="permits-all"
    ),
    pytest.param(lambda text: text + "\nforbid (principal, action, resource);\n", "@id", id="no-id"),
])  # fmt: skip
def test_a_policy_file_with_an_error_stops_the_first_start(
    steady: Steady, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str], part: str
) -> None:
    spec = datasets.write(tmp_path, "still")
    folder = bent_policies(tmp_path, change)
    monkeypatch.setenv("STEADYHAND_POLICY_DIR", str(folder))
    refused(steady("up", spec, "--replay", FROM, "--home", tmp_path / "ws"), ".cedar", part)
    assert not (tmp_path / "ws").exists()


def test_nothing_comes_up_under_an_edited_policy_set_and_reading_and_stopping_go_on(
    steady: Steady, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = datasets.write(tmp_path / "data", "still")
    monkeypatch.setenv("STEADYHAND_POLICY_DIR", str(bent_policies(tmp_path, lambda text: text + "\n// harmless\n")))
    refused(steady("up", spec, "--home", home), "digest", "approved", "steady policy approve")
    assert "steady policy approve" in steady("status", "--json", "--home", home).json["policy_problem"]
    assert "steady policy approve" in steady("status", "--home", home).out.replace("\n", " ")
    assert steady("halt", "--home", home).code == 0
    monkeypatch.setenv("STEADYHAND_POLICY_DIR", str(tmp_path / "nowhere"))
    refused(steady("up", spec, "--home", home), "nowhere", "policy folder")
    assert "nowhere" in steady("status", "--json", "--home", home).json["policy_problem"]


def test_a_wrong_setting_names_the_setting(steady: Steady, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEADYHAND_TICK_SECONDS", "often")
    refused(steady("status", "--home", home), "tick_seconds", "STEADYHAND_TICK_SECONDS")
    monkeypatch.delenv("STEADYHAND_TICK_SECONDS")
    monkeypatch.setenv("STEADYHAND_DATABASE_URL", "mongodb://x")
    refused(steady("status", "--home", home), "mongodb")
    monkeypatch.delenv("STEADYHAND_DATABASE_URL")
    for content in (b"tick_seconds = ", b"tick = 3\n", b"\xff\xfe"):
        Path("steadyhand.toml").write_bytes(content)
        refused(steady("status", "--home", home), "steadyhand.toml")


def test_a_home_that_is_a_file_or_lies_in_one_is_named(steady: Steady, tmp_path: Path) -> None:
    spec = datasets.write(tmp_path, "still")
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "ws"):
        refused(steady("status", "--home", home), "is not a workspace")
        refused(steady("up", spec, "--replay", FROM, "--home", home), str(tmp_path / "file"), "--home")


# --- the real process ---------------------------------------------------------------------------------------------


def test_the_installed_command_says_it_on_standard_error_with_code_2(tmp_path: Path) -> None:
    document = datasets.document()
    document["features"].append({"name": "repaid", "type": "numeric"})
    spec = tmp_path / "loans.yaml"
    spec.write_text(yaml.safe_dump(document, sort_keys=False))
    done = subprocess.run([STEADY, "spec", "check", spec], capture_output=True, text=True, check=False, cwd=tmp_path)
    refused(Answer(done.returncode, done.stdout, done.stderr), str(spec), "'repaid' is the label")


def test_an_error_of_our_own_is_one_line_and_a_file_for_whoever_repairs_it(tmp_path: Path) -> None:
    code = (
        "from console.cli import app, main\n"
        "def broken(*a, **k): raise ZeroDivisionError('inside')\n"
        "app.load_spec = broken\n"
        "main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "spec", "check", "x.yaml"], capture_output=True, text=True, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: internal error: ZeroDivisionError: inside\n")
    assert "Traceback" not in done.stderr
    [kept] = tmp_path.glob("steady-error-*.txt")
    assert str(kept) in done.stderr
    assert "ZeroDivisionError: inside" in kept.read_text()


@pytest.mark.parametrize("module", ["typer", "polars", "console.cli.main"])
def test_ctrl_c_while_modules_are_read_shows_no_traceback(module: str) -> None:
    code = (
        "import os, signal, sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "from importlib.metadata import entry_points\n"
        "[steady] = entry_points(group='console_scripts', name='steady')\n"
        "steady.load()()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_reader_that_has_enough_is_no_error(told: Path) -> None:
    listing = f"'{STEADY}' audit list --last 0 --json --home '{told}'"
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {listing} | head -c 1"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{", "")


def test_looking_and_answering_load_none_of_the_heavy_clients() -> None:
    code = "import sys, console.cli.app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert loaded & {"mlflow", "kfp", "sklearn", "scipy", "pandas", "langgraph", "matplotlib", "onnxruntime"} == set()
