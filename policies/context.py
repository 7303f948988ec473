"""The context of a policy question: one fixed set of facts for every action, declared here and in the schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from state.errors import InputError

ContextValue: TypeAlias = bool | int | str | list[str]
GivenValue: TypeAlias = ContextValue | float | None
"""What a caller may hand to `build_context`; None stands for "not known"."""

MAX_LONG = 2**53
"""Larger counts are capped: Cedar's Long ends at 2**63, and JSON numbers are exact only up to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoc:
    type: Literal["bool", "long", "text", "roles"]
    unit: str
    doc: str
    usual: ContextValue
    """On a healthy model with an ordinary request; under it the shipped set allows every action."""
    strictest: ContextValue | None = None
    """Filled in where a caller gives none, because the fact says nothing about the action. None: must be given."""
    values: tuple[str, ...] = ()
    """Admissible texts."""
    unsafe: Literal["up", "down"] = "up"
    """The direction in which a fraction is rounded: the one that makes a limit bind earlier."""
    discrete: bool = True
    """A judgement; an approval is void once it changes. Counts and ages tick without voiding anything."""


def _flag(doc: str, *, usual: bool, strictest: bool | None = None) -> KeyDoc:
    return KeyDoc(type="bool", unit="", doc=doc, usual=usual, strictest=strictest)


def _count(
    unit: str, doc: str, *, usual: int, strictest: int | None = None, unsafe: Literal["up", "down"] = "up"
) -> KeyDoc:
    return KeyDoc(type="long", unit=unit, doc=doc, usual=usual, strictest=strictest, unsafe=unsafe, discrete=False)


def _share(doc: str, *, usual: int, strictest: int, unsafe: Literal["up", "down"] = "up") -> KeyDoc:
    return KeyDoc(type="long", unit="percent", doc=doc, usual=usual, strictest=strictest, unsafe=unsafe)


def _text(doc: str, values: tuple[str, ...], *, usual: str, strictest: str | None = None) -> KeyDoc:
    return KeyDoc(type="text", unit="", doc=doc, usual=usual, strictest=strictest, values=values)


