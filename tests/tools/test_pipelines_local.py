"""Real compiled pipelines in real child processes: outputs, failures by name, kills, one effect per key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from kfp import compiler
from mlflow.entities import Run
from pydantic import JsonValue

from state.errors import TerminalError, ToolRejected
from state.spec import ModelSpec
from tests.tools import bent_pipelines
from tests.tools.training_support import SMALL_BOOSTING, START, make_frame, make_spec, make_workspace
from tools.packaging import PackageScorer, check_package
from tools.pipelines.compile import check_straight, compile_pipeline
from tools.pipelines.journal import describe_failure
from tools.pipelines.local import LocalPipelines
from tools.pipelines.package_step import package_model
from tools.pipelines.parameters import DEFAULTS, REQUIRED
from tools.ports import PipelineRequest, PipelineRun
from tools.processes import start_ticks
from tools.tracking import KEY_TAG, Tracking, mlflow_errors

pytestmark = pytest.mark.xdist_group("mlflow")

END = START + timedelta(days=20)
CUT = START + timedelta(days=12)
GATES = [{"metric": "roc_auc", "op": ">=", "value": 0.7}, {"metric": "f1", "op": ">=", "value": 0.999}]


def until(condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Wait for another process."""
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        pause.wait(0.02)


def finished(pipelines: LocalPipelines, key: str) -> PipelineRun:
    seen: list[PipelineRun | None] = []

    def done() -> bool:
        seen.append(pipelines.find(key))
        return seen[-1] is None or seen[-1].status != "running"

    until(done)
    assert seen[-1] is not None, (pipelines._root / "pipelines" / key / "log.txt").read_text()[-2_000:]
    return seen[-1]


def tracked_runs(root: Path, key: str) -> list[Run]:
    with mlflow_errors("test"):
        tracking = Tracking.embedded(root)
        return list(tracking.client.search_runs([tracking.experiment("demo")], f"tags.`{KEY_TAG}` = '{key}'"))


def training(spec: ModelSpec, **changes: JsonValue) -> PipelineRequest:
    parameters: dict[str, JsonValue] = {"spec": spec.model_dump_json(), "as_of": END.isoformat(), "seed": 1, **changes}
    return PipelineRequest(pipeline="train", model="demo", parameters=parameters)


def comparison(spec: ModelSpec, **changes: JsonValue) -> PipelineRequest:
    parameters: dict[str, JsonValue] = {
        "spec": spec.model_dump_json(),
        "as_of": END.isoformat(),
        "fit_until": CUT.isoformat(),
        "compare_from": CUT.isoformat(),
        "compare_until": END.isoformat(),
        "seed": 1,
        **changes,
    }
    return PipelineRequest(pipeline="backtest", model="demo", parameters=parameters)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return make_spec(gates=GATES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec) -> Path:
    return make_workspace(tmp_path_factory.mktemp("pipelines"), spec, make_frame())


@pytest.fixture(scope="module")
def pipelines(root: Path) -> Iterator[LocalPipelines]:
    local = LocalPipelines(root)
    yield local
    local.close()


@pytest.fixture(scope="module")
def trained(pipelines: LocalPipelines, spec: ModelSpec) -> PipelineRun:
    """A training on the first twelve days, without the third."""
    request = training(spec, end=CUT.isoformat(), excluded_days=["2024-01-03"])
    assert pipelines.submit(request, key="train-1").status == "running"
    return finished(pipelines, "train-1")


def test_training_returns_a_package_and_everything_measured(trained: PipelineRun, root: Path, spec: ModelSpec) -> None:
    outputs = json.loads(json.dumps(dict(trained.outputs)))

    assert (trained.status, trained.error) == ("succeeded", "")
    package = check_package(Path(outputs["package"]))
    assert Path(outputs["package"]) == root / "pipelines" / "train-1" / "package"
    assert package.sha256 == outputs["package_sha256"]
    assert package.contract.classes == ("0", "1")
    assert package.contract.lineage["key"] == "train-1"
    assert package.contract.lineage["data_sha256"] == outputs["data_sha256"]
    assert outputs["n_rows"] == 11 * 60
    assert (outputs["trained_from"][:10], outputs["trained_until"][:10]) == ("2024-01-01", "2024-01-12")
    assert [(gate["metric"], gate["bound"], gate["passed"]) for gate in outputs["gates"]] == [
        ("roc_auc", 0.7, True),
        ("f1", 0.999, False),
    ]
    assert [candidate["name"] for candidate in outputs["candidates"]] == [outputs["chosen"]] == ["boosting"]
    assert outputs["cv"]["value"] == pytest.approx(1 - outputs["cv"]["loss"])
    blocks = [block["block"] for block in outputs["reference_blocks"]]
    assert blocks == [f"2024-01-{day:02}" for day in range(5, 13)]
    assert set(outputs["importance"]) == set(spec.feature_names())
    assert outputs["onnx_parity_error"] < 1e-4


