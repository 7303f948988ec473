"""Data validation: look at a window before anybody trains on it, and take faulty days out of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
from pydantic import JsonValue

from agents.base import Learned, Move, Situation, Wait, done, failed, matured_until, proposal, specialist, text_arg
from state.canonical import digest
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from tools.ports import Platform


def read(situation: Situation, platform: Platform) -> dict[str, Any]:
    """What is already known about the days concerned."""
    return {
        "quarantined": list(platform.outcomes.quarantined(situation.model)),
        "history": platform.data.digest(situation.model),
    }


def judge(situation: Situation, reading: dict[str, Any]) -> Move:
    match situation.step:
        case "validate_data":
            until = matured_until(situation.now, situation.spec.data.label.delay)
            if situation.champion is None:
                until = matured_until(situation.now, timedelta(0))
            args: dict[str, JsonValue] = {
                "history_sha256": reading["history"],
                "until": until.isoformat(),
                "as_of": (until + situation.spec.data.label.delay).isoformat(),
                "excluded_days": sorted(set(reading["quarantined"]) | set(situation.fault_days)),
            }
            return proposal(
                situation, "data_validation", args, f"look at the labelled rows before {until:%Y-%m-%d} first"
            )
        case "quarantine_data":
            days = sorted(set(situation.fault_days) - set(reading["quarantined"]))
            if not days:
                return Learned(
                    topic="data_quality",
                    verdict="contained",
                    summary="Every faulty day so far is quarantined.",
                    facts={"fault_contained": True},
                )
            args = {"days": list(days), "reason": situation.cause}
            return proposal(
                situation, "data_validation", args, f"{len(days)} faulty day(s) must not be trained or judged on"
            )
        case _:
            return Wait(until=None, waits_for=f"a person: {situation.step} is done at the source, not here")


def begun(intent: CommittedIntent, platform: Platform) -> bool:
    """Whether the world shows this very effect. A look at data leaves nothing behind and is simply taken again."""
    if intent.kind != "quarantine_data":
        return False
    days = {str(day) for day in intent.args["days"]}  # type: ignore[union-attr]
    return days <= set(platform.outcomes.quarantined(intent.model))


def perform(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Carry out one committed action of data validation under its key."""
    match intent.kind:
        case "validate_data":
            return _validate(intent, platform)
        case "quarantine_data":
            days = [str(day) for day in intent.args["days"]]  # type: ignore[union-attr]
            platform.outcomes.quarantine(intent.model, days, reason=text_arg(intent, "reason"), key=intent.key)
            held = set(platform.outcomes.quarantined(intent.model))
            if not set(days) <= held:
                return failed("the quarantine list does not hold the days that were written to it")
            return done({"days": list(days)})
        case _:
            return failed(f"the data validation agent cannot carry out {intent.kind}")


def _validate(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Count what training would read: labelled rows, missing values and the label itself; refuse what cannot train."""
    spec = platform.specs[intent.model]
    until = datetime.fromisoformat(text_arg(intent, "until"))
    excluded = [str(day) for day in intent.args["excluded_days"]]  # type: ignore[union-attr]
    frame = platform.data.history(intent.model, start=None, end=until).filter(pl.col("label").is_not_null())
    summary = frame.select(
        pl.len().alias("n"), pl.col("label").n_unique().alias("n_labels"), pl.col("label").mean().alias("mean"),
        pl.col("event_time").max().alias("newest"),
        *(pl.col(name).is_null().mean().alias(f"null:{name}") for name in spec.feature_names()),
    ).collect().row(0, named=True)  # fmt: skip
    fresh = _fresh(intent, platform, until, excluded)
    n_rows = int(summary["n"]) + fresh.height
    if n_rows == 0:
        return failed(f"no labelled row before {until:%Y-%m-%d}: training would have nothing to read")
    labels = int(summary["n_labels"]) if summary["n"] else fresh["label"].n_unique()
    if labels < 2 and spec.task != "regression":
        return failed("every labelled row has the same class: nothing can be learned from one class")
    nulls = {
        name: round(float(summary[f"null:{name}"] or 0.0), 6) for name in spec.feature_names()
    }  # fmt: skip
    newest = fresh["event_time"].max() if fresh.height else summary["newest"]
    return done(
        {
            "n_rows": n_rows,
            "n_fresh_rows": fresh.height,
            "label_mean": round(float(summary["mean"] or 0.0), 6),
            "newest": newest.isoformat() if isinstance(newest, datetime) else None,
            "null_share": dict(nulls),
            "excluded_days": list(excluded),
            "window_sha256": digest(
                {"history": intent.args["history_sha256"], "until": until.isoformat(), "n": n_rows}
            ),
        }
    )


def _fresh(intent: CommittedIntent, platform: Platform, until: datetime, excluded: list[str]) -> pl.DataFrame:
    """Captured rows with a label, quarantined days left out."""
    days = platform.data.days(intent.model)
    start = datetime.fromisoformat(days[-1]).replace(tzinfo=until.tzinfo) if days else until - timedelta(days=3650)
    if start >= until:
        start = until
    as_of = datetime.fromisoformat(text_arg(intent, "as_of"))
    frame = platform.outcomes.labelled(intent.model, start=start, end=until, as_of=as_of)
    return frame.filter(~pl.col("event_time").dt.strftime("%Y-%m-%d").is_in(excluded))


GRAPH = specialist("data_validation", read=read, judge=judge)
