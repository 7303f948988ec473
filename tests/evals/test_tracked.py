"""Verdicts as MLflow runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evals.report import verdicts
from evals.run import RunResult
from evals.tracked import track
from tools.eval_tracking import EXPERIMENT, RESULT, open_store


def result(**changes: Any) -> RunResult:
    return RunResult(**{"id": "one", "family": "drift", "difficulty": "easy", "seed": 1, "passed": True, **changes})


def test_each_scenario_is_a_run_with_metrics_tags_and_its_document(tmp_path: Path) -> None:
    found = verdicts([
        result(gates={"cause": True}, ttd_min=1440.0), result(seed=2, passed=False, gates={"cause": False}, harm=2.5),
        result(id="two"),
    ])  # fmt: skip

    store = open_store(str(tmp_path))
    track(found, store)

    experiment = store.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = {run.info.run_name: run for run in store.client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"one", "two"}
    one = runs["one"]
    assert one.info.status == "FINISHED"
    assert one.data.metrics["pass_ratio"] == 0.5
    assert one.data.metrics["gate.cause"] == 0.0
    assert one.data.metrics["ttd_min"] == 1440.0
    assert "ttm_min" not in one.data.metrics
    assert one.data.tags["steadyhand.verdict"] == "failed"
    assert one.data.tags["steadyhand.seeds"] == "1,2"
    artifact = Path(store.client.download_artifacts(one.info.run_id, RESULT, str(tmp_path)))
    assert json.loads(artifact.read_text())["harm"] == 2.5