def test_training_is_tracked_under_its_key(trained: PipelineRun, root: Path) -> None:
    [run] = tracked_runs(root, "train-1")

    assert run.info.run_id == trained.outputs["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["steadyhand.key"] == "train-1"
    assert run.data.params["candidate"] == "boosting"
    assert run.data.metrics["roc_auc"] == trained.outputs["metrics"]["roc_auc"]  # type: ignore[call-overload, index]  # JSON


def test_the_same_key_is_the_same_run_for_everybody(trained: PipelineRun, root: Path, spec: ModelSpec) -> None:
    other = LocalPipelines(root)

    assert other.submit(training(spec), key="train-1") == trained
    assert other.find("train-1") == trained
    assert other.find("never-asked-for") is None


@pytest.mark.slow
def test_a_training_whose_result_was_lost_gives_the_same_outputs_from_its_tracked_run(
    trained: PipelineRun, root: Path, spec: ModelSpec, pipelines: LocalPipelines
) -> None:
    state = json.loads((root / "pipelines" / "train-1" / "state.json").read_text())
    until(lambda: start_ticks(state["pid"]) is None)
    (root / "pipelines" / "train-1" / "result.json").unlink()
    assert pipelines.find("train-1") is None

    pipelines.submit(training(spec, end=CUT.isoformat(), excluded_days=["2024-01-03"]), key="train-1")

    assert finished(pipelines, "train-1") == trained
    assert len(tracked_runs(root, "train-1")) == 1
    assert check_package(Path(str(trained.outputs["package"]))).sha256 == trained.outputs["package_sha256"]


def test_packaging_again_under_the_same_key_returns_what_was_tracked(
    trained: PipelineRun, root: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    outputs = package_model(
        root=str(root),
        spec=spec.model_dump_json(),
        key="train-1",
        tracking_uri="",
        rows="gone",
        features="gone",
        model="gone",
        evaluation="gone",
        out=str(tmp_path / "again"),
    )

    assert json.loads(outputs) == {**trained.outputs, "package": str(tmp_path / "again")}
    assert check_package(tmp_path / "again").sha256 == trained.outputs["package_sha256"]


def test_a_backtest_compares_only_rows_newer_than_both_cuts(
    trained: PipelineRun, spec: ModelSpec, pipelines: LocalPipelines
) -> None:
    early = (CUT - timedelta(days=4)).isoformat()
    request = comparison(
        spec, champion_package=trained.outputs["package"], compare_from=early, excluded_days=["2024-01-15"]
    )
    pipelines.submit(request, key="backtest-1")
    outputs = json.loads(json.dumps(dict(finished(pipelines, "backtest-1").outputs)))

    assert [block["block"] for block in outputs["blocks"]] == [f"2024-01-{day}" for day in (13, 14, 16, 17, 18, 19, 20)]
    assert {block["n"] for block in outputs["blocks"]} == {60}
    assert (outputs["metric"], outputs["candidate"]) == ("roc_auc", "boosting")
    assert (outputs["fit_rows"], outputs["compare_rows"]) == (720, 420)
    assert outputs["champion_sha256"] == trained.outputs["package_sha256"]
    # The two differ by the excluded day only.
    assert all(abs(block["champion_loss"] - block["challenger_loss"]) < 0.1 for block in outputs["blocks"])
    assert any(block["champion_loss"] != block["challenger_loss"] for block in outputs["blocks"])


def test_an_existing_version_is_compared_in_the_place_of_a_fit(
    trained: PipelineRun, spec: ModelSpec, pipelines: LocalPipelines
) -> None:
    package = trained.outputs["package"]
    request = comparison(spec, champion_package=None, challenger_package=package, candidate="7")
    pipelines.submit(request, key="evaluate-1")
    outputs = json.loads(json.dumps(dict(finished(pipelines, "evaluate-1").outputs)))

    assert outputs["fit_rows"] == 0
    assert {block["champion_loss"] for block in outputs["blocks"]} == {None}
    assert [gate["passed"] for gate in outputs["gates"]] == [True, False]
    assert PackageScorer(Path(str(package))).package.sha256 == outputs["challenger_sha256"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({"end": START.isoformat()}, "ingest: demo: the window holds no labelled rows. Widen", id="empty"),
        pytest.param({"as_of": "yesterday"}, "ingest: ValueError: Invalid isoformat string", id="not-our-error"),
        pytest.param(
            {"end": (START + timedelta(days=6)).isoformat()},
            "train: 6 blocks of 1 day",
            id="too-few-blocks",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_failure_names_the_component_and_its_last_error_line(
    change: dict[str, JsonValue], error: str, spec: ModelSpec, pipelines: LocalPipelines
) -> None:
    key = f"fails-{error.partition(':')[0]}-{len(error)}"
    pipelines.submit(training(spec, **change), key=key)

    run = finished(pipelines, key)

    assert (run.status, dict(run.outputs)) == ("failed", {})
    assert run.error.startswith(error)
    assert "\x1b" not in run.error
    assert pipelines.submit(training(spec, **change), key=key) == run


@pytest.mark.slow
def test_a_run_killed_in_the_middle_leaves_nothing_running_and_starts_again_under_its_key(
    tmp_path: Path, spec: ModelSpec
) -> None:
    slow = make_spec("binary", {**SMALL_BOOSTING, "params": {"max_iter": 3_000}}, gates=GATES)
    root = make_workspace(tmp_path, slow, make_frame())
    pipelines = LocalPipelines(root)
    pipelines.submit(training(slow), key="k")
    folder = root / "pipelines" / "k"
    until(lambda: "Executing task" in (log := (folder / "log.txt").read_text()) and "'train'" in log)
    pid = json.loads((folder / "state.json").read_text())["pid"]
    until(lambda: len(group(pid)) > 2)
    os.kill(pid, signal.SIGKILL)
    until(lambda: group(pid) == [])

    assert pipelines.find("k") is None
    assert pipelines.submit(training(make_spec(gates=GATES)), key="k").status == "running"
    assert finished(pipelines, "k").status == "succeeded"
    assert len(tracked_runs(root, "k")) == 1
    assert json.loads((folder / "state.json").read_text())["starts"] == 2


def test_a_run_ends_with_the_process_that_started_it_and_does_not_count_as_its_own_failure(
    root: Path, spec: ModelSpec, pipelines: LocalPipelines
) -> None:
    program = (
        "import pathlib, sys, threading; from tools.pipelines.local import LocalPipelines;"
        "from tests.tools.test_pipelines_local import training, make_spec;"
        "LocalPipelines(pathlib.Path(sys.argv[1])).submit(training(make_spec()), key='orphan');"
        "print('started', flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, str(root)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        folder = root / "pipelines" / "orphan"
        until(lambda: "Executing task" in (folder / "log.txt").read_text())
        pid = json.loads((folder / "state.json").read_text())["pid"]
        parent.kill()

    until(lambda: start_ticks(pid) is None and group(pid) == [])
    assert (folder / "abandoned").exists()
    assert pipelines.find("orphan") is None


def test_a_run_that_keeps_dying_is_reported_as_failed(tmp_path: Path, spec: ModelSpec) -> None:
    pipelines = LocalPipelines(tmp_path)
    for _ in range(5):
        assert pipelines.find("k") is None
        pipelines.submit(training(spec), key="k")
        pid = json.loads((tmp_path / "pipelines" / "k" / "state.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: start_ticks(pid) is None)  # type: ignore[misc]  # a default binds the loop's value

    run = pipelines.find("k")
    assert run is not None
    assert run.status == "failed"
    assert run.error.startswith("ended 5 times without a result")


def group(leader: int) -> list[int]:
    """The processes of a group that still run."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] not in "ZX":
            members.append(int(path.parent.name))
    return members


def test_a_key_that_is_no_folder_and_a_missing_parameter_are_refused(tmp_path: Path, spec: ModelSpec) -> None:
    pipelines = LocalPipelines(tmp_path)
    with pytest.raises(ToolRejected, match="not of the form"):
        pipelines.submit(training(spec), key="../elsewhere")
    with pytest.raises(ToolRejected, match="needs the parameter as_of"):
        pipelines.submit(training(spec, as_of=None), key="k")


@pytest.mark.parametrize("name", ["train", "backtest"])
def test_the_shipped_pipelines_are_straight_lines_with_the_declared_parameters(name: str, tmp_path: Path) -> None:
    path = compile_pipeline(name, tmp_path / "pipeline.yaml")
    document = yaml.safe_load(path.read_text())

    assert set(document["root"]["inputDefinitions"]["parameters"]) == {*REQUIRED[name], *DEFAULTS[name]}
    assert "pip install" not in path.read_text()


@pytest.mark.parametrize(
    ("pipeline", "what"),
    [
        pytest.param(bent_pipelines.conditional, "condition", id="condition"),
        pytest.param(bent_pipelines.retried, "retry", id="retry"),
        pytest.param(bent_pipelines.looped, "loop", id="loop"),
        pytest.param(bent_pipelines.exiting, "exit handler", id="exit-handler"),
    ],
)
def test_what_the_local_runner_gets_wrong_is_refused_when_compiled(
    pipeline: Callable[..., None], what: str, tmp_path: Path
) -> None:
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))

    with pytest.raises(TerminalError, match=what):
        check_straight(path)


def test_the_last_error_line_is_the_one_of_the_last_traceback() -> None:
    message = "Pipeline \x1b[95m'p'\x1b[0m finished with status FAILURE. Inner task failed: \x1b[96m'train'\x1b[0m."
    log = (
        "Traceback (most recent call last):\n  File x\nKeyError: 'a'\n\nDuring handling\n\n"
        "    Traceback (most recent call last):\n      File y\n    state.errors.ToolRejected: no such thing\nmore\n"
    )

    assert describe_failure(message, log) == "train: no such thing"
    assert describe_failure(message, "") == "train: no output"
