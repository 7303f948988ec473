"""Model packages: checked before anything in them is read, then scored by ONNX Runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state

from state.contract import Contract, Encoder
from state.encoding import Matrix
from state.errors import TerminalError

SUMS = "SHA256SUMS"
MODEL = "model.onnx"
CONTRACT = "contract.json"
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    runtime_state.EPFail,
    runtime_state.Fail,
    runtime_state.InvalidArgument,
    runtime_state.InvalidGraph,
    runtime_state.InvalidProtobuf,
    runtime_state.NoSuchFile,
    runtime_state.NotImplemented,
    runtime_state.RuntimeException,
)


class Scorer:
    """One loaded model: encoded rows in, scores out."""

    def __init__(self, contract: Contract, session: onnxruntime.InferenceSession) -> None:
        self.contract = contract
        self.encoder = Encoder(contract.features)
        self._session = session
        self._output = "value" if contract.task == "regression" else "probabilities"

    def score(self, matrix: Matrix) -> npt.NDArray[np.float32]:
        """Probability of class 1 or the number, shape `(n_rows,)`; probabilities `(n_rows, n_classes)` for multiclass.

        Raises:
            TerminalError: ONNX Runtime failed on this input.
        """
        scores = self.run(matrix)
        if self.contract.task == "binary":
            return scores[:, 1]
        return scores[:, 0] if self.contract.task == "regression" else scores

    def run(self, matrix: Matrix) -> npt.NDArray[np.float32]:
        """The model's output as it is, shape `(n_rows, n_columns)`."""
        try:
            scores: npt.NDArray[np.float32] = self._session.run([self._output], {"features": matrix})[0]
        except RUNTIME_ERRORS as exc:
            raise TerminalError(f"{MODEL}: {exc}") from exc
        return scores


def load_package(folder: Path) -> Scorer:
    """The model of a package folder, every file's digest checked before the first is parsed.

    Raises:
        TerminalError: a file is missing, altered or unfit; the message names it.
    """
    files = verified_files(folder)
    contract = Contract.from_json(files[CONTRACT])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # From the checked bytes, not the path: the file cannot change in between, nor point to data beside it.
        session = onnxruntime.InferenceSession(files[MODEL], options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as exc:
        raise TerminalError(f"{folder / MODEL}: {exc}") from exc
    scorer = Scorer(contract, session)
    _try_out(scorer, session, folder)
    return scorer


def verified_files(folder: Path) -> dict[str, bytes]:
    """The package's files by name, each equal to its digest in `SHA256SUMS`.

    Raises:
        TerminalError: a file is missing, unlisted though needed, or altered; the message names it.
    """
    files: dict[str, bytes] = {}
    for line in _read(folder / SUMS).decode("utf-8", "replace").splitlines():
        expected, _, name = line.partition(" ")
        name = name.lstrip(" *")
        if len(expected) != 64 or not name or Path(name).name != name:
            raise TerminalError(f"{folder / SUMS}: {line!r} is not a digest and a file name")
        data = _read(folder / name)
        if hashlib.sha256(data).hexdigest() != expected.lower():
            raise TerminalError(f"{folder / name}: altered since it was packaged, its SHA-256 differs from {SUMS}")
        files[name] = data
    for name in (MODEL, CONTRACT):
        if name not in files:
            raise TerminalError(f"{folder / name}: not listed in {SUMS}")
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise TerminalError(f"{path}: {exc.strerror}") from exc


def _try_out(scorer: Scorer, session: onnxruntime.InferenceSession, folder: Path) -> None:
    width, columns = scorer.encoder.width, len(scorer.contract.classes or ("value",))
    names = [item.name for item in session.get_inputs()]
    if names != ["features"]:
        raise TerminalError(f"{folder / MODEL}: its inputs are {names}, not ['features']")
    scores = scorer.run(np.zeros((2, width), dtype=np.float32))
    if scores.shape != (2, columns):
        raise TerminalError(f"{folder / MODEL}: two rows give shape {scores.shape}, the contract says {(2, columns)}")
