"""A/B testing and traffic splitting of the classic pipeline, and the faults of it that are gone."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from serving.records import Header, Recorder
from state.spec import AbTest
from tools.experiment import ABTest, assign
from tools.mesh.documents import (
    header_operations,
    managed_route,
    stage_operations,
    virtual_service,
    weight_operations,
)
from tools.mesh.patch import Document, apply_patch

HOST = "fraud-detection.ml-platform.svc.cluster.local"


def classic() -> Document:
    """The classic VirtualService: a header for version 2, 80/20 for the rest, FQDN hosts, port 8000."""
    to = [{"destination": {"host": HOST, "subset": f"v{n}", "port": {"number": 8000}}} for n in (1, 2)]
    return {
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "fraud-detection", "namespace": "ml-platform"},
        "spec": {"hosts": [HOST], "http": [
            {"match": [{"headers": {"x-model-version": {"exact": "v2"}}}], "route": [to[1]]},
            {"name": "primary", "route": [{**to[0], "weight": 80}, {**to[1], "weight": 20}]},
        ]},
    }  # fmt: skip


def test_the_classic_virtual_service_is_managed_and_a_shift_leaves_all_but_its_weights() -> None:
    service = classic()
    assert managed_route(service).weights == {"1": 80, "2": 20}
    shifted = apply_patch(service, weight_operations(service, {"1": 50, "2": 50}))
    assert managed_route(shifted).weights == {"1": 50, "2": 50}
    expected = copy.deepcopy(service)
    for destination in expected["spec"]["http"][1]["route"]:
        destination["weight"] = 50
    assert shifted == expected


def test_the_header_x_model_version_v2_goes_to_version_2_and_the_rest_is_split() -> None:
    service = virtual_service("fraud-detection", host=HOST, version="1", key="k")
    service = apply_patch(service, stage_operations(service, "2"))
    service = apply_patch(service, weight_operations(service, {"1": 80, "2": 20}))
    service = apply_patch(service, header_operations(service, header="x-model-version", value="v2", version="2"))
    first = service["spec"]["http"][0]
    assert first["match"] == [{"headers": {"x-model-version": {"exact": "v2"}}}]
    assert [item["destination"]["subset"] for item in first["route"]] == ["v2"]
    assert managed_route(service).weights == {"1": 80, "2": 20}
    assert service["spec"]["hosts"] == [HOST]


def test_assignment_is_deterministic_and_not_salted_per_process() -> None:
    ids = [f"r{i}" for i in range(200)]
    here = [assign(one, {"control": 80, "treatment": 20}, key="test-1") for one in ids]
    code = (
        "from tools.experiment import assign\n"
        "print(*[assign(f'r{i}', {'control': 80, 'treatment': 20}, key='test-1') for i in range(200)])"
    )
    for salt in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert other.stdout.split() == here


def test_the_share_of_the_treatment_is_the_one_asked_for() -> None:
    arms = Counter(assign(f"user-{i}", {"control": 80, "treatment": 20}, key="test-1") for i in range(20_000))
    assert arms["treatment"] / 20_000 == pytest.approx(0.20, abs=0.01)


def test_a_thousand_samples_are_the_default_minimum() -> None:
    assert AbTest().minimum_samples == ABTest(margin=0.02).minimum_samples == 1_000


def test_enough_samples_alone_are_not_significant() -> None:
    rng = np.random.default_rng(8)
    champion, challenger = rng.normal(0.2, 0.02, 28), rng.normal(0.2, 0.02, 28)
    verdict = ABTest(margin=0.001).judge(list(champion), list(challenger), n_samples=1_000_000)
    assert verdict.verdict == "undecided"
    assert verdict.low is not None and verdict.high is not None
    assert verdict.low < verdict.difference < verdict.high


def test_a_real_difference_is_found_with_its_size_and_too_few_samples_are_said_so() -> None:
    rng = np.random.default_rng(8)
    champion = rng.normal(0.30, 0.01, 28)
    challenger = champion - rng.normal(0.05, 0.01, 28)
    rule = ABTest(margin=0.01)
    assert rule.judge(list(champion), list(challenger), n_samples=5_000).verdict == "better"
    assert rule.judge(list(champion), list(challenger), n_samples=5_000).difference == pytest.approx(0.05, abs=0.01)
    few = rule.judge(list(champion), list(challenger), n_samples=999)
    assert (few.verdict, "999" in few.reason, "1000" in few.reason) == ("undecided", True, True)


def test_the_log_of_predictions_in_memory_is_bounded_and_nothing_vanishes_uncounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.records.MAX_HELD_ROWS", 100)
    recorder = Recorder(tmp_path, Header(version="1", multiclass=False, features=[("amount", "numeric")]))
    for number in range(1_000):
        recorder.add((f"r{number}", "e", 1_750_000_000_000_000, "1", False, 0.25, [], 1_750_000_000_000_000, [1.0]))
        assert len(recorder._held) <= 100
    recorder.close()
    kept = pl.read_parquet(sorted(tmp_path.glob("day=*/*.parquet")), hive_partitioning=False)
    assert recorder.dropped > 0
    assert kept.height + recorder.dropped == 1_000
