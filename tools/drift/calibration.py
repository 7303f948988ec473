"""Loss of calibration: probabilities that are off by more than the tolerated loss, whatever the ranking does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tools.drift.labels import LabelCounts, LabelReference, shift_of
from tools.drift.performance import EDetector, Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerated:
    """The largest shifts of labels against scores that cost no more than the tolerated loss."""

    rate: float
    slope: float


def tolerated(reference: LabelReference, tolerance: float) -> Tolerated:
    """Shifts that raise the mean log loss by `tolerance` (relative), to the second order.

    A shift of all odds by d costs d^2 / 2 * E[p (1 - p)] and moves the rate by d * E[p (1 - p)]; a slope that is off by
    s costs s^2 / 2 * E[(p - mean)^2 / (p (1 - p))].
    """
    p, weights = reference.curve, reference.weights
    variance = p * (1 - p)
    allowed = 2 * tolerance * float(weights @ -(p * np.log(p) + (1 - p) * np.log(1 - p)))
    spread = float(weights @ ((p - reference.mean) ** 2 / variance))
    return Tolerated(
        rate=math.sqrt(allowed * float(weights @ variance)), slope=math.sqrt(allowed / max(spread, 1e-12))
    )  # fmt: skip


Departure = Literal["more", "fewer", "flatter"]


def calibration_alarms(
    reference: LabelReference, blocks: Sequence[LabelCounts], *, tolerance: float, false_alarm_blocks: float
) -> tuple[Departure, ...]:
    """Which departures of the labels from the scores an e-detector over `blocks` alarms for, oldest block first.

    `more` or `fewer` labels of class 1 than the scores say, or a `flatter` curve. P(any false alarm by block t) is at
    most t / (2 `false_alarm_blocks`).
    """
    limit = tolerated(reference, tolerance)
    centre = reference.centre
    sd = np.sqrt(np.diag(reference.covariance))
    n = len(reference.shifts)
    null = np.maximum([limit.rate, limit.slope], 2 * sd / math.sqrt(n))
    # A block of fewer rows than the reference's varies more: it is scaled to vary as they do, at the most.
    shifts = [shift for block in blocks if (shift := shift_of(block, reference.curve)) is not None]
    scale = np.sqrt([reference.weight(shift) for shift in shifts])
    moved = scale[:, None] * (np.array([[shift.rate, shift.slope] for shift in shifts]).reshape(-1, 2) - centre)
    found: list[Departure] = []
    watched: tuple[tuple[Departure, int, float], ...] = (("more", 0, 1.0), ("fewer", 0, -1.0), ("flatter", 1, -1.0))
    for name, at, sign in watched:
        healthy = Reference(mean=0.0, sd=float(sd[at]), n=n, null=float(null[at]))
        detector = EDetector(reference=healthy, false_alarm_blocks=2 * len(watched) * false_alarm_blocks)
        for pair in moved:
            detector.update(sign * float(pair[at]))
        if detector.alarm:
            found.append(name)
    return tuple(found)
