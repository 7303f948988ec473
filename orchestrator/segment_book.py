"""The book of a model's segments: one row a version, with what is healthy, the newest losses and the detectors' floats."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, cast

import numpy as np

from orchestrator.signals import WINDOW_BLOCKS, block_begins, days_of_block
from state import store
from state.rows import DetectorRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.performance import EDetector, Reference
from tools.drift.segments import (
    ALARMED,
    MIN_BLOCKS,
    Confined,
    Losses,
    SegmentReference,
    cells_of,
    confined,
    losses_of,
    references,
)

KEPT = 28
"""Newest blocks whose losses are kept: the onset of an alarm is looked for in them."""


@dataclass(slots=True, kw_only=True)
class SegmentBook:
    """What is known of the segments of one version."""

    references: dict[str, SegmentReference] | None = None
    """Watched segments; None while the version's first live blocks are gathered to stand for a reference."""
    detectors: dict[str, EDetector] = field(default_factory=dict)
    recent: Losses = field(default_factory=dict)
    """The newest blocks; while there is no reference, all of them since the version serves."""
    raised: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Segment -> what was raised of it: `size`, `block`, `level`, whether the rise was `confined` to it, and `over` once it
    was healthy again."""

    def sound(self, spec: ModelSpec, bad: Set[str]) -> Losses:
        """The kept blocks without days in `bad` (ISO dates), oldest first."""
        return {
            block: self.recent[block] for block in sorted(self.recent) if not bad & set(days_of_block(block, spec))
        }  # fmt: skip

    def losses(self, spec: ModelSpec, segment: str, bad: Set[str]) -> dict[str, float]:
        """Block -> loss of one segment, oldest first."""
        return {block: cells[segment].loss for block, cells in self.sound(spec, bad).items() if segment in cells}

    def confined_since(self, spec: ModelSpec, since: str, bad: Set[str], *, whole: bool = False) -> Confined | None:
        """The segment that what happened from block `since` on is confined to.

        Where the loss of the `whole` has alarmed, an alarm inside a segment is no evidence that it is confined to it.
        """
        blocks = {block: cells for block, cells in self.sound(spec, bad).items() if block >= since}
        known = self.references or {}
        alarmed = {segment: known[segment] for segment, detector in self.detectors.items() if detector.alarm}
        return confined(known, blocks) or (None if whole else confined(alarmed, blocks, needed=ALARMED))

    def perhaps_confined_since(self, spec: ModelSpec, since: str, bad: Set[str]) -> Confined | None:
        """The segment that may carry a rise from block `since` on, which so few blocks do not prove: its loss is above what is
        tolerated, and that of all other rows is not."""
        blocks = {block: cells for block, cells in self.sound(spec, bad).items() if block >= since}
        return confined(self.references or {}, blocks, needed=0.0, noise_se=0.0)

    def take(self, spec: ModelSpec, blocks: Losses, bad: Set[str]) -> None:
        """Feed newly matured blocks to the detectors, those with a day in `bad` left out."""
        self.recent |= blocks
        if self.references is None:
            self._begin(spec, bad)
            return
        for block in sorted(blocks):
            if bad & set(days_of_block(block, spec)):
                continue
            for segment, detector in self.detectors.items():
                cell = blocks[block].get(segment)
                if cell is not None:
                    detector.update(self.references[segment].weighed(cell), block=block)
        self.recent = {block: self.recent[block] for block in sorted(self.recent)[-KEPT:]}

    def _begin(self, spec: ModelSpec, bad: Set[str]) -> None:
        """Take the first live blocks for the reference of a version whose training left none."""
        first = self.sound(spec, bad)
        if len(first) < MIN_BLOCKS:
            return
        found = references(first, tolerance=spec.monitoring.tolerance)
        if found or len(first) >= 2 * MIN_BLOCKS:  # by then no segment is large enough
            self.watch(spec, found)
            self.recent = {}

    def watch(self, spec: ModelSpec, found: dict[str, SegmentReference]) -> None:
        """Begin to watch these segments: they share half of the false-alarm budget."""
        self.references = found
        blocks = 2 * len(found) * spec.monitoring.false_alarm_blocks
        self.detectors = {
            segment: EDetector(reference=known.inside, false_alarm_blocks=blocks) for segment, known in found.items()
        }

    def begin_anew(self, *, only_alarmed: bool) -> None:
        """The losses are healthy again, or were none: detectors begin anew, so that a relapse is news."""
        for segment, detector in self.detectors.items():
            if segment in self.raised or not only_alarmed:
                self.detectors[segment] = detector.restarted()
        self.raised = {segment: {**known, "over": True} for segment, known in self.raised.items()}

    def state(self) -> dict[str, Any]:
        """JSON of everything that a restart needs."""
        known = self.references
        return {
            "references": None if known is None else {segment: asdict(one) for segment, one in known.items()},
            "detectors": {segment: detector.state() for segment, detector in self.detectors.items()},
            "recent": cells_of(self.recent),
            "raised": self.raised,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SegmentBook:
        """What `state` wrote down."""
        known = state["references"]
        return cls(
            references=None if known is None else {segment: _reference(one) for segment, one in known.items()},
            detectors={segment: EDetector.from_state(one) for segment, one in state["detectors"].items()},
            recent=losses_of(state["recent"]),
            raised=state["raised"],
        )


def _reference(state: dict[str, Any]) -> SegmentReference:
    return SegmentReference(
        **{**state, "inside": Reference(**state["inside"]), "outside": Reference(**state["outside"])}
    )  # fmt: skip


def read_segments(conn: Connection, spec: ModelSpec, version: str) -> SegmentBook:
    """The version's book; a new one watches by the out-of-sample blocks that its training left."""
    row = store.get(conn, DetectorRow, segments_row(spec.model, version))
    if row is not None:
        return SegmentBook.from_state(cast("dict[str, Any]", row.state))
    book = SegmentBook()
    trained = store.get(conn, DetectorRow, f"{spec.model}/reference/{version}")
    blocks = cast("dict[str, Any]", trained.state.get("segments") or {}) if trained is not None else {}
    found = references(losses_of(blocks), tolerance=spec.monitoring.tolerance)
    if found:
        book.watch(spec, found)
    return book


