"""The facts that policy is asked with: counted from the ledger, read from the run, observed on the platform."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from orchestrator.actions import CATALOGUE
from orchestrator.crew import Crew
from orchestrator.signals import FAULTS
from policies.context import ContextValue, GivenValue, build_context
from state import store
from state.plans import ActionKind, Proposal
from state.rows import (
    ActionRow,
    DetectorRow,
    EvidenceRow,
    GoalRow,
    IncidentRow,
    ModelRow,
    RolloutRow,
    RunRow,
    SwitchRow,
)
from state.spec import ModelSpec
from state.store import Connection

TRAININGS: tuple[ActionKind, ...] = ("train_candidates",)
_HOUR, _DAY, _MONTH = timedelta(hours=1), timedelta(days=1), timedelta(days=30)
REMEDY_COOLDOWN = timedelta(days=14)
SAME_REMEDY: dict[ActionKind, tuple[str, ...]] = {
    "train_candidates": ("recipe_sha256", "end"), "rollback_features": ("feature_view", "revision", "after"),
}  # fmt: skip
"""Remedies that are not tried again unchanged, with the args that make two of them the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What will hold when an action comes to be that policy is asked about ahead of time."""

    leaving: frozenset[str]
    """Rollouts that have made way by then, by id: they are over, and so are the incidents that they served."""


def policy_context(
    crew: Crew,
    conn: Connection,
    run: RunRow,
    spec: ModelSpec,
    proposal: Proposal,
    *,
    approved_by: list[str],
    own_key: str | None = None,
    foreseen: Foreseen | None = None,
) -> dict[str, ContextValue]:
    """The whole Cedar context for one proposal.

    `own_key` names the action itself where the ledger holds it already: it must not count against itself. With
    `foreseen`, the facts are those at the time when the action would come to be.
    """
    given: dict[str, GivenValue] = {
        "approved_by": approved_by,
        **_people(conn, run, spec, proposal),
        **_ledger_counts(crew, conn, proposal, own_key),
        **_judgements(conn, run, spec, foreseen),
        **_data(crew, conn, spec, proposal),
        **_rollout(crew, conn, spec, proposal, foreseen),
    }
    return build_context(given)


def _people(conn: Connection, run: RunRow, spec: ModelSpec, proposal: Proposal) -> dict[str, GivenValue]:
    halt, mode = store.get(conn, SwitchRow, "halt"), store.get(conn, SwitchRow, "mode")
    model = store.get(conn, ModelRow, spec.model)
    goal = store.get(conn, GoalRow, run.subject_id) if run.subject_kind == "goal" else None
    cited = [store.get(conn, EvidenceRow, evidence_id) for evidence_id in proposal.evidence_ids]
    return {
        "halted": bool(halt and halt.body.get("on")),
        "mode": str(mode.body.get("mode", "enforce")) if mode else "enforce",
        "model_held": bool(model and model.held),
        "autonomy": autonomy(spec, proposal.kind),
        "dry_run": bool(goal and goal.goal.get("dry_run")),
        "asked_by_person": goal is not None and goal.asked_by != "",
        "approval_demanded": bool(goal and goal.goal.get("approval") == "always"),
        "principal_matches": CATALOGUE[proposal.kind].agent == proposal.proposed_by,
        "evidence_count": len(proposal.evidence_ids),
        "evidence_known": all(row is not None and row.model == spec.model for row in cited),
    }


def autonomy(spec: ModelSpec, kind: ActionKind) -> str:
    """Autonomy of one action: its own entry, else its group's, else `auto`."""
    return spec.autonomy.get(kind) or spec.autonomy.get(CATALOGUE[kind].group) or "auto"


def _ledger_counts(crew: Crew, conn: Connection, proposal: Proposal, own_key: str | None) -> dict[str, GivenValue]:
    now = crew.clock.now()
    actions = [a for a in store.select(conn, ActionRow, model=proposal.model) if a.id != own_key]
    effects = [a for a in actions if CATALOGUE[a.kind].group != "read"]

    def recent(rows: list[ActionRow], span: timedelta, *kinds: ActionKind) -> list[ActionRow]:
        return [a for a in rows if now - a.created_at < span and (not kinds or a.kind in kinds)]

    open_risky = [
        a for a in actions
        if CATALOGUE[a.kind].group == "risky" and a.state in ("intended", "acting", "unknown")
    ]  # fmt: skip
    minutes = sum(CATALOGUE[a.kind].compute_minutes for a in recent(actions, _DAY) if a.kind != "notify")
    return {
        "unknown_actions": sum(a.state == "unknown" for a in actions),
        "open_risky_actions": len(open_risky),
        "actions_last_hour": len(recent(effects, _HOUR)),
        "actions_today": len(recent(effects, _DAY)),
        "trainings_today": len(recent(actions, _DAY, *TRAININGS)),
        "trainings_in_30d": len(recent(actions, _MONTH, *TRAININGS)),
        "backtests_today": len(recent(actions, _DAY, "backtest_recipe")),
        "restarts_today": len(recent(actions, _DAY, "restart_server")),
        "compute_minutes_today": minutes + CATALOGUE[proposal.kind].compute_minutes,
        "same_remedy_tried": _same_remedy(actions, proposal, now),
    }


