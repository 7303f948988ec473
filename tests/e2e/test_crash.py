"""kill -9 of `steady up --replay` at random moments, and starting it again: the end is that of an undisturbed run."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import datasets, running
from tests.e2e.datasets import day

pytestmark = pytest.mark.slow
WINDOW = ("--replay", f"{day(datasets.REPLAY_DAY):%Y-%m-%d}", "--until", f"{day(datasets.N_DAYS):%Y-%m-%d}")


@dataclass(frozen=True)
class End:
    """What may not depend on how often the control plane was killed."""

    actions: list[tuple[str, str, dict[str, Any]]]
    mlflow: dict[str, int]
    champion: str
    weights: dict[str, int]
    alias: str | None
    incidents: list[tuple[str, str, str]]
    versions: list[tuple[str, str, int]]
    overall: dict[str, Any]
    labels: int


def end_of(home: Path, summary: dict[str, Any]) -> End:
    [model] = running.steady("status", "--json", home=home).json["models"]
    incidents = running.steady("incidents", "--json", home=home).json["incidents"]
    checked = running.steady("audit", "verify", "--json", home=home).json
    assert checked["ok"], checked["problems"]
    assert checked["n_proven"] == checked["n_records"]
    return End(
        actions=running.actions(home), mlflow=running.mlflow_counts(home), champion=model["champion"],
        weights=model["weights"], alias=running.alias(home, "champion"),
        incidents=[(i["cause"], i["resolution"], i["opened_at"]) for i in incidents],
        versions=[(v["version"], v["role"], v["n_answered"]) for v in summary["versions"]],
        overall=summary["overall"], labels=len(list((home / "outcomes" / "loans").glob("*.parquet"))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[End]:
    folder = tmp_path_factory.mktemp("undisturbed")
    home, spec = folder / "ws", datasets.write(folder, "turns")
    try:
        done = running.steady("up", spec, *WINDOW, "--json", home=home)
        assert done.code == 0, done.err
        yield end_of(home, done.json)
    finally:
        running.end(home)


@pytest.mark.parametrize("seed", [11, 12])
def test_killed_at_random_points_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: End, seed: int
) -> None:
    rng = random.Random(seed)
    home, spec = tmp_path / "ws", datasets.write(tmp_path, "turns")
    n_killed = 0
    try:
        for _ in range(8):
            before = running.data_plane(home)
            child = running.start("up", spec, *WINDOW, "--json", home=home)
            if ended_or_killed(child, rng.uniform(2.0, 14.0)):
                break
            n_killed += 1
            # Who served goes on serving: nothing was started anew that need not be.
            gone = set(before) - set(running.data_plane(home))
            assert not gone or gone <= stopped_by_rollout(home, before)
        last = running.steady("up", spec, *WINDOW, "--json", home=home)
        assert last.code == 0, last.err
        assert n_killed >= 3
        assert end_of(home, last.json) == undisturbed
        assert running.wait_until_gone(home) == {}
    finally:
        running.end(home)


def ended_or_killed(child: subprocess.Popen[str], seconds: float) -> bool:
    """True if the command ended by itself within `seconds`; else it is killed."""
    try:
        _, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return False
    assert child.returncode == 0, err
    return True


def stopped_by_rollout(home: Path, pids: dict[int, str]) -> set[int]:
    """Servers that the loop itself has ended meanwhile: of versions that are no longer in the route."""
    [model] = running.steady("status", "--json", home=home).json["models"] or [{"weights": {}}]
    kept = set(model["weights"] or {})
    return {
        pid
        for pid, words in pids.items()
        if "serving.server" in words and words.split("--version ")[1].split()[0] not in kept
    }


def test_servers_and_envoy_outlive_a_kill_and_are_adopted(tmp_path: Path) -> None:
    home, spec = tmp_path / "ws", datasets.write(tmp_path, "still")
    try:
        child = running.start("up", spec, *WINDOW, home=home)
        wait_for_traffic(home, child)
        child.kill()
        child.communicate()
        left = running.data_plane(home)
        assert sorted(Path(words.split()[0]).name == "envoy" for words in left.values()) == [False, True]

        again = running.start("up", spec, *WINDOW, home=home)
        wait_for_traffic(home, again)
        assert running.data_plane(home) == left

        # A second one would stop the first one's servers at its end.
        second = running.steady("up", spec, *WINDOW, home=home)
        assert (second.code, f"loans is up already: process {again.pid}" in second.err) == (2, True)
        assert running.data_plane(home) == left

        again.send_signal(signal.SIGINT)
        _, err = again.communicate(timeout=running.PATIENCE_SECONDS)
        assert (again.returncode, "Traceback" in err) == (130, False)
        assert running.wait_until_gone(home) == {}
    finally:
        running.end(home)


def wait_for_traffic(home: Path, child: subprocess.Popen[str]) -> None:
    """Return once a server of the workspace has answered requests of this start of the command."""
    begun, until = time.time(), time.monotonic() + running.PATIENCE_SECONDS
    while time.monotonic() < until:
        assert child.poll() is None, child.communicate()
        newest = [path.stat().st_mtime for path in home.glob("predictions/loans/day=*/*.parquet")]
        if newest and max(newest) > begun:
            return
        time.sleep(0.05)
    raise AssertionError("no request was answered")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interruption_at_any_moment_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    rng = random.Random(int(number))
    home, spec = tmp_path / "ws", datasets.write(tmp_path, "still")
    try:
        for seconds in (rng.uniform(1.0, 4.0), rng.uniform(5.0, 9.0), rng.uniform(10.0, 20.0)):
            child = running.start("up", spec, *WINDOW, home=home)
            time.sleep(seconds)
            child.send_signal(number)
            time.sleep(0.2)
            if child.poll() is None:
                child.send_signal(number)  # impatience changes nothing
            _, err = child.communicate(timeout=running.PATIENCE_SECONDS)
            # Before Python reads our handler the signal's own effect holds: nothing was begun then.
            assert child.returncode in (130, -number)
            assert "Traceback" not in err or child.returncode == -number
            assert running.wait_until_gone(home) == {}
    finally:
        running.end(home)


def test_without_any_row_of_langgraph_the_end_is_the_same(tmp_path: Path, undisturbed: End) -> None:
    home, spec = tmp_path / "ws", datasets.write(tmp_path, "turns")
    n_deleted = 0
    try:
        child = running.start("up", spec, *WINDOW, "--json", home=home)
        while child.poll() is None:
            n_deleted += forget_threads(home / "steady.db")
            time.sleep(0.05)
        out, err = child.communicate(timeout=running.PATIENCE_SECONDS)
        assert child.returncode == 0, err
        assert n_deleted > 0
        assert end_of(home, running.Done(0, out, err).json) == undisturbed
    finally:
        running.end(home)


def forget_threads(database: Path) -> int:
    """Delete every row of LangGraph; the number of rows that there were."""
    if not database.exists():
        return 0
    try:
        with closing(sqlite3.connect(database, timeout=5.0, isolation_level=None)) as connection:
            return sum(connection.execute(f"delete from {table}").rowcount for table in ("writes", "checkpoints"))
    except sqlite3.OperationalError:
        return 0  # not made yet, or busy: the next round gets them
