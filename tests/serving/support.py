"""Small real model packages and server processes for tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from state.contract import Contract, FeatureContract, Task
from state.encoding import Boolean, Number, OneHot

FEATURES = (
    FeatureContract(name="amount", type="numeric", encoding=Number(), low=0.0, high=100.0, low_declared=True),
    FeatureContract(name="online", type="boolean", encoding=Boolean()),
    FeatureContract(name="shop", type="categorical", encoding=OneHot(("food", "fuel"))),
)
ROW: dict[str, Any] = {"amount": 10.0, "online": True, "shop": "food"}
TOKEN = "a-test-token"


def write_package(folder: Path, *, task: Task = "binary", bias: float = 0.0, burn: int = 0, **changes: Any) -> Path:
    """A package whose binary score is sigmoid(0.1 * amount - 1 + bias); a missing number counts as 0.

    `burn` multiplies that many pairs of matrices per row, to make a slow model.
    """
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": None}[task]
    contract = Contract(model="fraud", task=task, classes=classes, features=FEATURES, **changes)
    folder.mkdir(parents=True)
    (folder / "contract.json").write_bytes(contract.to_json())
    (folder / "model.onnx").write_bytes(_model(task, bias, burn).SerializeToString())
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _model(task: Task, bias: float, burn: int) -> onnx.ModelProto:
    width = 4
    columns = {"binary": 1, "multiclass": 3, "regression": 1}[task]
    weights = np.zeros((width, columns), dtype=np.float32)
    weights[0] = [0.1, 0.0, -0.1][:columns]
    offset = np.array([bias - 1.0, 0.0, 0.0][:columns], dtype=np.float32)
    zero, one = np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32)
    named = {"weights": weights, "offset": offset, "zero": zero, "one": one}
    constants = [numpy_helper.from_array(array, name) for name, array in named.items()]
    nodes = [
        # NaN is the one value that differs from itself.
        helper.make_node("Equal", ["features", "features"], ["known"]),
        helper.make_node("Where", ["known", "features", "zero"], ["filled"]),
        helper.make_node("Gemm", ["filled", "weights", "offset"], ["linear"]),
    ]
    output = "value" if task == "regression" else "probabilities"
    if task == "regression":
        nodes.append(helper.make_node("Identity", ["linear"], [output]))
    elif task == "multiclass":
        nodes.append(helper.make_node("Softmax", ["linear"], [output], axis=1))
    else:
        nodes += [
            helper.make_node("Sigmoid", ["linear"], ["positive"]),
            helper.make_node("Sub", ["one", "positive"], ["negative"]),
            helper.make_node("Concat", ["negative", "positive"], [output], axis=1),
        ]
    if burn:
        nodes, constants = _burning(nodes, constants, burn)
    n_outputs = {"binary": 2, "multiclass": 3, "regression": 1}[task]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, n_outputs])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _burning(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], burn: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    size = 256
    constants = [*constants, numpy_helper.from_array(np.eye(size, dtype=np.float32), "eye")]
    constants.append(numpy_helper.from_array(np.zeros((4, size), dtype=np.float32), "spread"))
    constants.append(numpy_helper.from_array(np.zeros((size, 4), dtype=np.float32), "gather"))
    slow = [helper.make_node("MatMul", ["filled", "spread"], ["row"])]
    # (row' row) is size x size, so every product costs size^3.
    slow += [
        helper.make_node("Transpose", ["row"], ["column"], perm=[1, 0]),
        helper.make_node("MatMul", ["column", "row"], ["heat0"]),
    ]
    slow += [helper.make_node("MatMul", [f"heat{i}", "eye"], [f"heat{i + 1}"]) for i in range(burn)]
    slow += [
        helper.make_node("MatMul", ["row", f"heat{burn}"], ["cooled"]),
        helper.make_node("MatMul", ["cooled", "gather"], ["nothing"]),
        helper.make_node("Add", ["filled", "nothing"], ["warmed"]),
    ]
    gemm = helper.make_node("Gemm", ["warmed", "weights", "offset"], ["linear"])
    return [*nodes[:2], *slow, gemm, *nodes[3:]], constants


@dataclass
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(url: str, body: bytes | dict[str, Any] | None = None, **headers: str) -> Reply:
    """One HTTP request; header names are written with `_` for `-`."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return Reply(response.status, response.read(), dict(response.headers))
    except urllib.error.HTTPError as exc:
        with exc:
            return Reply(exc.code, exc.read(), dict(exc.headers))


class AcceptedRequest:
    """A prediction that the server has accepted and waits for the body of."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._body = json.dumps(ROW).encode()
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(self._body)}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(1024).startswith(b"HTTP/1.1 100 ")

    def finish(self) -> bytes:
        """Send the body and return the whole answer."""
        self._client.sendall(self._body)
        answer = b""
        while not answer.endswith(b"}"):
            chunk = self._client.recv(65536)
            if not chunk:
                break
            answer += chunk
        return answer


@contextlib.contextmanager
def accepted(port: int) -> Iterator[AcceptedRequest]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        yield AcceptedRequest(client)


def wait_refused(port: int) -> None:
    """Return once nobody listens on `port`."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionError:
            return
        time.sleep(0.01)
    raise AssertionError(f"somebody still listens on {port}")


class ServerProcess:
    """`python -m serving.server` as a child, ended with the test."""

    def __init__(self, root: Path, package: Path | None, *extra: str, version: str = "1", wait: bool = True) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.records = root / "predictions"
        self.state_file = root / f"{version}.json"
        token = root / "token"
        token.write_text(TOKEN + "\n")
        arguments: Sequence[str] = [
            "--model", "fraud", "--version", version, "--records", str(self.records), "--token-file", str(token),
            "--state-file", str(self.state_file), *(["--package", str(package)] if package else []), *extra,
        ]  # fmt: skip
        self.log = root / f"{version}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "serving.server", *arguments], stderr=log)
        if wait:
            self.wait_ready(200 if package else 503)

    def wait_ready(self, status: int = 200) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.state["pid"] == self.process.pid and call(f"{self.url}/health").status == status:
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.02)
        raise AssertionError(f"the server is not ready: {self.log.read_text()}")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.state_file.read_text())
        return state

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state['port']}"

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)
