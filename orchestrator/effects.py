"""What a verified action makes true in the shared state: facts of its run, the rollout's row, the champion, holds."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from pydantic import JsonValue

from agents.backtest import judge_pairs, next_look, next_on_cadence
from agents.base import Situation
from agents.training import gates_learned
from orchestrator.actions import CATALOGUE
from orchestrator.change import begin_anew, gives_up_at
from orchestrator.context import written_weights
from orchestrator.crew import Crew, keep_evidence, observe, tell
from orchestrator.runs import cite
from orchestrator.segment_watch import no_remedy
from orchestrator.triage import learn_from_win
from state import store
from state.ledger import CommittedIntent
from state.plans import ActionOutcome
from state.rows import DetectorRow, EvidenceRow, IncidentRow, ModelRow, RolloutRow, RunRow, SwitchRow
from state.spec import ModelSpec
from state.store import Connection, Fence

JUDGED = frozenset(
    {"canary_passed", "ab_cleared", "gates_evaluated", "gates_cleared", "training_justified", "fault_contained"}
)
"""Facts that an agent's judgement establishes, not the mere success of an action."""
RECURRING = frozenset(
    {"shift_traffic", "run_ab_test", "promote", "rollback", "stage_version", "retire_version", "restart_server",
     "hold", "resume"}
)  # fmt: skip
"""Effects that may rightly happen again: each names the one before it, so that a repetition is a new action."""
TRAFFIC = RECURRING - {"hold", "resume"}
"""Those that write to the route."""


def apply_verified(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, *, fence: Fence
) -> None:
    """Write what `outcome` makes true; joins the transaction that marks the action verified."""
    declared = CATALOGUE[intent.kind]
    for name in declared.ends:
        run.facts[name] = False
    for name in declared.makes - JUDGED:
        run.facts[name] = True
    if intent.kind in RECURRING:
        body: dict[str, JsonValue] = {"key": intent.key, "weights": dict(_written(conn, intent, outcome))}
        store.put(conn, SwitchRow(id=f"traffic/{intent.model}", body=body), fence=fence)
    _SPECIFIC.get(intent.kind, _nothing)(crew, conn, run, intent, outcome, fence)
    # What a person was asked about before the version was staged is what is proposed after it.
    run.body["pinned"] = run.body.pop("ahead", {}) if intent.kind == "stage_version" else {}


def _written(conn: Connection, intent: CommittedIntent, outcome: ActionOutcome) -> dict[str, int]:
    """What the route should say after the action: what was written, and never what somebody else made of it since."""
    known = written_weights(conn, intent.model)
    version = str(intent.args.get("version"))
    match intent.kind:
        case "stage_version" if not known:
            return cast(dict[str, int], outcome.observed.get("weights", {}))
        case "stage_version":
            return {**known, version: known.get(version, 0)}
        case "retire_version":
            return {name: weight for name, weight in known.items() if name != version}
        case "shift_traffic" | "run_ab_test" | "promote" | "rollback":
            return cast(dict[str, int], outcome.observed["weights"])
        case _:
            return known


def _nothing(*_: Any) -> None:
    return None


