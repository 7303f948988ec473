"""Model servers on this machine: one process per version, adopted by its file."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from state.errors import ToolRejected, ToolUnavailable
from state.files import write_once
from tools.loopback import request
from tools.ports import Endpoint
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

log = logging.getLogger(f"steadyhand.{__name__}")

HOST = "127.0.0.1"
REFUSED = 2
ALREADY_RUNNING = 3
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def ensure_token(path: Path) -> None:
    """Make the secret that control plane and servers share, unless it is there; mode 0600."""
    write_once(path, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)


class LocalServers:
    """The Servers port below one workspace."""

    def __init__(self, workspace: Path, *, ready_seconds: float = 60.0, drain_seconds: int = 10) -> None:
        self._servers = workspace / "servers"
        self._records = workspace / "predictions"
        self._token_file = workspace / "tokens" / "control"
        self._ready_seconds, self._drain_seconds = ready_seconds, drain_seconds

    def start(self, *, model: str, version: str, package: Path, key: str) -> Endpoint:
        """Start the version's server, or adopt the one that runs; returns when it is ready.

        A server that died gets its old port again where that is free, so that routes to it stay right.

        Raises:
            ToolRejected: the server refused the package; the message is its own.
            ToolUnavailable: it is not ready within `ready_seconds`, or crashed.
        """
        path = self._file(model, version)
        sums = package / "SHA256SUMS"
        try:
            digest = hashlib.sha256(sums.read_bytes()).hexdigest()
        except OSError as exc:
            raise ToolRejected(f"{sums}: {exc.strerror}") from exc
        known = read_process(path)
        if known is not None and alive(known):
            return self._adopt(path, known, digest=digest, key=key)
        ensure_token(self._token_file)
        ports = [known.port, 0] if known is not None else [0]
        for port in ports:
            pid = self._spawn(model, version, package, key=key, digest=digest, port=port)
            endpoint = self._await_ready(path, pid, digest=digest, key=key, last=port == ports[-1])
            if endpoint is not None:
                return endpoint
        raise ToolUnavailable(f"no port for version {version} of {model}")

    def find(self, key: str) -> Endpoint | None:
        for path in sorted(self._servers.glob("*/*.json")):
            process = read_process(path)
            if process is not None and key in _keys(process):
                endpoint = self._endpoint(path, process)
                if endpoint is not None:
                    return replace(endpoint, key=key)
                if process.extra.get("stopped_by") == key:
                    return _described(path, process, key=key, ready=False)
        return None

    def get(self, model: str, version: str) -> Endpoint | None:
        path = self._file(model, version)
        process = read_process(path)
        return self._endpoint(path, process) if process is not None else None

    def list(self, model: str) -> Sequence[Endpoint]:
        found = (self.get(model, path.stem) for path in sorted((self._servers / model).glob("*.json")))
        return [endpoint for endpoint in found if endpoint is not None]

    def stop(self, *, model: str, version: str, key: str) -> None:
        """End the version's server after it has answered what it had accepted. Idempotent.

        A server that `key` itself started is left alone: stop and start under one key are a restart, and a restart
        said again has been made.
        """
        path = self._file(model, version)
        process = read_process(path)
        if process is None or (alive(process) and key in _started_by(process)):
            return
        terminate(process, grace_seconds=self._drain_seconds + 5.0)
        if process.pid is not None:
            # The file stays: it remembers the port, and that this key has done its work.
            write_process(path, replace(process, pid=None, extra={**process.extra, "stopped_by": key}))

    def flush(self, model: str) -> None:
        """Return once every prediction answered so far is in parquet, those of killed servers included.

        Raises:
            ToolUnavailable: a server or the disk did not answer; repeat.
        """
        for path in sorted((self._servers / model).glob("*.json")):
            process = read_process(path)
            if process is None or not alive(process):
                continue
            token = self._token_file.read_text(encoding="utf-8").strip()
            authorization = {"authorization": f"Bearer {token}"}
            try:
                reply = request("POST", "/flush", port=process.port, headers=authorization, timeout_seconds=30.0)
            except ToolUnavailable:
                if alive(process):
                    raise
                continue  # killed meanwhile: its journal holds what it had answered
            if reply.status != 200:
                raise ToolUnavailable(f"flush of {model} version {path.stem}: {reply.body.decode(errors='replace')}")
        if any((self._records / model / "journal").glob("*.jsonl")):
            self._compact(model)

    def _compact(self, model: str) -> None:
        command = [sys.executable, "-m", "serving.records", str(self._records / model)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603  # our own module
        except (subprocess.SubprocessError, OSError) as exc:
            raise ToolUnavailable(f"records of {model}: {exc}") from exc

    def _file(self, model: str, version: str) -> Path:
        for name in (model, version):
            if not _PLAIN.fullmatch(name):
                raise ToolRejected(f"{name!r} is not a plain name of letters, digits, '.', '_' and '-'")
        return self._servers / model / f"{version}.json"

    def _spawn(self, model: str, version: str, package: Path, *, key: str, digest: str, port: int) -> int:
        path = self._file(model, version)
        command = [
            sys.executable, "-m", "serving.server", "--model", model, "--version", version,
            "--package", str(package.resolve()), "--host", HOST, "--port", str(port),
            "--records", str(self._records.resolve()), "--token-file", str(self._token_file.resolve()),
            "--state-file", str(path.resolve()), "--key", key, "--digest", digest,
            "--drain-seconds", str(self._drain_seconds),
        ]  # fmt: skip
        return spawn(command, log=path.with_suffix(".log"))

    def _await_ready(self, path: Path, pid: int, *, digest: str, key: str, last: bool) -> Endpoint | None:
        """The server that `pid` became; None where its port was taken and another may be tried."""
        until = time.monotonic() + self._ready_seconds
        while time.monotonic() < until:
            process = read_process(path)
            if process is not None and process.pid == pid and alive(process) and _healthy(process):
                return _described(path, process, key=key, ready=True)
            code = exit_code(pid)
            if code == ALREADY_RUNNING and process is not None and alive(process):
                return self._adopt(path, process, digest=digest, key=key)
            if code is not None and code != ALREADY_RUNNING:
                said = last_line(path.with_suffix(".log"), default=f"exit code {code}")
                if code != REFUSED:
                    raise ToolUnavailable(f"{path.parent.name} version {path.stem} ended with {code}: {said}")
                if not last and said.startswith("cannot listen"):
                    return None
                raise ToolRejected(f"{path.parent.name} version {path.stem}: {said}")
            time.sleep(0.02)
        self._abandon(pid)
        raise ToolUnavailable(f"{path.parent.name} version {path.stem} is not ready after {self._ready_seconds:g} s")

    def _abandon(self, pid: int) -> None:
        ticks = start_ticks(pid)
        if ticks is not None:
            terminate(ProcessFile(key="", pid=pid, start_ticks=ticks, port=0), grace_seconds=1.0)

    def _adopt(self, path: Path, process: ProcessFile, *, digest: str, key: str) -> Endpoint:
        if process.extra.get("digest") != digest:
            raise ToolRejected(
                f"{path.parent.name} version {path.stem} already runs from another package: stop it first"
            )
        until = time.monotonic() + self._ready_seconds
        while not _healthy(process):
            if not alive(process) or time.monotonic() > until:
                raise ToolUnavailable(f"{path.parent.name} version {path.stem} runs, but does not become ready")
            time.sleep(0.02)
        if key not in _started_by(process):
            adopted = [*process.extra.get("adopted_by", []), key]
            write_process(path, replace(process, extra={**process.extra, "adopted_by": adopted}))
        return _described(path, process, key=key, ready=True)

    def _endpoint(self, path: Path, process: ProcessFile) -> Endpoint | None:
        if not alive(process):
            return None
        return _described(path, process, key=process.key, ready=_healthy(process))


def _started_by(process: ProcessFile) -> set[str]:
    return {process.key, *process.extra.get("adopted_by", [])}


def _keys(process: ProcessFile) -> set[str]:
    return _started_by(process) | {process.extra.get("stopped_by", process.key)}


def _described(path: Path, process: ProcessFile, *, key: str, ready: bool) -> Endpoint:
    return Endpoint(
        model=path.parent.name,
        version=path.stem,
        key=key,
        host=HOST,
        port=process.port,
        ready=ready,
        pid=process.pid,
    )


def _healthy(process: ProcessFile) -> bool:
    """Whether this very process answers: another may have taken its port."""
    try:
        reply = request("GET", "/health", port=process.port, timeout_seconds=2.0)
        about = json.loads(reply.body)
    except (ToolUnavailable, ValueError):
        return False
    wanted = (process.extra.get("model"), process.extra.get("version"))
    return reply.status == 200 and (about.get("model"), about.get("version")) == wanted
