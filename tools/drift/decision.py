"""Level L1, input drift: real against the day-to-day variation, corrected over features, and large enough to matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, kolmogorov, ndtr

from state.cells import LevelBins, NumericBins, TextBins
from state.profile import FeatureCounts, Profile
from tools.drift.permutation import MIN_UNITS, choose_length, deal, step_down_max_t, units, weekdays

Floats: TypeAlias = npt.NDArray[np.float64]
Level: TypeAlias = Literal["none", "warn", "major"]
Kind: TypeAlias = Literal["distribution", "missing", "range", "new_level", "association"]

FLOORS: dict[Kind, tuple[float, float]] = {
    "distribution": (0.05, 0.10),
    "missing": (0.02, 0.10),
    "range": (0.005, 0.05),
    "new_level": (0.01, 0.10),
    "association": (0.15, 0.30),
}
"""Smallest effect that warns, and that is major: KS or total variation, differences of shares, of rank correlation."""
MIN_IMPORTANCE = 0.01
"""A feature with less than this share of the model's importance warns at most."""
_NEW_LEVEL_ROWS = 5
_UNSEEN_FACTOR = 3.0
_STRATIFIED_DAYS = 28
_MAX_PERMUTATIONS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDrift:
    """One test of one feature."""

    name: str
    """The feature; `a ~ b` for an association."""
    kind: Kind
    statistic: float
    """distribution: KS (numeric) or total variation; association: difference of rank correlation; else of shares."""
    p_value: float
    """Corrected over all tests of the verdict."""
    floor_crossed: Level
    """How large the effect is, whatever its p-value."""
    level: Level
    """Significant and large enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftVerdict:
    level: Level
    features: tuple[FeatureDrift, ...]
    """Every test made, the gravest first."""
    block_days: int
    """Blocks taken together as one unit: days where blocks are days."""
    n_reference_blocks: int
    n_current_blocks: int
    stratified: bool
    """Whether units were dealt within weekdays."""
    calibrated: bool
    """False: too few blocks, so p-values are those of independent rows; may inform, may not trigger (never `major`)."""

    @property
    def drifted(self) -> tuple[FeatureDrift, ...]:
        return tuple(feature for feature in self.features if feature.level != "none")


def window_alpha(alpha_per_year: float, window: timedelta) -> float:
    """The part of a year's false-alarm budget that one of its non-overlapping windows may spend."""
    return min(alpha_per_year, alpha_per_year * (window / timedelta(days=365)))


def decide_drift(
    reference: Profile,
    current: Profile,
    *,
    alpha: float,
    rng: np.random.Generator,
    n_permutations: int = 999,
    importance: Mapping[str, float] | None = None,
) -> DriftVerdict:
    """Whether the inputs of the current window differ from the reference's by more than days differ from each other.

    The windows must not share blocks, and looks at overlapping windows alarm sooner or later: test non-overlapping
    ones at `window_alpha`. Tests per feature: distribution, missing rate, out-of-range share, new levels; one on the
    largest change of a rank correlation. `importance` is relative weight by feature; features it does not name weigh
    nothing. `n_permutations` is raised where it could not reach `alpha`. Deterministic given `rng`.

    Raises ValueError where the windows share blocks or have different bins, or where `alpha` would need more than
    50,000 permutations.
    """
    _check(reference, current)
    n_permutations = _enough_permutations(alpha, n_permutations)
    tests = _tests(reference, current)
    n_reference, n_current = len(reference), len(current)
    is_current = np.repeat([False, True], [n_reference, n_current])
    observed = np.array([test.statistic(is_current[None].astype(np.float64))[0] for test in tests])
    calibrated = min(n_reference, n_current) >= MIN_UNITS
    length, stratified = 1, False
    if calibrated:
        days = [weekdays(reference.blocks), weekdays(current.blocks)]
        length = choose_length([_block_means(reference), _block_means(current)], days)
        of_block, strata, of_current = _units(days, n_reference, n_current, length)
        stratified = len(np.unique(strata)) > 1
        member = deal(strata, of_current, n_permutations, rng)[:, of_block]
        permuted = np.stack([test.statistic(member) for test in tests], axis=1)
        p_values = step_down_max_t(observed, permuted)
    else:
        raw = np.array([test.independent_p() for test in tests])
        p_values = _holm(raw)
    features = [
        _judge(test, float(statistic), float(p), alpha, calibrated, importance)
        for test, statistic, p in zip(tests, observed, p_values, strict=True)
    ]
    features.sort(key=lambda f: (-_RANK[f.level], -_RANK[f.floor_crossed], f.p_value, -f.statistic, f.name, f.kind))
    return DriftVerdict(
        level=max((f.level for f in features), key=_RANK.__getitem__, default="none"),
        features=tuple(features),
        block_days=length,
        n_reference_blocks=n_reference,
        n_current_blocks=n_current,
        stratified=stratified,
        calibrated=calibrated,
    )