def save_segments(conn: Connection, model: str, version: str, book: SegmentBook, fence: Fence | None) -> None:
    row = DetectorRow(id=segments_row(model, version), model=model, state=book.state())
    store.put(conn, row, fence=fence)


def segments_row(model: str, version: str) -> str:
    """Id of the row that holds a version's book."""
    return f"{model}/segments/{version}"


def segment_regressed(conn: Connection, model: str, version: str) -> bool:
    """Whether this version's loss was found to have risen in one segment only, and has not been healthy there since."""
    row = store.get(conn, DetectorRow, segments_row(model, version))
    raised = cast("dict[str, Any]", row.state["raised"]) if row is not None else {}
    return any(known["confined"] and not known.get("over") for known in raised.values())


def segment_passed(
    conn: Connection, spec: ModelSpec, version: str, segment: str, since: datetime, bad: Set[str]
) -> bool:
    """Whether the segment's loss has been within what is tolerated over a window of blocks that begin at `since` or later."""
    book = read_segments(conn, spec, version)
    known = (book.references or {}).get(segment)
    newer = [loss for block, loss in book.losses(spec, segment, bad).items() if block_begins(block) >= since]
    newer = newer[-WINDOW_BLOCKS:]
    return known is not None and len(newer) == WINDOW_BLOCKS and float(np.mean(newer)) <= known.inside.null


def segment_sizes(conn: Connection, spec: ModelSpec, version: str) -> dict[str, float]:
    """Segment -> how far its loss over the newest `WINDOW_BLOCKS` blocks lies above its reference."""
    book = read_segments(conn, spec, version)
    newest = {name: list(book.losses(spec, name, frozenset()).values())[-WINDOW_BLOCKS:] for name in book.detectors}
    known = book.references or {}
    return {name: float(np.mean(losses)) - known[name].inside.mean for name, losses in newest.items() if losses}


def begin_segments_anew(conn: Connection, model: str, version: str, *, only_alarmed: bool) -> None:
    """The version's losses are healthy again, or were none."""
    row = store.get(conn, DetectorRow, segments_row(model, version))
    if row is not None:
        book = SegmentBook.from_state(cast("dict[str, Any]", row.state))
        book.begin_anew(only_alarmed=only_alarmed)
        save_segments(conn, model, version, book, fence=None)
