"""Diagnosis: which cause the signals speak for, which they speak against. Healthy is the default; a cause needs evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from agents.monitoring import MAX_ERROR_RATIO

Cause: TypeAlias = Literal[
    "data_fault", "label_fault", "covariate_shift_harmless", "covariate_shift_harmful", "concept_drift", "prior_shift",
    "bad_release", "skew", "serving_fault", "segment_regression", "stale_model", "insufficient_evidence",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """What was measured around a signal. None means not measured, which is evidence for nothing."""

    signal: str
    quality_findings: tuple[str, ...] = ()
    """Hard findings of the data contract, in words."""
    label_evidence: tuple[str, ...] = ()
    """What speaks for a fault of the labels, where they are under suspicion."""
    against_labels: tuple[str, ...] = ()
    """What speaks against one, where it was looked for."""
    skew: str | None = None
    """How served values differ from the offline ones, where they do."""
    calibration: str | None = None
    """How probabilities are off, where they are while the objective holds."""
    server_ready: bool | None = None
    error_ratio: float | None = None
    candidate_serving: bool = False
    """A version younger than the bake window takes traffic."""
    canary_failed: bool = False
    loss_alarm: bool = False
    goal_missed: str | None = None
    """How a standing goal is missed, where it is."""
    loss_risen: bool = False
    """The loss over the newest blocks is above what the champion's reference tolerates, alarm or not."""
    by_rank: bool = False
    """The objective is one of ranking alone."""
    loss: float | None = None
    reference_loss: float | None = None
    confined: str | None = None
    """In figures: the segment inside which the loss has risen while it holds outside; None where it does not hold there."""
    perhaps_confined: str | None = None
    """In figures: the segment that may carry a rise of the loss, which is not proved."""
    drift_level: Literal["none", "warn", "major"] | None = None
    drifting_features: tuple[str, ...] = ()
    label_rate_shift: float | None = None
    """Change of the label's mean against the reference, in reference standard errors over blocks."""
    backtest: Literal["win", "lose", "no_verdict"] | None = None
    backtest_z: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    cause: Cause
    evidence_for: tuple[str, ...]
    evidence_against: tuple[str, ...]
    alternatives: dict[str, str] = field(default_factory=dict)
    """Other causes that were looked at, and why they were not chosen."""


PRIOR_SHIFT_Z = 4.0


def diagnose(symptoms: Symptoms) -> Diagnosis:
    """The most specific cause that has evidence.

    In order: what is broken (data, server, release) explains everything downstream of it, so it is judged first;
    what changed in the world is judged only where nothing is broken.
    """
    ruled_out: dict[str, str] = {}
    for judge in (_skew, _data_fault, _label_fault, _serving_fault, _bad_release, _segment, _calibration, _world):
        found = judge(symptoms, ruled_out)
        if found is not None:
            return found
    return Diagnosis(
        cause="insufficient_evidence",
        evidence_for=(symptoms.goal_missed or f"the signal {symptoms.signal} itself",),
        evidence_against=tuple(ruled_out.values()),
        alternatives=ruled_out,
    )


