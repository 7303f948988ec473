"""Scoring with ONNX Runtime on the CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

OPSET = 17
INPUT = "features"


def open_session(model: bytes, *, threads: int = 1) -> ort.InferenceSession:
    """A CPU session of `model`; its threads sleep where they wait, so that other work on the machine does not."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def score_session(session: ort.InferenceSession, matrix: Matrix, *, task: str) -> Floats:
    """Scores of encoded rows in the shapes of `FittedModel.score_encoded`."""
    output = np.asarray(session.run(None, {INPUT: matrix})[0], dtype=np.float64)
    if task == "multiclass":
        return output
    return output[:, 1] if task == "binary" else output[:, 0]
