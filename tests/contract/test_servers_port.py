from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue

from evals.world.platform import build
from state.errors import ToolRejected
from tests.contract.support import MODEL, Side, at, new_world, served_package
from tools.ports import Endpoint, PipelineRequest, Servers
from tools.servers import LocalServers


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    side: Side[Servers]
    package: Path
    other_package: Path
    kill: Callable[[str], None]
    """Let the process of a version die, as under `kill -9`."""


def world_host(folder: Path) -> Host:
    world = new_world(folder)
    pipelines = build(world).pipelines
    packages = []
    for number in (1, 2):
        end = at(-number).isoformat()
        spec = world.specs[MODEL].model_dump_json()
        parameters: dict[str, JsonValue] = {"spec": spec, "end": end, "as_of": end, "seed": 0}
        pipelines.submit(PipelineRequest(pipeline="train", model=MODEL, parameters=parameters), key=f"t{number}")
        run = pipelines.find(f"t{number}")
        assert run is not None
        packages.append(Path(str(run.outputs["package"])))

    def kill(version: str) -> None:
        world.model(MODEL).servers[version].alive = False

    return Host(side=Side(open=lambda: build(world).servers), package=packages[0], other_package=packages[1], kill=kill)


@pytest.fixture(params=["world", "laptop"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "world":
        yield world_host(tmp_path)
        return
    root = tmp_path / "workspace"

    def kill(version: str) -> None:
        endpoint = LocalServers(root).get(MODEL, version)
        assert endpoint is not None
        assert endpoint.pid is not None
        os.kill(endpoint.pid, signal.SIGKILL)
        while LocalServers(root).get(MODEL, version) is not None:
            time.sleep(0.01)

    yield Host(
        side=Side(open=lambda: LocalServers(root)),
        package=served_package(tmp_path / "one"),
        other_package=served_package(tmp_path / "two", bias=1.0),
        kill=kill,
    )
    for endpoint in LocalServers(root).list(MODEL):
        LocalServers(root).stop(model=MODEL, version=endpoint.version, key="end")


def start(host: Host, version: str = "1", key: str = "k") -> Endpoint:
    return host.side.open().start(model=MODEL, version=version, package=host.package, key=key)


def place(endpoint: Endpoint | None) -> tuple[str, int, int | None] | None:
    """What tells one process from another."""
    return None if endpoint is None else (endpoint.version, endpoint.port, endpoint.pid)


def test_a_started_server_is_ready_and_found_by_a_new_process(host: Host) -> None:
    endpoint = start(host)
    servers = host.side.open()

    assert (endpoint.model, endpoint.version, endpoint.key, endpoint.ready) == (MODEL, "1", "k", True)
    assert servers.find("k") == servers.get(MODEL, "1") == endpoint
    assert list(servers.list(MODEL)) == [endpoint]


def test_a_start_said_again_and_one_under_another_key_adopt_the_same_server(host: Host) -> None:
    endpoint = start(host)
    again, other = start(host), start(host, key="k2")

    assert place(endpoint) == place(again) == place(other) == place(host.side.open().find("k2"))
    assert len(host.side.open().list(MODEL)) == 1


def test_what_nobody_started_is_not_there(host: Host) -> None:
    servers = host.side.open()

    assert servers.find("k") is None
    assert servers.get(MODEL, "1") is None
    assert list(servers.list(MODEL)) == []
    servers.flush(MODEL)
    servers.stop(model=MODEL, version="1", key="s")


def test_versions_run_beside_each_other_and_one_stops_alone(host: Host) -> None:
    first, second = start(host, "1", "k1"), start(host, "2", "k2")
    host.side.open().flush(MODEL)
    for _ in range(2):
        host.side.open().stop(model=MODEL, version="1", key="s")

    servers = host.side.open()
    assert first.port != second.port
    assert servers.get(MODEL, "1") is None
    assert servers.find("k1") is None
    assert [place(endpoint) for endpoint in servers.list(MODEL)] == [place(second)]
    stopped = servers.find("s")
    assert stopped is not None
    assert not stopped.ready


def test_a_killed_server_is_gone_and_comes_back_at_its_port(host: Host) -> None:
    endpoint = start(host)
    host.kill("1")
    assert host.side.open().get(MODEL, "1") is None
    assert host.side.open().find("k") is None

    again = start(host, key="k2")
    assert again.ready
    assert again.port == endpoint.port


def test_a_running_version_is_not_replaced_by_another_package(host: Host) -> None:
    endpoint = start(host)
    with pytest.raises(ToolRejected):
        host.side.open().start(model=MODEL, version="1", package=host.other_package, key="k2")
    with pytest.raises(ToolRejected):
        host.side.open().start(model=MODEL, version="2", package=host.package / "nowhere", key="k3")

    assert [place(running) for running in host.side.open().list(MODEL)] == [place(endpoint)]


def test_a_restart_said_again_under_its_key_restarts_once(host: Host) -> None:
    start(host, key="k1")
    places = []
    for _ in range(2):
        host.side.open().stop(model=MODEL, version="1", key="r")
        places.append(place(start(host, key="r")))

    assert places[0] == places[1] == place(host.side.open().find("r"))
