"""scikit-learn to ONNX: corrected where the converter changes the answer, and compared before anybody serves it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

from state.contract import Encoder
from state.errors import ToolRejected
from tools.estimators import FittedModel
from tools.onnx_session import INPUT, OPSET, open_session, score_session
from tools.parity import refuse_difference
from tools.training_rows import Rows, Values

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

PROBABILITIES = "probabilities"
VALUE = "value"
PARITY_ROWS = 2_000
MISSING_RATIO = 0.15


def export_onnx(model: FittedModel) -> bytes:
    """`model.onnx`: float32 `features` `(N, width)` to `probabilities` `(N, n_classes)` or `value` `(N, 1)`."""
    width = Encoder(model.features).width
    estimator = model.estimator
    options = {id(estimator): {"zipmap": False}} if model.task != "regression" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # skl2onnx 1.20 hands numpy booleans to protobuf
        proto = convert_sklearn(
            estimator,
            name="model",  # a random one otherwise: the same model would have another digest each time
            initial_types=[(INPUT, FloatTensorType([None, width]))],
            target_opset={"": OPSET, "ai.onnx.ml": 3},
            options=options,
        )
    _correct_trees(proto, estimator)
    _keep_one_output(proto, PROBABILITIES if model.task != "regression" else VALUE)
    if model.task != "regression" and len(estimator.classes_) != model.n_classes:
        _spread_classes(proto, estimator.classes_.astype(int), model.n_classes)
    _set_shapes(proto, max(model.n_classes, 1))
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items()))
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def parity_error(model: FittedModel, exported: bytes, rows: Rows, *, seed: int) -> float:
    """Largest difference of a score between `model` and its export, on raw rows as they are and with values missing.

    For regression it is in units of the scores' spread.
    """
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(len(rows))[:PARITY_ROWS])
    raw = {name: _pick(values, kept) for name, values in rows.columns.items()}
    holed = {name: _with_holes(values, rng) for name, values in raw.items()}
    session = open_session(exported)
    encoder = Encoder(model.features)
    worst = 0.0
    for columns in (raw, holed):
        matrix = encoder.encode(columns)
        ours = model.score_encoded(matrix)
        theirs = score_session(session, matrix, task=model.task)
        scale = 1.0 if model.task != "regression" else max(float(ours.std()), 0.01 * float(np.abs(ours).max()), 1e-12)
        difference = float(np.abs(ours - theirs).max()) / scale
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


def check_parity(model: FittedModel, exported: bytes, rows: Rows, *, seed: int) -> float:
    """`parity_error`, where it is small enough to serve.

    Raises:
        ToolRejected: the exported model answers differently; it must not be packaged.
    """
    error = parity_error(model, exported, rows, seed=seed)
    refuse_difference(error, estimator=type(model.estimator).__name__)
    return error


def floor_float32(thresholds: Floats) -> Matrix:
    """The largest float32 not above each threshold.

    For float32 `x`, `x <= t` and `x <= floor(t)` are the same; rounding to nearest may step over `x`.
    """
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def _correct_trees(proto: ModelProto, estimator: Any) -> None:
    """Write scikit-learn's own thresholds and missing-value branches into the tree ensemble.

    skl2onnx 1.20 leaves `nodes_missing_value_tracks_true` of forests at 0, which sends every NaN to the right:
    with 5 % of the cells missing, 8 % of decisions flip. It rounds the thresholds of boosted trees to nearest.
    """
    nodes = [node for node in proto.graph.node if node.op_type.startswith("TreeEnsemble")]
    if not nodes:
        return
    thresholds, left, leaf = _tree_arrays(estimator)
    values = np.where(leaf, np.float32(0), floor_float32(thresholds))
    tracks = (left & ~leaf).astype(np.int64)
    attributes = {attribute.name: attribute for attribute in nodes[0].attribute}
    modes = np.array([mode == b"LEAF" for mode in attributes["nodes_modes"].strings])
    if len(nodes) != 1 or not np.array_equal(modes, leaf):
        raise ToolRejected(f"the converter changed its node order for {type(estimator).__name__}")
    for name, array in (("nodes_values", values), ("nodes_missing_value_tracks_true", tracks)):
        if name in attributes:
            nodes[0].attribute.remove(attributes[name])
        nodes[0].attribute.append(helper.make_attribute(name, array.tolist()))


def _tree_arrays(estimator: Any) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Thresholds, whether missing goes left, and whether it is a leaf: one entry a node, in the converter's order."""
    if hasattr(estimator, "_predictors"):
        trees = [predictor.nodes for iteration in estimator._predictors for predictor in iteration]
        leaf = np.concatenate([tree["is_leaf"] for tree in trees]).astype(bool)
        thresholds = np.concatenate([tree["num_threshold"] for tree in trees]).astype(np.float64)
        left = np.concatenate([tree["missing_go_to_left"] for tree in trees]).astype(bool)
        return thresholds, left, leaf
    forest = [tree.tree_ for tree in estimator.estimators_]
    return (
        np.concatenate([tree.threshold for tree in forest]),
        np.concatenate([tree.missing_go_to_left for tree in forest]).astype(bool),
        np.concatenate([tree.children_left for tree in forest]) < 0,
    )


def _keep_one_output(proto: ModelProto, name: str) -> None:
    """Rename the score output to `name` and drop the label with every node that only it needs."""
    graph = proto.graph
    score = graph.output[-1].name
    for node in graph.node:
        for names in (node.input, node.output):
            for at, value in enumerate(names):
                if value == score:
                    names[at] = name
    needed, kept = {name}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    kept.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.output[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]))


def _spread_classes(proto: ModelProto, present: npt.NDArray[np.int_], n_classes: int) -> None:
    """Give classes without a training row a column of zeros, so that columns stay label indices."""
    spread = np.zeros((len(present), n_classes), dtype=np.float32)
    spread[np.arange(len(present)), present] = 1.0
    for node in proto.graph.node:
        for at, value in enumerate(node.output):
            if value == PROBABILITIES:
                node.output[at] = "present_probabilities"
    proto.graph.initializer.append(numpy_helper.from_array(spread, "class_columns"))
    proto.graph.node.append(helper.make_node("MatMul", ["present_probabilities", "class_columns"], [PROBABILITIES]))


def _set_shapes(proto: ModelProto, n_outputs: int) -> None:
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[1].dim_value = "N", n_outputs
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def _pick(values: Values, rows: npt.NDArray[np.int_]) -> Values:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows.tolist()]


def _with_holes(values: Values, rng: np.random.Generator) -> Values:
    holes = rng.random(len(values)) < MISSING_RATIO
    if isinstance(values, np.ndarray):
        return np.where(holes, np.float32(np.nan), values)
    return [None if hole else value for hole, value in zip(holes.tolist(), values, strict=True)]
