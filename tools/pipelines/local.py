"""Pipelines on one machine: kfp's local runner in one child process per run, which ends with its parent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from state.errors import ToolRejected
from tools.pipelines.journal import ABANDONED, RESULT, describe_failure, read_json, read_log, write_json
from tools.pipelines.parameters import complete_parameters
from tools.pipelines.process import kill_group
from tools.ports import PipelineRequest, PipelineRun
from tools.processes import spawn, start_ticks

MAX_STARTS = 5
"""A run that ended this often without a result, its parent living on, is reported as failed."""
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


class LocalPipelines:
    """`Pipelines` under `<root>/pipelines/<key>/`."""

    def __init__(self, root: Path, *, tracking_uri: str | None = None, python: str = sys.executable) -> None:
        """`tracking_uri` None tracks in the MLflow embedded in `root`."""
        self._tracking_uri = tracking_uri
        self._root = root.absolute()
        self._python = python
        self._started: dict[str, int] = {}

    def submit(self, request: PipelineRequest, *, key: str) -> PipelineRun:
        """Start the run, or return the one that `key` names. A run whose process died is started again.

        Raises:
            ToolRejected: `key` cannot be the name of a folder.
        """
        directory = self._directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            existing = self._look(key)
            if existing is not None:
                return existing
            self._clear(directory)
            parameters = complete_parameters(
                request, {"root": str(self._root), "key": key, "tracking_uri": self._tracking_uri}
            )
            body = {"pipeline": request.pipeline, "model": request.model, "parameters": parameters}
            write_json(directory / "request.json", body)
            self._start(directory, key)
            return PipelineRun(key=key, status="running")

    def find(self, key: str) -> PipelineRun | None:
        """The run that `key` names; None where there is none, or where its process died and left no result."""
        return self._look(key)

    def close(self) -> None:
        """Kill the runs that this object started and that still run; the same key starts them again."""
        for pid in self._started.values():
            if start_ticks(pid) is not None:
                kill_group(pid)
        self._started.clear()

    def _look(self, key: str) -> PipelineRun | None:
        directory = self._directory(key)
        # Liveness first: a run that ends between the two looks has then left its result.
        state = read_json(directory / "state.json")
        ticks = None if state is None else start_ticks(state["pid"])
        alive = state is not None and ticks is not None and ticks == state["start_ticks"]
        result = read_json(directory / RESULT)
        if not alive:
            self._started.pop(key, None)
        if result is not None:
            error = str(result.get("error", ""))
            return PipelineRun(key=key, status=result["status"], outputs=result.get("outputs", {}), error=error)
        if alive:
            return PipelineRun(key=key, status="running")
        if state is not None and state["starts"] >= MAX_STARTS and not (directory / ABANDONED).exists():
            error = f"ended {state['starts']} times without a result; {describe_failure('', read_log(directory))}"
            return PipelineRun(key=key, status="failed", error=error)
        return None

    def _start(self, directory: Path, key: str) -> None:
        before = read_json(directory / "state.json")
        starts = 0 if before is None or (directory / ABANDONED).exists() else before["starts"]
        (directory / ABANDONED).unlink(missing_ok=True)
        # The environment's own programs come first: components start `python3` through a shell.
        path = os.pathsep.join([str(Path(self._python).parent), *os.get_exec_path()])
        command = ["/usr/bin/env", f"PATH={path}", "PYTHONUNBUFFERED=1", self._python, "-m", "tools.pipelines.run"]
        log = directory / "log.txt"
        log.unlink(missing_ok=True)
        pid = spawn([*command, str(directory), str(os.getpid())], log=log)
        self._started[key] = pid
        state = {"pid": pid, "start_ticks": start_ticks(pid), "starts": starts + 1}
        write_json(directory / "state.json", state)

    def _clear(self, directory: Path) -> None:
        """Remove what a dead run left, its orphaned components first."""
        state = read_json(directory / "state.json")
        if state is not None and start_ticks(state["pid"]) is None:
            kill_group(state["pid"])
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _directory(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ToolRejected(f"pipeline key {key!r} is not of the form {_KEY.pattern}")
        return self._root / "pipelines" / key


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
