"""Training and backtests on a recorded history, with the recipe that production runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from pydantic import JsonValue

from evals.backtest.models import AsServed, RecordedModels, fitted, rows_sha256
from evals.backtest.predictions import ENTITY, ID, TIME
from evals.backtest.world import RecordedWorld
from evals.world.package import model_bytes, package_sha256, trained_until, write_package
from evals.world.pipelines import WorldPipelines
from evals.world.records import Run
from evals.world.truth import Floats
from state.clock import utc
from state.errors import ToolRejected
from state.spec import ModelSpec, RecipeTraining
from tools.drift.performance import metric_value
from tools.evaluation import (
    BlockLoss,
    Scored,
    check_gates,
    compare_blocks,
    losses_by_block,
    measure,
    reference_losses,
    scored_rows,
)
from tools.fits import few_threads
from tools.training import TrainedRecipe, fit_candidates, fit_challenger, holdout_start
from tools.training_rows import Rows, frame_sha256, labelled_rows, recipe_of

UNTRAINABLE = "nothing can be trained here"
"""How the failure of a run begins that this history does not allow."""


class RecordedPipelines(WorldPipelines):
    world: RecordedWorld

    def __init__(self, world: RecordedWorld) -> None:
        super().__init__(world)
        self.world = world
        self.n_fits = 0
        """Trainings and backtests in which something was fitted."""
        self.fit_seconds = 0.0

    def _train(self, key: str, run: Run) -> dict[str, JsonValue]:
        spec = ModelSpec.model_validate_json(str(run.parameters["spec"]))
        end = _time(run, "end") or self.world.clock.now()
        frame = self._rows(run, start=_time(run, "start"), end=end)
        recording = self.world.recording
        if recording.has_scores and "champion" not in self.world.model(run.model).aliases:
            return self._adopt(key, spec, frame)
        self._refuse_training()
        began = time.monotonic()
        with few_threads():
            rows = labelled_rows(frame, spec, n_classes=self.world.recording.n_classes)
            trained = fit_candidates(rows, spec, seed=recipe_of(spec).seed)
        self._note_fit(began)
        model = fitted(
            spec, trained.model, frame, candidate=trained.chosen.candidate.name, shares=dict(trained.importance)
        )
        package = self._package(key, spec, frame, model)
        return {**package, **_described(spec, trained), "n_rows": frame.height}

    def _adopt(self, key: str, spec: ModelSpec, frame: pl.DataFrame) -> dict[str, JsonValue]:
        """The team's own model as the first version: its recorded scores are the reference, and it passed its gates."""
        rows = labelled_rows(frame, spec, n_classes=self.world.recording.n_classes, for_fitting=False)
        model = AsServed(features=tuple(spec.feature_names()), classes=self.world.recording.classes)
        score = model.score(frame)
        scored = scored_rows(rows, score)
        blocks, reference = losses_by_block(scored, spec), reference_losses(scored, spec)
        if len(blocks) < 2:
            raise ToolRejected(f"only {len(blocks)} blocks of the history have a {spec.objective.metric}")
        package = self._package(key, spec, frame, model)
        loss = float(np.mean([block.loss for block in blocks]))
        newest = _newest(rows, score, spec)
        metric = spec.objective.metric
        cv: dict[str, JsonValue] = {"loss": loss, "value": metric_value(metric, loss), "n_blocks": len(blocks)}
        return {
            **package, "metrics": cast(JsonValue, measure(newest, spec)), "cv": {"metric": metric, **cv}, "gates": [],
            "candidates": [], "chosen": "as_served", "n_rows": frame.height, "holdout_rows": len(newest.label),
            "reference_blocks": _reference(reference), "importance": {}, "onnx_parity_error": 0.0,
        }  # fmt: skip

    def _backtest(self, run: Run) -> dict[str, JsonValue]:
        spec = ModelSpec.model_validate_json(str(run.parameters["spec"]))
        until, cut, start = _time(run, "compare_until"), _time(run, "fit_until"), _time(run, "compare_from")
        assert until is not None and cut is not None and start is not None
        champion, existing = _folder(run, "champion_package"), _folder(run, "challenger_package")
        if existing is None:
            self._refuse_training()
        newer = self._rows(run, start=start if existing is not None else max(start, cut), end=until)
        for package in (champion, existing):
            if package is not None:
                newer = newer.filter(pl.col(TIME) > trained_until(package))
        ahead = labelled_rows(newer, spec, n_classes=self.world.recording.n_classes, for_fitting=False)
        models = self.world.models
        if existing is not None:
            ours, candidate, n_fitted = models.decode(model_bytes(existing)).score(newer), "", 0
        else:
            ours, candidate, n_fitted = self._rival(run, spec, ahead, cut)
        theirs = models.decode(model_bytes(champion)).score(newer) if champion is not None else None
        return self._compared(spec, ahead, theirs, ours) | {
            "candidate": candidate, "fit_rows": n_fitted, "compare_rows": newer.height,
            "data_sha256": frame_sha256(newer.select(ID, TIME)),
            "champion_sha256": package_sha256(champion) if champion is not None else None,
            "challenger_sha256": package_sha256(existing) if existing is not None else None,
        }  # fmt: skip

    def _rival(self, run: Run, spec: ModelSpec, ahead: Rows, cut: datetime) -> tuple[Floats, str, int]:
        """Scores of the recipe's model of the rows before `cut`, the candidate's name, and the rows it was fitted on."""
        began = time.monotonic()
        window = recipe_of(spec).window
        older = self._rows(run, start=cut - window if window is not None else None, end=cut)
        with few_threads():
            past = labelled_rows(older, spec, n_classes=self.world.recording.n_classes)
            model, chosen = fit_challenger(past, spec, seed=recipe_of(spec).seed)
            score = model.score(ahead)
        self._note_fit(began)
        return score, chosen.name, older.height

    @staticmethod
    def _compared(spec: ModelSpec, ahead: Rows, theirs: Floats | None, ours: Floats) -> dict[str, JsonValue]:
        metrics = measure(scored_rows(ahead, ours), spec)
        known = measure(scored_rows(ahead, theirs), spec) if theirs is not None else {}
        return {
            "metric": spec.objective.metric,
            "blocks": [cast(JsonValue, asdict(block)) for block in compare_blocks(ahead, theirs, ours, spec)],
            "metrics": cast(JsonValue, metrics),
            "champion_metrics": cast(JsonValue, known),
            "gates": [cast(JsonValue, asdict(gate)) for gate in check_gates(metrics, spec.gates)],
        }

    def _rows(self, run: Run, *, start: datetime | None, end: datetime) -> pl.DataFrame:
        days = run.parameters.get("excluded_days")
        rows = self.world.known_rows(
            start=start, end=end, as_of=_time(run, "as_of") or self.world.clock.now(),
            excluded_days=[str(day) for day in days] if isinstance(days, list) else [],
        )  # fmt: skip
        if rows.is_empty():
            raise ToolRejected(f"{run.model}: no labelled rows before {end:%Y-%m-%d}")
        return rows

    def _refuse_training(self) -> None:
        if not self.world.recording.can_train:
            raise ToolRejected(f"{UNTRAINABLE}: {self.world.recording.why_not}")

    def _note_fit(self, began: float) -> None:
        self.n_fits += 1
        self.fit_seconds += time.monotonic() - began

    def _package(self, key: str, spec: ModelSpec, frame: pl.DataFrame, model: Any) -> dict[str, JsonValue]:
        first, last = frame[TIME].min(), frame[TIME].max()
        assert isinstance(first, datetime) and isinstance(last, datetime)
        lineage = {
            "data_sha256": rows_sha256(frame.drop(ENTITY)), "trained_from": first.isoformat(),
            "trained_until": last.isoformat(), "key": key,
        }  # fmt: skip
        folder = self.world.folder / "packages" / key
        models = self.world.models
        assert isinstance(models, RecordedModels)
        write_package(folder, spec=spec, model=models.encode(model), rows=frame, lineage=lineage)
        mlflow_run_id = f"run-{key}"
        self.world.state.tracked[mlflow_run_id] = key
        return {
            **{name: lineage[name] for name in ("data_sha256", "trained_from", "trained_until")},
            "mlflow_run_id": mlflow_run_id, "package": str(folder), "package_sha256": package_sha256(folder),
        }  # fmt: skip