_PEOPLE = {
    "halted": _flag("The kill switch is on.", usual=False),
    "model_held": _flag("A person or the system holds this model.", usual=False),
    "mode": _text("`advise` records what would be done and does nothing.", ("enforce", "advise"), usual="enforce"),
    "autonomy": _text(
        "What the spec lets the system do alone, for this action or its group.",
        ("observe", "advise", "approve", "auto"),
        usual="auto",
    ),
    "dry_run": _flag("The goal asks only what would happen.", usual=False),
    "approved_by": KeyDoc(
        type="roles",
        unit="",
        doc="Roles whose holders approved this very action.",
        usual=[],
        discrete=False,
    ),
    "asked_by_person": _flag("The action serves a person's goal, not an incident or the cadence.", usual=False),
    "approval_demanded": _flag("The goal says that a person approves every step that carries risk.", usual=False),
}
_REQUEST = {
    "principal_matches": _flag("The acting agent owns this action in the catalogue.", usual=True),
    "evidence_count": _count(
        "observations", "Stored observations that the action cites.", usual=1, strictest=0, unsafe="down"
    ),
    "evidence_known": _flag("Every cited evidence id is stored for this model (true where none is cited).", usual=True),
}
_LEDGER = {
    "unknown_actions": _count("actions", "Actions on this model whose effect could not be established.", usual=0),
    "open_risky_actions": _count("actions", "Other risky actions in flight on this model.", usual=0),
    "actions_last_hour": _count("actions", "Effects on this model in the past hour.", usual=0),
    "actions_today": _count("actions", "Effects on this model in the past 24 hours.", usual=0),
    "trainings_today": _count("trainings", "Trainings of this model in the past 24 hours.", usual=0),
    "trainings_in_30d": _count("trainings", "Trainings of this model in the past 30 days.", usual=0),
    "backtests_today": _count("backtests", "Backtests of this model in the past 24 hours.", usual=0),
    "restarts_today": _count("restarts", "Server restarts of this model in the past 24 hours.", usual=0),
    "compute_minutes_today": _count(
        "minutes", "Pipeline minutes of this model in the past 24 hours, this action's estimate included.", usual=0
    ),
    "same_remedy_tried": _flag(
        "The same remedy (same recipe, same training cut) was carried out within the cooldown.",
        usual=False,
        strictest=True,
    ),
    "in_freeze_window": _flag("A declared freeze covers the present domain time.", usual=False),
}
_DATA = {
    "data_fault_open": _flag(
        "A data or label fault that covers the window in question is neither repaired nor quarantined.",
        usual=False,
        strictest=True,
    ),
    "label_doubt_open": _flag(
        "Labels of this model are in doubt, and nobody has said yet whether they are wrong.",
        usual=False,
        strictest=True,
    ),
    "labels_in_doubt": _flag(
        "The action takes out days because of their labels, and the data cannot tell whether these are wrong.",
        usual=False,
        strictest=True,
    ),
    "quarantine_days": _count("days", "Days that the action takes out.", usual=1, strictest=0, unsafe="down"),
    "quarantine_share_pct": _share(
        "Share of the training window's days that would be out afterwards.", usual=3, strictest=100
    ),
    "fresh_label_age_min": _count(
        "minutes",
        "Age of the newest labelled event less the label's declared delay, at least 0.",
        usual=60,
        strictest=MAX_LONG,
    ),
    "labelled_rows": _count("rows", "Labelled rows that the action may use.", usual=5_000, strictest=0, unsafe="down"),
    "minimum_rows": _count(
        "rows", "Labelled rows that the model's spec calls enough to train on.", usual=1_000, strictest=MAX_LONG
    ),
}
_JUDGEMENT = {
    "loss_alarm_open": _flag("A loss alarm of this model has not ended.", usual=False, strictest=True),
    "retraining_due": _flag(
        "A loss alarm or a major drift of this model is open: the grounds for training where outcomes are affected.",
        usual=True,
        strictest=False,
    ),
    "outcomes_affected": _flag("Predictions cause or hide outcomes: only randomised arms count.", usual=False),
    "gates_evaluated": _flag("The quality gates of this version were measured.", usual=True, strictest=False),
    "gates_passed": _flag("This version passed every quality gate.", usual=True, strictest=False),
    "paired_win": _flag(
        "The recipe or version beat the champion on rows newer than both cuts, over blocks.",
        usual=True,
        strictest=False,
    ),
    "paired_z_x100": _count(
        "hundredths of a standard error",
        "z of that paired difference; 0 where there is none.",
        usual=400,
        strictest=0,
        unsafe="down",
    ),
    "canary_passed": _flag("Every canary step of this version passed its analysis.", usual=True, strictest=False),
    "ab_verdict": _text(
        "Verdict of the sequential test on live outcomes.",
        ("none", "better", "worse", "equivalent", "undecided", "undecided_at_horizon"),
        usual="better",
        strictest="none",
    ),
    "ab_samples": _count("rows", "Labelled rows of the smaller arm.", usual=5_000, strictest=0, unsafe="down"),
    "ab_minimum_samples": _count(
        "rows", "Labelled rows of the smaller arm that the spec asks for.", usual=1_000, strictest=MAX_LONG
    ),
    "failed_versions": _count(
        "versions", "Remedies in a row, the newest first, whose versions failed under live traffic.", usual=0
    ),
    "sample_ratio_ok": _flag("Distinct entities per arm fit the declared split.", usual=True, strictest=False),
}
_ROLLOUT = {
    "is_first_version": _flag("The model has no champion yet.", usual=False),
    "candidate_ready": _flag("The version's package is verified and its server ready.", usual=True, strictest=False),
    "other_rollout_open": _flag(
        "Another version of this model is being rolled out, or bakes after its promotion.", usual=False, strictest=True
    ),
    "rollback_target_healthy": _flag(
        "The version that would take the traffic is the last healthy champion.", usual=True, strictest=False
    ),
    "is_rollback_target": _flag("The version is the one to which traffic would return.", usual=False, strictest=True),
    "version_traffic_pct": _share("The version's present share of live traffic.", usual=0, strictest=100),
    "step_pct": KeyDoc(
        type="long",
        unit="percentage points",
        doc="Rise of the version's share in this action; 0 or less where it falls.",
        usual=20,
        strictest=100,
    ),
    "target_pct": _share("The version's share after this action.", usual=25, strictest=100),
    "max_pct": _share("Largest share that the spec allows before promotion.", usual=50, strictest=0, unsafe="down"),
    "replicas_target": _count("replicas", "Servers of the version after this action.", usual=2, strictest=MAX_LONG),
}
CONTEXT_KEYS: dict[str, KeyDoc] = {**_PEOPLE, **_REQUEST, **_LEDGER, **_DATA, **_JUDGEMENT, **_ROLLOUT}


