"""The backtest of a recipe: which rows it is fitted and compared on, when it can say something, what a loss is worth.

Retraining helps against a change of the world only with rows from after the change. An incident knows about when its
change began (`Situation.change_from`), and a loss is a verdict only where the fit had `min_blocks` blocks of the
changed world to learn from and was compared over the whole of `monitoring.backtest`. Every other loss is no verdict:
the incident looks again, with later cuts. A win is a win whenever it comes.

The wait can be shorter than the whole: once ten blocks have come that are newer than those `min_blocks`, the incident's
backtest is fitted up to there and compared on all that is newer, and the stretch grows until it is whole. That is sound
because the rows are newer than both cuts as always, `needed_z` is higher over fewer blocks, and a loss over fewer than
the whole ends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import JsonValue

from agents.base import Learned, Move, Situation, Wait, day_start, matured_until, proposal
from state.spec import ModelSpec
from tools.experiment import Paired, not_worse, paired_comparison
from tools.training_rows import recipe_sha256

SHORTEST_BLOCKS = 10
"""Fewest blocks that an incident is compared on before its backtest is whole."""
NOTHING_WRONG = frozenset({"cadence", "covariate_shift_harmless"})
"""What a backtest is for where predictions are as good as they were: a newer fit has to be worth a rollout. Where they
are worse, or a person asks, whatever is surely better is."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The labelled rows that a comparison is made on: event time in [start, end)."""

    start: datetime
    end: datetime


def after_cut(cut: str) -> datetime:
    """The first midnight after a training cut."""
    return day_start(datetime.fromisoformat(cut) + _DAY)


def backtest_possible_from(spec: ModelSpec, cut: str | None) -> datetime | None:
    """Domain time from which a backtest can say something: the recipe must have rows to learn from that the champion
    has not seen, at least `min_blocks` blocks of them, before the stretch that both are compared on."""
    return after_cut(cut) + horizon(spec) if cut is not None else None


def horizon(spec: ModelSpec) -> timedelta:
    """From the beginning of a change until a whole backtest of a fit that has learned from it."""
    return spec.monitoring.min_blocks * spec.monitoring.block + spec.monitoring.backtest + spec.data.label.delay


