"""The Servers port against real server processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from state.errors import ToolRejected, ToolUnavailable
from tests.serving.support import ROW, call, write_package
from tools.ports import Endpoint, Servers
from tools.processes import ProcessFile, alive, read_process, start_ticks, terminate, write_process
from tools.servers import LocalServers


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A workspace whose servers end with the test."""
    workspace = tmp_path / "workspace"
    yield workspace
    for path in workspace.glob("servers/*/*.json"):
        process = read_process(path)
        if process is not None:
            terminate(process, grace_seconds=5.0)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package")


def running(workspace: Path) -> list[str]:
    """Pids of processes that name `workspace` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(workspace).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def predict(endpoint: Endpoint, request_id: str) -> int:
    return call(f"http://{endpoint.host}:{endpoint.port}/predict", {**ROW, "request_id": request_id}).status


def stored(workspace: Path) -> list[str]:
    files = sorted(workspace.glob("predictions/fraud/day=*/*.parquet"))
    return pl.read_parquet(files, hive_partitioning=False)["request_id"].sort().to_list() if files else []


def test_a_started_server_is_found_by_key_and_ends_on_stop(workspace: Path, package: Path) -> None:
    servers: Servers = LocalServers(workspace)
    started = servers.start(model="fraud", version="1", package=package, key="k1")

    assert started.ready and started.pid is not None and predict(started, "a") == 200
    assert servers.find("k1") == servers.get("fraud", "1") == started
    assert servers.list("fraud") == [started]
    assert servers.find("other") is None and servers.get("fraud", "2") is None and servers.list("churn") == []
    assert (workspace / "tokens" / "control").stat().st_mode & 0o777 == 0o600

    servers.stop(model="fraud", version="1", key="k2")
    servers.stop(model="fraud", version="1", key="k2")
    assert start_ticks(started.pid) is None
    assert servers.get("fraud", "1") is None and servers.find("k1") is None
    stopped = servers.find("k2")
    assert stopped is not None and not stopped.ready and stopped.pid is None
    assert stored(workspace) == ["a"]


def test_starting_again_adopts_the_running_server(workspace: Path, package: Path) -> None:
    servers = LocalServers(workspace)
    first = servers.start(model="fraud", version="1", package=package, key="k1")
    again = servers.start(model="fraud", version="1", package=package, key="k1")
    other = servers.start(model="fraud", version="1", package=package, key="k2")

    assert again == first
    assert other == replace(first, key="k2") == servers.find("k2")
    assert servers.find("k1") == first


def test_a_restart_said_again_under_its_key_restarts_once(workspace: Path, package: Path) -> None:
    servers = LocalServers(workspace)
    servers.start(model="fraud", version="1", package=package, key="k")
    servers.stop(model="fraud", version="1", key="restart")
    restarted = servers.start(model="fraud", version="1", package=package, key="restart")
    servers.stop(model="fraud", version="1", key="restart")

    assert servers.start(model="fraud", version="1", package=package, key="restart") == restarted


def test_a_new_control_plane_adopts_what_a_killed_one_left(workspace: Path, package: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tools.servers import LocalServers\n"
        "LocalServers(Path(sys.argv[1])).start(model='fraud', version='1', package=Path(sys.argv[2]), key='k')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(workspace), str(package)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as plane:
        assert plane.stdout is not None and plane.stdout.readline() == b"ready\n"
        plane.kill()
    servers = LocalServers(workspace)
    found = servers.find("k")

    assert found is not None and found.ready
    assert servers.start(model="fraud", version="1", package=package, key="k") == found
    assert predict(found, "after") == 200


def test_a_killed_server_is_started_again_on_its_port_with_its_records(workspace: Path, package: Path) -> None:
    servers = LocalServers(workspace)
    first = servers.start(model="fraud", version="1", package=package, key="k1")
    predict(first, "before")
    time.sleep(0.2)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    while start_ticks(first.pid) is not None:
        time.sleep(0.01)

    assert servers.get("fraud", "1") is None and servers.find("k1") is None
    second = servers.start(model="fraud", version="1", package=package, key="k1")
    assert second.pid != first.pid and second.port == first.port
    assert stored(workspace) == ["before"]


def test_a_port_that_somebody_took_meanwhile_is_left_to_them(workspace: Path, package: Path) -> None:
    servers = LocalServers(workspace)
    first = servers.start(model="fraud", version="1", package=package, key="k1")
    servers.stop(model="fraud", version="1", key="k2")
    with socket.create_server(("127.0.0.1", first.port)):
        second = servers.start(model="fraud", version="1", package=package, key="k3")

    assert second.port != first.port and predict(second, "x") == 200


def test_a_broken_package_is_rejected_in_the_servers_words(workspace: Path, package: Path) -> None:
    model = package / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")

    with pytest.raises(ToolRejected, match=r"model\.onnx: altered since it was packaged"):
        LocalServers(workspace).start(model="fraud", version="1", package=package, key="k")
    assert LocalServers(workspace).get("fraud", "1") is None


def test_what_cannot_be_started_is_named(workspace: Path, package: Path, tmp_path: Path) -> None:
    servers = LocalServers(workspace)

    with pytest.raises(ToolRejected, match="SHA256SUMS: No such file"):
        servers.start(model="fraud", version="1", package=tmp_path / "nowhere", key="k")
    with pytest.raises(ToolRejected, match=r"'\.\./1' is not a plain name"):
        servers.start(model="fraud", version="../1", package=package, key="k")


def test_a_running_version_is_not_adopted_for_another_package(workspace: Path, package: Path, tmp_path: Path) -> None:
    servers = LocalServers(workspace)
    servers.start(model="fraud", version="1", package=package, key="k1")
    other = write_package(tmp_path / "other", bias=0.5)

    with pytest.raises(ToolRejected, match="version 1 already runs from another package"):
        servers.start(model="fraud", version="1", package=other, key="k2")


def test_a_server_that_is_not_ready_in_time_is_not_left_behind(workspace: Path, package: Path) -> None:
    with pytest.raises(ToolUnavailable, match="not ready after 0 s"):
        LocalServers(workspace, ready_seconds=0.0).start(model="fraud", version="1", package=package, key="k")

    assert running(workspace) == []


def test_a_flush_makes_every_answer_readable_even_of_a_killed_server(workspace: Path, package: Path) -> None:
    servers = LocalServers(workspace)
    first = servers.start(model="fraud", version="1", package=package, key="k1")
    second = servers.start(model="fraud", version="2", package=package, key="k2")
    predict(first, "one")
    predict(second, "two")
    time.sleep(0.2)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    while start_ticks(first.pid) is not None:
        time.sleep(0.01)
    predict(second, "three")
    servers.flush("fraud")

    assert stored(workspace) == ["one", "three", "two"]


def test_a_pid_that_was_given_out_again_is_never_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        ticks = start_ticks(stranger.pid)
        assert ticks is not None
        stale = ProcessFile(key="k", pid=stranger.pid, start_ticks=ticks - 1, port=1)
        terminate(stale, grace_seconds=0.1)

        assert not alive(stale)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', "\x00"])
def test_a_file_that_is_none_of_ours_describes_no_process(tmp_path: Path, content: str) -> None:
    path = tmp_path / "1.json"
    path.write_text(content)

    assert read_process(path) is None


def test_a_process_file_survives_being_written(tmp_path: Path) -> None:
    process = ProcessFile(key="k", pid=7, start_ticks=9, port=8080, extra={"digest": "d"})
    write_process(tmp_path / "deep" / "1.json", process)

    assert read_process(tmp_path / "deep" / "1.json") == process
