"""Comparing two models: paired on the same rows, or randomised in two arms. Blocks, never rows, are the units."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, stdtr, stdtrit

from tools.drift.longrun import long_run_error

PairedVerdict: TypeAlias = Literal["win", "lose", "no_verdict"]
ABVerdict: TypeAlias = Literal["better", "worse", "equivalent", "undecided"]
_Z_LIMIT = 1e6
"""Stands for an infinite z where every block differs by the same amount: stored numbers are finite."""
_PRIOR_ENTITIES = 200.0
"""Weight of the alternative in the sample-ratio test: deviations of some points are found soonest."""
WIN_Z_BLOCKS = 28
"""The number of blocks that a `win_z` is said for: the one at which its value was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two models on the same rows of the same blocks."""

    n_blocks: int
    mean_difference: float
    """Champion's loss minus challenger's: positive where the challenger is better."""
    se: float
    """Robust to autocorrelation and never below that of independent blocks; 0 where it cannot be known."""
    z: float
    needed_z: float | None
    """The smallest z that wins over this many blocks; None where there are too few for a verdict."""
    needed_difference: float
    """The smallest mean difference that wins, in the unit of the loss."""
    verdict: PairedVerdict


def needed_z(win_z: float, n_blocks: int) -> float:
    """The z that wins over `n_blocks` blocks (two at least), where `win_z` is what 28 blocks need.

    The error is estimated from the blocks themselves, so a few of them reach a high z by chance: below 28 the bound is the
    quantile of Student's t with n - 1 degrees of freedom at the tail that `win_z` has with 27. Above 28 it stays
    `win_z`: the quantile would fall to 2.70 at 56, but blocks hang together, and 2.8 is what was measured.
    Wins between equal models, of independent blocks and of AR(1) with rho .3 (`python -m tests.tools.false_wins`):
    7 blocks 1.6 and 4.3 % at a fixed 2.8, .5 and 1.8 % at this bound (3.77); 10 blocks .9 and 3.2 %, .4 and 1.8 % (3.29);
    14 blocks .7 and 2.4 %, .4 and 1.7 % (3.05); 28 blocks .4 and 1.7 %.
    """
    if n_blocks >= WIN_Z_BLOCKS:
        return win_z
    return -float(stdtrit(n_blocks - 1, stdtr(WIN_Z_BLOCKS - 1, -win_z)))


def paired_comparison(
    champion_losses: Sequence[float],
    challenger_losses: Sequence[float],
    *,
    win_z: float = 2.8,
    min_blocks: int = 7,
    min_gain: float = 0.0,
) -> Paired:
    """Whether the challenger's loss is lower, from block losses of both on the same blocks, in order of time.

    `win` at a z of at least `needed_z`, which is `win_z` from 28 blocks on and more with fewer, and a mean difference of
    at least `min_gain` of the champion's mean loss; else `lose`; `no_verdict` with fewer than `min_blocks` blocks.
    Raises ValueError where the lengths differ or a loss is not finite.

    Source: the dual criterion of Roychoudhury, Scheuer, Neuenschwander, Beyond p-values (2018): significance, and an
    estimate that is worth it.
    """
    differences = _differences(champion_losses, challenger_losses)
    n_blocks = len(differences)
    least = min_gain * abs(float(np.mean(champion_losses))) if n_blocks else 0.0
    if n_blocks < 2:
        mean = float(differences[0]) if n_blocks else 0.0
        return Paired(
            n_blocks=n_blocks, mean_difference=mean, se=0.0, z=0.0, needed_z=None, needed_difference=least,
            verdict="no_verdict",
        )  # fmt: skip
    mean, error = float(differences.mean()), long_run_error(differences)
    z = _ratio(mean, error)
    needed = needed_z(win_z, n_blocks) if n_blocks >= min_blocks else None
    won = needed is not None and z >= needed and mean >= least
    verdict: PairedVerdict = "no_verdict" if needed is None else "win" if won else "lose"
    return Paired(
        n_blocks=n_blocks, mean_difference=mean, se=error, z=z, needed_z=needed, needed_difference=least, verdict=verdict
    )  # fmt: skip


def not_worse(paired: Paired, margin: float, *, alpha: float = 0.05) -> bool:
    """Whether the challenger's loss is above the champion's by less than `margin`: the one-sided bound of the paired
    difference, by Student's t over its blocks, lies within it. False with fewer than two blocks."""
    if paired.n_blocks < 2:
        return False
    return paired.mean_difference - float(stdtrit(paired.n_blocks - 1, 1 - alpha)) * paired.se > -margin


