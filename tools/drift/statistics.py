"""Distances between two windows from their counts. They describe; what counts as drift stands in `decision`.

Counts are integer arrays of shape `(n_cells,)` over the same cells, reference first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from state.cells import NumericBins
from state.profile import FeatureCounts, Profile

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CLASSIC_FLOOR = 1e-4
"""Share that stands for an empty bin in the classic PSI."""


def shares(counts: Ints) -> Floats:
    """Counts as shares of their sum; zeros where there is nothing."""
    total = counts.sum()
    return counts / total if total else np.zeros(len(counts))


def ks(reference: Ints, current: Ints) -> float:
    """Kolmogorov-Smirnov statistic over ordered cells: at most `ks_error` below that of the raw values."""
    return float(np.abs(np.cumsum(shares(reference) - shares(current))).max(initial=0.0))


def ks_error(bins: NumericBins, reference: Ints, current: Ints) -> float:
    """Largest amount by which KS from cells can fall short: the heavier share of the fullest cell of several values."""
    if bins.transform == "exact":
        inner = np.ones(bins.n_cells, dtype=bool)
        inner[bins.n_low : bins.n_low + bins.n_interior] = False
    else:
        lower, upper = bins.bounds()
        inner = np.nextafter(lower, np.inf) < upper
    return float(np.maximum(shares(reference), shares(current))[inner].max(initial=0.0))


def total_variation(reference: Ints, current: Ints) -> float:
    """Half of the summed absolute differences of shares: the largest difference in the share of any set of cells."""
    return float(np.abs(shares(reference) - shares(current)).sum() / 2)


def js(reference: Ints, current: Ints) -> float:
    """Jensen-Shannon distance in base 2, between 0 and 1. Source: scipy.spatial.distance.jensenshannon."""
    p, q = shares(reference), shares(current)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / m), 0.0).sum()
        right = np.where(q > 0, q * np.log2(q / m), 0.0).sum()
    return float(np.sqrt(max(left + right, 0.0) / 2))


def wasserstein1(reference: Ints, current: Ints, centres: Floats) -> float:
    """Wasserstein-1 distance in the feature's unit, each cell's rows standing at its centre (ascending)."""
    gap = np.cumsum(shares(reference) - shares(current))[:-1]
    return float(np.abs(gap) @ np.diff(centres))


def psi(reference: Ints, current: Ints, *, pseudo_count: float = 0.5) -> float:
    """Population stability index: sum of (q - p) ln(q / p), each cell in use first given `pseudo_count` rows.

    Cells that are empty in both say nothing, and their rows would outweigh a window of a few real ones.
    """
    kept = (reference + current) > 0
    p, q = shares_with(reference[kept], pseudo_count), shares_with(current[kept], pseudo_count)
    used = (p > 0) & (q > 0)
    return float(((q - p)[used] * np.log(q[used] / p[used])).sum())


def psi_corrected(reference: Ints, current: Ints, *, pseudo_count: float = 0.5) -> float:
    """PSI less what two samples of one distribution show anyway, (B - 1)(1/n + 1/m) over the B cells in use."""
    n, m = int(reference.sum()), int(current.sum())
    if not n or not m:
        return 0.0
    n_used = int(((reference + current) > 0).sum())
    raw = psi(reference, current, pseudo_count=pseudo_count)
    return max(0.0, raw - (n_used - 1) * (1 / n + 1 / m))


def classic_psi(reference: Ints, current: Ints, *, n_bins: int = 10) -> float:
    """PSI over `n_bins` bins of equal reference weight, marks at 0.1 and 0.25: what most teams already know."""
    p, q = shares(reference), shares(current)
    group = np.minimum(((np.cumsum(p) - p / 2) * n_bins).astype(np.intp), n_bins - 1)
    p10 = np.maximum(np.bincount(group, weights=p, minlength=n_bins), CLASSIC_FLOOR)
    q10 = np.maximum(np.bincount(group, weights=q, minlength=n_bins), CLASSIC_FLOOR)
    return float(((q10 - p10) * np.log(q10 / p10)).sum())


def shares_with(counts: Ints, pseudo_count: float) -> Floats:
    padded = counts + pseudo_count
    total = padded.sum()
    return padded / total if total else np.zeros(len(counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChiSquare:
    statistic: float
    degrees: int
    p_value: float
    """Of independent rows. Rows of one day are not: it may inform, never trigger."""


def chi_square(reference: Ints, current: Ints) -> ChiSquare:
    """Two-sample chi-square over the cells in use. Source: scipy.stats.chi2_contingency without correction."""
    table = np.stack([reference, current]).astype(np.float64)
    table = table[:, table.sum(axis=0) > 0]
    rows, columns = table.sum(axis=1, keepdims=True), table.sum(axis=0, keepdims=True)
    if table.shape[1] < 2 or not rows.all():
        return ChiSquare(statistic=0.0, degrees=0, p_value=1.0)
    expected = rows @ columns / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    degrees = table.shape[1] - 1
    return ChiSquare(statistic=statistic, degrees=degrees, p_value=float(chdtrc(degrees, statistic)))


def quantiles(bins: NumericBins, cells: Ints, probabilities: Sequence[float]) -> tuple[Floats, Floats]:
    """Quantiles of each row of `cells` `(n_blocks, n_cells)`, and how far off each can be: `(n_blocks, n)` both.

    Linear within a cell, and the value itself where cells are exact; NaN for a block without rows. The second array is
    the distance to the farther end of the cell, infinite in the outermost ones.
    """
    lower, upper = bins.bounds()
    centres = bins.centres()
    finite = np.isfinite(lower) & np.isfinite(upper)
    low, width = np.where(finite, lower, centres), np.where(finite, upper - lower, 0.0)
    if bins.transform == "exact":
        inner = slice(bins.n_low, bins.n_low + bins.n_interior)
        low[inner], width[inner] = centres[inner], 0.0
    cumulative = np.cumsum(cells, axis=1)
    total = cumulative[:, -1]
    values = np.full((len(cells), len(probabilities)), np.nan)
    errors = np.full_like(values, np.inf)
    rows = np.flatnonzero(total)
    target = np.maximum(total[rows, None] * np.asarray(probabilities), 1e-9)
    at = (cumulative[rows, None, :] < target[:, :, None]).sum(axis=2)
    held = np.take_along_axis(cells[rows], at, axis=1)
    inside = (target - (np.take_along_axis(cumulative[rows], at, axis=1) - held)) / held
    found = low[at] + width[at] * inside
    values[rows], errors[rows] = found, np.maximum(found - lower[at], upper[at] - found)
    return values, errors


def quantile(bins: NumericBins, counts: Ints, probability: float) -> float:
    """One quantile of one window; see `quantiles`."""
    return float(quantiles(bins, counts[None], [probability])[0][0, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """One feature of two windows, for reports."""

    name: str
    type: str
    n_reference: int
    n_current: int
    psi: float
    """Classic, for the marks that people know."""
    psi_corrected: float
    js: float
    ks: float | None
    """Numeric features only, like the next two."""
    ks_error: float | None
    wasserstein1: float | None
    total_variation: float
    chi_square: ChiSquare
    missing_reference_ratio: float
    missing_current_ratio: float


def describe(reference: Profile, current: Profile) -> list[FeatureStatistics]:
    """Every feature's distances between two windows, in contract order."""
    names = reference.bins.names
    return [_describe(name, reference.feature(name), current.feature(name)) for name in names]


def _describe(name: str, reference: FeatureCounts, current: FeatureCounts) -> FeatureStatistics:
    bins = reference.bins
    p, q = reference.cells.sum(axis=0), current.cells.sum(axis=0)
    numeric = isinstance(bins, NumericBins)
    return FeatureStatistics(
        name=name,
        type=bins.type,
        n_reference=int(reference.n_valid.sum()),
        n_current=int(current.n_valid.sum()),
        psi=classic_psi(p, q) if numeric else psi(p, q),
        psi_corrected=psi_corrected(p, q),
        js=js(p, q),
        ks=ks(p, q) if numeric else None,
        ks_error=ks_error(bins, p, q) if isinstance(bins, NumericBins) else None,
        wasserstein1=wasserstein1(p, q, bins.centres()) if isinstance(bins, NumericBins) else None,
        total_variation=total_variation(p, q),
        chi_square=chi_square(p, q),
        missing_reference_ratio=_missing_ratio(reference),
        missing_current_ratio=_missing_ratio(current),
    )


def _missing_ratio(feature: FeatureCounts) -> float:
    n_rows = int(feature.n_rows.sum())
    return 1 - int(feature.n_valid.sum()) / n_rows if n_rows else 0.0
