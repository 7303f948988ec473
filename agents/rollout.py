"""The rollout as a state machine on observed weights: pure functions, one judgement each.

The body of a rollout row: `step` (index of the analysis step in force, -1 before the first), `weight` (the candidate's
percent), `since` (domain time of the last weight change, moved on by the time in which nobody looked; of an A/B test
`paused` holds that time), `samples` (service counters at that change, by version),
`baseline` (the champion's last healthy window), `ab` (start and last verdict of the A/B test), `waived` (an approver let the
candidate onto the canary without its gates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from state.spec import ModelSpec
from tools.metrics import ServiceWindow

Verdict = Literal["pass", "fail", "no_data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Verdict on the service metrics of one version against another over one window."""

    verdict: Verdict
    reasons: tuple[str, ...]
    candidate: ServiceWindow | None
    stable: ServiceWindow | None

    gross: bool = False
    """So bad that no second window is needed."""

    def details(self) -> dict[str, Any]:
        return {
            "candidate": window_json(self.candidate),
            "stable": window_json(self.stable),
            "reasons": list(self.reasons),
        }


GROSS = 10
"""An excess of errors this many times the admissible one takes a candidate off at once."""


def failures_after(spec: ModelSpec, body: dict[str, Any], analysis: Analysis) -> int | None:
    """Consecutive failing windows with this one; None where they have reached the limit.

    One window is no proof: on a shared machine the slowest percent of one busy minute says little about a model.
    """
    failures = int(body.get("failures", 0)) + 1
    return None if analysis.gross or failures >= spec.rollout.failure_limit else failures


def steps(spec: ModelSpec) -> list[int]:
    """Analysis steps, clamped to the declared maximum share; a clamped duplicate falls away."""
    clamped = [min(step, spec.rollout.max_percent) for step in spec.rollout.steps if step > 0]
    return sorted(set(clamped))


def next_step(spec: ModelSpec, step: int) -> int | None:
    """Percent of the step after index `step`; None where the canary has walked them all."""
    walked = steps(spec)
    return walked[step + 1] if step + 1 < len(walked) else None


def dwell_ends(spec: ModelSpec, since: datetime) -> datetime:
    return since + spec.rollout.dwell


def paused(body: dict[str, Any]) -> timedelta:
    """How long nobody looked after the A/B test that is under way: its horizon is later by that."""
    known = body.get("paused")
    return timedelta(seconds=known["seconds"]) if known and known["since"] == body.get("since") else timedelta(0)


def analyse(spec: ModelSpec, *, candidate: ServiceWindow | None, stable: ServiceWindow | None) -> Analysis:
    """Compare the candidate's service metrics with the champion's over the same window.

    No data is neither a pass nor a failure, and a number that is none is no data. A candidate that answers nothing but
    errors is judged even where the champion had no traffic.
    """
    bounds = spec.rollout

    def no_data(reason: str) -> Analysis:
        return Analysis(verdict="no_data", reasons=(reason,), candidate=candidate, stable=stable)

    if candidate is None or candidate.n_requests < bounds.minimum_requests:
        seen = 0 if candidate is None else candidate.n_requests
        return no_data(f"the candidate answered {seen} of the {bounds.minimum_requests} requests that a verdict needs")
    if _spoilt(candidate) or (stable is not None and _spoilt(stable)):
        return no_data("a service metric is not a number")
    reasons: list[str] = []
    stable_errors = stable.error_ratio if stable is not None and stable.n_requests else 0.0
    if candidate.error_ratio > stable_errors + bounds.max_error_ratio:
        reasons.append(
            f"error ratio {candidate.error_ratio:.4f} against {stable_errors:.4f}, "
            f"more than {bounds.max_error_ratio:.4f} above"
        )
    if (
        stable is not None
        and stable.p99_ms is not None
        and candidate.p99_ms is not None
        and stable.n_requests >= bounds.minimum_requests
    ):
        limit = max(bounds.latency_floor_ms, stable.p99_ms * bounds.max_latency_ratio)
        if candidate.p99_ms > limit:
            reasons.append(
                f"p99 {candidate.p99_ms:.1f} ms against {stable.p99_ms:.1f} ms, above the limit of {limit:.1f} ms"
            )
    elif not reasons:
        return no_data("the champion answered too few requests to compare latency with")
    return Analysis(
        verdict="fail" if reasons else "pass",
        reasons=tuple(reasons),
        candidate=candidate,
        stable=stable,
        gross=candidate.error_ratio > stable_errors + GROSS * bounds.max_error_ratio,
    )


def _spoilt(window: ServiceWindow) -> bool:
    return any(math.isnan(value) for value in (window.error_ratio, window.p50_ms or 0.0, window.p99_ms or 0.0))


def foreign_edit(
    *, expected: dict[str, int], observed: dict[str, int], judged: str | None, against: str | None
) -> Literal["none", "raised", "lowered"]:
    """What somebody else did to the route, whose shares were last written as `expected`.

    One principle for every phase. A version that is being `judged` (the candidate, or the new champion in its bake
    window) may be `lowered` by a person in favour of the one that it is held `against`: whoever takes traffic off it is
    right until told otherwise. Every other edit is `raised`: some version gets a share that nobody judged it worth, be
    it the candidate, an old version or an unknown one, and the written split comes back. Without a rollout nothing is
    being judged, so every edit that moves traffic off the champion is one of these: who wants that states a goal. Where
    both happen, the lowering counts.
    """
    versions = {*expected, *observed}
    gained = {version: observed.get(version, 0) - expected.get(version, 0) for version in versions}
    if not any(gained.values()):
        return "none"
    lowered = judged is not None and gained.get(judged, 0) < 0 and gained.get(str(against), 0) > 0
    return "lowered" if lowered else "raised"


def put_back(*, expected: dict[str, int], observed: dict[str, int]) -> tuple[str, dict[str, int]] | None:
    """The version that has most more than its share, and the weights that undo it; None where a destination is gone."""
    if any(weight and version not in observed for version, weight in expected.items()):
        return None
    weights = {version: expected.get(version, 0) for version in observed}
    return max(observed, key=lambda version: (observed[version] - weights[version], version)), weights


def window_json(window: ServiceWindow | None) -> dict[str, Any] | None:
    if window is None:
        return None
    return {
        "n_requests": window.n_requests,
        "error_ratio": round(window.error_ratio, 6),
        "p50_ms": window.p50_ms,
        "p99_ms": window.p99_ms,
    }
