from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from evals.world.platform import build
from state.errors import ToolRejected
from tests.contract.support import MODEL, Side, at, new_world, source_rows
from tools.importer import import_files
from tools.pipelines.local import LocalPipelines
from tools.ports import PipelineRequest, PipelineRun, Pipelines

TRAIN_OUTPUTS = {
    "mlflow_run_id", "package", "package_sha256", "metrics", "cv", "gates", "candidates", "chosen", "n_rows",
    "holdout_rows", "data_sha256", "trained_from", "trained_until", "reference_blocks", "importance",
    "onnx_parity_error",
}  # fmt: skip
BACKTEST_OUTPUTS = {
    "metric", "candidate", "blocks", "metrics", "champion_metrics", "gates", "fit_rows", "compare_rows",
    "data_sha256", "champion_sha256", "challenger_sha256",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    side: Side[Pipelines]
    spec: str


@pytest.fixture(scope="module", params=["world", pytest.param("laptop", marks=pytest.mark.xdist_group("pipelines"))])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Thirty days of history."""
    folder = tmp_path_factory.mktemp(str(request.param))
    world = new_world(folder / "world")
    spec = world.specs[MODEL]
    if request.param == "world":
        yield Bench(side=Side(open=lambda: build(world).pipelines), spec=spec.model_dump_json())
        return
    (folder / "source").mkdir()
    source_rows(world, n_days=0).write_parquet(folder / "source" / "rows.parquet")
    import_files(folder / "workspace", spec, folder / "source")
    opened: list[LocalPipelines] = []

    def fresh() -> LocalPipelines:
        opened.append(LocalPipelines(folder / "workspace"))
        return opened[-1]

    yield Bench(side=Side(open=fresh), spec=spec.model_dump_json())
    for pipelines in opened:
        pipelines.close()


def train(bench: Bench, *, days: tuple[int, int] = (-30, -2)) -> PipelineRequest:
    parameters: dict[str, JsonValue] = {
        "spec": bench.spec, "start": at(days[0]).isoformat(), "end": at(days[1]).isoformat(),
        "as_of": at(0).isoformat(), "excluded_days": ["2026-02-10"], "seed": 1, "recipe_sha256": "0" * 64,
    }  # fmt: skip
    return PipelineRequest(pipeline="train", model=MODEL, parameters=parameters)


def backtest(bench: Bench, champion: str, challenger: str | None = None) -> PipelineRequest:
    parameters: dict[str, JsonValue] = {
        "spec": bench.spec, "fit_until": at(-12).isoformat(), "compare_from": at(-12).isoformat(),
        "compare_until": at(-2).isoformat(), "as_of": at(0).isoformat(), "excluded_days": ["2026-02-20"], "seed": 1,
        "champion_package": champion, "challenger_package": challenger,
    }  # fmt: skip
    return PipelineRequest(pipeline="backtest", model=MODEL, parameters=parameters)


def ended(bench: Bench, request: PipelineRequest, key: str) -> PipelineRun:
    pipelines = bench.side.open()
    run: PipelineRun | None = pipelines.submit(request, key=key)
    until = time.monotonic() + 120
    while run is not None and run.status == "running" and time.monotonic() < until:
        time.sleep(0.02)
        run = pipelines.find(key)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def trained(bench: Bench) -> PipelineRun:
    """A model of the first eighteen days."""
    return ended(bench, train(bench, days=(-30, -12)), "t" * 64)


def test_a_training_run_returns_the_agreed_outputs(trained: PipelineRun) -> None:
    outputs: Any = trained.outputs

    assert trained.status == "succeeded", trained.error
    assert set(outputs) == TRAIN_OUTPUTS
    assert (Path(outputs["package"]) / "SHA256SUMS").exists()
    assert 0.5 < outputs["metrics"]["roc_auc"] < 1.0
    assert [(gate["metric"], gate["op"], gate["bound"]) for gate in outputs["gates"]] == [("roc_auc", ">=", 0.65)]
    assert outputs["gates"][0]["passed"] == (outputs["metrics"]["roc_auc"] >= 0.65)
    assert outputs["trained_from"][:10] == "2026-01-31"
    assert outputs["trained_until"][:10] == "2026-02-17"
    assert set(outputs["importance"]) == {"tenure", "spend", "visits", "plan", "mobile"}


def test_the_reference_is_one_loss_a_day_and_no_excluded_day(trained: PipelineRun) -> None:
    blocks: Any = trained.outputs["reference_blocks"]
    days = [block["block"] for block in blocks]

    assert days == sorted(set(days))
    assert len(days) >= 8
    assert days[-1] == "2026-02-17"
    assert "2026-02-10" not in days
    assert all(0 <= block["loss"] <= 1 and block["n"] > 0 for block in blocks)
    # Rows and labels by score cell, which tell later whether labels still go with scores as they did.
    assert all(sum(n for _, n, _ in block["labels"]) == block["n"] for block in blocks)
    assert all(0 < sum(y for _, _, y in block["labels"]) < block["n"] for block in blocks)


def test_a_run_is_found_by_a_new_process_and_a_repeat_returns_it(bench: Bench, trained: PipelineRun) -> None:
    assert bench.side.open().find(trained.key) == trained
    assert bench.side.open().submit(train(bench), key=trained.key) == trained
    assert bench.side.open().find("0" * 64) is None


def test_a_backtest_pairs_both_losses_on_days_newer_than_both_cuts(bench: Bench, trained: PipelineRun) -> None:
    champion = str(trained.outputs["package"])
    run = ended(bench, backtest(bench, champion), "b" * 64)
    outputs: Any = run.outputs

    assert run.status == "succeeded", run.error
    assert set(outputs) == BACKTEST_OUTPUTS
    days = [block["block"] for block in outputs["blocks"]]
    assert days == [day for day in (at(i).strftime("%Y-%m-%d") for i in range(-12, -2)) if day != "2026-02-20"]
    assert all(0 <= block["champion_loss"] <= 1 and 0 <= block["challenger_loss"] <= 1 for block in outputs["blocks"])
    assert outputs["champion_sha256"] == trained.outputs["package_sha256"]
    assert outputs["compare_rows"] >= sum(block["n"] for block in outputs["blocks"]) > 300


def test_a_package_compared_with_itself_loses_nothing(bench: Bench, trained: PipelineRun) -> None:
    package = str(trained.outputs["package"])
    outputs: Any = ended(bench, backtest(bench, package, package), "c" * 64).outputs

    assert outputs["fit_rows"] == 0
    assert len(outputs["blocks"]) == 9
    assert all(block["champion_loss"] == block["challenger_loss"] for block in outputs["blocks"])


def test_a_run_without_rows_fails_with_a_plain_reason(bench: Bench) -> None:
    run = ended(bench, train(bench, days=(5, 9)), "f" * 64)

    assert run.status == "failed"
    assert dict(run.outputs) == {}
    assert MODEL in run.error
    assert "\x1b" not in run.error


def test_a_request_that_lacks_a_parameter_is_refused(bench: Bench) -> None:
    with pytest.raises(ToolRejected, match="as_of"):
        bench.side.open().submit(
            PipelineRequest(pipeline="train", model=MODEL, parameters={"spec": "{}"}), key="a" * 64
        )

    assert bench.side.open().find("a" * 64) is None
