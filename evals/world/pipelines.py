"""The world's pipelines: training and backtests that really fit and really compare."""

from __future__ import annotations

import operator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from pydantic import JsonValue, ValidationError

from evals.world.data import history, labelled
from evals.world.faults import port_call
from evals.world.fitting import BlockLoss, block_losses, measure
from evals.world.models import Models
from evals.world.package import model_bytes, package_sha256, trained_until, write_package
from evals.world.records import Run
from evals.world.truth import Floats
from evals.world.world import World, matrix_digest
from state.clock import utc
from state.errors import InputError, ToolRejected
from state.spec import Bound, ModelSpec, RecipeTraining
from tools.drift.performance import metric_value
from tools.evaluation import paired_segments
from tools.parity import PARITY_TOLERANCE, refuse_difference
from tools.pipelines.parameters import complete_parameters
from tools.ports import PipelineRequest, PipelineRun


class WorldPipelines:
    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = world.faults

    @port_call("pipelines.submit", effect=True)
    def submit(self, request: PipelineRequest, *, key: str) -> PipelineRun:
        runs = self.world.state.runs
        if key in runs:
            runs[key].lost = False
            return _seen(key, runs[key])
        if request.model not in self.world.state.models:
            raise ToolRejected(f"{request.model}: no such model")
        parameters = complete_parameters(request, {"root": str(self.world.folder), "key": key})
        slow = self.faults.take("pipelines.submit", "slow", request.model)
        runs[key] = Run(
            pipeline=request.pipeline,
            model=request.model,
            parameters=parameters,
            polls_left=slow.polls if slow is not None else 1,
            will_fail=self.faults.take("pipelines.submit", "fails", request.model) is not None,
        )
        self.world.effect("pipelines.submit", model=request.model, key=key, args={"pipeline": request.pipeline})
        return _seen(key, runs[key])

    @port_call("pipelines.find")
    def find(self, key: str) -> PipelineRun | None:
        """A look also lets the run's time pass: it ends after `polls_left` looks."""
        run = self.world.state.runs.get(key)
        if run is None or run.lost:
            return None
        if run.status == "running":
            run.polls_left -= 1
            if run.polls_left <= 0:
                self._finish(key, run)
        return _seen(key, run)

    def _finish(self, key: str, run: Run) -> None:
        try:
            if run.will_fail:
                raise ToolRejected("train: MemoryError: out of memory")
            run.outputs = self._train(key, run) if run.pipeline == "train" else self._backtest(run)
            run.status = "succeeded"
        except (ToolRejected, InputError, ValidationError) as exc:
            run.status, run.error = "failed", f"{run.pipeline}: {exc}"

    def _train(self, key: str, run: Run) -> dict[str, JsonValue]:
        spec = _spec(run)
        recipe = spec.training
        if not isinstance(recipe, RecipeTraining):
            raise ToolRejected(f"{run.model}: training.kind {recipe.kind!r} is not carried out here")
        end = _time(run, "end") or self.world.clock.now()
        start = _time(run, "start") or (end - recipe.window if recipe.window else None)
        rows = self._rows(run, start=start, end=end)
        cut = end - recipe.holdout
        older, newer = rows.filter(pl.col("event_time") < cut), rows.filter(pl.col("event_time") >= cut)
        models = self.world.models
        score = models.fit(spec, older).score(newer)
        metrics = measure(spec, newer, score)
        cross_validated = _out_of_sample(models, spec, older, recipe.folds)
        if not cross_validated:
            raise ToolRejected(f"{run.model}: too few labelled days before the holdout from {cut:%Y-%m-%d}")
        fitted = models.fit(spec, rows)
        parity = self._parity(run, recipe.candidates[0].estimator)
        lineage = _lineage(key, rows)
        package = self.world.folder / "packages" / key
        write_package(package, spec=spec, model=models.encode(fitted), rows=rows, lineage=lineage)
        mlflow_run_id = f"run-{key}"
        self.world.state.tracked[mlflow_run_id] = key
        losses = {**cross_validated, **block_losses(spec, newer, score)}
        chosen, metric = recipe.candidates[0], spec.objective.metric
        loss = float(np.mean([found.loss for found in cross_validated.values()]))
        cv: dict[str, JsonValue] = {"loss": loss, "value": metric_value(metric, loss), "n_blocks": len(cross_validated)}
        return {
            **{name: lineage[name] for name in ("data_sha256", "trained_from", "trained_until")},
            "mlflow_run_id": mlflow_run_id,
            "package": str(package),
            "package_sha256": package_sha256(package),
            "metrics": cast(JsonValue, metrics),
            "cv": {"metric": metric, **cv},
            "gates": [_gate(bound, metrics.get(bound.metric)) for bound in spec.gates],
            "candidates": [{"name": chosen.name, "estimator": chosen.estimator, **cv}],
            "chosen": chosen.name,
            "n_rows": rows.height,
            "holdout_rows": newer.height,
            "reference_blocks": [{"block": name, **asdict(b)} for name, b in losses.items()],
            "importance": cast(JsonValue, fitted.importance()),
            "onnx_parity_error": parity,
        }

    def _parity(self, run: Run, estimator: str) -> float:
        """By how much the export differs from the fitted model, where that is little enough to serve."""
        difference = self.world.model(run.model).export_difference
        run.export_refused = difference > PARITY_TOLERANCE
        refuse_difference(difference, estimator=estimator)
        return difference

    def _backtest(self, run: Run) -> dict[str, JsonValue]:
        spec = _spec(run)
        until, cut, start = _time(run, "compare_until"), _time(run, "fit_until"), _time(run, "compare_from")
        assert until is not None
        assert cut is not None
        assert start is not None
        champion, existing = _package(run, "champion_package"), _package(run, "challenger_package")
        newer = self._rows(run, start=start if existing is not None else max(start, cut), end=until)
        for package in (champion, existing):
            if package is not None:
                newer = newer.filter(pl.col("event_time") > trained_until(package))
        older = newer.clear()
        if existing is None:
            older = self._rows(run, start=_time(run, "start"), end=cut)
        models = self.world.models
        challenger = models.fit(spec, older) if existing is None else models.decode(model_bytes(existing))
        ours = challenger.score(newer)
        theirs = models.decode(model_bytes(champion)).score(newer) if champion is not None else None
        metrics = measure(spec, newer, ours)
        candidates = spec.training.candidates if isinstance(spec.training, RecipeTraining) else []
        return {
            "metric": spec.objective.metric,
            "candidate": candidates[0].name if candidates and existing is None else "",
            "blocks": _paired(spec, newer, theirs, ours),
            "metrics": cast(JsonValue, metrics),
            "champion_metrics": cast(JsonValue, measure(spec, newer, theirs) if theirs is not None else {}),
            "gates": [_gate(bound, metrics.get(bound.metric)) for bound in spec.gates],
            "fit_rows": older.height,
            "compare_rows": newer.height,
            "data_sha256": matrix_digest(pl.concat([older, newer])),
            "champion_sha256": package_sha256(champion) if champion is not None else None,
            "challenger_sha256": package_sha256(existing) if existing is not None else None,
        }

    def _rows(self, run: Run, *, start: datetime | None, end: datetime) -> pl.DataFrame:
        """Labelled rows with event time in [start, end), known by `as_of`, without the excluded days."""
        as_of = _time(run, "as_of") or self.world.clock.now()
        old = history(self.world, run.model, start=start, end=end)
        old = old.filter(pl.col("label").is_not_null() & (pl.col("available_at") <= as_of))
        since = datetime.fromisoformat(f"{self.world.state.start}T00:00:00+00:00")
        new = labelled(self.world, run.model, start=start or since, end=end, as_of=as_of)
        rows = pl.concat([old, new.select(old.columns)]).drop("available_at")
        excluded = run.parameters.get("excluded_days")
        days = [str(day) for day in excluded] if isinstance(excluded, list) else []
        if days:
            rows = rows.filter(~pl.col("event_time").dt.strftime("%Y-%m-%d").is_in(days))
        if rows.is_empty():
            raise ToolRejected(f"{run.model}: no labelled rows before {end.isoformat()}")
        rows = rows.sort("event_time", "request_id")
        if not run.shuffled:
            return rows
        order = np.random.default_rng(self.world.state.seed).permutation(rows.height)
        return rows.with_columns(label=rows["label"].gather(order))


