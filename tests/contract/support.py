"""The two sides that every contract test runs on, with the same rows behind both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from evals.world.platform import build, example_spec, serve_first_version
from evals.world.truth import Drift, Truth
from evals.world.world import World
from tests.serving.support import write_package, write_sums
from tools.ports import Platform

MODEL = "churn"
START = date(2026, 3, 2)
"""First day of live traffic."""
TRUTH = Truth(rows_per_day=60, history_days=30)
NO_OWN_LABELS = Drift(kind="late_labels", start=START.isoformat(), magnitude=10_000.0)
"""The world's own label pipeline stays silent, so that labels come through the port alone."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side(Generic[T]):
    """One implementation of a port; `open` gives a fresh object over the same outside world: a new process."""

    open: Callable[[], T]


def new_world(folder: Path, *drifts: Drift, seed: int = 1) -> World:
    """A world with the model's data; nothing is trained yet."""
    world = World(folder, seed=seed, start=START)
    world.add(example_spec(MODEL), TRUTH)
    world.drift(MODEL, *drifts)
    return world


def served_world(folder: Path, *drifts: Drift) -> tuple[World, Platform]:
    """A world whose champion, version 1, takes all traffic."""
    world = new_world(folder, *drifts)
    platform = build(world)
    serve_first_version(platform, world, MODEL)
    return world, platform


def source_rows(world: World, n_days: int) -> pl.DataFrame:
    """The rows of the history and of the first live days as a team would have exported them."""
    days = [*world.history_days(MODEL), *(date.fromordinal(START.toordinal() + i) for i in range(n_days))]
    frames = []
    for day in days:
        rows = world.rows(MODEL, day)
        label = pl.Series("churned", rows.outcome).cast(pl.Int64)
        frames.append(rows.frame.drop("request_id").rename({"entity": "customer"}).with_columns(label))
    return pl.concat(frames)


def served_package(folder: Path, *, bias: float = 0.0) -> Path:
    """A small real package with all its parts."""
    write_package(folder, bias=bias)
    (folder / "profile.bin").write_bytes(b"")
    write_sums(folder)
    return folder


def at(day: int, hour: int = 0) -> datetime:
    """An hour of the nth live day, counted from 0; the history's last day is -1."""
    midnight = datetime.fromisoformat(f"{START.isoformat()}T00:00:00+00:00")
    return datetime.fromtimestamp(midnight.timestamp() + day * 86_400 + hour * 3_600, midnight.tzinfo)
