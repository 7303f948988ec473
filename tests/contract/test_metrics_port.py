from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evals.world.platform import build
from evals.world.records import Condition
from tests.contract.support import MODEL, Side, served_world
from tests.serving.support import call
from tools.mesh.envoy import EnvoyMesh
from tools.metrics import EnvoyMetrics, window
from tools.ports import Endpoint, Mesh, Metrics, ServiceSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    side: Side[Metrics]
    send: Callable[[], int]
    """Send some requests; how many."""
    fail: Callable[[], None]
    """From now on version 1 gives no answer."""
    restart_proxy: Callable[[], None]
    mesh: Mesh
    endpoint: Endpoint
    """Of version 1."""


class Upstream:
    """A server that answers every request, until it is closed."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


def world_traffic(folder: Path) -> Traffic:
    world, _ = served_world(folder)

    def send() -> int:
        return world.rows(MODEL, world.advance(1)).frame.height

    return Traffic(
        side=Side(open=lambda: build(world).metrics),
        send=send,
        fail=lambda: world.degrade(MODEL, Condition(version="1", dead=True)),
        restart_proxy=world.restart_proxy,
        mesh=build(world).mesh,
        endpoint=build(world).servers.list(MODEL)[0],
    )


def laptop_traffic(folder: Path, upstream: Upstream) -> Traffic:
    mesh, port = EnvoyMesh(folder, concurrency=1), upstream.server.server_port
    one = Endpoint(model=MODEL, version="1", key="s", host="127.0.0.1", port=port, ready=True)
    address = mesh.stage(endpoint=one, key="s").address

    def send() -> int:
        for _ in range(20):
            call(f"{address}/")
        return 20

    def restart_proxy() -> None:
        mesh.stop()
        mesh.start()

    return Traffic(
        side=Side(open=lambda: EnvoyMetrics(folder)), send=send, fail=upstream.close, restart_proxy=restart_proxy,
        mesh=mesh, endpoint=one,
    )  # fmt: skip


@pytest.fixture(params=["world", pytest.param("laptop", marks=pytest.mark.xdist_group("envoy"))])
def traffic(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Traffic]:
    """Version 1 takes everything."""
    if request.param == "world":
        yield world_traffic(tmp_path)
        return
    upstream = Upstream()
    yield laptop_traffic(tmp_path, upstream)
    EnvoyMesh(tmp_path).stop()
    upstream.close()


def sample(traffic: Traffic) -> ServiceSample:
    found = traffic.side.open().sample(MODEL, "1")
    assert found is not None
    return found


def test_a_version_that_serves_nothing_has_no_data(traffic: Traffic) -> None:
    assert traffic.side.open().sample(MODEL, "9") is None
    assert traffic.side.open().sample("nobody", "1") is None


def test_counters_rise_by_what_was_sent(traffic: Traffic) -> None:
    before = sample(traffic)
    n_sent = traffic.send()
    after = sample(traffic)

    assert after.source == before.source
    assert after.n_requests - before.n_requests == n_sent > 0
    assert after.n_errors == before.n_errors == 0


def test_latency_buckets_are_cumulative_and_hold_every_answer(traffic: Traffic) -> None:
    before = sample(traffic)
    n_sent = traffic.send()
    after = sample(traffic)
    bounds = sorted(after.latency_buckets_ms)
    counts = [after.latency_buckets_ms[bound] for bound in bounds]

    assert bounds[-1] == math.inf
    assert len(bounds) >= 5
    assert counts == sorted(counts)
    assert counts[-1] - before.latency_buckets_ms.get(math.inf, 0) == n_sent


def test_requests_without_an_answer_are_errors_and_no_latencies(traffic: Traffic) -> None:
    traffic.send()
    before = sample(traffic)
    traffic.fail()
    n_sent = traffic.send()
    after = sample(traffic)

    assert after.n_errors - before.n_errors == after.n_requests - before.n_requests == n_sent
    assert after.latency_buckets_ms[math.inf] == before.latency_buckets_ms[math.inf]


def test_a_proxy_that_starts_again_counts_from_zero_under_another_source(traffic: Traffic) -> None:
    n_sent = traffic.send()
    before = sample(traffic)
    traffic.restart_proxy()
    after = sample(traffic)

    assert before.n_requests == n_sent
    assert after.n_requests == 0
    assert after.source != before.source
    assert window(before, after) is None

    n_sent = traffic.send()
    seen = window(before, sample(traffic))
    assert seen is not None and seen.n_requests == n_sent


def test_a_version_that_left_the_route_and_came_back_counts_from_zero_under_the_same_source(traffic: Traffic) -> None:
    traffic.send()
    traffic.send()
    before = sample(traffic)
    mesh = traffic.mesh
    mesh.stage(endpoint=replace(traffic.endpoint, version="2", key="s2"), key="s2")
    mesh.set_weights(model=MODEL, weights={"1": 0, "2": 100}, key="w1")
    mesh.retire(model=MODEL, version="1", key="r1")
    mesh.stage(endpoint=traffic.endpoint, key="s1-again")
    mesh.set_weights(model=MODEL, weights={"2": 0, "1": 100}, key="w2")
    n_sent = traffic.send()
    after = sample(traffic)

    assert (after.source, after.n_requests) == (before.source, n_sent)
    seen = window(before, after)
    assert seen is not None and seen.n_requests == n_sent