_RANK: dict[Level, int] = {"none": 0, "warn": 1, "major": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    name: str
    kind: Kind
    statistic: Callable[[Floats], Floats]
    """(n_labellings, n_blocks) membership of the current window -> (n_labellings,) statistics."""
    independent_p: Callable[[], float]
    enough: bool = True
    """Whether a condition beside the floor holds."""


def _check(reference: Profile, current: Profile) -> None:
    if reference.bins.sha256 != current.bins.sha256:
        raise ValueError("the windows were counted against different bins")
    shared = set(reference.blocks) & set(current.blocks)
    if shared:
        raise ValueError(f"the windows share {len(shared)} block(s), the first is {min(shared)}")


def _enough_permutations(alpha: float, wanted: int) -> int:
    """The smallest p-value is 1 / (n + 1): below `alpha` by half, so that one tie does not hide a drift."""
    needed = math.inf if alpha <= 0 else math.ceil(2 / alpha)
    if needed > _MAX_PERMUTATIONS:
        raise ValueError(f"alpha {alpha} needs {needed} permutations, {_MAX_PERMUTATIONS} are the most: enlarge it")
    return max(wanted, int(needed))


def _units(
    days: Sequence[npt.NDArray[np.int64] | None], n_reference: int, n_current: int, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Unit of every block, then stratum and window of every unit."""
    first, second = units(n_reference, length), units(n_current, length)
    n_first = int(first[-1]) + 1
    of_current = np.repeat([False, True], [n_first, int(second[-1]) + 1])
    strata = np.zeros(len(of_current), dtype=np.int64)
    if length == 1 and min(n_reference, n_current) >= _STRATIFIED_DAYS and days[0] is not None and days[1] is not None:
        strata = np.concatenate([days[0], days[1]])
    return np.concatenate([first, second + n_first]), strata, of_current


def _tests(reference: Profile, current: Profile) -> list[_Test]:
    tests = []
    split = len(reference)
    for name in reference.bins.names:
        old, new = reference.feature(name), current.feature(name)
        both = FeatureCounts(
            bins=old.bins,
            n_rows=np.concatenate([old.n_rows, new.n_rows]),
            statuses=np.concatenate([old.statuses, new.statuses]),
            cells=np.concatenate([old.cells, new.cells]),
        )
        tests += _feature_tests(name, both, split)
    if reference.bins.pairs and len(reference) and len(current):
        tests.append(_association(reference, current))
    return tests


def _feature_tests(name: str, both: FeatureCounts, split: int) -> list[_Test]:
    bins, valid = both.bins, both.n_valid
    missing = both.n_rows - valid
    cells = both.cells if isinstance(bins, NumericBins | TextBins) else np.column_stack([both.cells, missing])
    tests = [_distribution(name, cells.astype(np.float64), ordered=isinstance(bins, NumericBins), split=split)]
    tests.append(_share(name, "missing", missing, both.n_rows, split))
    if isinstance(bins, NumericBins):
        tests.append(_share(name, "range", both.below + both.above, valid, split))
    if isinstance(bins, LevelBins) and bins.new_cell is not None:
        n_new, n_valid = int(both.new_level[split:].sum()), int(valid[split:].sum())
        enough = n_new >= _NEW_LEVEL_ROWS and n_new > _UNSEEN_FACTOR * bins.unseen_ratio * n_valid
        tests.append(_share(name, "new_level", both.new_level, valid, split, enough=enough))
    return tests


def _distribution(name: str, cells: Floats, *, ordered: bool, split: int) -> _Test:
    # Most cells of a fine grid are empty in both windows and add nothing.
    cells = cells[:, cells.sum(axis=0) > 0]
    total = cells.sum(axis=0)

    def statistic(member: Floats) -> Floats:
        current = member @ cells
        gap = _ratios(current) - _ratios(total - current)
        if ordered:
            np.cumsum(gap, axis=1, out=gap)
            return np.asarray(np.abs(gap).max(axis=1, initial=0.0))
        return np.asarray(np.abs(gap).sum(axis=1) / 2)

    def independent_p() -> float:
        p, q = cells[:split].sum(axis=0), cells[split:].sum(axis=0)
        n, m = p.sum(), q.sum()
        if not n or not m:
            return 1.0
        if ordered:
            distance = np.abs(np.cumsum(p / n - q / m)).max()
            return float(kolmogorov(np.sqrt(n * m / (n + m)) * distance))
        return _chi_square_p(np.stack([p, q]))

    return _Test(name=name, kind="distribution", statistic=statistic, independent_p=independent_p)


def _share(
    name: str, kind: Kind, hits: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], split: int, *, enough: bool = True
) -> _Test:
    """Difference of shares; more in the current window counts as much as less, except for new levels and the range."""
    table = np.column_stack([hits, rows]).astype(np.float64)
    total = table.sum(axis=0)
    one_sided = kind in ("range", "new_level")

    def statistic(member: Floats) -> Floats:
        current = member @ table
        rest = total - current
        gap = _safe(current[:, 0], current[:, 1]) - _safe(rest[:, 0], rest[:, 1])
        return np.asarray(gap if one_sided else np.abs(gap))

    def independent_p() -> float:
        old, new = table[:split].sum(axis=0), table[split:].sum(axis=0)
        return _chi_square_p(np.array([[old[0], old[1] - old[0]], [new[0], new[1] - new[0]]]))

    return _Test(name=name, kind=kind, statistic=statistic, independent_p=independent_p, enough=enough)


def _association(reference: Profile, current: Profile) -> _Test:
    """Largest change of a rank correlation over all pairs, named after the pair in which it is seen."""
    old, new = _moments(reference), _moments(current)
    moments = np.concatenate([old, new])
    total = moments.sum(axis=0)
    n_features = len(reference.bins.scored)
    left, right = np.triu_indices(n_features, 1)

    def correlations(sums: Floats) -> Floats:
        n = np.maximum(sums[:, :1], 1.0)
        mean = sums[:, 1 : 1 + n_features] / n
        variance = sums[:, 1 + n_features : 1 + 2 * n_features] / n - mean**2
        covariance = sums[:, 1 + 2 * n_features :] / n - mean[:, left] * mean[:, right]
        scale = np.sqrt(np.maximum(variance[:, left] * variance[:, right], 0.0))
        return np.asarray(np.where(scale > 1e-6, covariance / np.where(scale > 1e-6, scale, 1.0), 0.0))

    def changes(member: Floats) -> Floats:
        now = member @ moments
        return np.abs(correlations(now) - correlations(total - now))

    def independent_p() -> float:
        gap = np.arctanh(np.clip(correlations(new.sum(axis=0)[None]), -0.999, 0.999))
        gap -= np.arctanh(np.clip(correlations(old.sum(axis=0)[None]), -0.999, 0.999))
        n, m = max(old[:, 0].sum() - 3, 1), max(new[:, 0].sum() - 3, 1)
        z = np.abs(gap).max() / np.sqrt(1 / n + 1 / m)
        return float(min(1.0, 2 * ndtr(-z) * len(left)))

    is_current = np.repeat([0.0, 1.0], [len(old), len(new)])[None]
    pair = reference.bins.pairs[int(changes(is_current)[0].argmax())]
    return _Test(
        name=" ~ ".join(pair),
        kind="association",
        statistic=lambda member: np.asarray(changes(member).max(axis=1)),
        independent_p=independent_p,
    )


def _moments(profile: Profile) -> Floats:
    """Rows, sums of scores, sums of their squares, sums of their products, by block."""
    scored = [(profile.feature(bins.name).cells, bins.scores) for bins in profile.bins.scored]
    sums = [cells @ scores for cells, scores in scored]
    squares = [cells @ scores**2 for cells, scores in scored]
    return np.column_stack([profile.n_rows, *sums, *squares, profile.pair_sums]).astype(np.float64)


def _block_means(profile: Profile) -> Floats:
    """One number a block and feature that moves when its distribution does; shape `(n_blocks, n_features)`."""
    columns = []
    for bins in profile.bins.features:
        cells = profile.feature(bins.name).cells
        weights = bins.scores if isinstance(bins, NumericBins) else np.eye(1, bins.n_cells)[0]
        columns.append(_safe((cells @ weights).astype(np.float64), cells.sum(axis=1).astype(np.float64)))
    return np.column_stack(columns)


def _judge(
    test: _Test,
    statistic: float,
    p_value: float,
    alpha: float,
    calibrated: bool,
    importance: Mapping[str, float] | None,
) -> FeatureDrift:
    warn, major = FLOORS[test.kind]
    crossed: Level = "major" if statistic >= major else "warn" if statistic >= warn else "none"
    if not test.enough:
        crossed = "none"
    level: Level = crossed if p_value <= alpha else "none"
    total = sum(importance.values()) if importance else 0.0
    if importance and total > 0:
        weight = sum(importance.get(name, 0.0) for name in test.name.split(" ~ ")) / total
        level = "warn" if level == "major" and weight < MIN_IMPORTANCE else level
    if not calibrated and level == "major":
        level = "warn"
    return FeatureDrift(
        name=test.name, kind=test.kind, statistic=statistic, p_value=p_value, floor_crossed=crossed, level=level
    )


def _ratios(counts: Floats) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(counts / np.where(total > 0, total, 1.0))


def _safe(numerator: Floats, denominator: Floats) -> Floats:
    return np.asarray(numerator / np.where(denominator > 0, denominator, 1.0))


def _chi_square_p(table: Floats) -> float:
    table = table[:, table.sum(axis=0) > 0]
    rows = table.sum(axis=1, keepdims=True)
    if table.shape[1] < 2 or not rows.all():
        return 1.0
    expected = rows @ table.sum(axis=0, keepdims=True) / table.sum()
    return float(chdtrc(table.shape[1] - 1, ((table - expected) ** 2 / expected).sum()))


def _holm(p_values: Floats) -> Floats:
    """Holm's step-down correction."""
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * (len(p_values) - np.arange(len(p_values)))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
