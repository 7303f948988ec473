"""Training and model selection: backtest the recipe, train, judge the gates, register."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from pydantic import JsonValue

from agents.backtest import Stretch, after_cut, judge_backtest
from agents.base import (
    Learned,
    Move,
    Situation,
    Wait,
    done,
    failed,
    matured_until,
    proposal,
    specialist,
    text_arg,
)
from state.contract import Contract
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from state.spec import ModelSpec, RecipeTraining
from tools.ports import PipelineRequest, PipelineRun, Platform
from tools.training_rows import recipe_sha256


def read(situation: Situation, platform: Platform) -> dict[str, Any]:
    """Quarantined days, and the packages and pipeline results that the step is about."""
    reading: dict[str, Any] = {"quarantined": list(platform.outcomes.quarantined(situation.model))}
    if situation.champion is not None and situation.step in ("backtest_recipe", "evaluate_candidate"):
        reading["champion_cut"] = training_cut(platform, situation.model, situation.champion)
    if situation.step == "evaluate_candidate" and situation.candidate is not None:
        reading["candidate_cut"] = training_cut(platform, situation.model, situation.candidate)
    return reading


def training_cut(platform: Platform, model: str, version: str) -> str | None:
    """Event time of the newest row that the version was fitted on, as its package says; None where it does not say."""
    contract = Contract.from_json((platform.registry.package(model, version) / "contract.json").read_bytes())
    cut = contract.lineage.get("trained_until")
    return str(cut) if cut else None


def judge(situation: Situation, reading: dict[str, Any]) -> Move:
    match situation.step:
        case "backtest_recipe":
            return judge_backtest(situation, reading)
        case "train_candidates":
            return _judge_training(situation, reading)
        case "evaluate_candidate":
            return _judge_evaluation(situation, reading)
        case "register_candidate":
            run_id = str(situation.facts["mlflow_run_id"])
            args: dict[str, JsonValue] = {"mlflow_run_id": run_id, "model": situation.model}
            return proposal(situation, "training", args, "the trained candidate met its gates and needs a version")
        case _:
            return Wait(until=None, waits_for=f"the training agent has no move for {situation.step}")


def comparison_stretch(spec: ModelSpec, now: datetime, cuts: list[str | None]) -> Stretch | None:
    """The newest `monitoring.backtest` of labelled rows, as far as they are newer than every cut.

    None where that leaves fewer than `min_blocks` blocks: nobody could tell anything from them.
    """
    end = matured_until(now, spec.data.label.delay)
    start = max([end - spec.monitoring.backtest, *(after_cut(cut) for cut in cuts if cut is not None)])
    if end - start < spec.monitoring.min_blocks * spec.monitoring.block:
        return None
    return Stretch(start=start, end=end)


def shortest_training(recipe: RecipeTraining) -> timedelta:
    """What a training needs at least: the holdout of its gates, and before it a day for each fold and one more."""
    return recipe.holdout + (recipe.folds + 1) * timedelta(days=1)


def _judge_training(situation: Situation, reading: dict[str, Any]) -> Move:
    spec = situation.spec
    if not isinstance(spec.training, RecipeTraining):
        return Wait(until=None, waits_for=f"training kind {spec.training.kind!r} is not carried out here")
    until = matured_until(situation.now, spec.data.label.delay)
    if situation.champion is None:
        until = matured_until(situation.now, timedelta(0))
    start = until - spec.training.window if spec.training.window else None
    if situation.fit_from is not None:
        start = max(start, situation.fit_from) if start is not None else situation.fit_from
    args: dict[str, JsonValue] = {
        "recipe_sha256": recipe_sha256(spec),
        "start": start.isoformat() if start else None,
        "end": until.isoformat(),
        "as_of": (until + spec.data.label.delay).isoformat(),
        "excluded_days": sorted(set(reading["quarantined"]) | set(situation.fault_days)),
        "seed": spec.training.seed,
    }
    return proposal(
        situation,
        "training",
        args,
        "fit every candidate of the recipe on labelled rows "
        + (f"from {start:%Y-%m-%d} on and " if situation.fit_from is not None else "")
        + f"before {until:%Y-%m-%d}",
    )


def _judge_evaluation(situation: Situation, reading: dict[str, Any]) -> Move:
    gates = situation.facts.get("gates")
    if situation.candidate is None and isinstance(gates, list):
        return gates_learned(situation, cast(list[dict[str, Any]], gates))
    cuts = [reading.get("champion_cut"), reading.get("candidate_cut")]
    stretch = comparison_stretch(situation.spec, situation.now, cuts)
    if stretch is None:
        return Learned(
            topic="gates",
            verdict="not_measurable",
            summary=f"Too few labelled days are newer than the cuts of both versions to measure version {situation.candidate}.",
            facts={
                "gates_evaluated": True,
                "gates_passed": False,
                "gates_cleared": True,
                "paired_win": False,
                "compared_with": situation.champion,
            },
        )
    start, until = stretch.start, stretch.end
    args: dict[str, JsonValue] = {
        "candidate": situation.candidate,
        "champion": situation.champion,
        "compare_from": start.isoformat(),
        "compare_until": until.isoformat(),
        "as_of": (until + situation.spec.data.label.delay).isoformat(),
        "excluded_days": sorted(set(reading["quarantined"]) | set(situation.fault_days)),
    }
    return proposal(
        situation, "training", args, f"score version {situation.candidate} and the champion on the same labelled rows"
    )


def gates_learned(situation: Situation, gates: list[dict[str, Any]]) -> Learned:
    """Judge measured gates; a rejection names them."""
    broken = [g for g in gates if not g["passed"]]
    names = ", ".join(f"{g['metric']} {_number(g['value'])} (needs {g['op']} {g['bound']})" for g in broken)
    summary = f"The candidate fails its gates: {names}." if broken else "The candidate passes every quality gate."
    return Learned(
        topic="gates",
        verdict="failed" if broken else "passed",
        summary=summary,
        facts={
            "gates_evaluated": True,
            "gates_passed": not broken,
            # A person who asked for the version by name may have an approver waive them; policy asks.
            "gates_cleared": not broken or situation.asked_by_person,
        },
        details={"gates": cast(JsonValue, gates)},
    )


def _number(value: Any) -> str:
    return "not measurable" if value is None else f"{float(value):.4f}"


def begun(intent: CommittedIntent, platform: Platform) -> bool:
    """Whether a pipeline run or a registered version bears the key."""
    if intent.kind == "register_candidate":
        return platform.registry.find(intent.key) is not None
    return platform.pipelines.find(intent.key) is not None


def perform(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    """Carry out one committed training action under its key."""
    if intent.kind == "register_candidate":
        return _register(intent, platform)
    spec = platform.specs[intent.model]
    parameters: dict[str, JsonValue] = {**intent.args, "spec": spec.model_dump_json()}
    if intent.kind in ("backtest_recipe", "evaluate_candidate"):
        champion = intent.args.get("champion")
        parameters["champion_package"] = (
            str(platform.registry.package(intent.model, str(champion))) if champion is not None else None
        )
        if intent.kind == "evaluate_candidate":
            parameters["challenger_package"] = str(
                platform.registry.package(intent.model, text_arg(intent, "candidate"))
            )
            parameters["fit_until"] = intent.args["compare_from"]
        parameters["seed"] = spec.training.seed if isinstance(spec.training, RecipeTraining) else 0
        request = PipelineRequest(pipeline="backtest", model=intent.model, parameters=parameters)
    else:
        request = PipelineRequest(pipeline="train", model=intent.model, parameters=parameters)
    return _outcome(platform.pipelines.find(intent.key) or platform.pipelines.submit(request, key=intent.key))


def _outcome(run: PipelineRun) -> ActionOutcome:
    match run.status:
        case "running":
            return ActionOutcome(status="running", message="the pipeline is running")
        case "failed":
            return failed(run.error)
        case "succeeded":
            return done(dict(run.outputs))


def _register(intent: CommittedIntent, platform: Platform) -> ActionOutcome:
    found = platform.registry.find(intent.key) or platform.registry.register(
        model=intent.model,
        mlflow_run_id=text_arg(intent, "mlflow_run_id"),
        tags={"steadyhand.subject": intent.subject_id},
        key=intent.key,
    )
    return done({"version": found.version, "mlflow_run_id": found.mlflow_run_id})


GRAPH = specialist("training", read=read, judge=judge)
