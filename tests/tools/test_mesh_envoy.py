"""The Mesh port against a real Envoy with real model servers behind it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import aiohttp
import pytest

from state.errors import ToolRejected, ToolUnavailable
from tests.serving.support import ROW, accepted, call, wait_refused, write_package
from tools.mesh.envoy import EnvoyMesh
from tools.mesh.store import DocumentStore
from tools.metrics import EnvoyMetrics, window
from tools.ports import Endpoint, Mesh
from tools.processes import read_process, start_ticks, terminate
from tools.servers import LocalServers

pytestmark = pytest.mark.xdist_group("envoy")


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Endpoint]]:
    """Three versions of one model, shared by the tests; each test has a workspace and an Envoy of its own."""
    root = tmp_path_factory.mktemp("servers")
    servers = LocalServers(root)
    started = {}
    try:
        for version in ("1", "2", "3"):
            package = write_package(root / f"package-{version}")
            started[version] = servers.start(model="fraud", version=version, package=package, key=version)
        yield started
    finally:
        for endpoint in servers.list("fraud"):
            servers.stop(model="fraud", version=endpoint.version, key="end")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[EnvoyMesh]:
    mesh = EnvoyMesh(tmp_path, concurrency=1)
    yield mesh
    process = read_process(mesh.envoy.pid_file)
    if process is not None:
        terminate(process, grace_seconds=2.0)


@pytest.fixture
def pair(mesh: EnvoyMesh, endpoints: dict[str, Endpoint]) -> EnvoyMesh:
    """Version 1 at 100, version 2 at 0."""
    mesh.stage(endpoint=endpoints["1"], key="stage-1")
    mesh.stage(endpoint=endpoints["2"], key="stage-2")
    return mesh


def answering(address: str, headers: Sequence[Mapping[str, str]]) -> list[str]:
    """The version that answers each request, or the status where it is not 200."""

    async def one(session: aiohttp.ClientSession, header: Mapping[str, str]) -> str:
        async with session.get(f"{address}/health", headers=header) as reply:
            return str(json.loads(await reply.read())["version"]) if reply.status == 200 else str(reply.status)

    async def everyone() -> list[str]:
        connector = aiohttp.TCPConnector(limit=16)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await asyncio.gather(*[one(session, header) for header in headers])

    return asyncio.run(everyone())


def entities(n: int) -> list[dict[str, str]]:
    return [{"x-steady-entity": f"entity-{i}"} for i in range(n)]


def weigh(mesh: EnvoyMesh, weights: dict[str, int], key: str) -> str:
    return mesh.set_weights(model="fraud", weights=weights, key=key).address


class Load:
    """Requests without a pause on a thread of their own, until `stop`."""

    def __init__(self, address: str) -> None:
        self.statuses: Counter[str] = Counter()
        self._address, self._stop = address, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*[self._client(session) for _ in range(4)])

    async def _client(self, session: aiohttp.ClientSession) -> None:
        body = json.dumps(ROW).encode()
        while not self._stop.is_set():
            try:
                async with session.post(f"{self._address}/predict", data=body) as reply:
                    await reply.read()
                    self.statuses[str(reply.status)] += 1
            except aiohttp.ClientError as exc:
                self.statuses[type(exc).__name__] += 1

    def stop(self) -> Counter[str]:
        self._stop.set()
        self._thread.join()
        return self.statuses


def test_the_first_version_gets_everything_and_the_next_one_nothing(
    mesh: EnvoyMesh, endpoints: dict[str, Endpoint]
) -> None:
    port: Mesh = mesh
    assert port.read("fraud") is None
    first = port.stage(endpoint=endpoints["1"], key="k1")
    second = port.stage(endpoint=endpoints["2"], key="k2")

    assert first.weights == {"1": 100} and first.served and first.key == "k1"
    assert list(second.weights.items()) == [("1", 100), ("2", 0)] and second.served
    assert second.address == first.address and second.revision != first.revision
    assert port.read("fraud") == port.find("k2") == second
    assert port.find("k1") is None
    assert Counter(answering(second.address, entities(50))) == {"1": 50}
    assert port.stage(endpoint=endpoints["2"], key="k2") == second


def test_c40_shares_are_as_written_and_after_a_rollback_the_canary_gets_nothing(pair: EnvoyMesh) -> None:
    address = weigh(pair, {"1": 90, "2": 10}, "canary")
    shares = Counter(answering(address, entities(1000)))
    weigh(pair, {"1": 100, "2": 0}, "rollback")

    assert set(shares) == {"1", "2"}
    assert 70 <= shares["2"] <= 130
    assert Counter(answering(address, entities(200))) == {"1": 200}


def test_c40_no_request_fails_during_weight_changes_and_version_swaps(
    pair: EnvoyMesh, endpoints: dict[str, Endpoint]
) -> None:
    load = Load(weigh(pair, {"1": 90, "2": 10}, "start"))
    for step in range(10):
        weigh(pair, {"1": 100 - 10 * step, "2": 10 * step}, f"step-{step}")
    weigh(pair, {"1": 0, "2": 100}, "promote")
    pair.retire(model="fraud", version="1", key="retire")
    pair.stage(endpoint=endpoints["3"], key="stage-3")
    weigh(pair, {"2": 50, "3": 50}, "half")
    weigh(pair, {"2": 0, "3": 100}, "swap")
    pair.retire(model="fraud", version="2", key="retire-2")
    statuses = load.stop()

    assert set(statuses) == {"200"}
    assert statuses["200"] > 100


def test_c41_an_entity_stays_in_its_arm_over_raises_and_restarts(pair: EnvoyMesh) -> None:
    address = weigh(pair, {"1": 90, "2": 10}, "ten")
    asked = entities(1000)
    before = answering(address, asked)
    assert answering(address, asked[::5]) == before[::5]

    process = pair.envoy.running()
    assert process is not None and process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    while start_ticks(process.pid) is not None:
        time.sleep(0.01)
    pair.start()
    assert pair.envoy.running() != process
    assert answering(address, asked) == before

    weigh(pair, {"1": 75, "2": 25}, "twenty-five")
    after = answering(address, asked)
    assert [arm for arm, was in zip(after, before, strict=True) if was == "2" and arm != "2"] == []
    assert 0.20 <= after.count("2") / len(after) <= 0.30


def test_c41_a_restarted_server_keeps_its_entities(tmp_path: Path, mesh: EnvoyMesh) -> None:
    servers = LocalServers(tmp_path)
    package = write_package(tmp_path / "package")
    try:
        for version in ("1", "2"):
            endpoint = servers.start(model="fraud", version=version, package=package, key=version)
            mesh.stage(endpoint=endpoint, key=f"stage-{version}")
        address = weigh(mesh, {"1": 50, "2": 50}, "half")
        asked = entities(100)
        before = answering(address, asked)
        servers.stop(model="fraud", version="2", key="stop")
        assert "503" in answering(address, asked)
        servers.start(model="fraud", version="2", package=package, key="again")

        assert answering(address, asked) == before
    finally:
        for version in ("1", "2"):
            servers.stop(model="fraud", version=version, key="end")


def test_c41_without_an_entity_the_request_id_decides(pair: EnvoyMesh) -> None:
    address = weigh(pair, {"1": 50, "2": 50}, "half")
    asked = [{"x-request-id": f"request-{i}"} for i in range(200)]
    arms = answering(address, asked)

    assert answering(address, asked) == arms
    assert 60 <= arms.count("2") <= 140
    same_entity = [{**header, "x-steady-entity": "one"} for header in asked[:20]]
    assert len(set(answering(address, same_entity))) == 1
    reply = call(f"{address}/predict", ROW, x_request_id="a1b2c3d4-0000-1000-8000-000000000000")
    assert reply.json["request_id"] == "a1b2c3d4-0000-1000-8000-000000000000"


def test_c39_an_edit_between_read_and_write_is_kept_and_ours_is_made_on_top(pair: EnvoyMesh, tmp_path: Path) -> None:
    decided_on = pair.read("fraud")
    assert decided_on is not None
    file = tmp_path / "mesh" / "fraud.yaml"
    file.write_text(file.read_text().replace("    route:\n", "    timeout: 3s\n    route:\n"))
    edited = file.read_bytes()

    with pytest.raises(ToolUnavailable, match="the route is at revision"):
        pair.set_weights(model="fraud", weights={"1": 95, "2": 5}, key="k", revision=decided_on.revision)
    assert file.read_bytes() == edited
    again = pair.read("fraud")
    assert again is not None and again.served
    route = pair.set_weights(model="fraud", weights={"1": 95, "2": 5}, key="k", revision=again.revision)

    assert route.weights == {"1": 95, "2": 5}
    assert "timeout: 3s" in file.read_text()


def test_c39_an_edit_during_our_write_is_noticed(pair: EnvoyMesh, tmp_path: Path) -> None:
    store = DocumentStore(tmp_path / "mesh")
    stored = store.read("fraud")
    assert stored is not None
    file = tmp_path / "mesh" / "fraud.yaml"
    file.write_text(file.read_text() + "# a remark\n")
    edited = file.read_bytes()

    with pytest.raises(ToolUnavailable, match="somebody wrote in between"):
        store.write("fraud", stored.documents, expected=stored.revision)
    with pytest.raises(ToolUnavailable, match="somebody wrote in between"):
        store.write("fraud", stored.documents, expected=None)
    assert file.read_bytes() == edited
    assert list((tmp_path / "mesh").glob("*.tmp")) == []


def test_c39_an_edit_by_hand_is_served_at_the_next_read_and_not_undone_by_an_old_key(
    pair: EnvoyMesh, tmp_path: Path
) -> None:
    address = weigh(pair, {"1": 90, "2": 10}, "k")
    file = tmp_path / "mesh" / "fraud.yaml"
    file.write_text(file.read_text().replace("weight: 90", "weight: 100").replace("weight: 10\n", "weight: 0\n"))
    route = pair.read("fraud")

    assert route is not None and route.served and route.weights == {"1": 100, "2": 0}
    assert set(answering(address, entities(100))) == {"1"}
    assert pair.set_weights(model="fraud", weights={"1": 90, "2": 10}, key="k").weights == {"1": 100, "2": 0}


def test_a_broken_edit_is_refused_by_name_and_the_old_route_is_served_on(pair: EnvoyMesh, tmp_path: Path) -> None:
    address = weigh(pair, {"1": 50, "2": 50}, "half")
    file = tmp_path / "mesh" / "fraud.yaml"
    good = file.read_text()
    file.write_text(good.replace("weight: 50", "weight: 40", 1))
    with pytest.raises(ToolRejected, match=r"VirtualService fraud: weights .* sum to 90"):
        pair.read("fraud")
    for bad, message in [
        (good.replace("    route:\n", "    fault: {}\n    route:\n"), "fault is not supported by the local proxy"),
        (good.replace("subset: v2", "subset: v9"), "version 9|version 2"),
        ("a: [", r"fraud\.yaml: not YAML"),
        (good.replace("kind: ServiceEntry", "kind: Service"), r"fraud\.yaml: no ServiceEntry named 'fraud'"),
    ]:
        file.write_text(bad)
        with pytest.raises(ToolRejected):
            pair.read("fraud")
        with pytest.raises(ToolRejected, match=message):
            pair.set_weights(model="fraud", weights={"1": 50, "2": 50}, key="other")
        assert file.read_text() == bad
    assert set(answering(address, entities(50))) == {"1", "2"}


def test_the_same_key_writes_once(pair: EnvoyMesh, tmp_path: Path) -> None:
    weigh(pair, {"1": 90, "2": 10}, "k")
    file = tmp_path / "mesh" / "fraud.yaml"
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    weigh(pair, {"1": 90, "2": 10}, "k")

    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("act", "message"),
    [
        pytest.param(lambda m: weigh(m, {"1": 90, "9": 10}, "k"), "no destination for version 9", id="unknown"),
        pytest.param(lambda m: weigh(m, {"1": 90, "2": 5}, "k"), "sum to 95, not 100", id="sum"),
        pytest.param(
            lambda m: m.set_weights(model="churn", weights={"1": 100}, key="k"), "churn: there is none", id="no-route"
        ),
        pytest.param(
            lambda m: m.retire(model="fraud", version="1", key="k"), "still has 100 % of the traffic", id="in-use"
        ),
        pytest.param(
            lambda m: m.set_mirror(model="fraud", version="2", percent=101, key="k"), "not a whole", id="mirror"
        ),
    ],
)
def test_c32_what_is_refused_writes_nothing(
    pair: EnvoyMesh, tmp_path: Path, act: Callable[[EnvoyMesh], object], message: str
) -> None:
    before = (tmp_path / "mesh" / "fraud.yaml").read_bytes()

    with pytest.raises(ToolRejected, match=message):
        act(pair)
    assert (tmp_path / "mesh" / "fraud.yaml").read_bytes() == before
    assert not (tmp_path / "mesh" / "churn.yaml").exists()


def test_a_killed_envoy_is_seen_and_replaced_by_the_next_write(pair: EnvoyMesh) -> None:
    address = weigh(pair, {"1": 50, "2": 50}, "half")
    before = pair.envoy.running()
    assert before is not None and before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    while start_ticks(before.pid) is not None:
        time.sleep(0.01)
    lost = pair.read("fraud")

    assert lost is not None and not lost.served
    assert weigh(pair, {"1": 50, "2": 50}, "half") == address
    found = pair.find("half")
    assert found is not None and found.served
    assert set(answering(address, entities(50))) == {"1", "2"}


def test_a_new_control_plane_adopts_the_envoy_of_a_killed_one(
    mesh: EnvoyMesh, endpoints: dict[str, Endpoint], tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from tools.mesh.envoy import EnvoyMesh; from tools.ports import Endpoint\n"
        "e = Endpoint(model='fraud', version='1', key='s', host='127.0.0.1', port=int(sys.argv[2]), ready=True)\n"
        "EnvoyMesh(Path(sys.argv[1]), concurrency=1).stage(endpoint=e, key='k')\n"
        "print('staged', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(endpoints["1"].port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as plane:
        assert plane.stdout is not None and plane.stdout.readline() == b"staged\n"
        plane.kill()
    left = mesh.envoy.running()
    route = mesh.find("k")

    assert left is not None and route is not None and route.served
    assert answering(route.address, [{}]) == ["1"]
    # As if it had been killed between starting Envoy and writing the file.
    mesh.envoy.pid_file.unlink()
    assert mesh.envoy.ensure() == left
    mesh.stage(endpoint=endpoints["2"], key="k2")
    assert mesh.envoy.running() == left


def test_stop_answers_what_was_accepted_and_start_serves_again(pair: EnvoyMesh) -> None:
    address = weigh(pair, {"1": 100, "2": 0}, "k")
    port = int(address.rpartition(":")[2])
    with accepted(port) as request:
        stopping = threading.Thread(target=pair.stop)
        stopping.start()
        wait_refused(port)
        reply = request.finish()
    stopping.join()

    assert reply.startswith(b"HTTP/1.1 200 ")
    assert pair.envoy.running() is None
    pair.stop()
    pair.start()
    assert answering(address, [{}]) == ["1"]


def test_c38_a_mirrored_request_counts_in_no_arm(
    pair: EnvoyMesh, endpoints: dict[str, Endpoint], tmp_path: Path
) -> None:
    metrics = EnvoyMetrics(tmp_path)
    counted = call(f"http://127.0.0.1:{endpoints['2'].port}/metrics").body
    before = metrics.sample("fraud", "2")
    route = pair.set_mirror(model="fraud", version="2", percent=100, key="mirror")
    for _ in range(20):
        assert call(f"{route.address}/predict", ROW).json["model_version"] == "1"
    until = time.monotonic() + 5
    shadow = "cluster.fraud__v2__shadow.upstream_rq_completed"
    while pair.envoy.texts(f"^{shadow}$").get(shadow) != "20":
        assert time.monotonic() < until
        time.sleep(0.01)

    assert metrics.sample("fraud", "2") == before
    assert call(f"http://127.0.0.1:{endpoints['2'].port}/metrics").body == counted
    pair.set_mirror(model="fraud", version=None, key="no-mirror")
    assert pair.envoy.texts(f"^{shadow}$") == {}


def test_c36_a_header_goes_to_the_canary_and_nothing_else_does(pair: EnvoyMesh) -> None:
    address = pair.set_header_route(
        model="fraud", version="2", header="x-model-version", value="v2", key="header"
    ).address
    asked = [*entities(50), *[{"x-model-version": "v2"}] * 50, *[{"x-model-version": "v1"}] * 50]

    assert answering(address, asked) == ["1"] * 50 + ["2"] * 50 + ["1"] * 50
    pair.set_header_route(model="fraud", version="2", header="x-model-version", value=None, key="no-header")
    assert set(answering(address, asked)) == {"1"}


def test_two_models_share_one_envoy_and_a_broken_one_does_not_stop_the_other(
    pair: EnvoyMesh, endpoints: dict[str, Endpoint], tmp_path: Path
) -> None:
    other = Endpoint(model="churn", version="7", key="k", host="127.0.0.1", port=endpoints["3"].port, ready=True)
    churn = pair.stage(endpoint=other, key="churn-1")
    fraud = pair.read("fraud")

    assert fraud is not None and fraud.served and churn.served and fraud.address != churn.address
    assert answering(churn.address, [{}]) == ["3"] and answering(fraud.address, [{}]) == ["1"]
    (tmp_path / "mesh" / "churn.yaml").write_text("kind: Nonsense\n")
    pair.stop()
    pair.start()
    assert answering(fraud.address, [{}]) == ["1"]


def test_a_server_on_another_port_is_followed(pair: EnvoyMesh, endpoints: dict[str, Endpoint]) -> None:
    moved = Endpoint(model="fraud", version="1", key="k", host="127.0.0.1", port=endpoints["3"].port, ready=True)
    route = pair.stage(endpoint=moved, key="moved")

    assert route.weights == {"1": 100, "2": 0} and route.served
    assert set(answering(route.address, entities(20))) == {"3"}


def test_a_retired_version_is_gone_from_envoy(pair: EnvoyMesh, tmp_path: Path) -> None:
    metrics = EnvoyMetrics(tmp_path)
    assert metrics.sample("fraud", "2") is not None
    route = pair.retire(model="fraud", version="2", key="retire")

    assert route.weights == {"1": 100} and route.served
    assert pair.retire(model="fraud", version="2", key="retire") == route
    assert metrics.sample("fraud", "2") is None
    assert "fraud__v2" not in pair.envoy.admin("GET", "/stats?filter=fraud__v2")


def test_a_version_that_envoy_does_not_run_is_not_confirmed(pair: EnvoyMesh) -> None:
    with pytest.raises(ToolUnavailable, match=r"Envoy runs .*, not 'another'"):
        pair.envoy.confirm("cluster_manager.cds.version_text", "another", timeout_seconds=0.05)


def test_a_fixed_port_is_used(tmp_path: Path, endpoints: dict[str, Endpoint], mesh: EnvoyMesh) -> None:
    chosen = mesh.stage(endpoint=endpoints["1"], key="k").address
    port = int(chosen.rpartition(":")[2])
    mesh.stop()
    (tmp_path / "mesh" / "fraud.yaml").unlink()
    again = EnvoyMesh(tmp_path, ports={"fraud": port}, concurrency=1)

    assert again.stage(endpoint=endpoints["1"], key="k").address == chosen


def test_the_window_between_two_samples_has_ratio_and_quantiles(tmp_path: Path, mesh: EnvoyMesh) -> None:
    servers, metrics = LocalServers(tmp_path), EnvoyMetrics(tmp_path)
    assert metrics.sample("fraud", "1") is None
    package = write_package(tmp_path / "package")
    try:
        endpoint = servers.start(model="fraud", version="1", package=package, key="k")
        address = mesh.stage(endpoint=endpoint, key="s").address
        start = metrics.sample("fraud", "1")
        for _ in range(30):
            call(f"{address}/predict", ROW)
        middle = metrics.sample("fraud", "1")
        servers.stop(model="fraud", version="1", key="stop")
        for _ in range(10):
            assert call(f"{address}/predict", ROW).status == 503
        end = metrics.sample("fraud", "1")
    finally:
        servers.stop(model="fraud", version="1", key="end")
    good, bad = window(start, middle), window(middle, end)

    assert good is not None and (good.n_requests, good.error_ratio) == (30, 0.0)
    assert good.p50_ms is not None and good.p99_ms is not None and 0 < good.p50_ms <= good.p99_ms < 5000
    assert bad is not None and (bad.n_requests, bad.error_ratio, bad.p99_ms) == (10, 1.0, None)
    assert window(start, start) is None and metrics.sample("fraud", "9") is None
