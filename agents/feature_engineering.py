"""Feature engineering: check that the window can be turned into the features that the recipe names."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
from pydantic import JsonValue

from agents.base import Move, Situation, Wait, done, failed, proposal, specialist, text_arg
from state.canonical import digest
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from tools.ports import Platform


def read(situation: Situation, platform: Platform) -> dict[str, Any]:
    """The digest of the validated window; features are made of it and of nothing else."""
    return {"history": platform.data.digest(situation.model)}


def judge(situation: Situation, reading: dict[str, Any]) -> Move:
    if situation.step != "engineer_features":
        return Wait(until=None, waits_for=f"a person: {situation.step} needs a feature store, and this model has none")
    validated = situation.facts.get("validated_until")
    args: dict[str, JsonValue] = {
        "history_sha256": reading["history"],
        "features_sha256": features_digest(situation),
        "until": validated if isinstance(validated, str) else situation.now.isoformat(),
    }
    return proposal(
        situation, "feature_engineering", args, f"{len(situation.spec.features)} features from the validated window"
    )


def features_digest(situation: Situation) -> str:
    """Digest of the declared features: the same declaration gives the same encoding of training and serving."""
    return digest([feature.model_dump(mode="json") for feature in situation.spec.features])


def begun(intent: CommittedIntent, platform: Platform) -> bool:  # noqa: ARG001 - every agent answers this question
    """Measuring features leaves nothing behind: it is simply done again."""
    return False


def perform(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Measure every declared feature over the window: a feature without a single value cannot be learned from."""
    if intent.kind != "engineer_features":
        return failed(f"the feature engineering agent cannot carry out {intent.kind}")
    spec = platform.specs[intent.model]
    until = datetime.fromisoformat(text_arg(intent, "until"))
    names = spec.feature_names()
    counts = platform.data.history(intent.model, start=None, end=until).select(
        pl.len().alias("rows"), *(pl.col(name).n_unique().alias(name) for name in names)
    ).collect().row(0, named=True)  # fmt: skip
    empty = [name for name in names if counts["rows"] and counts[name] <= 1]
    if len(empty) == len(names):
        return failed(f"none of the features {', '.join(empty)} varies: there is nothing to learn from")
    return done({"n_features": len(names), "constant": list(empty), "distinct": {n: int(counts[n]) for n in names}})


GRAPH = specialist("feature_engineering", read=read, judge=judge)