def _backtested(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    """The paired verdict: a win justifies training, a loss is recorded as a refusal, no verdict is asked for again."""
    spec = crew.platform.specs[intent.model]
    paired = judge_pairs(spec, intent.args, outcome.observed)
    evidence_id = keep_evidence(
        crew, conn, model=intent.model, topic="backtest", fence=fence,
        body={"args": intent.args, "blocks": outcome.observed.get("blocks", []), "paired": paired},
    )  # fmt: skip
    cite(run, evidence_id)
    won = paired["verdict"] == "win"
    run.facts |= {
        "remedy_known": True, "training_justified": won, "paired_win": won,
        "paired_z": paired["z"], "paired_verdict": paired["verdict"], "paired_evidence": evidence_id,
        "compared_with": intent.args.get("champion"),
    }  # fmt: skip
    incident = store.get(conn, IncidentRow, run.subject_id) if run.subject_kind == "incident" else None
    if incident is not None and won:
        learn_from_win(
            crew, conn, spec, incident, z=float(str(paired["z"])), evidence_id=evidence_id, fence=fence
        )  # fmt: skip
    again = _look_again(crew, conn, run, spec, intent, paired)
    if incident is not None and not won and again is None and "segment" in paired:
        run.facts["story"] = no_remedy(incident, paired)
    observe(
        crew, conn, model=intent.model, topic="backtest", verdict=str(paired["verdict"]), run_id=run.id,
        incident_id=run.subject_id if run.subject_kind == "incident" else None, actor='Agent::"training"',
        summary=_paired_sentence(intent, paired, again), details={**paired, "args": dict(intent.args)},
        evidence_ids=[evidence_id],
    )  # fmt: skip


def _look_again(
    crew: Crew, conn: Connection, run: RunRow, spec: ModelSpec, intent: CommittedIntent, paired: dict[str, JsonValue]
) -> datetime | None:
    """When a comparison without a verdict is made again; None where there is one, or no more use in waiting.

    An incident asks the question again; the cadence comes round sooner.
    """
    run.facts.pop("look_at", None)
    if paired["verdict"] != "no_verdict" or intent.kind != "backtest_recipe":
        return None
    now = crew.clock.now()
    if run.subject_kind == "cadence":
        at = next_on_cadence(spec, now, int(str(paired["n_blocks"])))
    elif run.subject_kind == "incident":
        incident = store.get(conn, IncidentRow, run.subject_id)
        if incident is None or now >= gives_up_at(spec, incident):
            return None
        at = next_look(spec, now, intent.args)
        run.facts["remedy_known"] = False
        tell(
            crew, conn, key=f"waits/{incident.id}", title=f"{incident.title}: open, and no verdict yet",
            text=f"{incident.body.get('text', incident.title)}. Whether retraining helps is not known yet: "
            f"{paired['open_because']}; the next backtest comes on {at:%Y-%m-%d}.",
        )  # fmt: skip
    else:
        return None
    run.facts["look_at"] = at.isoformat()
    return at


def _paired_sentence(intent: CommittedIntent, paired: dict[str, JsonValue], again: datetime | None) -> str:
    z, n = float(str(paired["z"])), paired["n_blocks"]
    needed = f" (needed over {n} blocks: {float(str(paired['needed_z'])):.2f})" if paired["needed_z"] else ""
    what = {
        "win": "the newer fit is better: the recipe wins",
        "lose": f"{_why_lost(paired)}: the champion stays",
        "no_verdict": f"no verdict: {paired['open_because']}",
    }[str(paired["verdict"])]
    later = f"; the next backtest comes on {again:%Y-%m-%d}" if again is not None else ""
    where = f" in {paired['segment']}" if "segment" in paired else ""
    return (
        f"Paired comparison with version {intent.args.get('champion')}{where} over {n} blocks on {paired['metric']}: "
        f"mean loss difference {float(str(paired['mean_difference'])):+.4f}, z {z:.2f}{needed} - {what}{later}."
    )


def _why_lost(paired: dict[str, JsonValue]) -> str:
    if not paired.get("whole_holds", True):
        return "worse on the whole"
    if paired["too_small"]:
        return f"better by less than the {float(str(paired['needed_difference'])):.4f} that is worth a rollout"
    return "not enough for a win"


def _trained(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    evidence_id = keep_evidence(
        crew, conn, model=intent.model, topic="training", fence=fence,
        body={"args": intent.args, "outputs": dict(outcome.observed)},
    )  # fmt: skip
    cite(run, evidence_id)
    run.facts |= {
        "mlflow_run_id": outcome.observed["mlflow_run_id"],
        "gates": outcome.observed["gates"],
        "training_evidence": evidence_id,
        "training_key": intent.key,
    }


def _evaluated(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    """An existing version was scored beside the champion: its gates and its paired verdict are known now."""
    spec = crew.platform.specs[intent.model]
    _backtested(crew, conn, run, intent, outcome, fence)
    run.facts["training_justified"] = False
    move = gates_learned(
        situation_stub(spec, run, asked_by_person=run.subject_kind == "goal"),
        cast(list[dict[str, Any]], outcome.observed["gates"]),
    )
    run.facts |= move.facts
    observe(
        crew, conn, model=intent.model, topic="gates", verdict=move.verdict, run_id=run.id, summary=move.summary,
        actor='Agent::"training"', details=move.details,
    )  # fmt: skip


def situation_stub(spec: ModelSpec, run: RunRow, *, asked_by_person: bool) -> Situation:
    """The little that judging gates needs."""
    return Situation(
        model=spec.model, spec=spec, spec_sha256="", now=run.started_at, step="evaluate_candidate",
        subject_id=run.subject_id, run_id=run.id, cause="", facts=run.facts, pinned={}, champion=None, previous=None,
        candidate=None, last_traffic_key="", rollout=None, asked_by_person=asked_by_person,
    )  # fmt: skip


def _registered(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    run.facts["candidate"] = outcome.observed["version"]


def _staged(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    row = _rollout(conn, intent)
    if row is not None:
        weights = cast(dict[str, int], outcome.observed.get("weights", {}))
        row.phase = "staged"
        row.body |= {"step": -1, "weights": weights, "since": crew.clock.now().isoformat()}  # type: ignore[dict-item]
        store.put(conn, row, fence=fence)
        if row.stable is not None:
            run.facts["traffic_on_champion"] = weights.get(row.candidate) == 0


def _shifted(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    row = _rollout(conn, intent)
    if row is None:
        return
    if "corrects" not in intent.args:
        row.body["step"] = int(str(row.body.get("step", -1))) + 1
        row.phase = "canary"
    _note_weights(crew, conn, row, outcome, fence)


def _tested(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    row = _rollout(conn, intent)
    if row is not None:
        row.phase = "ab_test"
        _note_weights(crew, conn, row, outcome, fence)


def _note_weights(crew: Crew, conn: Connection, row: RolloutRow, outcome: ActionOutcome, fence: Fence) -> None:
    row.body |= {
        "weights": outcome.observed["weights"],
        "samples": outcome.observed["samples"],
        "failures": 0,
        "since": crew.clock.now().isoformat(),
    }
    store.put(conn, row, fence=fence)


def _promoted(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    """The roles swap; the bake window begins, and the detector of the new champion starts from its own reference."""
    version = str(intent.args["version"])
    model = store.get(conn, ModelRow, intent.model)
    if model is not None:
        model.status = "live"
        store.put(conn, model, fence=fence)
    detector = DetectorRow(
        id=f"{intent.model}/champion", model=intent.model,
        state={"version": version, "since": crew.clock.now().isoformat(), "previous": intent.args.get("previous")},
    )  # fmt: skip
    store.put(conn, detector, fence=fence)
    _keep_reference(conn, run, intent.model, version, fence)
    row = _rollout(conn, intent)
    if row is None:
        return
    if row.stable is None:
        row.phase, row.status, row.finished_at = "initialised", "completed", crew.clock.now()
    else:
        row.phase = "bake"
        before, after = row.body.get("samples"), outcome.observed["samples"]
        if isinstance(before, dict) and isinstance(after, dict) and row.stable in before and row.stable in after:
            row.body["baseline"] = {"before": before[row.stable], "after": after[row.stable]}
    _note_weights(crew, conn, row, outcome, fence)


def _keep_reference(conn: Connection, run: RunRow, model: str, version: str, fence: Fence) -> None:
    """The version's out-of-sample block losses, from its training or its evaluation, and its training's labels by score and
    losses by segment: what its detectors are held against."""
    training = store.get(conn, EvidenceRow, str(run.facts.get("training_evidence", "")))
    paired = store.get(conn, EvidenceRow, str(run.facts.get("paired_evidence", "")))
    losses: list[Any] = []
    trained: list[dict[str, Any]] = []
    if training is not None:
        trained = cast(dict[str, Any], training.body["outputs"])["reference_blocks"]
        losses = [block["loss"] for block in trained]
    elif paired is not None:
        losses = [block["challenger_loss"] for block in cast(list[dict[str, Any]], paired.body["blocks"])]
    known = [loss for loss in losses if loss is not None]
    labels: list[JsonValue] = [
        {"block": block["block"], "cells": block["labels"]} for block in trained if block.get("labels")
    ]
    segments = {block["block"]: block["segments"] for block in trained if block.get("segments")}
    state: dict[str, Any] = {"losses": known, "labels": labels, "segments": segments}
    row = DetectorRow(id=f"{model}/reference/{version}", model=model, state=state)
    store.put(conn, row, fence=fence)


def _rolled_back(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    row = _rollout(conn, intent)
    restored = row is not None and row.candidate == intent.args["to"]
    if row is not None:
        if restored:
            row.phase, row.status, row.finished_at = "completed", "completed", crew.clock.now()
        else:
            _leave(crew, row, run)
        _note_weights(crew, conn, row, outcome, fence)
    champion = DetectorRow(
        id=f"{intent.model}/champion", model=intent.model,
        state={"version": intent.args["to"], "since": crew.clock.now().isoformat(),
               "previous": intent.args["version"] if restored else None},
    )  # fmt: skip
    known = store.get(conn, DetectorRow, champion.id)
    if known is None or known.state.get("version") != intent.args["to"]:
        store.put(conn, champion, fence=fence)
    run.facts["retire"] = intent.args["version"]


def _leave(crew: Crew, row: RolloutRow, run: RunRow) -> None:
    row.status = "superseded" if run.facts.get("superseded") else "rolled_back"
    row.phase, row.finished_at = "rolled_back", crew.clock.now()


def _retired(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    """A candidate that leaves before it ever had traffic ends its rollout as well."""
    row = _rollout(conn, intent)
    if row is not None and row.status == "running" and row.candidate == intent.args["version"]:
        _leave(crew, row, run)
        store.put(conn, row, fence=fence)


def _quarantined(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    incident = store.get(conn, IncidentRow, run.subject_id)
    later = run.body.pop("evidence_after", None)
    cite(run, *(str(item) for item in later) if isinstance(later, list) else ())
    if incident is not None:
        days = incident.body.get("quarantined")
        known = list(days) if isinstance(days, list) else []
        new = intent.args["days"]
        if incident.body.get("in_doubt"):
            # A person says that the labels are wrong: blocks that matured during the question are looked at from now on.
            incident.body["in_doubt"] = False
            run.body["unhealthy_at"] = crew.clock.now().isoformat()
        incident.body["quarantined"] = sorted({*known, *(new if isinstance(new, list) else [])})  # type: ignore[type-var]
        store.put(conn, incident, fence=fence)
        run.facts["fault_contained"] = incident.body["quarantined"] == incident.body.get("days")
        if incident.cause == "label_fault":
            begin_anew(conn, intent.model, only_alarmed=False)  # it has counted losses of these days


def _features_rolled_back(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    """Told anew, now with what was done about it; health counts from here."""
    run.facts |= {
        "rolled_back_view": True, "owner_told": False,
        "story": f"{run.facts.get('story')}; the feature view {outcome.observed['feature_view']} was returned from "
        f"revision {outcome.observed['previous']} to {outcome.observed['revision']}",
    }  # fmt: skip
    run.body["remedied_at"] = crew.clock.now().isoformat()


def _held(
    crew: Crew, conn: Connection, run: RunRow, intent: CommittedIntent, outcome: ActionOutcome, fence: Fence
) -> None:
    model = store.get(conn, ModelRow, intent.model)
    if model is not None:
        model.held = intent.kind == "hold"
        store.put(conn, model, fence=fence)


def _rollout(conn: Connection, intent: CommittedIntent) -> RolloutRow | None:
    return store.get(conn, RolloutRow, str(intent.args.get("rollout", "")))


_SPECIFIC = {
    "backtest_recipe": _backtested,
    "train_candidates": _trained,
    "evaluate_candidate": _evaluated,
    "register_candidate": _registered,
    "stage_version": _staged,
    "shift_traffic": _shifted,
    "run_ab_test": _tested,
    "promote": _promoted,
    "rollback": _rolled_back,
    "retire_version": _retired,
    "quarantine_data": _quarantined,
    "rollback_features": _features_rolled_back,
    "hold": _held,
    "resume": _held,
}