@dataclass(frozen=True, slots=True, kw_only=True)
class ABResult:
    n_blocks: int
    difference: float
    """Mean of champion's loss minus challenger's over the blocks: positive where the challenger is better."""
    low: float | None
    """Always-valid bounds of the difference; None while there are too few blocks for any."""
    high: float | None
    verdict: ABVerdict
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTest:
    """The rule of a two-arm test. Stateless: judge all blocks so far as often as you like.

    `margin` is the harm, in the unit of the loss, that is declared to be none. `horizon_blocks` tunes where the bounds
    are tightest; it does not limit their validity.
    """

    margin: float
    minimum_samples: int = 1_000
    """Labelled rows of the smaller arm before any verdict but `undecided`."""
    min_blocks: int = 7
    alpha: float = 0.05
    horizon_blocks: int = 28

    def judge(
        self, champion_losses: Sequence[float], challenger_losses: Sequence[float], *, n_samples: int
    ) -> ABResult:
        """The verdict on block losses of both arms over the same blocks, in order of time.

        better: the bounds are above 0. equivalent: they lie within the margin. worse: they are below 0 and not within
        the margin. `n_samples` counts the labelled rows of the smaller arm. Raises ValueError where the lengths
        differ or a loss is not finite.
        """
        differences = _differences(champion_losses, challenger_losses)
        n_blocks = len(differences)
        mean = float(differences.mean()) if n_blocks else 0.0
        radius = confidence_radius(differences, alpha=self.alpha, horizon_blocks=self.horizon_blocks)
        low, high = (None, None) if math.isinf(radius) else (mean - radius, mean + radius)
        verdict, reason = self._verdict(low, high, n_blocks, n_samples)
        return ABResult(n_blocks=n_blocks, difference=mean, low=low, high=high, verdict=verdict, reason=reason)

    def _verdict(self, low: float | None, high: float | None, n_blocks: int, n_samples: int) -> tuple[ABVerdict, str]:
        if n_samples < self.minimum_samples:
            return "undecided", f"{n_samples} labelled rows in the smaller arm, {self.minimum_samples} needed"
        if n_blocks < self.min_blocks or low is None or high is None:
            return "undecided", f"{n_blocks} blocks, {self.min_blocks} needed"
        bounds = f"difference between {low:.4g} and {high:.4g}"
        if low > 0:
            return "better", f"{bounds}: above 0"
        if -self.margin < low and high < self.margin:
            return "equivalent", f"{bounds}: within the margin of {self.margin:.4g}"
        if high < 0:
            return "worse", f"{bounds}: below 0"
        return "undecided", f"{bounds}: open"


def ab_test(
    champion_losses: Sequence[float],
    challenger_losses: Sequence[float],
    *,
    n_samples: int,
    margin: float,
    minimum_samples: int = 1_000,
    min_blocks: int = 7,
    alpha: float = 0.05,
    horizon_blocks: int = 28,
) -> ABResult:
    """`ABTest(...).judge(...)` in one call."""
    rule = ABTest(
        margin=margin, minimum_samples=minimum_samples, min_blocks=min_blocks, alpha=alpha,
        horizon_blocks=horizon_blocks,
    )  # fmt: skip
    return rule.judge(champion_losses, challenger_losses, n_samples=n_samples)