def _skew(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:  # noqa: ARG001 - every judge takes them
    """What is served is not what training reads: it explains whatever else the served values show."""
    if symptoms.skew is None:
        return None
    return Diagnosis(
        cause="skew", evidence_for=(symptoms.skew, *symptoms.quality_findings), evidence_against=(),
        alternatives={
            "data_fault": "the offline values of the same rows are other ones: the source is not what changed",
            "covariate_shift_harmful": "a change of the world would show in both stores alike",
        },
    )  # fmt: skip


def _data_fault(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    if not symptoms.quality_findings:
        ruled_out["data_fault"] = "the data contract has no hard finding on the days concerned"
        return None
    against = ("no loss alarm so far; labels of these days are not due yet",) if not symptoms.loss_alarm else ()
    return Diagnosis(
        cause="data_fault",
        evidence_for=symptoms.quality_findings,
        evidence_against=against,
        alternatives={"covariate_shift_harmful": "a known unit or contract break explains the change by itself"},
    )


def _label_fault(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    """Labels that cannot be trusted: what they say of the model is no evidence about the model."""
    if symptoms.label_evidence:
        return Diagnosis(
            cause="label_fault", evidence_for=symptoms.label_evidence, evidence_against=symptoms.against_labels,
            alternatives={"concept_drift": "what changed is how outcomes are reported, as far as the data can tell"},
        )  # fmt: skip
    if symptoms.against_labels:
        ruled_out["label_fault"] = "; ".join(symptoms.against_labels)
    return None


def _calibration(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    """Ranking holds, probabilities do not: other odds for all rows alike, as far as the model is concerned."""
    if symptoms.calibration is None or symptoms.loss_alarm or symptoms.loss_risen:
        return None  # the objective does not hold
    ruled_out["concept_drift"] = "no loss alarm: the objective holds"
    return Diagnosis(
        cause="prior_shift", evidence_for=(symptoms.calibration,), evidence_against=(), alternatives=ruled_out
    )


def _serving_fault(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    broken: list[str] = []
    if symptoms.server_ready is False:
        broken.append("the champion's server does not answer its health check")
    if symptoms.error_ratio is not None and symptoms.error_ratio > MAX_ERROR_RATIO:
        broken.append(f"{symptoms.error_ratio:.1%} of the champion's answers are errors")
    if broken and not symptoms.candidate_serving:
        return Diagnosis(
            cause="serving_fault", evidence_for=tuple(broken), evidence_against=(),
            alternatives={"bad_release": "it is the champion that fails, not a candidate"},
        )  # fmt: skip
    ruled_out["serving_fault"] = (
        f"{broken[0]}, but it is younger than its bake window and its predecessor stands warm"
        if broken
        else "the champion's server is ready and its errors are below 5 %"
    )
    return None


def _bad_release(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    if symptoms.canary_failed:
        return Diagnosis(
            cause="bad_release", evidence_for=("the candidate failed its analysis under live traffic",),
            evidence_against=(), alternatives={"serving_fault": "the champion beside it is healthy"},
        )  # fmt: skip
    if symptoms.candidate_serving and (symptoms.loss_alarm or symptoms.confined is not None):
        return Diagnosis(
            cause="bad_release",
            evidence_for=(
                "the loss alarm began while a new version was taking traffic",
                *([symptoms.confined] if symptoms.confined is not None else []),
            ),
            evidence_against=(),
            alternatives={"concept_drift": "the previous version is the first remedy; drift is judged after it"},
        )
    errors = symptoms.error_ratio is not None and symptoms.error_ratio > MAX_ERROR_RATIO
    if symptoms.candidate_serving and (symptoms.server_ready is False or errors):
        return Diagnosis(
            cause="bad_release",
            evidence_for=("the server of a version younger than its bake window fails",),
            evidence_against=(),
            alternatives=dict(ruled_out),
        )
    ruled_out["bad_release"] = "no version younger than its bake window takes traffic"
    return None


def _segment(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    """The relation of inputs and label changed for some rows only, or their labels did: retraining may not be the remedy."""
    if symptoms.confined is None:
        return None
    ruled_out["concept_drift"] = "the loss holds outside the segment"
    moved = f"inputs moved: {', '.join(symptoms.drifting_features[:6])}"
    return Diagnosis(
        cause="segment_regression", evidence_for=(symptoms.confined,),
        evidence_against=(moved,) if symptoms.drift_level == "major" else (), alternatives=ruled_out,
    )  # fmt: skip


def _world(symptoms: Symptoms, ruled_out: dict[str, str]) -> Diagnosis | None:
    """Drift of the inputs, of the labels, of the relation between them, or a model that simply aged."""
    major = symptoms.drift_level == "major"
    drift = f"inputs moved: {', '.join(symptoms.drifting_features[:6])}"
    loss = (
        f"loss {symptoms.loss:.4f} against {symptoms.reference_loss:.4f}"
        if symptoms.loss is not None and symptoms.reference_loss is not None
        else "the loss detector alarmed"
    )
    won = f"the recipe fitted on newer rows beats the champion (z {symptoms.backtest_z or 0:.2f})"
    of_all_rows = symptoms.goal_missed is not None and symptoms.loss_risen and symptoms.perhaps_confined is None
    if symptoms.loss_alarm or of_all_rows:
        return _harmful(symptoms, ruled_out, loss, drift if major else None)
    if symptoms.loss_risen and symptoms.perhaps_confined is not None:
        ruled_out["concept_drift"] = (
            f"the loss has risen {symptoms.perhaps_confined}: not proved, but no rise of all rows"
        )
    elif symptoms.goal_missed is not None:
        ruled_out["concept_drift"] = "the loss is within what the champion's reference tolerates"
    if symptoms.goal_missed is not None and major:
        return Diagnosis(
            cause="covariate_shift_harmful", evidence_for=(symptoms.goal_missed, drift),
            evidence_against=(ruled_out["concept_drift"],), alternatives=ruled_out,
        )  # fmt: skip
    if symptoms.backtest == "win":
        ruled_out["concept_drift"] = "no loss alarm: the champion is as good as it was, a newer fit is better"
        cause: Cause = "covariate_shift_harmful" if major else "stale_model"
        against = () if major else ("no major drift of the inputs in the newest window",)
        return Diagnosis(
            cause=cause, evidence_for=(won, drift) if major else (won,),
            evidence_against=against, alternatives=ruled_out,
        )  # fmt: skip
    if major:
        lost = ("a newer fit does not beat the champion",) if symptoms.backtest == "lose" else ()
        return Diagnosis(
            cause="covariate_shift_harmless",
            evidence_for=(drift, "no loss alarm", *lost),
            evidence_against=() if lost else ("whether a newer fit would be better is not known yet",),
            alternatives=ruled_out,
        )
    return None


def _harmful(symptoms: Symptoms, ruled_out: dict[str, str], loss: str, drift: str | None) -> Diagnosis:
    """Why the loss is above what is healthy: as far as it can be told from the inputs and the labels."""
    shift = symptoms.label_rate_shift
    more = tuple(text for text in (symptoms.goal_missed, symptoms.calibration) if text is not None)
    against = () if symptoms.loss_alarm else ("the loss detector has not alarmed so far",)
    if drift is not None:
        ruled_out["concept_drift"] = "the inputs moved as well, which explains the loss with less"
        return Diagnosis(
            cause="covariate_shift_harmful", evidence_for=(loss, drift, *more), evidence_against=against,
            alternatives=ruled_out,
        )  # fmt: skip
    ruled_out["covariate_shift_harmful"] = "the inputs show no major drift"
    if symptoms.by_rank:
        ruled_out["prior_shift"] = (
            "other odds for all rows alike leave their ranking as it is, and the ranking is worse"
        )
    elif shift is not None and abs(shift) >= PRIOR_SHIFT_Z:
        return Diagnosis(
            cause="prior_shift", evidence_for=(loss, f"the label's mean moved by {shift:+.1f} standard errors", *more),
            evidence_against=("the inputs show no major drift", *against), alternatives=ruled_out,
        )  # fmt: skip
    else:
        ruled_out["prior_shift"] = (
            "the label's mean is where it was" if shift is not None else "the label's mean was not measured"
        )
    return Diagnosis(
        cause="concept_drift",
        evidence_for=(loss, "the relation of inputs and label changed: the inputs did not", *more),
        evidence_against=against, alternatives=ruled_out,
    )  # fmt: skip