def _same_remedy(actions: list[ActionRow], proposal: Proposal, now: datetime) -> bool:
    """Whether the same recipe on the same cut was trained, or the same release of features taken back, within the
    cooldown, for whatever incident."""
    names = SAME_REMEDY.get(proposal.kind)
    if names is None:
        return False
    remedy = [proposal.args.get(name) for name in names]
    return any(
        a.kind == proposal.kind
        and [a.args.get(name) for name in names] == remedy
        and a.state in ("done", "verified")
        and now - a.created_at < REMEDY_COOLDOWN
        for a in actions
    )


def _judgements(conn: Connection, run: RunRow, spec: ModelSpec, foreseen: Foreseen | None) -> dict[str, GivenValue]:
    facts = run.facts
    over = _incidents_of(conn, spec.model, foreseen.leaving) if foreseen is not None else frozenset()
    incidents = [row for row in store.select(conn, IncidentRow, model=spec.model, status="open") if row.id not in over]
    open_signals = {row.signal for row in incidents}
    z = facts.get("paired_z")
    return {
        "loss_alarm_open": bool(open_signals & {"loss_alarm", "segment_alarm"}),
        "retraining_due": bool(open_signals & {"loss_alarm", "segment_alarm", "major_drift"}),
        "data_fault_open": _fault_open(incidents),
        "label_doubt_open": any(row.body.get("in_doubt") for row in incidents),
        "outcomes_affected": spec.outcomes == "affected",
        "gates_evaluated": bool(facts.get("gates_evaluated")),
        "gates_passed": bool(facts.get("gates_passed")),
        "paired_win": bool(facts.get("paired_win")),
        "paired_z_x100": float(z) * 100 if isinstance(z, int | float) else None,
        "canary_passed": bool(facts.get("canary_passed")),
        "ab_verdict": str(facts.get("ab_verdict", "none")),
        "ab_samples": _number(facts.get("ab_samples")),
        "ab_minimum_samples": spec.rollout.ab_test.minimum_samples,
        "sample_ratio_ok": bool(facts.get("sample_ratio_ok")),
        "failed_versions": len(failed_in_a_row(conn, spec.model)),
    }


def failed_in_a_row(conn: Connection, model: str) -> list[RolloutRow]:
    """The newest remedies that failed under live traffic, one after the other, the newest first; what is under way, made way
    or was asked for by a person says nothing."""
    failed = []
    for row in store.select(conn, RolloutRow, model=model, newest_first=True):
        if row.body.get("failed_live"):
            failed.append(row)
        elif row.status == "completed":
            break
    return failed


def _incidents_of(conn: Connection, model: str, rollouts: frozenset[str]) -> frozenset[str]:
    """Incidents that end with the runs of these rollouts."""
    runs = store.select(conn, RunRow, model=model, status=["ready", "waiting"])
    return frozenset(run.subject_id for run in runs if run.body.get("rollout_id") in rollouts)


def _fault_open(incidents: list[IncidentRow]) -> bool:
    """Whether an open fault has days that are not quarantined. Labels in doubt are a fact of their own."""
    return any(
        row.cause in FAULTS and not row.body.get("in_doubt") and row.body.get("quarantined") != row.body.get("days")
        for row in incidents
    )


LABEL_READERS = frozenset({"backtest_recipe", "train_candidates", "recalibrate", "promote"})


def _data(crew: Crew, conn: Connection, spec: ModelSpec, proposal: Proposal) -> dict[str, GivenValue]:
    frozen = any(freeze.start <= crew.clock.now() < freeze.end for freeze in spec.freezes)
    given: dict[str, GivenValue] = {"in_freeze_window": frozen, "minimum_rows": minimum_rows(spec)}
    if proposal.kind in LABEL_READERS:
        given |= _labels(crew, conn, spec)
    if proposal.kind == "quarantine_data":
        days = proposal.args.get("days")
        new = {str(day) for day in days} if isinstance(days, list) else set[str]()
        incident = store.get(conn, IncidentRow, proposal.subject_id)
        given |= {
            "quarantine_days": len(new), "quarantine_share_pct": _share_out(crew, spec, new),
            "labels_in_doubt": incident is not None and bool(incident.body.get("in_doubt")),
        }  # fmt: skip
    return given


def _share_out(crew: Crew, spec: ModelSpec, new: set[str]) -> float:
    """Percent of the days with rows, of the history and served since, that would be out with `new`.

    Of days up to the last that would be out: a question about the same days rests on the same share tomorrow.
    """
    out = {*new, *crew.platform.outcomes.quarantined(spec.model)}
    days = {*out, *crew.platform.data.days(spec.model), *crew.platform.outcomes.revisions(spec.model)}
    n_days = sum(day <= max(out) for day in days) if out else 0
    return 100 * len(out) / max(n_days, 1)