def _seen(key: str, run: Run) -> PipelineRun:
    return PipelineRun(key=key, status=run.status, outputs=dict(run.outputs), error=run.error)


def _spec(run: Run) -> ModelSpec:
    return ModelSpec.model_validate_json(str(run.parameters["spec"]))


def _package(run: Run, name: str) -> Path | None:
    return Path(str(run.parameters[name])) if run.parameters[name] else None


def _paired(spec: ModelSpec, rows: pl.DataFrame, champion: Floats | None, challenger: Floats) -> list[JsonValue]:
    """Both losses of every block on which both are defined; without a champion its losses are null."""
    ours = block_losses(spec, rows, challenger)
    theirs = block_losses(spec, rows, champion) if champion is not None else {}
    return [
        {
            "block": name,
            "n": found.n,
            "champion_loss": theirs[name].loss if name in theirs else None,
            "challenger_loss": found.loss,
            "segments": cast(
                JsonValue, paired_segments(theirs[name].segments, found.segments) if name in theirs else {}
            ),
        }
        for name, found in ours.items()
        if champion is None or name in theirs
    ]


def _time(run: Run, name: str) -> datetime | None:
    value = run.parameters.get(name)
    return None if not value else utc(datetime.fromisoformat(str(value)))


def _lineage(key: str, rows: pl.DataFrame) -> dict[str, str]:
    first, last = rows["event_time"].min(), rows["event_time"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    return {
        "data_sha256": matrix_digest(rows),
        "trained_from": first.isoformat(),
        "trained_until": last.isoformat(),
        "key": key,
    }


def _gate(bound: Bound, value: float | None) -> JsonValue:
    holds = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}[bound.op]
    passed = value is not None and bool(holds(value, bound.value))
    return {"metric": bound.metric, "op": bound.op, "value": value, "bound": bound.value, "passed": passed}


def _out_of_sample(models: Models, spec: ModelSpec, rows: pl.DataFrame, n_folds: int) -> dict[str, BlockLoss]:
    """Loss of every block of the newer half of the days, in folds that are each scored by a fit on all older days."""
    day = rows["event_time"].dt.date()
    days = sorted(set(day.to_list()))
    losses: dict[str, BlockLoss] = {}
    for part in np.array_split(np.array(days[len(days) // 2 :]), n_folds):
        if len(part):
            older, held = rows.filter(day < part[0]), rows.filter((day >= part[0]) & (day <= part[-1]))
            if older.height and held.height:
                losses |= block_losses(spec, held, models.fit(spec, older).score(held))
    return losses