def _described(spec: ModelSpec, trained: TrainedRecipe) -> dict[str, JsonValue]:
    metric, chosen = spec.objective.metric, trained.chosen
    metrics = measure(trained.holdout, spec)
    candidates: list[JsonValue] = [
        {"name": scored.candidate.name, "estimator": scored.candidate.estimator, "loss": scored.loss,
         "value": metric_value(metric, scored.loss), "n_blocks": len(scored.blocks)}
        for scored in trained.candidates
    ]  # fmt: skip
    return {
        "metrics": cast(JsonValue, metrics),
        "cv": {"metric": metric, "loss": chosen.loss, "value": metric_value(metric, chosen.loss),
               "n_blocks": len(chosen.blocks)},
        "gates": [cast(JsonValue, asdict(gate)) for gate in check_gates(metrics, spec.gates)],
        "candidates": candidates, "chosen": chosen.candidate.name, "holdout_rows": len(trained.holdout.label),
        "reference_blocks": _reference(trained.reference), "importance": dict(trained.importance),
        "onnx_parity_error": 0.0,
    }  # fmt: skip


def _reference(blocks: Sequence[BlockLoss]) -> list[JsonValue]:
    return [cast(JsonValue, asdict(block)) for block in blocks]


def _newest(rows: Rows, score: Floats, spec: ModelSpec) -> Scored:
    """The newest stretch of the history, of the length of a holdout where the recipe has one."""
    held = spec.training.holdout if isinstance(spec.training, RecipeTraining) else timedelta(days=14)
    starts = rows.block_starts()
    cut = holdout_start(rows, holdout=held, block=spec.monitoring.block) if len(starts) > held.days + 4 else 0
    return scored_rows(rows.between(cut, len(rows)), score[cut:])


def _time(run: Run, name: str) -> datetime | None:
    value = run.parameters.get(name)
    return None if not value else utc(datetime.fromisoformat(str(value)))


def _folder(run: Run, name: str) -> Path | None:
    return Path(str(run.parameters[name])) if run.parameters[name] else None
