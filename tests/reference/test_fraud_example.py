"""The fraud example of the classic pipeline by its own names, and the faults of it that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.base import Situation
from agents.training import gates_learned
from examples.fraud.generate import AMOUNT_EDGES, START, transactions
from state.errors import InputError
from state.spec import Bound
from tests.reference.fraud_package import Packaged, fraud_spec, package_fraud, recipe
from tests.serving.support import ServerProcess, call
from tools.data import WorkspaceData
from tools.evaluation import check_gates
from tools.importer import import_files
from tools.onnx_session import OPSET
from tools.packaging import PackageScorer, check_package
from tools.registry import MlflowModels
from tools.tracking import Tracking
from tools.training import fold_bounds, holdout_start
from tools.training_rows import labelled_rows

SERVING_FEATURES = {
    "amount", "merchant_category", "hour_of_day", "day_of_week", "days_since_last_transaction",
    "avg_transaction_amount_30d", "transaction_count_30d", "total_spend_90d", "merchant_risk_score", "card_present",
    "international",
}  # fmt: skip
ENGINEERED = {
    "hour_of_day", "day_of_week", "is_weekend", "is_night", "amount_log", "amount_bin", "amount_x_hour",
    "amount_x_merchant",
}  # fmt: skip


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    return package_fraud(tmp_path_factory.mktemp("fraud"))


@pytest.fixture(scope="module")
def server(packaged: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = ServerProcess(tmp_path_factory.mktemp("server"), packaged.package, "--stage", "champion")
    yield running
    running.stop()


def history(packaged: Packaged) -> pl.DataFrame:
    return WorkspaceData(packaged.root).history("fraud", start=None, end=None).collect()


def test_raw_engineered_and_serving_columns_have_their_names() -> None:
    columns = set(transactions(n_rows=200, n_days=20).columns)
    assert {"transaction_id", "amount", "merchant_category", "is_fraud", "timestamp"} <= columns
    assert columns >= ENGINEERED
    assert set(fraud_spec().feature_names()) == SERVING_FEATURES | ENGINEERED


def test_engineered_columns_are_what_their_names_say() -> None:
    rows = transactions(n_rows=2_000, n_days=30)
    time = pl.col("timestamp").dt
    wanted = rows.select(
        hour=time.hour().cast(pl.Float64), weekend=time.weekday() >= 6,
        night=(time.hour() >= 23) | (time.hour() <= 5), log=(pl.col("amount") + 1).log(),
        x_hour=pl.col("amount") * time.hour(),
    )  # fmt: skip
    for ours, name in [
        ("hour_of_day", "hour"), ("is_weekend", "weekend"), ("is_night", "night"), ("amount_log", "log"),
        ("amount_x_hour", "x_hour"),
    ]:  # fmt: skip
        assert rows[ours].to_list() == pytest.approx(wanted[name].to_list())
    assert rows["amount_bin"].n_unique() == len(AMOUNT_EDGES) + 1 == 10


def test_amount_bins_are_fixed_and_never_computed_afresh_on_a_data_set() -> None:
    rows = transactions(n_rows=2_000, n_days=40)
    edges = np.array(AMOUNT_EDGES)
    expected = [str(int((amount > edges).sum())) for amount in rows["amount"]]
    assert rows["amount_bin"].to_list() == expected
    # The dear half of the file falls into the same bins as it does within the whole.
    assert rows.filter(pl.col("amount") > 45)["amount_bin"].n_unique() < 10


def test_a_missing_required_column_is_refused_by_name(tmp_path: Path) -> None:
    rows = transactions(n_rows=400, n_days=20).drop("merchant_category")
    (tmp_path / "data").mkdir()
    rows.write_parquet(tmp_path / "data" / "transactions.parquet")
    with pytest.raises(InputError, match="merchant_category"):
        import_files(tmp_path / "ws", fraud_spec(), tmp_path)


def test_the_forest_has_the_classic_parameters_seed_and_folds() -> None:
    training = recipe(fraud_spec())
    forest = training.candidates[0]
    assert forest.estimator == "random_forest"
    assert forest.params == {
        "n_estimators": 200, "max_depth": 15, "min_samples_split": 10, "min_samples_leaf": 4, "class_weight": "balanced",
    }  # fmt: skip
    assert (training.seed, training.folds, fraud_spec().objective.metric) == (42, 5, "f1")


def test_validation_is_ordered_by_time_and_never_a_random_split(packaged: Packaged) -> None:
    rows = labelled_rows(history(packaged), packaged.spec, n_classes=2)
    days = [datetime.fromisoformat(str(block)) for block in rows.blocks]
    cut = holdout_start(rows, holdout=recipe(packaged.spec).holdout, block=packaged.spec.monitoring.block)
    assert days[cut - 1] < days[cut]
    assert (days[-1] - days[cut]).days == 13
    folds = fold_bounds(rows.between(0, cut), 5)
    assert len(folds) == 5
    for first, _ in folds:
        assert days[first - 1] < days[first]
    assert all(before[1] == after[0] for before, after in pairwise(folds))


def test_gates_have_the_classic_bounds_and_a_rejection_names_them() -> None:
    gates = fraud_spec().gates
    assert gates == [
        Bound(metric="f1", op=">=", value=0.75), Bound(metric="precision", op=">=", value=0.70),
        Bound(metric="recall", op=">=", value=0.60), Bound(metric="roc_auc", op=">=", value=0.85),
    ]  # fmt: skip
    missed = [
        r for r in check_gates({"f1": 0.75, "precision": 0.69, "recall": 0.6, "roc_auc": 0.849}, gates) if not r.passed
    ]
    assert [(r.metric, r.value, r.bound) for r in missed] == [("precision", 0.69, 0.70), ("roc_auc", 0.849, 0.85)]


def test_a_rejection_tells_people_which_gates_and_by_how_much(packaged: Packaged) -> None:
    failed = [
        {"metric": "precision", "op": ">=", "value": 0.69, "bound": 0.7, "passed": False},
        {"metric": "f1", "op": ">=", "value": 0.8, "bound": 0.75, "passed": True},
    ]
    situation = Situation(
        model="fraud", spec=packaged.spec, spec_sha256="s", now=START, step="evaluate_candidate", subject_id="i",
        run_id="r", cause="stale_model", facts={}, pinned={}, champion=None, previous=None, candidate=None,
        last_traffic_key="", rollout=None,
    )  # fmt: skip
    learned = gates_learned(situation, failed)
    assert learned.verdict == "failed"
    assert learned.summary == "The candidate fails its gates: precision 0.6900 (needs >= 0.7)."
    assert learned.facts["gates_cleared"] is False


def test_training_logs_parameters_metrics_set_sizes_signature_and_importance(packaged: Packaged) -> None:
    run = Tracking.embedded(packaged.root).client.get_run(packaged.outputs["mlflow_run_id"])
    assert {"accuracy", "precision", "recall", "f1", "roc_auc", "n_rows", "holdout_rows", "cv_f1"} <= set(
        run.data.metrics
    )
    assert {f"importance.{name}" for name in packaged.spec.feature_names()} <= set(run.data.metrics)
    assert run.data.params["params.max_depth"] == "15"
    assert run.data.params["seed"] == "42"
    described = Tracking.embedded(packaged.root).fetch(f"{run.info.artifact_uri}/package", packaged.root / "fetched")
    assert "signature" in (described / "MLmodel").read_text()


def test_the_registry_uses_aliases_and_no_stages(packaged: Packaged) -> None:
    models = MlflowModels.open(packaged.root, None)
    version = models.register(
        model="fraud", mlflow_run_id=packaged.outputs["mlflow_run_id"], tags={"steadyhand.key": "k"}, key="k"
    )
    models.set_alias(model="fraud", alias="champion", version=version.version, key="k2")
    client = Tracking.embedded(packaged.root).client
    found = client.get_model_version_by_alias("fraud", "champion")
    assert str(found.version) == version.version
    assert client.get_model_version("fraud", version.version).current_stage in (None, "None")


def test_the_edge_package_is_onnx_of_opset_13_or_later_and_answers_like_the_server(
    packaged: Packaged, server: ServerProcess
) -> None:
    package = check_package(packaged.package)
    assert OPSET >= 13
    assert package.contract.opset == OPSET
    assert packaged.outputs["onnx_parity_error"] < 1e-4
    rows = history(packaged).head(20)
    scores = PackageScorer(packaged.package).score(rows)
    features = packaged.spec.feature_names()
    answers = [call(f"{server.url}/predict", dict(row)).json for row in rows.select(features).iter_rows(named=True)]
    assert [answer["probability"] for answer in answers] == pytest.approx(list(scores), abs=1e-6)


def test_predict_answers_fraud_probability_and_fraud_prediction_at_one_half(
    packaged: Packaged, server: ServerProcess
) -> None:
    rows = history(packaged)
    scores = PackageScorer(packaged.package).score(rows)
    for at, prediction in ((int(np.argmax(scores)), 1), (int(np.argmin(scores)), 0)):
        reply = call(f"{server.url}/predict", rows.select(packaged.spec.feature_names()).row(at, named=True)).json
        assert reply["fraud_prediction"] == prediction == int(reply["fraud_probability"] >= 0.5)
        assert {"fraud_probability", "fraud_prediction", "model_version", "prediction_time_ms"} <= set(reply)
    # The version is a version and not the model's name.
    assert reply["model_version"] == "1"


def test_predict_batch_answers_predictions_probabilities_count_and_version(
    packaged: Packaged, server: ServerProcess
) -> None:
    rows = list(history(packaged).select(packaged.spec.feature_names()).head(3).iter_rows(named=True))
    reply = call(f"{server.url}/predict/batch", {"rows": rows}).json
    assert (len(reply["predictions"]), len(reply["probabilities"]), reply["count"]) == (3, 3, 3)
    assert reply["model_version"] == "1"


def test_health_and_metrics_have_the_classic_names(server: ServerProcess) -> None:
    health = call(f"{server.url}/health").json
    assert {"status", "model", "version", "stage"} <= set(health)
    assert (health["model"], health["stage"]) == ("fraud", "champion")
    families = {f.name: f for f in text_string_to_metric_families(call(f"{server.url}/metrics").body.decode())}
    assert set(families["model_predictions"].samples[0].labels) == {"model_version", "prediction_class"}
    assert families["model_predictions"].samples[0].name == "model_predictions_total"
    assert families["model_prediction_latency_seconds"].samples[-1].labels == {"model_version": "1"}
    assert set(families["model_info"].samples[0].labels) == {"model_name", "model_version", "model_stage"}


def test_while_no_model_is_loaded_the_answer_is_503(tmp_path: Path) -> None:
    empty = ServerProcess(tmp_path, None, wait=False)
    try:
        empty.wait_ready(503)
        assert call(f"{empty.url}/predict", {"amount": 1.0}).status == 503
    finally:
        empty.stop()