def confidence_radius(differences: npt.NDArray[np.float64], *, alpha: float = 0.05, horizon_blocks: int = 28) -> float:
    """Half-width of an always-valid confidence sequence for the mean of block differences; infinite where too few.

    Exact under optional stopping for Gaussian blocks of unknown variance, which matters with a few dozen blocks where
    an asymptotic sequence is too narrow; the standard error is the one robust to autocorrelation.

    Source: Wang and Ramdas, Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance
    (2024): right Haar prior on the scale, effect ~ N(0, g); g from Waudby-Smith et al., Time-uniform central limit
    theory (2024), eq. 24, for `horizon_blocks`.
    """
    n = len(differences)
    if n < 2:
        return math.inf
    spread = -2 * math.log(alpha)
    g = (spread + math.log(spread + 1)) / horizon_blocks
    growth = 1 + n * g
    ratio = (math.sqrt(growth) / alpha) ** (2 / n)
    if ratio >= growth:
        return math.inf
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / growth)) * long_run_error(differences)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRatio:
    observed_ratio: float
    """Share of the entities that the challenger's arm holds."""
    expected_ratio: float
    p_value: float
    """Always valid: may be looked at every day."""
    ok: bool


def sample_ratio_check(
    n_challenger: int, n_champion: int, expected_ratio: float, *, alpha: float = 0.001
) -> SampleRatio:
    """Whether the arms hold the share of *distinct entities* that was asked for; rows would alarm falsely, because
    entities send unequal numbers of them.

    Source: beta-binomial e-value, the two-arm case of Lindon and Malek, Anytime-valid inference for multinomial count
    data (2022); p = min(1, 1/e). Raises ValueError unless 0 < expected_ratio < 1.
    """
    if not 0 < expected_ratio < 1:
        raise ValueError(f"expected_ratio is {expected_ratio}: a test has two arms, so it lies between 0 and 1")
    total = n_challenger + n_champion
    a, b = expected_ratio * _PRIOR_ENTITIES, (1 - expected_ratio) * _PRIOR_ENTITIES
    log_e = float(betaln(a + n_challenger, b + n_champion) - betaln(a, b))
    log_e -= n_challenger * math.log(expected_ratio) + n_champion * math.log1p(-expected_ratio)
    p_value = math.exp(-max(log_e, 0.0))
    return SampleRatio(
        observed_ratio=n_challenger / total if total else expected_ratio,
        expected_ratio=expected_ratio,
        p_value=p_value,
        ok=p_value > alpha,
    )


def assign(entity_id: str, weights: Mapping[str, float], *, key: str) -> str:
    """The arm of an entity: stable across processes and machines, in proportion to `weights`, and moving as few
    entities as possible when a weight changes. `key` makes assignments of two tests independent.

    Source: weighted rendezvous hashing, the largest of -weight / ln(u); `weight * u` gives 5.6 % where 10 % is asked.
    Raises ValueError where no weight is positive.
    """
    positive = {arm: weight for arm, weight in weights.items() if weight > 0}
    if not positive:
        raise ValueError("no arm has a positive weight")
    return max(sorted(positive), key=lambda arm: -positive[arm] / math.log(_uniform(key, arm, entity_id)))


def _uniform(key: str, arm: str, entity_id: str) -> float:
    """A number in (0, 1) from the keyed hash of an arm and an entity."""
    secret = hashlib.blake2b(key.encode(), digest_size=32).digest()
    message = f"{len(arm)}:{arm}{entity_id}".encode()
    value = int.from_bytes(hashlib.blake2b(message, digest_size=8, key=secret).digest(), "big")
    return ((value >> 12) + 0.5) / 2**52


def _differences(champion: Sequence[float], challenger: Sequence[float]) -> npt.NDArray[np.float64]:
    if len(champion) != len(challenger):
        raise ValueError(f"{len(champion)} losses of the champion and {len(challenger)} of the challenger")
    differences = np.asarray(champion, dtype=np.float64) - np.asarray(challenger, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("a block loss is not finite")
    return differences


def _ratio(mean: float, error: float) -> float:
    if abs(mean) < 1e-12:  # rounding of two equal models, whose error is rounding too
        return 0.0
    if error > 0:
        return max(-_Z_LIMIT, min(_Z_LIMIT, mean / error))
    return math.copysign(_Z_LIMIT, mean)
