"""Feature engineering: check that the window can be turned into the features that the recipe names."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import polars as pl
from pydantic import JsonValue

from agents.base import Learned, Move, Situation, Wait, done, failed, proposal, specialist, text_arg
from state.canonical import digest
from state.errors import ToolUnavailable
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from tools.ports import Platform


def read(situation: Situation, platform: Platform) -> dict[str, Any]:
    """The digest of the validated window, of which features are made and of nothing else; or the released view."""
    if situation.step == "rollback_features":
        view = platform.features.read(situation.model) if platform.features is not None else None
        return {"view": asdict(view) if view is not None else None}
    return {"history": platform.data.digest(situation.model)}


def judge(situation: Situation, reading: dict[str, Any]) -> Move:
    if situation.step == "rollback_features":
        return _judge_rollback(situation, reading["view"])
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


def _judge_rollback(situation: Situation, view: dict[str, JsonValue] | None) -> Move:
    """Return to the revision before the released one, once: what is still skewed after that has another reason."""
    if situation.facts.get("rolled_back_view"):
        return _no_rollback(situation, "values still differ although the view was returned to its earlier revision")
    if view is None or view["previous"] is None:
        return _no_rollback(situation, "the feature store keeps no earlier revision of the view")
    args: dict[str, JsonValue] = {
        "feature_view": view["name"], "revision": view["previous"], "after": view["revision"],
    }  # fmt: skip
    why = f"revision {view['revision']} of {view['name']} serves other values than training reads"
    return proposal(situation, "feature_engineering", args, why)


def _no_rollback(situation: Situation, why: str) -> Learned:
    story = f"{situation.facts.get('story', 'served and offline values differ')}; nothing is rolled back: {why}"
    return Learned(
        topic="data_quality", verdict="no_rollback", summary=f"No rollback of features: {why}.",
        facts={"no_rollback": True, "owner_told": False, "story": story},
    )  # fmt: skip


def features_digest(situation: Situation) -> str:
    """Digest of the declared features: the same declaration gives the same encoding of training and serving."""
    return digest([feature.model_dump(mode="json") for feature in situation.spec.features])


def begun(intent: CommittedIntent, platform: Platform) -> bool:
    """Whether the store shows this very rollback. Measuring features leaves nothing behind: it is simply done again."""
    if intent.kind != "rollback_features" or platform.features is None:
        return False
    return platform.features.find(intent.key) is not None


def perform(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Measure every declared feature over the window: a feature without a single value cannot be learned from.

    Or return the feature view to an earlier revision, and read back what the store has and serves.
    """
    if intent.kind == "rollback_features":
        return _roll_back(intent, platform)
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


def _roll_back(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    if platform.features is None:
        return failed("there is no feature store to roll back")
    wanted = text_arg(intent, "revision")
    platform.features.rollback(model=intent.model, revision=wanted, key=intent.key)
    view = platform.features.read(intent.model)
    if view is None or view.revision != wanted:
        return failed(f"the feature store has revision {view.revision if view else 'none'} and not {wanted}")
    if not view.served:
        raise ToolUnavailable(f"revision {wanted} of {view.name} is stored, and the online store does not serve it yet")
    return done({"feature_view": view.name, "revision": view.revision, "previous": text_arg(intent, "after")})


GRAPH = specialist("feature_engineering", read=read, judge=judge)
