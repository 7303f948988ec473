"""Whether outcomes changed as broken labels change them: evidence from reliability by block, for and against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtr

from tools.drift.longrun import long_run_error

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Hypothesis: TypeAlias = Literal["flip", "lost", "gained", "prior", "fade"]

EDGES: Floats = expit(np.linspace(-6.0, 6.0, 33))
"""Scores are counted between these: equal steps of log odds, fine enough that a cell's scores are alike."""
N_CELLS = len(EDGES) + 1
MIN_ROWS = 20
"""Labelled rows of a block that say anything about its reliability."""
MIN_REFERENCE = 10
"""Blocks from which the block-to-block variation can be told."""
RATE_FLOOR = 0.05
"""Relative change of the label rate that is no news."""
SLOPE_FLOOR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """Labelled rows and labels of class 1 of one block, by score cell."""

    block: str
    n: Ints
    y: Ints

    @classmethod
    def of(cls, block: str, label: npt.ArrayLike, score: npt.ArrayLike) -> LabelCounts:
        """Count the rows of a binary task; rows without a finite score are left out."""
        scores, labels = np.asarray(score, dtype=np.float64), np.asarray(label, dtype=np.float64)
        known = np.isfinite(scores) & np.isfinite(labels)
        cell = np.searchsorted(EDGES, scores[known], side="right")
        n = np.bincount(cell, minlength=N_CELLS)
        y = np.bincount(cell[labels[known] >= 0.5], minlength=N_CELLS)
        return cls(block=block, n=n.astype(np.int64), y=y.astype(np.int64))

    @classmethod
    def from_cells(cls, block: str, cells: Sequence[Sequence[int]]) -> LabelCounts:
        """What `cells` wrote down."""
        n, y = np.zeros((2, N_CELLS), dtype=np.int64)
        for cell, rows, positive in cells:
            n[cell], y[cell] = rows, positive
        return cls(block=block, n=n, y=y)

    def cells(self) -> list[list[int]]:
        """[cell, rows, labels of class 1] of the cells that hold any, as JSON."""
        return [[int(cell), int(self.n[cell]), int(self.y[cell])] for cell in np.flatnonzero(self.n)]

    @property
    def n_rows(self) -> int:
        return int(self.n.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A block's labels against the reference curve: a straight line through its cells."""

    block: str
    rate: float
    """Mean label less what the curve expects of these scores."""
    slope: float
    """Slope of the label on the curve, less 1."""
    n_rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelReference:
    """How labels went with scores while all was well, and how much that varies from block to block."""

    curve: Floats
    """P(label 1) by score cell; shape `(N_CELLS,)`."""
    weights: Floats
    """Share of the rows by score cell."""
    shifts: tuple[Shift, ...]
    covariance: Floats
    """Of one block's (rate, slope), scaled up where blocks hang together; shape `(2, 2)`."""

    @property
    def mean(self) -> float:
        """The label's mean."""
        return float(self.weights @ self.curve)

    def weight(self, shift: Shift) -> float:
        """What a block counts for: less than one where it has fewer rows than the reference's, as half of an A/B has."""
        return min(1.0, shift.n_rows / self._usual_rows)

    @cached_property
    def _usual_rows(self) -> float:
        return float(np.median([known.n_rows for known in self.shifts]))

    @cached_property
    def centre(self) -> Floats:
        """Mean (rate, slope) of the reference's own blocks: the pooled curve is steeper than theirs."""
        pairs = np.array([[shift.rate, shift.slope] for shift in self.shifts])
        return np.asarray(pairs.mean(axis=0))

    @property
    def freedom(self) -> int:
        return len(self.shifts) - 2


def reference_of(blocks: Sequence[LabelCounts]) -> LabelReference | None:
    """The reference of `blocks`, oldest first; None where too few of them have enough labelled rows of both classes."""
    used = [block for block in blocks if block.n_rows >= MIN_ROWS]
    if len(used) < MIN_REFERENCE:
        return None
    n, y = np.sum([block.n for block in used], axis=0), np.sum([block.y for block in used], axis=0)
    if not 0 < y.sum() < n.sum():
        return None
    curve = _isotonic(n.astype(np.float64), y.astype(np.float64))
    shifts = [shift for block in used if (shift := shift_of(block, curve)) is not None]
    if len(shifts) < MIN_REFERENCE:
        return None
    pairs = np.array([[shift.rate, shift.slope] for shift in shifts])
    # Sums of blocks that hang together vary more than their rows' or even their blocks' variance says.
    scale = np.array([
        long_run_error(column) / max(float(column.std(ddof=1)) / math.sqrt(len(column)), 1e-12) for column in pairs.T
    ])  # fmt: skip
    floor = np.array([RATE_FLOOR * float(y.sum() / n.sum()), SLOPE_FLOOR]) / 2
    covariance = np.cov(pairs.T) * np.outer(scale, scale) + np.diag(floor**2)
    return LabelReference(curve=curve, weights=n / n.sum(), shifts=tuple(shifts), covariance=covariance)


def shift_of(counts: LabelCounts, curve: Floats) -> Shift | None:
    """The block's shift; None where it has too few rows, or scores that do not differ."""
    total = float(counts.n.sum())
    if total < MIN_ROWS:
        return None
    weights = counts.n / total
    rate, slope = (float(part) for part in _line(weights, counts.y / np.maximum(counts.n, 1), curve))
    if not math.isfinite(slope):
        return None
    return Shift(block=counts.block, rate=rate, slope=slope, n_rows=counts.n_rows)


def _line(weights: Floats, label: Floats, curve: Floats) -> tuple[Floats, Floats]:
    """(rate, slope) of labels by cell on the curve, by weighted least squares; `label` may hold several sets of them."""
    centre = float(weights @ curve)
    spread = float(weights @ (curve - centre) ** 2)
    rate = np.asarray(label @ weights - centre)
    slope = np.asarray(
        ((curve - centre) * label) @ weights / spread - 1 if spread > 1e-8 else np.full(rate.shape, math.nan)
    )
    return rate, slope


def _isotonic(n: Floats, y: Floats) -> Floats:
    """Means by cell that never fall with the score (pool adjacent violators); empty cells are interpolated."""
    filled = np.flatnonzero(n)
    groups: list[list[float]] = []  # rows, labels, cells
    for cell in filled:
        groups.append([n[cell], y[cell], 1])
        while len(groups) > 1 and groups[-2][1] * groups[-1][0] >= groups[-1][1] * groups[-2][0]:
            last = groups.pop()
            groups[-1] = [a + b for a, b in zip(groups[-1], last, strict=True)]
    # Half a row of doubt keeps the odds of a cell without a single label finite.
    means = np.repeat([(g[1] + 0.5) / (g[0] + 1.0) for g in groups], [int(g[2]) for g in groups])
    return np.asarray(np.interp(np.arange(len(n)), filled, means), dtype=np.float64)


STEP = 2.5
"""Size, in block standard deviations, from which single blocks show a change: below it a step looks like a drift."""
CERTAIN = 4.0
"""Size times the square root of the number of blocks from which there is a change at all."""
RAMP = 2.5
"""z of the difference of the window's halves from which the change came gradually."""
MAX_WINDOW = 28
_RATIOS: Floats = np.linspace(0.02, 1.0, 50)
_LOGITS: Floats = np.concatenate([np.linspace(-6.0, -0.05, 60), np.linspace(0.05, 6.0, 60)])
_BROKEN: dict[Hypothesis, Callable[[Floats, Floats], Floats]] = {
    "flip": lambda p, e: p + e * (1 - 2 * p),
    "lost": lambda p, e: (1 - e) * p,
    "gained": lambda p, e: p + e * (1 - p),
}
"""What E[label] becomes of P(class 1) where a share of the labels is wrong, whatever the row: straight lines.

Source: class-conditional noise, Natarajan, Dhillon, Ravikumar, Tewari, Learning with Noisy Labels (2013).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well one explanation fits the change."""

    hypothesis: Hypothesis
    """`flip`: both classes alike; `lost`: 1 becomes 0; `gained`: 0 becomes 1; `prior`: other odds for all; `fade`: the
    scores say less, at the same label rate."""
    strength: float
    """Share of wrong labels among those that can be wrong; change of the log odds; share of the slope that is gone."""
    p_value: float

    @property
    def kept(self) -> float:
        """Of a fault of the labels: what is left of how a label depends on anything; negative where it is turned round."""
        return 1 - 2 * self.strength if self.hypothesis == "flip" else 1 - self.strength


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The labels' departure from the reference, and what explains it."""

    since: str
    """First block of it."""
    n_blocks: int
    rate: float
    slope: float
    size: float
    """In standard deviations of one block."""
    ramp: float | None
    """z of the newer half of its blocks against the older one; None with fewer than four."""
    fits: tuple[Fit, ...]
    """The best first."""

    @property
    def is_visible(self) -> bool:
        """Whether single blocks show it."""
        return self.size >= STEP

    @property
    def is_step(self) -> bool:
        """Whether single blocks show it, and the older half of them no less than the newer one."""
        return self.is_visible and (self.ramp is None or self.ramp < RAMP)

    def best(self, *hypotheses: Hypothesis) -> Fit:
        """The most likely of these explanations."""
        return next(fit for fit in self.fits if fit.hypothesis in hypotheses)

    def p_value(self, *hypotheses: Hypothesis) -> float:
        """The largest of these explanations."""
        return self.best(*hypotheses).p_value


def find_change(reference: LabelReference, blocks: Sequence[LabelCounts]) -> Change | None:
    """The change that the newest blocks show against the reference; None where there is none.

    `blocks` are labelled blocks of the same version after the reference, oldest first. Significance is that of the
    block-to-block variation of the reference, never of rows.
    """
    shifts = [shift for block in blocks[-MAX_WINDOW:] if (shift := shift_of(block, reference.curve)) is not None]
    if not shifts:
        return None
    moved = np.array([[shift.rate, shift.slope] for shift in shifts]) - reference.centre
    inverse = np.linalg.inv(reference.covariance)
    weights = np.array([reference.weight(shift) for shift in shifts])
    counts = np.cumsum(weights[::-1])[::-1]
    means = np.cumsum((weights[:, None] * moved)[::-1], axis=0)[::-1] / counts[:, None]
    sizes = np.sqrt(np.einsum("ti,ij,tj->t", means, inverse, means))
    first = int(np.argmax(counts * sizes**2))
    size, n = float(sizes[first]), float(counts[first])
    if size * math.sqrt(n) < CERTAIN:
        return None
    along = np.sqrt(weights[first:]) * (moved[first:] @ inverse @ means[first] / size)
    return Change(
        since=shifts[first].block, n_blocks=len(moved) - first, rate=float(means[first, 0]),
        slope=float(means[first, 1]), size=size, ramp=_ramp(along), fits=_fits(reference, means[first], n),
    )  # fmt: skip


def is_like(reference: LabelReference, rate: float, slope: float, block: LabelCounts) -> bool:
    """Whether a block is nearer to a change of (rate, slope) than to the reference; False where it cannot say."""
    shift = shift_of(block, reference.curve)
    if shift is None:
        return False
    inverse = np.linalg.inv(reference.covariance)
    change = np.array([rate, slope])
    moved = np.array([shift.rate, shift.slope]) - reference.centre
    return bool(moved @ inverse @ change >= change @ inverse @ change / 2)


def distance(reference: LabelReference, one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of two changes of (rate, slope), in standard deviations of one block."""
    gap = np.subtract(one, other)
    return math.sqrt(float(gap @ np.linalg.inv(reference.covariance) @ gap))


def _ramp(along: Floats) -> float | None:
    half = len(along) // 2
    if half < 2:
        return None
    return float(along[-half:].mean() - along[:half].mean()) / math.sqrt(2 / half)


def _fits(reference: LabelReference, moved: Floats, n_blocks: float) -> tuple[Fit, ...]:
    weights, curve = reference.weights, reference.curve
    mean, centre = reference.mean, reference.centre
    # What a block's own line expects: the pooled curve is steeper, for it holds the days' differences as well.
    usual = np.clip(mean + centre[0] + (1 + centre[1]) * (curve - mean), 1e-6, 1 - 1e-6)
    base = np.array(_line(weights, usual, curve))
    error = reference.covariance * (1 / n_blocks + 1 / len(reference.shifts))
    inverse = np.linalg.inv(error)
    # All of them flipped turns the scores round: somebody swapped the classes.
    strengths: dict[Hypothesis, Floats] = dict.fromkeys(_BROKEN, _RATIOS)
    curves: dict[Hypothesis, Floats] = {
        name: broken(usual, strengths[name][:, None]) for name, broken in _BROKEN.items()
    }
    strengths |= {"prior": _LOGITS, "fade": _RATIOS}
    level = float(weights @ usual)
    curves["prior"] = expit(logit(usual) + _LOGITS[:, None])
    curves["fade"] = level + (1 - _RATIOS[:, None]) * (usual - level)
    found = []
    for name, new in curves.items():
        gaps = moved - (np.stack(_line(weights, new, curve), axis=1) - base)
        distances = np.einsum("ti,ij,tj->t", gaps, inverse, gaps)
        best = int(np.argmin(distances))
        # The variation is that of few blocks: Student's t rather than the normal law.
        p = 2 * float(stdtr(reference.freedom, -math.sqrt(float(distances[best]))))
        found.append(Fit(hypothesis=name, strength=float(strengths[name][best]), p_value=p))
    return tuple(sorted(found, key=lambda fit: -fit.p_value))
