"""What the charts show, apart from how they are drawn: the report and the web console share these functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from console.summary_types import BlockMetric, DriftWindow, Summary, TimelineEntry, TrafficBlock
from state.clock import utc

ROLLING_BLOCKS = 7
MAX_FEATURES = 24
"""Rows of the drift strip; the calmest features are left out first."""

Lane: TypeAlias = Literal["incidents", "data", "challengers", "policy and people", "traffic"]
LANES: tuple[Lane, ...] = ("incidents", "data", "challengers", "policy and people", "traffic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time with the number that the tables give it."""

    start: datetime
    end: datetime
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    at: datetime
    label: str
    good: bool
    """A promotion; False for a rollback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLines:
    """Trailing means over blocks; None until half of the window has values."""

    times: list[datetime]
    served: list[float | None]
    never: list[float | None]
    always: list[float | None]
    incidents: list[Span]
    marks: list[Mark]
    classic: list[float | None] = field(default_factory=list)
    """Under the classic rule of a backtest; empty where there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficShares:
    times: list[datetime]
    versions: list[str]
    """In order of their first answer."""
    shares: list[list[float]]
    """Percent of each block's answers, one list a version; 0 in a block without answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftStrip:
    windows: list[str]
    features: list[str]
    """The most moved first."""
    statistics: list[list[float | None]]
    """One list a feature, one value a window; None where it was not tested."""
    levels: list[list[str]]
    n_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePoint:
    at: datetime
    lane: Lane
    good: bool
    """False where something was refused, failed or went wrong."""
    entry: TimelineEntry


def metric_lines(summary: Summary, *, n_blocks: int = ROLLING_BLOCKS) -> MetricLines:
    """The objective's metric over time, with incidents and changes of champion."""
    blocks = summary.blocks
    return MetricLines(
        times=[block_time(block.block) for block in blocks],
        served=rolling([block.served for block in blocks], n_blocks),
        never=rolling([block.never for block in blocks], n_blocks),
        always=rolling([block.always for block in blocks], n_blocks),
        incidents=[
            Span(start=i.opened_at, end=i.closed_at or summary.end, label=str(n))
            for n, i in enumerate(summary.incidents, start=1)
        ],
        marks=champion_marks(summary),
    )


def rolling(values: Sequence[float | None], n: int) -> list[float | None]:
    """Mean of the last `n` values at every position, where at least half of them are known."""
    means: list[float | None] = []
    for at in range(1, len(values) + 1):
        known = [value for value in values[max(0, at - n) : at] if value is not None]
        means.append(sum(known) / len(known) if 2 * len(known) >= n else None)
    return means


def champion_marks(summary: Summary) -> list[Mark]:
    """Promotions after the first one, and rollbacks."""
    promoted = [v for v in summary.versions if v.promoted_at is not None][1:]
    marks = [
        Mark(at=v.promoted_at, label=f"version {v.version} promoted", good=True)
        for v in promoted if v.promoted_at is not None
    ]  # fmt: skip
    marks += [
        Mark(at=v.served_until, label=f"version {v.version} rolled back", good=False)
        for v in summary.versions if v.role == "rolled back" and v.served_until is not None
    ]  # fmt: skip
    return sorted(marks, key=lambda mark: mark.at)


def traffic_shares(blocks: Sequence[TrafficBlock]) -> TrafficShares:
    """Who answered how much of every block."""
    versions = list(dict.fromkeys(v for block in blocks for v in sorted(block.n_by_version)))
    totals = [sum(block.n_by_version.values()) for block in blocks]
    return TrafficShares(
        times=[block_time(block.block) for block in blocks],
        versions=versions,
        shares=[
            [100 * b.n_by_version.get(v, 0) / n if n else 0.0 for b, n in zip(blocks, totals, strict=True)]
            for v in versions
        ],
    )


def drift_strip(windows: Sequence[DriftWindow], *, max_features: int = MAX_FEATURES) -> DriftStrip:
    """Drift of every feature by window, the most moved features first."""
    by_window = [{move.name: move for move in window.features} for window in windows]
    largest: dict[str, float] = {}
    for moves in by_window:
        for name, move in moves.items():
            largest[name] = max(largest.get(name, 0.0), move.statistic)
    ranked = sorted(largest, key=lambda name: (-largest[name], name))
    features = ranked[:max_features]
    return DriftStrip(
        windows=[f"{window.start:%b %d} - {window.end:%b %d}" for window in windows],
        features=features,
        statistics=[[m[name].statistic if name in m else None for m in by_window] for name in features],
        levels=[[m[name].level if name in m else "" for m in by_window] for name in features],
        n_left_out=len(ranked) - len(features),
    )


def decision_lanes(timeline: Sequence[TimelineEntry]) -> list[LanePoint]:
    """The timeline's entries, each in its lane; plans and commands stay in the table."""
    points = []
    for entry in timeline:
        lane = _lane(entry.what)
        if lane is not None:
            points.append(LanePoint(at=entry.at, lane=lane, good=_is_good(entry), entry=entry))
    return points


def _lane(what: str) -> Lane | None:
    match what.split(maxsplit=1)[0]:
        case "incident":
            return "incidents"
        case "quarantine" | "major" | "accept":
            return "data"
        case "backtest" | "train" | "gates":
            return "challengers"
        case "approval" | "denied" | "halt" | "unhalt" | "hold" | "resume":
            return "policy and people"
        case "shift" | "run" | "promote" | "rollback" | "analysis" | "ab" | "foreign" | "restart":
            return "traffic"
        case _:
            return None


_BAD = frozenset(
    {"opened", "failed", "denied", "rejected", "expired", "void", "rollback", "unknown", "major", "inconclusive", "lose",
     "worse", "deadline", "halt", "hold"}
)  # fmt: skip


def _is_good(entry: TimelineEntry) -> bool:
    return not set(entry.what.split()) & _BAD


def block_time(block: str) -> datetime:
    """Start of a block by its name."""
    return utc(datetime.fromisoformat(block))


def describe_metric(summary: Summary) -> str:
    """The metric chart in words, for those who do not see it."""
    known = [block for block in summary.blocks if block.served is not None]
    if not known:
        return f"No labelled rows: there is no {summary.metric} to show."

    def mean(blocks: Sequence[BlockMetric]) -> str:
        said = []
        for name, values in (
            ("as served", [block.served for block in blocks]),
            ("never retrained", [block.never for block in blocks]),
            ("always retrained", [block.always for block in blocks]),
        ):
            some = [value for value in values if value is not None]
            said += [f"{name} {sum(some) / len(some):.3f}"] if some else []
        return ", ".join(said)

    return (
        f"{summary.metric} over {len(known)} blocks from {known[0].block} to {known[-1].block}. "
        f"First {ROLLING_BLOCKS} blocks: {mean(known[:ROLLING_BLOCKS])}. "
        f"Last {ROLLING_BLOCKS} blocks: {mean(known[-ROLLING_BLOCKS:])}. "
        f"{len(summary.incidents)} incidents; {len(champion_marks(summary))} promotions and rollbacks after the first."
    )
