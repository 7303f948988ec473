"""The pipelines' steps that fit models: training and the backtest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from state.clock import utc
from state.spec import ModelSpec
from tools.drift.performance import metric_value
from tools.evaluation import check_gates, compare_blocks, measure, scored_rows
from tools.fits import few_threads
from tools.onnx_export import check_parity, export_onnx
from tools.packaging import PackageScorer
from tools.pipelines.step_files import FACTS, ROWS, folder, load_features, load_rows, read_json, write_json
from tools.training import TrainedRecipe, fit_candidates, fit_challenger
from tools.training_rows import Floats, Rows, labelled_rows


def train_candidates(*, spec: str, seed: int, rows: str, features: str, out: str) -> None:
    """`model.onnx`, `holdout.npz` and `training.json`; refused where the export answers differently from the estimator.

    Raises:
        InputError: too few blocks, or a candidate that cannot be fitted.
        ToolRejected: the ONNX export differs.
    """
    model = ModelSpec.model_validate_json(spec)
    data = load_rows(rows, model)
    with few_threads():
        trained = fit_candidates(data, model, seed=seed, features=load_features(features))
        exported = export_onnx(trained.model)
        parity = check_parity(trained.model, exported, data, seed=seed)
    directory = folder(out)
    (directory / "model.onnx").write_bytes(exported)
    held = trained.holdout
    np.savez(directory / "holdout.npz", label=held.label, score=held.score, blocks=held.blocks)
    described = _describe(trained, model)
    write_json(directory / "training.json", {**described, "onnx_parity_error": parity, "seed": seed})


def _describe(trained: TrainedRecipe, spec: ModelSpec) -> dict[str, Any]:
    chosen, metric = trained.chosen, spec.objective.metric
    return {
        "candidates": [
            {
                "name": scored.candidate.name,
                "estimator": scored.candidate.estimator,
                "loss": scored.loss,
                "value": metric_value(metric, scored.loss),
                "n_blocks": len(scored.blocks),
            }
            for scored in trained.candidates
        ],
        "chosen": chosen.candidate.name,
        "estimator": chosen.candidate.estimator,
        "params": chosen.candidate.params,
        "cv": {
            "metric": metric,
            "value": metric_value(metric, chosen.loss),
            "loss": chosen.loss,
            "n_blocks": len(chosen.blocks),
        },
        "reference_blocks": [asdict(block) for block in trained.reference],
        "importance": dict(trained.importance),
    }


def compare_with_champion(
    *,
    spec: str,
    fit_until: str,
    compare_from: str,
    champion_package: str,
    challenger_package: str,
    recipe_candidate: str,
    seed: int,
    rows: str,
) -> str:
    """Score the champion and the recipe's model, or `challenger_package`, on rows newer than both cuts; JSON.

    Without `champion_package` the champion's losses are null.

    Raises:
        InputError: one of the two stretches holds no rows.
        ToolRejected: a package is damaged.
    """
    declared, facts = ModelSpec.model_validate_json(spec), read_json(Path(rows) / FACTS)
    frame = pl.read_parquet(Path(rows) / ROWS)
    n_classes = len(facts["classes"])
    scorers = [PackageScorer(Path(path)) if path else None for path in (champion_package, challenger_package)]
    newer = _unseen(frame, compare_from if challenger_package else max(fit_until, compare_from, key=_time), scorers)
    ahead = labelled_rows(newer, declared, n_classes=n_classes, for_fitting=False)
    champion, existing = scorers
    if existing is not None:
        rival = _Rival(score=existing.score(newer), candidate="", n_fitted=0)
    else:
        older = frame.filter(pl.col("event_time") < _time(fit_until))
        past = labelled_rows(older, declared, n_classes=n_classes)
        rival = _fit_rival(past, ahead, declared, seed=seed, name=recipe_candidate or None)
    theirs = champion.score(newer) if champion is not None else None
    metrics = measure(scored_rows(ahead, rival.score), declared)
    outputs = {
        "metric": declared.objective.metric,
        "candidate": rival.candidate,
        "blocks": [asdict(block) for block in compare_blocks(ahead, theirs, rival.score, declared)],
        "metrics": metrics,
        "champion_metrics": measure(scored_rows(ahead, theirs), declared) if theirs is not None else {},
        "gates": [asdict(gate) for gate in check_gates(metrics, declared.gates)],
        "fit_rows": rival.n_fitted,
        "compare_rows": len(newer),
        "data_sha256": facts["data_sha256"],
        "champion_sha256": champion.package.sha256 if champion is not None else None,
        "challenger_sha256": existing.package.sha256 if existing is not None else None,
    }
    return json.dumps(outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rival:
    score: Floats
    candidate: str
    n_fitted: int


def _fit_rival(past: Rows, ahead: Rows, spec: ModelSpec, *, seed: int, name: str | None) -> _Rival:
    with few_threads():
        model, chosen = fit_challenger(past, spec, seed=seed, name=name)
        return _Rival(score=model.score(ahead), candidate=chosen.name, n_fitted=len(past))


def _unseen(frame: pl.DataFrame, start: str, scorers: list[PackageScorer | None]) -> pl.DataFrame:
    """Rows from `start` that no package was trained on."""
    newer = frame.filter(pl.col("event_time") >= _time(start))
    for scorer in scorers:
        cut = scorer.contract.lineage.get("trained_until") if scorer is not None else None
        if isinstance(cut, str):
            newer = newer.filter(pl.col("event_time") > _time(cut))
    return newer


def _time(text: str) -> datetime:
    return utc(datetime.fromisoformat(text))
