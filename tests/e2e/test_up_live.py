"""`steady up SPEC` in live operation: predictions over HTTP, outcomes from the inbox, a file that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from tests.e2e import datasets, running
from tests.serving.support import call

TRAINING = {name: value for name, value in datasets.document()["training"].items() if name != "window"}
"""The rows are older than any window that ends today."""


def test_live_operation_answers_takes_outcomes_in_and_outlives_a_wrong_file(tmp_path: Path) -> None:
    home, spec = tmp_path / "ws", datasets.write(tmp_path, "still", training=TRAINING)
    try:
        first = running.steady("up", spec, "--ticks", "1", "--keep-running", "--json", home=home)
        assert first.code == 0, first.err
        [model] = first.json["models"]
        assert (model["champion"], model["weights"]) == ("1", {"1": 100})
        kept = running.data_plane(home)
        assert len(kept) == 2

        [address] = re.findall(r"serves at (\S+)", first.err)
        row = {"income": 1.0, "debt": 0.2, "age": 0.1, "term": 0.0, "region": "north"}
        answers = [call(address, {**row, "income": float(n % 3)}, x_request_id=f"live-{n}") for n in range(12)]
        assert {answer.status for answer in answers} == {200}
        inbox = home / "inbox" / "loans"
        labels = pl.DataFrame({"request_id": [f"live-{n}" for n in range(12)], "label": [n % 2 for n in range(12)]})
        labels.write_csv(inbox / "good.csv")
        (inbox / "a-wrong.csv").write_text("request_id,outcome\nlive-1,1\n")

        second = running.steady("up", spec, "--ticks", "2", home=home, STEADYHAND_TICK_SECONDS="0.1")

        assert second.code == 0, second.err
        assert "12 new outcomes" in second.err
        assert second.err.count("a-wrong.csv has no column label") == 1
        assert sorted(path.name for path in inbox.glob("*.csv")) == ["a-wrong.csv"]
        assert (inbox / "done" / "good.csv").exists()
        stored = pl.read_parquet(home / "predictions" / "loans" / "day=*" / "*.parquet", hive_partitioning=False)
        assert set(labels["request_id"]) <= set(stored["request_id"])
        assert running.mlflow_counts(home) == {"runs": 1, "versions": 1}
        assert running.wait_until_gone(home) == {}
    finally:
        running.end(home)


def test_a_gate_that_no_candidate_reaches_is_a_question_and_nothing_serves(tmp_path: Path) -> None:
    gates = [{"metric": "roc_auc", "op": ">=", "value": 0.999}]
    home, spec = tmp_path / "ws", datasets.write(tmp_path, "still", training=TRAINING, gates=gates)
    try:
        answer = running.steady("up", spec, "--ticks", "1", home=home)
        assert answer.code == 1
        assert re.search(r"error: loans has no first champion yet: .*roc_auc 0\.\d+ \(needs >= 0\.999\)", answer.err)
        [question] = running.steady("status", "--json", home=home).json["approvals"]
        assert f"steady approve {question['id']}" in answer.err
        [model] = running.steady("status", "--json", home=home).json["models"]
        assert (model["champion"], model["weights"]) == (None, None)
        assert running.wait_until_gone(home) == {}
    finally:
        running.end(home)
