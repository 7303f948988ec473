"""The two arms of an A/B test: what is read of them, and the verdict on it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
from pydantic import JsonValue

from agents.base import Situation, matured_until
from tools.drift.performance import block_losses
from tools.experiment import ab_test, sample_ratio_check
from tools.ports import Platform


def read_arms(situation: Situation, platform: Platform) -> dict[str, Any]:
    """Entities that either arm has served since the A/B test began, and block losses of their labelled rows; quarantined
    days are left out of the latter.

    Who was assigned to which arm is known at once: a label that comes after the horizon says nothing about it.
    """
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    start = datetime.fromisoformat(str(rollout.body["since"]))
    end = matured_until(situation.now, spec.data.label.delay)
    arms: dict[str, Any] = {"entities": {}, "losses": {}, "rows": {}}
    served = platform.outcomes.predictions(spec.model, start=start, end=situation.now)
    for version in (rollout.candidate, str(rollout.stable)):
        arms["entities"][version] = served.filter(pl.col("version") == version)["entity"].n_unique()
    if end <= start:
        return arms
    frame = platform.outcomes.labelled(spec.model, start=start, end=end, as_of=situation.now)
    bad = set(platform.outcomes.quarantined(spec.model))
    frame = frame.filter(~pl.col("event_time").dt.strftime("%Y-%m-%d").is_in(sorted(bad)))
    for version in (rollout.candidate, str(rollout.stable)):
        arm = frame.filter(pl.col("version") == version)
        arms["rows"][version] = arm.height
        arms["losses"][version] = block_losses(spec.objective.metric, arm, block=spec.monitoring.block)
    return arms


def ab_verdict(situation: Situation, arms: dict[str, Any]) -> tuple[str, dict[str, JsonValue]]:
    """`better`, `worse`, `equivalent`, `undecided` or `sample_ratio_mismatch`, with the figures behind it."""
    rollout, spec = situation.rollout, situation.spec
    assert rollout is not None
    candidate, stable = rollout.candidate, str(rollout.stable)
    counts = arms["entities"]
    share = spec.rollout.ab_test.percent / 100
    ratio = sample_ratio_check(int(counts[candidate]), int(counts[stable]), share)
    details: dict[str, JsonValue] = {
        "entities": dict(counts),
        "sample_ratio_p": ratio.p_value,
        "rows": dict(arms["rows"]),
    }
    if not ratio.ok:
        return "sample_ratio_mismatch", details
    if not arms["losses"]:
        return "undecided", details | {"n_blocks": 0}
    common = sorted(set(arms["losses"][candidate]) & set(arms["losses"][stable]))
    test = ab_test(
        champion_losses=[arms["losses"][stable][b] for b in common],
        challenger_losses=[arms["losses"][candidate][b] for b in common],
        n_samples=min(int(n) for n in arms["rows"].values()),
        minimum_samples=spec.rollout.ab_test.minimum_samples,
        margin=spec.rollout.ab_test.margin,
        horizon_blocks=max(1, spec.rollout.ab_test.horizon // spec.monitoring.block),
    )
    details |= {"n_blocks": len(common), "difference": test.difference, "low": test.low, "high": test.high}
    return test.verdict, details
