"""The model server over HTTP: answers, refusals, health, metrics and its end."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import Start
from tests.serving.support import ROW, TOKEN, ServerProcess, accepted, call, wait_refused, write_package, write_sums


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("shared")
    package = write_package(folder / "package", output_prefix="fraud")
    running = ServerProcess(folder / "server", package, "--stage", "champion")
    yield running
    running.stop()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_prediction_has_the_generic_and_the_classic_names(server: ServerProcess) -> None:
    reply = call(f"{server.url}/predict", {**ROW, "amount": 30.0, "request_id": "r-1"})

    assert reply.status == 200
    assert reply.json["probability"] == reply.json["fraud_probability"] == pytest.approx(sigmoid(2.0))
    assert reply.json["prediction"] == reply.json["fraud_prediction"] == 1
    assert reply.json["model_version"] == "1" and reply.json["request_id"] == "r-1" and reply.json["flags"] == []
    assert reply.json["prediction_time_ms"] > 0


def test_health_names_model_version_and_stage(server: ServerProcess) -> None:
    reply = call(f"{server.url}/health")

    assert reply.status == 200
    assert reply.json == {"status": "healthy", "model": "fraud", "version": "1", "stage": "champion", "key": ""}


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        pytest.param(b"{}", ["missing:amount", "missing:online", "missing:shop"], id="nothing-sent"),
        pytest.param(b'{"amount": 1e999, "online": 1, "shop": "food"}', ["missing:amount"], id="beyond-a-double"),
        pytest.param(b'{"amount": NaN, "online": 1, "shop": "food"}', ["missing:amount"], id="nan"),
        pytest.param(b'{"amount": "12.5", "online": 1, "shop": "food"}', ["text_number:amount"], id="number-as-text"),
        pytest.param(b'{"amount": [[1]], "online": 1, "shop": "food"}', ["unparsable:amount"], id="wrong-type"),
        pytest.param(b'{"amount": -5, "online": 1, "shop": "food"}', ["out_of_range:amount"], id="out-of-range"),
        pytest.param(b'{"amount": 5, "online": 1, "shop": "toys"}', ["unknown_level:shop"], id="unknown-level"),
        pytest.param(b'{"amount": 5, "online": 1, "shop": "food", "more": [1]}', [], id="unknown-field"),
        pytest.param(
            b'{"amount": 5, "online": 1, "shop": "food", "event_time": "soon"}',
            ["unparsable:event_time"],
            id="bad-time",
        ),
        pytest.param(
            b'{"amount": 5, "online": 1, "shop": "food", "request_id": {}}', ["unparsable:request_id"], id="bad-id"
        ),
    ],
)
def test_odd_input_is_answered_and_flagged(server: ServerProcess, body: bytes, flags: list[str]) -> None:
    reply = call(f"{server.url}/predict", body)

    assert reply.status == 200
    assert reply.json["flags"] == flags
    assert 0 < reply.json["probability"] < 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        pytest.param(b'{"amount": ', 400, "the body is not JSON", id="cut-off"),
        pytest.param(b"", 400, "the body is not JSON", id="empty"),
        pytest.param(b"[1, 2]", 400, "the body is a JSON array, not an object", id="array"),
        pytest.param(b"null", 400, "the body is a JSON null, not an object", id="null"),
        pytest.param(b'{"amount": "\xff"}', 400, "the body is not JSON", id="not-utf-8"),
        pytest.param(b'{"shop": "\\ud800"}', 400, "the body is not JSON", id="lone-surrogate"),
        pytest.param(b'{"amount": ' + b"[" * 100_000, 400, "nested too deeply", id="nested"),
        pytest.param(b'{"amount": ' + b"9" * 10_000 + b"}", 400, "the body is not JSON", id="ten-thousand-digits"),
        pytest.param(b'{"note": "' + b"x" * (1 << 20) + b'"}', 413, "longer than 1048576 bytes", id="too-long"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(server: ServerProcess, body: bytes, status: int, message: str) -> None:
    reply = call(f"{server.url}/predict", body)

    assert reply.status == status
    assert message in reply.json["error"]


def test_a_body_without_a_declared_length_is_cut_off_too(server: ServerProcess) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.state["port"]), timeout=10) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunk * 17 + b"0\r\n\r\n"
        )
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param("/nowhere", None, 404, id="unknown-path"),
        pytest.param("/predict", None, 405, id="get-instead-of-post"),
        pytest.param("/health", b"{}", 405, id="post-instead-of-get"),
        pytest.param("/flush", b"", 401, id="no-token"),
    ],
)
def test_wrong_paths_methods_and_tokens(server: ServerProcess, path: str, body: bytes | None, status: int) -> None:
    assert call(server.url + path, body).status == status
    assert call(f"{server.url}/flush", b"", authorization="Bearer wrong").status == 401
    assert call(f"{server.url}/flush", b"", authorization=f"Bearer {TOKEN}").status == 200


@pytest.mark.parametrize("shape", ["rows", "columns"])
def test_a_batch_answers_in_order(server: ServerProcess, shape: str) -> None:
    rows = [{**ROW, "amount": float(i), "request_id": f"{shape}-{i}"} for i in range(300)]
    body: dict[str, Any] = {"rows": rows}
    if shape == "columns":
        body = {"columns": {name: [row[name] for row in rows] for name in rows[0]}}
    reply = call(f"{server.url}/predict/batch", body).json

    assert reply["count"] == 300 and reply["model_version"] == "1"
    assert reply["probabilities"] == pytest.approx([sigmoid(0.1 * i - 1) for i in range(300)], rel=1e-5)
    assert reply["predictions"] == [int(i >= 10) for i in range(300)]
    assert reply["request_ids"][7] == f"{shape}-7"
    assert reply["flags"][5] == [] and reply["flags"][200] == ["out_of_range:amount"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({}, "send either `rows`", id="neither"),
        pytest.param({"rows": [], "columns": {}}, "send either `rows`", id="both"),
        pytest.param({"rows": [{}, 3]}, "rows[1] is a JSON number", id="row-is-a-number"),
        pytest.param({"rows": {}}, "`rows` is a JSON", id="rows-is-an-object"),
        pytest.param({"columns": {"a": [1], "b": []}}, "columns differ in length", id="ragged"),
        pytest.param({"columns": [1]}, "`columns` is not an object of arrays", id="columns-is-a-list"),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused(server: ServerProcess, body: dict[str, Any], message: str) -> None:
    reply = call(f"{server.url}/predict/batch", body)

    assert reply.status == 400
    assert message in reply.json["error"]


def test_an_empty_batch_has_no_predictions(server: ServerProcess) -> None:
    assert call(f"{server.url}/predict/batch", {"rows": []}).json["predictions"] == []


def samples(server: ServerProcess) -> dict[tuple[str, str], float]:
    """Value by sample name and `prediction_class`, or flag and feature."""
    found = {}
    for family in text_string_to_metric_families(call(f"{server.url}/metrics").body.decode()):
        for sample in family.samples:
            labels = sample.labels
            detail = labels.get("prediction_class") or "/".join(
                filter(None, (labels.get("flag"), labels.get("feature")))
            )
            found[sample.name, detail] = sample.value
    return found


def test_metrics_count_what_was_answered_but_not_what_was_mirrored(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package"))
    for amount in (1, 50, 60, -1):
        call(f"{server.url}/predict", {**ROW, "amount": amount})
    call(f"{server.url}/predict", ROW, host="fraud-shadow")
    call(f"{server.url}/predict", b"{", host="127.0.0.1-shadow:8080")
    counted = samples(server)

    assert counted["model_predictions_total", "yes"] == 2
    assert counted["model_predictions_total", "no"] == 2
    assert counted["model_input_flags_total", "out_of_range/amount"] == 1
    assert counted["model_prediction_latency_seconds_count", ""] == 4
    assert not [key for key in counted if key[0] == "model_requests_refused_total"]
    info = call(f"{server.url}/metrics").body.decode().splitlines()[1]
    assert info == 'model_info{model_name="fraud",model_version="1",model_stage="none"} 1'


def test_without_a_model_predictions_get_503(start: Start) -> None:
    server = start(None)

    assert call(f"{server.url}/predict", ROW).status == 503
    assert call(f"{server.url}/predict/batch", {"rows": [ROW]}).status == 503
    assert call(f"{server.url}/health").json["status"] == "loading"
    assert server.stop() == 0


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_answer_in_their_own_terms(start: Start, tmp_path: Path, task: Any) -> None:
    server = start(write_package(tmp_path / "package", task=task))
    reply = call(f"{server.url}/predict", {**ROW, "amount": 30}).json
    batch = call(f"{server.url}/predict/batch", {"rows": [{**ROW, "amount": 5}]}).json

    if task == "regression":
        assert reply["prediction"] == pytest.approx(2.0) and "probability" not in reply
        assert "probabilities" not in batch
        assert ("model_predictions_total", "") in samples(server)
    else:
        assert reply["prediction"] == "a" and list(reply["probabilities"]) == ["a", "b", "c"]
        assert reply["probability"] == reply["probabilities"]["a"] > 0.5
        assert batch["predictions"] == ["b"]


def test_a_declared_bound_refuses_where_the_contract_says_so(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package", out_of_range="refuse"))
    reply = call(f"{server.url}/predict", {**ROW, "amount": -1})

    assert reply.status == 422
    assert reply.json["error"] == "amount is -1: the smallest admissible value is 0"
    assert call(f"{server.url}/predict", {**ROW, "amount": 1e4}).status == 200  # an observed bound only flags


def test_a_model_that_gives_no_number_answers_500_and_never_a_made_up_one(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package", task="regression", bias=math.nan))
    reply = call(f"{server.url}/predict", ROW)

    assert reply.status == 500
    assert "gave no finite score" in reply.json["error"]
    batch = call(f"{server.url}/predict/batch", {"rows": [ROW]}).json
    assert batch["predictions"] == [None] and batch["flags"] == [["no_score:"]]


@pytest.mark.parametrize("name", ["model.onnx", "contract.json"])
@pytest.mark.parametrize("damage", ["altered", "missing", "unlisted"])
def test_a_damaged_package_is_refused_by_file(tmp_path: Path, name: str, damage: str) -> None:
    package = write_package(tmp_path / "package")
    if damage == "altered":
        (package / name).write_bytes((package / name).read_bytes() + b"\n")
    elif damage == "missing":
        (package / name).unlink()
    else:
        sums = (package / "SHA256SUMS").read_text().splitlines(keepends=True)
        (package / "SHA256SUMS").write_text("".join(line for line in sums if not line.endswith(f"{name}\n")))

    assert name in refusal(package)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("model.onnx", b"not a model", id="not-onnx"),
        pytest.param("contract.json", b'{"format": 1}', id="not-a-contract"),
    ],
)
def test_a_package_that_does_not_parse_is_refused_by_file(tmp_path: Path, name: str, content: bytes) -> None:
    package = write_package(tmp_path / "package")
    (package / name).write_bytes(content)
    write_sums(package)

    assert name in refusal(package)


def test_a_model_that_breaks_its_contract_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    other = write_package(tmp_path / "other", task="multiclass")
    (package / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    write_sums(package)

    assert "shape (2, 3), the contract says (2, 2)" in refusal(package)


def test_sums_cannot_point_outside_the_package(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    sums = (package / "SHA256SUMS").read_text()
    (package / "SHA256SUMS").write_text(sums + f"{'0' * 64}  ../secret\n")

    assert "is not a digest and a file name" in refusal(package)


def refusal(package: Path) -> str:
    """The last line that a server says before it gives up on `package`."""
    command = [sys.executable, "-m", "serving.server", "--model", "fraud", "--version", "1", "--package", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    return done.stderr.splitlines()[-1]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "serving.server", "--model", "m", "--version", "1", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr.splitlines()[-1]


def test_one_version_runs_once(start: Start, tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    first = start(package)
    second = ServerProcess(tmp_path / "server", package, wait=False)

    assert second.process.wait(timeout=20) == 3
    assert first.state["pid"] == first.process.pid
    assert "version 1 of fraud already runs" in first.log.read_text()


def test_a_burst_is_shed_and_the_rest_is_answered(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package", burn=30), "--max-waiting", "4")
    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(lambda _: call(f"{server.url}/predict", ROW).status, range(128)))

    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    assert samples(server)["model_predictions_total", "yes"] == statuses.count(200)
    assert call(f"{server.url}/predict", ROW).status == 200


def test_a_body_that_declares_far_too_much_is_not_waited_for(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.state["port"]), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_sigterm_answers_what_was_accepted(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package"), version="7")
    with accepted(server.state["port"]) as request:
        server.process.terminate()
        wait_refused(server.state["port"])
        reply = request.finish()

    assert server.process.wait(timeout=20) == 0
    assert reply.startswith(b"HTTP/1.1 200 ") and b'"model_version":"7"' in reply


def test_an_admitted_shutdown_ends_the_process(start: Start, tmp_path: Path) -> None:
    server = start(write_package(tmp_path / "package"))

    assert call(f"{server.url}/shutdown", b"").status == 401
    assert call(f"{server.url}/shutdown", b"", authorization=f"Bearer {TOKEN}").status == 202
    assert server.process.wait(timeout=20) == 0
