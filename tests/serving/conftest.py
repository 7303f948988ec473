from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.serving.support import ServerProcess

Start: TypeAlias = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts server processes below `tmp_path`; none outlives the test."""
    running: list[ServerProcess] = []

    def begin(package: Path | None, *extra: str, **options: Any) -> ServerProcess:
        # Registered before it is awaited, so that a server that never gets ready is ended too.
        server = ServerProcess(tmp_path / "server", package, *extra, wait=False, **options)
        running.append(server)
        server.wait_ready(200 if package else 503)
        return server

    yield begin
    for server in running:
        if server.process.poll() is None:
            server.kill()
