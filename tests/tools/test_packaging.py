"""The export answers like the estimator, NaN included; a package is what its sums say, or refused."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

from state.contract import Contract, Encoder, FeatureContract
from state.encoding import Number
from state.errors import ToolRejected
from tests.tools.training_support import (
    FOREST,
    LINEAR,
    RIDGE,
    SMALL_BOOSTING,
    candidate_of,
    make_frame,
    make_rows,
    make_spec,
)
from tools.estimators import FittedModel, fit_model
from tools.fits import few_threads
from tools.onnx_export import check_parity, export_onnx, floor_float32, parity_error
from tools.onnx_session import open_session, score_session
from tools.packaging import PackageScorer, check_package, write_package
from tools.parity import PARITY_TOLERANCE
from tools.training_rows import Rows

Fitted = tuple[FittedModel, Rows]


@pytest.fixture(autouse=True)
def _beside_other_load() -> Iterator[None]:
    with few_threads():
        yield


def fitted(task: str, candidate: dict[str, Any], *, frame: pl.DataFrame | None = None) -> Fitted:
    spec = make_spec(task, candidate)
    rows = make_rows(spec, frame)
    named = candidate_of(spec)
    return fit_model(rows, named, task=spec.task, declared=spec.features, seed=1), rows


def make_package(directory: Path, task: str = "binary", candidate: dict[str, Any] = SMALL_BOOSTING) -> Fitted:
    model, rows = fitted(task, candidate)
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": None}[task]
    profile = b"profile"
    contract = Contract(
        model="demo",
        task=model.task,
        features=model.features,
        classes=classes,
        profile_sha256=hashlib.sha256(profile).hexdigest(),
    )
    write_package(directory, model=export_onnx(model), contract=contract, profile=profile)
    return model, rows


ESTIMATORS = [
    pytest.param("binary", SMALL_BOOSTING, id="binary-boosting"),
    pytest.param("binary", FOREST, id="binary-forest"),
    pytest.param("binary", LINEAR, id="binary-linear"),
    pytest.param("multiclass", SMALL_BOOSTING, id="multiclass-boosting"),
    pytest.param("multiclass", FOREST, id="multiclass-forest"),
    pytest.param("multiclass", LINEAR, id="multiclass-linear"),
    pytest.param("regression", SMALL_BOOSTING, id="regression-boosting"),
    pytest.param("regression", FOREST, id="regression-forest"),
    pytest.param("regression", RIDGE, id="regression-ridge"),
]


@pytest.mark.parametrize(("task", "candidate"), ESTIMATORS)
def test_the_export_answers_like_the_estimator_on_raw_rows_with_values_missing(
    task: str, candidate: dict[str, Any]
) -> None:
    model, rows = fitted(task, candidate)
    exported = export_onnx(model)

    assert check_parity(model, exported, rows, seed=2) <= PARITY_TOLERANCE
    session = open_session(exported)
    assert [put.name for put in session.get_inputs()] == ["features"]
    assert session.get_inputs()[0].type == "tensor(float)"
    [output] = session.get_outputs()
    width = {"binary": 2, "multiclass": 3, "regression": 1}[task]
    assert (output.name, output.type) == ("value" if task == "regression" else "probabilities", "tensor(float)")
    scores = session.run(None, {"features": model.encode(rows)[:7]})[0]
    assert scores.shape == (7, width)
    if task != "regression":
        assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(("task", "candidate"), ESTIMATORS)
def test_rows_on_a_threshold_take_the_estimator_s_branch(task: str, candidate: dict[str, Any]) -> None:
    # Coarse values: every threshold lies between two neighbours or on one of them.
    grid = make_frame(task).with_columns(
        ((pl.col("amount") / 3).round() * 0.1).cast(pl.Float32).alias("amount"),
        (pl.col("age") / 7).round().alias("age"),
    )
    model, rows = fitted(task, candidate, frame=grid)

    assert parity_error(model, export_onnx(model), rows, seed=2) < 1e-5


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_forest_as_the_converter_leaves_it_is_refused_by_the_parity_gate(task: str) -> None:
    model, rows = fitted(task, FOREST)
    width = Encoder(model.features).width
    options = {id(model.estimator): {"zipmap": False}} if task == "binary" else None
    raw = convert_sklearn(
        model.estimator,
        initial_types=[("features", FloatTensorType([None, width]))],
        target_opset={"": 17, "ai.onnx.ml": 3},
        options=options,
    )
    del raw.graph.output[: len(raw.graph.output) - 1]

    with pytest.raises(ToolRejected, match="differs by"):
        check_parity(model, raw.SerializeToString(), rows, seed=2)


def test_an_export_of_another_model_is_refused() -> None:
    model, rows = fitted("binary", SMALL_BOOSTING)
    other, _ = fitted("binary", {**SMALL_BOOSTING, "params": {"max_iter": 5}})

    with pytest.raises(ToolRejected, match="differs by"):
        check_parity(model, export_onnx(other), rows, seed=2)


def test_a_class_without_rows_keeps_its_column_in_the_export() -> None:
    model, rows = fitted("multiclass", SMALL_BOOSTING, frame=make_frame("multiclass").filter(pl.col("label") != 1))

    scores = score_session(open_session(export_onnx(model)), model.encode(rows), task="multiclass")

    assert scores.shape == (len(rows), 3)
    assert scores[:, 1].max() == 0.0
    assert np.allclose(scores, model.score(rows), atol=1e-6)


def test_a_feature_that_was_never_seen_exports_too() -> None:
    frame = make_frame().with_columns(pl.lit(None, pl.Float32).alias("noise"))
    for candidate in (SMALL_BOOSTING, FOREST, LINEAR):
        model, rows = fitted("binary", candidate, frame=frame)

        assert parity_error(model, export_onnx(model), rows, seed=2) < 1e-5


def test_thresholds_are_rounded_down_to_float32() -> None:
    exact = np.array([0.1, 1.0, -0.1, 16777217.0, 1e300, np.inf])

    floored = floor_float32(exact).astype(np.float64)

    assert (floored <= exact).all()
    assert floored[1] == 1.0
    assert floored[3] == 16777216.0
    above = np.nextafter(floored[:4].astype(np.float32), np.float32(np.inf)).astype(np.float64)
    assert (above > exact[:4]).all()


def test_the_model_passes_the_onnx_checker_and_is_the_same_twice() -> None:
    model, _ = fitted("binary", SMALL_BOOSTING)
    exported = export_onnx(model)

    onnx.checker.check_model(onnx.load_from_string(exported))
    assert export_onnx(copy.deepcopy(model)) == exported
    assert {entry.domain: entry.version >= 13 for entry in onnx.load_from_string(exported).opset_import}[""]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_package_scores_frames_like_the_fitted_model(task: str, tmp_path: Path) -> None:
    model, rows = make_package(tmp_path / "package", task)

    scorer = PackageScorer(tmp_path / "package")

    assert np.allclose(scorer.score(make_frame(task)), model.score(rows), atol=1e-4)
    assert len(scorer.score(make_frame(task).clear())) == 0
    with pytest.raises(ToolRejected, match="no column age"):
        scorer.score(make_frame(task).drop("age"))


def test_a_package_has_its_parts_and_their_sums(tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    package = check_package(tmp_path / "package")

    assert sorted(path.name for path in (tmp_path / "package").iterdir()) == [
        "SHA256SUMS",
        "contract.json",
        "model.onnx",
        "profile.bin",
    ]
    sums = (tmp_path / "package" / "SHA256SUMS").read_bytes()
    assert package.sha256 == hashlib.sha256(sums).hexdigest()
    assert package.contract.model == "demo"


@pytest.mark.parametrize("part", ["model.onnx", "contract.json", "profile.bin"])
@pytest.mark.parametrize("damage", ["changed", "cut", "absent"])
def test_a_damaged_package_is_refused_and_the_file_named(part: str, damage: str, tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    path = tmp_path / "package" / part
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + b"\x00")

    with pytest.raises(ToolRejected, match=part):
        check_package(tmp_path / "package")


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        pytest.param("", "does not list", id="empty"),
        pytest.param("nonsense\n", "has the line", id="not-a-sum"),
        pytest.param(f"{'0' * 64}  ../../etc/passwd\n", "has the line", id="a-path"),
    ],
)
def test_sums_that_name_anything_else_are_refused(sums: str, message: str, tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    (tmp_path / "package" / "SHA256SUMS").write_text(sums)

    with pytest.raises(ToolRejected, match=message):
        check_package(tmp_path / "package")


def test_a_profile_that_the_contract_does_not_name_is_refused(tmp_path: Path) -> None:
    feature = FeatureContract(name="x", type="numeric", encoding=Number())
    contract = Contract(model="demo", task="regression", features=(feature,), profile_sha256="0" * 64)

    with pytest.raises(ToolRejected, match="is not the profile"):
        write_package(tmp_path / "package", model=b"model", contract=contract, profile=b"profile")


def test_writing_again_replaces_the_package_whole(tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    (tmp_path / "package" / "stray").write_text("left over")
    make_package(tmp_path / "package", "regression")

    assert check_package(tmp_path / "package").contract.task == "regression"
    assert not (tmp_path / "package" / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