def learned_by(spec: ModelSpec, change: datetime, excluded: Collection[str]) -> datetime:
    """The end of the first `min_blocks` blocks from `change` on, those left out that are excluded altogether."""
    block, n_blocks, at = spec.monitoring.block, 0, day_start(change)
    while n_blocks < spec.monitoring.min_blocks:
        n_days = max(1, block // _DAY)
        n_blocks += any((at + n * _DAY).date().isoformat() not in excluded for n in range(n_days))
        at += block
    return at if at == day_start(at) else day_start(at) + _DAY


def _shortest(spec: ModelSpec) -> timedelta:
    """The least that is compared on; a spec whose whole backtest is shorter knows no sooner look."""
    least = max(SHORTEST_BLOCKS, spec.monitoring.min_blocks) * spec.monitoring.block
    return min(-(-least // _DAY) * _DAY, spec.monitoring.backtest)  # whole days, as labels mature by days


def stretch_of(spec: ModelSpec, now: datetime, change: datetime | None, excluded: Collection[str]) -> Stretch:
    """What a backtest at `now` compares on; its recipe is fitted on everything older."""
    end = matured_until(now, spec.data.label.delay)
    start = end - spec.monitoring.backtest
    if change is not None:
        learned = learned_by(spec, change, excluded)
        if end - learned >= _shortest(spec):
            start = max(start, learned)
    return Stretch(start=start, end=end)


def looks(spec: ModelSpec, change: datetime, excluded: Collection[str]) -> tuple[datetime, datetime]:
    """Domain times at which a backtest has learned from the change: over the shortest stretch, and over the whole."""
    learned = learned_by(spec, change, excluded) + spec.data.label.delay
    return learned + _shortest(spec), learned + spec.monitoring.backtest


def next_look(spec: ModelSpec, now: datetime, args: Mapping[str, JsonValue]) -> datetime:
    """When an incident whose backtest with `args` gave no verdict tries again: as soon as more can be known, and on the
    cadence in the meantime, because a win may come at any time."""
    coming = [now + spec.monitoring.cadence]
    change = _change(args)
    if change is not None:
        coming += [at for at in looks(spec, change, _excluded(args)) if at > now]
    return min(coming)


def next_on_cadence(spec: ModelSpec, now: datetime, n_blocks: int) -> datetime:
    """When the cadence asks again after a backtest with too few common blocks: as soon as the missing ones can have
    come, no sooner than after a quarter of its period and no later than after the whole."""
    lacking = max(spec.monitoring.min_blocks - n_blocks, 1) * spec.monitoring.block
    return now + min(max(lacking, spec.monitoring.cadence / 4), spec.monitoring.cadence)


def judge_backtest(situation: Situation, reading: dict[str, Any]) -> Move:
    """The proposal of a backtest; a wait, or `no_verdict` on the cadence, where the rows cannot say anything yet."""
    spec, cut = situation.spec, reading.get("champion_cut")
    excluded = set(reading["quarantined"]) | set(situation.fault_days)
    change = situation.change_from
    if change is not None and cut is not None:
        change = max(change, after_cut(cut))  # what was there before is known to the champion
    possible = backtest_possible_from(spec, cut)
    if possible is not None and change is not None:
        possible = min(possible, looks(spec, change, excluded)[0])
    if possible is not None and situation.now < possible:
        return _too_early(situation, possible)
    stretch = stretch_of(spec, situation.now, change, excluded)
    args: dict[str, JsonValue] = {
        "recipe_sha256": recipe_sha256(spec),
        "champion": situation.champion,
        "fit_until": stretch.start.isoformat(),
        "compare_from": stretch.start.isoformat(),
        "compare_until": stretch.end.isoformat(),
        "as_of": (stretch.end + spec.data.label.delay).isoformat(),
        "excluded_days": sorted(excluded),
    }
    if change is not None:
        args["change_from"] = change.isoformat()
    if situation.fit_from is not None:
        args["start"] = situation.fit_from.isoformat()
    if situation.segment is not None:
        args["segment"] = situation.segment
    if situation.cause in NOTHING_WRONG:
        args["min_gain"] = spec.monitoring.min_gain
    rows = "everything" if situation.fit_from is None else f"the rows from {situation.fit_from:%Y-%m-%d} on and"
    reason = (
        f"fit the recipe on {rows} before {stretch.start:%Y-%m-%d} and compare it with version "
        f"{situation.champion} on the labelled days up to {stretch.end:%Y-%m-%d}"
        + (f" in {situation.segment} and on the whole" if situation.segment is not None else "")
    )
    return proposal(situation, "training", args, reason)


def _too_early(situation: Situation, possible: datetime) -> Move:
    spec = situation.spec
    if situation.change_from is not None:
        # Asked again every block: what is wrong may pass before that day.
        return Wait(
            until=min(possible, situation.now + spec.monitoring.block),
            waits_for=f"enough rows that are newer than the champion's training cut, until {possible:%Y-%m-%d}",
        )
    return Learned(
        topic="backtest",
        verdict="no_verdict",
        summary=f"Before {possible:%Y-%m-%d} too few rows are newer than the champion's cut for a newer fit to differ.",
        facts={
            "remedy_known": True,
            "training_justified": False,
            "paired_win": False,
            "paired_verdict": "no_verdict",
            "look_at": min(possible, situation.now + spec.monitoring.cadence).isoformat(),
        },
    )


def judge_pairs(spec: ModelSpec, args: Mapping[str, JsonValue], outputs: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The paired verdict over the blocks that a backtest with `args` returned; `open_because` says why there is none.

    A win has to gain the `min_gain` of the args, where they name one. With a segment in `args` it is the verdict inside
    it, and a win there counts only where the challenger is not worse on the whole by the margin that an A/B test of the
    spec calls none.
    """
    blocks = [b for b in outputs["blocks"] if b["champion_loss"] is not None and b["challenger_loss"] is not None]
    min_gain = float(str(args.get("min_gain", 0.0)))
    whole = _paired(spec, [(b["champion_loss"], b["challenger_loss"]) for b in blocks], min_gain)
    segment = args.get("segment")
    if segment is None:
        return _verdict(spec, args, whole)
    inside = _paired(spec, [b["segments"][segment] for b in blocks if segment in b.get("segments", {})], min_gain)
    margin = spec.rollout.ab_test.margin
    holds = not_worse(whole, margin)
    found = _verdict(spec, args, inside)
    if inside.verdict == "win" and not holds:
        found["verdict"] = "lose"
    return found | {
        "segment": segment, "whole_holds": holds, "whole_difference": whole.mean_difference, "whole_se": whole.se,
        "margin": margin,
    }  # fmt: skip


def _paired(spec: ModelSpec, losses: Sequence[Sequence[Any]], min_gain: float) -> Paired:
    """Pairs of the champion's loss and the challenger's, in order of time."""
    return paired_comparison(
        [float(champion) for champion, _ in losses],
        [float(challenger) for _, challenger in losses],
        win_z=spec.monitoring.win_z,
        min_blocks=spec.monitoring.min_blocks,
        min_gain=min_gain,
    )


def _verdict(spec: ModelSpec, args: Mapping[str, JsonValue], paired: Paired) -> dict[str, JsonValue]:
    why = _open_because(spec, args, paired.n_blocks) if paired.verdict != "win" else ""
    return {
        "verdict": "no_verdict" if why else paired.verdict,
        "open_because": why,
        "n_blocks": paired.n_blocks,
        "mean_difference": paired.mean_difference,
        "se": paired.se,
        "z": paired.z,
        "needed_z": paired.needed_z,
        "needed_difference": paired.needed_difference,
        "too_small": _too_small(paired),
        "metric": spec.objective.metric,
    }


def _too_small(paired: Paired) -> bool:
    """Whether the challenger is better beyond doubt, and by less than is worth a rollout."""
    return paired.needed_z is not None and paired.z >= paired.needed_z and paired.verdict == "lose"


def _open_because(spec: ModelSpec, args: Mapping[str, JsonValue], n_blocks: int) -> str:
    """Why a comparison that did not win settles nothing; empty where it does."""
    needed = spec.monitoring.min_blocks
    if n_blocks < needed:
        return f"{n_blocks} common blocks are too few, {needed} are needed"
    change = _change(args)
    if change is None:
        return ""
    fit_until = datetime.fromisoformat(str(args["fit_until"]))
    if fit_until < learned_by(spec, change, _excluded(args)):
        return (
            f"the change began about {change:%Y-%m-%d}, and a fit on rows before {fit_until:%Y-%m-%d} has not "
            f"learned from {needed} blocks of it"
        )
    if datetime.fromisoformat(str(args["compare_until"])) - fit_until < spec.monitoring.backtest:
        return f"{n_blocks} blocks are not the whole stretch of a backtest"
    return ""


def _change(args: Mapping[str, JsonValue]) -> datetime | None:
    change = args.get("change_from")
    return datetime.fromisoformat(str(change)) if change is not None else None


def _excluded(args: Mapping[str, JsonValue]) -> list[str]:
    days = args.get("excluded_days")
    return [str(day) for day in days] if isinstance(days, list) else []
