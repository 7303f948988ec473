"""What the flights study found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    auc: dict[int, float]
    """By month."""
    daily_loss: float
    """The objective's loss, mean over days."""
    share: float
    """Of always-retrain's gain over the frozen model."""
    promotions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    now: datetime
    start: datetime
    end: datetime
    n_blocks: int
    difference: float
    """Champion's loss minus the challenger's."""
    se: float
    z: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftLook:
    reference: str
    current: str
    level: str
    alpha: float
    classic: int
    """Features that PSI > .25, or a row-wise test at 5 %, would call drifted."""
    n_features: int
    block_days: int
    moved: dict[str, float]
    """Feature and kind -> statistic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    reference: float
    null: float
    sd: float
    n_blocks: int
    threshold: float
    """Natural logarithm of the e-value that alarms."""
    path: dict[str, float]
    """Day -> log e-value."""
    alarm: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    n_days: int
    hard: dict[str, list[str]]
    """Day -> findings that would quarantine it."""
    warned: dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsMonth:
    month: int
    n_rows: int
    n_days: int
    gain: float
    """Mean over days of the champion's loss minus the challenger's, on the same rows."""
    auc_gain: float
    """AUC over the whole month's rows."""
    se_paired: float
    gain_two_arms: float
    se_two_arms: float
    days_won: float
    start: datetime | None = None
    verdict: str = ""
    """Of the always-valid test of the two arms at its horizon; empty where none was run."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    policies: dict[str, Policy]
    """`frozen`, `always`, `rule` (switched at once) and `rolled_out`."""
    backtests: list[Backtest]
    rolled_out: list[Backtest]
    odd_even: DriftLook
    drift: list[DriftLook]
    detector: Detector
    quality: Quality
    quality_fault: Quality
    arms: list[ArmsMonth]
    adoptions: list[ArmsMonth]
    n_rows: int
    n_labelled: int