def build_context(given: Mapping[str, GivenValue]) -> dict[str, ContextValue]:
    """The whole context: what is given, rounded toward the unsafe side, and the strictest value for the rest.

    A key that must be given and is not stays absent, and a value that is no number becomes the text `nan` or
    `inf`: the engine then refuses the question as `bad-context`, and the record of it can still be stored.

    Raises:
        InputError: `given` names a key that no policy can know.
    """
    unknown = sorted(set(given) - set(CONTEXT_KEYS))
    if unknown:
        raise InputError(
            f"policy context: {', '.join(unknown)} is not a declared fact",
            remedy="Declare it in policies/schema.cedarschema and policies/context.py, or leave it out",
        )
    context: dict[str, ContextValue] = {}
    for name, key in CONTEXT_KEYS.items():
        value = given.get(name)
        if value is None:
            value = key.strictest
        if value is not None:
            context[name] = _rounded(value, key)
    return context


def _rounded(value: ContextValue | float, key: KeyDoc) -> ContextValue:
    if isinstance(value, bool) or key.type != "long":
        return str(value) if isinstance(value, float) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        value = math.ceil(value) if key.unsafe == "up" else math.floor(value)
    return max(-MAX_LONG, min(MAX_LONG, value)) if isinstance(value, int) else value


def problems(context: Mapping[str, object]) -> list[str]:
    """Why `context` cannot be asked about: a missing, unknown, mistyped or inadmissible fact; empty where it can."""
    found = [f"{name} is missing" for name in CONTEXT_KEYS if name not in context]
    for name, value in context.items():
        key = CONTEXT_KEYS.get(name)
        if key is None:
            found.append(f"{name} is not a declared fact")
        elif not _fits(value, key):
            found.append(f"{name} is {value!r}, not {_wanted(key)}")
    return found


def _fits(value: object, key: KeyDoc) -> bool:
    if key.type == "bool":
        return isinstance(value, bool)
    if key.type == "long":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_LONG
    if key.type == "text":
        return isinstance(value, str) and value in key.values
    return isinstance(value, list) and all(isinstance(role, str) for role in value)


def _wanted(key: KeyDoc) -> str:
    if key.type == "text":
        return "one of " + ", ".join(key.values)
    return {"bool": "true or false", "long": f"a whole number of {key.unit}", "roles": "a list of roles"}[key.type]


def usual_context() -> dict[str, ContextValue]:
    """A healthy model and an ordinary request: what tests and checks start from."""
    return {name: list(key.usual) if isinstance(key.usual, list) else key.usual for name, key in CONTEXT_KEYS.items()}


def strictest_context() -> dict[str, ContextValue]:
    """Every fact at its strictest; those that must always be given stay as usual."""
    return {
        **usual_context(),
        **{name: key.strictest for name, key in CONTEXT_KEYS.items() if key.strictest is not None},
    }


def discrete_facts(context: Mapping[str, ContextValue]) -> dict[str, ContextValue]:
    """The judgements in `context`: what an approval is bound to beside the action and its evidence."""
    return {name: value for name, value in context.items() if (key := CONTEXT_KEYS.get(name)) and key.discrete}