def _labels(crew: Crew, conn: Connection, spec: ModelSpec) -> dict[str, GivenValue]:
    """How many labelled rows there are, and how late the newest one is beyond the declared delay.

    Labels are taken in by whole blocks: of weekly rows the newest known one is up to two weeks old with nothing late.
    """
    history = crew.platform.data.history(spec.model, start=None, end=None).filter(pl.col("label").is_not_null())
    counted = (
        history.select(pl.len().alias("n"), pl.col("event_time").max().alias("newest")).collect().row(0, named=True)
    )
    captured = store.get(conn, DetectorRow, f"{spec.model}/labels")
    newest, n_rows = counted["newest"], int(counted["n"])
    if captured is not None:
        n_rows += int(str(captured.state["n"]))
        newest = max(filter(None, [newest, datetime.fromisoformat(str(captured.state["newest"]))]))
    if newest is None:
        return {"labelled_rows": 0}
    coarse = 2 * max(spec.monitoring.block - timedelta(days=1), timedelta(0))
    late = crew.clock.now() - newest - spec.data.label.delay - coarse
    return {"labelled_rows": n_rows, "fresh_label_age_min": max(0.0, late / timedelta(minutes=1))}


def minimum_rows(spec: ModelSpec) -> int:
    """Labelled rows below which nobody should train: 20 a feature, at least 200."""
    return max(200, 20 * len(spec.features))


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rollout(
    crew: Crew, conn: Connection, spec: ModelSpec, proposal: Proposal, foreseen: Foreseen | None
) -> dict[str, GivenValue]:
    """Shares as they are now and as they would be, with the state of the versions concerned."""
    version = proposal.args.get("version")
    target_version = str(proposal.args.get("to", version))
    champion = champion_of(crew, spec.model)
    route = crew.platform.mesh.read(spec.model)
    present = dict(route.weights) if route is not None else {}
    leaving = foreseen.leaving if foreseen is not None else frozenset()
    running = [
        row for row in store.select(conn, RolloutRow, model=spec.model, status="running")
        if row.candidate != version and row.id not in leaving
    ]  # fmt: skip
    given: dict[str, GivenValue] = {
        "is_first_version": champion is None,
        "other_rollout_open": bool(running) and proposal.kind not in ("rollback", "retire_version"),
        "max_pct": spec.rollout.max_percent,
    }
    if version is None:
        return given
    endpoint = crew.platform.servers.get(spec.model, str(version))
    now_percent = present.get(str(version), 0)
    weights = proposal.args.get("weights")
    target = int(str(weights.get(str(version), 0))) if isinstance(weights, dict) else now_percent
    heir = crew.platform.servers.get(spec.model, target_version)
    # Whatever is foreseen after the staging comes only once the version's server is ready: until then the agent waits.
    staged_by_then = foreseen is not None and proposal.kind != "stage_version"
    given |= {
        "candidate_ready": staged_by_then or bool(endpoint and endpoint.ready),
        "version_traffic_pct": now_percent,
        "target_pct": target,
        "step_pct": target - now_percent,
        "rollback_target_healthy": bool(heir and heir.ready)
        and _is_rollback_target(conn, spec.model, target_version, champion),
        "is_rollback_target": _is_rollback_target(conn, spec.model, str(version), champion),
    }
    return given


def _is_rollback_target(conn: Connection, model: str, version: str, champion: str | None) -> bool:
    """The champion itself, or the previous version while its successor still bakes."""
    baking = [
        row for row in store.select(conn, RolloutRow, model=model, status="running")
        if row.phase == "bake" and row.stable == version
    ]  # fmt: skip
    return version == champion or bool(baking)


def champion_of(crew: Crew, model: str) -> str | None:
    """The version that the registry calls champion."""
    return next((v.version for v in crew.platform.registry.versions(model) if "champion" in v.aliases), None)


def last_traffic_key(conn: Connection, model: str) -> str:
    """Key of the newest verified traffic change of the model; empty before the first."""
    row = store.get(conn, SwitchRow, f"traffic/{model}")
    return str(row.body["key"]) if row is not None else ""


def written_weights(conn: Connection, model: str) -> dict[str, int]:
    """Version -> percent as the last verified write left the route; empty before the first."""
    row = store.get(conn, SwitchRow, f"traffic/{model}")
    weights = row.body.get("weights") if row is not None else None
    return {version: int(str(weight)) for version, weight in weights.items()} if isinstance(weights, dict) else {}


def corrected_today(crew: Crew, conn: Connection, model: str) -> list[dict[str, int]]:
    """Splits of somebody else that were corrected in the past 24 hours, once for each correction."""
    shifts = store.select(conn, ActionRow, model=model, kind="shift_traffic", state="verified")
    priors = [a.prior.get("weights") for a in shifts if "corrects" in a.args and crew.clock.now() - a.created_at < _DAY]
    return [{str(v): int(str(w)) for v, w in prior.items()} for prior in priors if isinstance(prior, dict)]
