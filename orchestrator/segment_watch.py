"""Losses of single segments: raised where the whole does not tell, and named where the whole is worse because of one."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import JsonValue

from orchestrator.change import level_since, onset_of
from orchestrator.segment_book import SegmentBook, read_segments, save_segments
from orchestrator.signals import WINDOW_BLOCKS, Signal
from state.rows import IncidentRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.segments import Confined, losses_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Risen:
    """A segment whose loss is above its reference now."""

    segment: str
    loss: float
    """Mean over the newest `WINDOW_BLOCKS` blocks."""
    n_blocks: int
    size: float
    floor: float
    onset: str | None
    level: float | None
    block: str
    """The newest one."""


def watch_segments(
    conn: Connection,
    spec: ModelSpec,
    champion: str,
    cells: dict[str, dict[str, Any]],
    alarms: list[Signal],
    *,
    bad: Set[str],
    fence: Fence,
) -> list[Signal]:
    """Feed newly matured `cells` (block -> segment -> `SegmentLoss.cells`) to the detectors; `alarms` and what they add.

    An alarm of the whole gets the segment that it is confined to, if any, in its details; so does a goal that is missed
    because the loss has risen, or the segment that may carry it. Else a segment whose detector has alarmed is a signal of
    its own, once, and again where it has grown; but only where the rise is confined to it: one that goes through all rows
    is for the detector of the whole to tell.
    """
    book = read_segments(conn, spec, champion)
    book.take(spec, losses_of(cells), bad)
    found, scoped = alarms, None
    risen = [item for item in alarms if item.name == "loss_alarm" or item.details["loss"] > item.details["null"]]
    alarm = next(iter(risen), None)
    if alarm is not None:
        scoped = _with_scope(spec, book, alarm, bad)
        found = [scoped if item is alarm else item for item in alarms]
    if scoped is None or (scoped.name == "goal_missed" and "segment" not in scoped.details):
        signal = _raise(spec, book, bad)
        found = [*found, signal] if signal is not None else found
    save_segments(conn, spec.model, champion, book, fence)
    return found


def _with_scope(spec: ModelSpec, book: SegmentBook, signal: Signal, bad: Set[str]) -> Signal:
    """An alarm of the whole with the segment that the rise is confined to; as it is where there is none.

    It is looked for from the onset on, and over the newest window: an old alarm that has grown has the onset of its
    growth, which may be a single block, or none.
    """
    window = min([*book.sound(spec, bad)][-WINDOW_BLOCKS:], default="")
    found = (book.confined_since(spec, since, bad, whole=True) for since in (signal.onset, window) if since)
    one = next((one for one in found if one is not None), None)
    risen = _risen(spec, book, one.segment, bad) if one is not None else None
    if one is None or risen is None:
        perhaps = book.perhaps_confined_since(spec, window, bad) if signal.name == "goal_missed" else None
        more = {"perhaps": in_words(spec, book, perhaps)} if perhaps is not None else {}
        return signal.model_copy(update={"details": {**signal.details, **more}})
    _remember(book, risen, confined=True)
    text = in_words(spec, book, one)
    details = {**signal.details, **_details(risen), "confined": text}
    return signal.model_copy(update={"text": f"{signal.text}; {text}", "details": details})


def segment_since(
    conn: Connection, spec: ModelSpec, champion: str, since: str, *, bad: Set[str], fence: Fence
) -> Signal | None:
    """The signal of the segment that a change from block `since` on is confined to; None where there is none, or it has
    been raised before."""
    book = read_segments(conn, spec, champion)
    one = book.confined_since(spec, since, bad)
    if one is None or _is_raised(book, one.segment):
        return None
    risen = _risen(spec, book, one.segment, bad)
    if risen is None:
        return None
    _remember(book, risen, confined=True)
    save_segments(conn, spec.model, champion, book, fence)
    return _signal(spec, book, [risen], one)


def in_words(spec: ModelSpec, book: SegmentBook, one: Confined) -> str:
    """Where the loss has risen and where it has not, in figures."""
    known = (book.references or {})[one.segment]
    return (
        f"only in {one.segment}: {spec.objective.metric} loss {one.loss:.4f} over {one.n_blocks} blocks where "
        f"{known.inside.mean:.4f} is usual, outside it {one.outside:.4f} where {known.outside.mean:.4f} is (z {one.z:.1f})"
    )


def _raise(spec: ModelSpec, book: SegmentBook, bad: Set[str]) -> Signal | None:
    """The signal of the segments that have newly alarmed, the clearest first."""
    news = _alarmed(spec, book, bad)
    if not news:
        return None
    onset = news[0].onset
    one = book.confined_since(spec, onset, bad) if onset is not None else None
    if one is None:
        return None  # looked at again with more blocks
    news = _clearest_first(spec, book, news, one.segment, bad)
    for risen in news:
        _remember(book, risen, confined=risen.segment == one.segment)
    if news[0].segment != one.segment:
        return None
    return _signal(spec, book, news, one)


def _clearest_first(
    spec: ModelSpec, book: SegmentBook, news: list[_Risen], segment: str, bad: Set[str]
) -> list[_Risen]:
    """`news` after the segment that explains it: segments overlap, and the one that alarms first need not be that one.

    As it is where that segment was raised before and has not grown: what it does to the others is no news.
    """
    own = next((risen for risen in news if risen.segment == segment), None)
    if own is None and not _is_raised(book, segment):
        own = _risen(spec, book, segment, bad)
    return news if own is None else [own, *(risen for risen in news if risen.segment != segment)]


def _signal(spec: ModelSpec, book: SegmentBook, news: list[_Risen], one: Confined) -> Signal:
    first, known = news[0], (book.references or {})[news[0].segment].inside
    text = (
        f"{spec.objective.metric} loss {first.loss:.4f} in {first.segment} over the last {first.n_blocks} blocks against "
        f"a reference of {known.mean:.4f} (tolerated: {known.null:.4f})"
    )
    if len(news) > 1:
        text += f"; also in {', '.join(risen.segment for risen in news[1:])}"
    details = {
        "loss": first.loss, "reference": known.mean, "null": known.null, **_details(*news),
        "log_e": book.detectors[first.segment].log_e, "confined": in_words(spec, book, one),
    }  # fmt: skip
    return Signal(
        name="segment_alarm", text=text, size=first.size, floor=first.floor, onset=first.onset, details=details
    )  # fmt: skip


def _details(first: _Risen, *others: _Risen) -> dict[str, Any]:
    return {
        "segment": first.segment, "segment_floor": first.floor,
        "segments": {risen.segment: risen.size for risen in (first, *others)},
    }  # fmt: skip


def _alarmed(spec: ModelSpec, book: SegmentBook, bad: Set[str]) -> list[_Risen]:
    """Segments whose detector has alarmed and that were not raised before, or have grown since; the clearest first."""
    segments = sorted(book.detectors, key=lambda segment: (-book.detectors[segment].log_e, segment))
    found = [
        (risen, book.raised.get(segment))
        for segment in segments
        if book.detectors[segment].alarm and (risen := _risen(spec, book, segment, bad, news=True)) is not None
    ]
    return [
        risen for risen, known in found
        if known is None or known.get("over") or risen.size > float(known["size"]) + risen.floor
    ]  # fmt: skip


def _risen(spec: ModelSpec, book: SegmentBook, segment: str, bad: Set[str], *, news: bool = False) -> _Risen | None:
    """How the segment stands; None where it has no blocks. `news`: on blocks since it was raised, a whole window of them."""
    reference = (book.references or {})[segment].inside
    losses, known = book.losses(spec, segment, bad), book.raised.get(segment)
    if known is not None and (news or known.get("over")):
        losses = {block: loss for block, loss in losses.items() if block > str(known["block"])}
    again = known is not None and not known.get("over")
    if not losses or (news and again and len(losses) < WINDOW_BLOCKS):
        return None
    newest = list(losses.values())[-WINDOW_BLOCKS:]
    level = float(known["level"]) if known is not None and again and known.get("level") is not None else None
    onset = onset_of(losses, reference, level if news else None)
    mean = float(np.mean(newest))
    return _Risen(
        segment=segment, loss=mean, n_blocks=len(newest), size=mean - reference.mean,
        floor=reference.null - reference.mean, onset=onset, level=level_since(losses, onset) if onset else level,
        block=max(losses),
    )  # fmt: skip


def _is_raised(book: SegmentBook, segment: str) -> bool:
    """Whether the segment was raised and has not been healthy since."""
    return segment in book.raised and not book.raised[segment].get("over")


def _remember(book: SegmentBook, risen: _Risen, *, confined: bool) -> None:
    state = {"size": risen.size, "block": risen.block, "level": risen.level, "confined": confined}
    book.raised[risen.segment] = state


def no_remedy(incident: IncidentRow, paired: dict[str, JsonValue]) -> str:
    """What the owner of a model is told of a segment that retraining does not mend."""
    if paired["verdict"] == "no_verdict":
        why = f"there were too few rows to tell whether retraining helps ({paired['open_because']})"
    elif not paired["whole_holds"] and float(str(paired["z"])) >= float(str(paired["needed_z"])):
        why = "retraining helps there and harms the whole"
    elif paired["too_small"]:
        why = "retraining helps by too little to be worth a rollout"
    else:
        why = "retraining does not help"
    return (
        f"degraded in {paired['segment']}, {why}. {incident.body.get('text')}. The champion stays: whether the segment is "
        "to be served by it, and whether its labels are right, is for a person to decide"
    )
