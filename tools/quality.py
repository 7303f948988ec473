"""Level L0, the contract of a block of rows: what is no data to train, judge or detect on, from counts alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from state.cells import LevelBins, NumericBins
from state.errors import TerminalError
from state.profile import FeatureCounts, Profile, merge
from tools.drift.units import unit_step
from tools.steps import MIN_HISTORY, SIGMAS, find_spike, grave_step, step_beyond, worst_share
from tools.volume import judge_volume

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Severity: TypeAlias = Literal["hard", "warn"]

HISTORY_BLOCKS = 28
OUT_OF_BOUNDS = (0.005, 0.05)
MISSING_STEP = (0.05, 0.10)
SPIKE = (0.05, 0.10)
"""Share of values that one narrow cell gains, alone among its neighbours, beyond what any cell gained in a block."""
NOT_FINITE = 0.005
UNPARSABLE = 0.01
RETYPED = 0.05
NEW_LEVELS = (0.01, 0.25)
UNSEEN_FACTOR = 3.0
SAME_VALUE = 0.75
"""Share of a cell's values that are equal from which on the cell stands for that value."""
WORDS = {
    "missing_step": "without a value",
    "not_finite": "not finite",
    "unparsable": "unreadable",
    "retyped": "of another type",
}
MOSTLY_EMPTY = 0.9
"""Missing share of the emptiest earlier block from which on an empty block is no surprise."""
NEW_LEVEL_ROWS = 5
NOVEL_STEP = 0.5
MIXTURE_STEP = 0.10
"""Total variation or KS distance from the history's pooled blocks that a step needs beside being unusual."""
MIN_ROWS = 30
"""Rows that rules about the shape of a block need."""
CONSTANT = 0.999
RESOLUTION = 0.5
"""Occupied cells within the middle of the distribution, as a share of the sparsest earlier block's."""
REPEATED = (0.005, 0.05)
LATE = (0.005, 0.05)
EXTRA = 0.05
"""Share of rows with a column that the contract does not know: told, and nothing that the model reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFinding:
    kind: str
    feature: str | None
    """None where the whole block is meant."""
    severity: Severity
    """hard: quarantine the block and never train on it. warn: evidence for a diagnosis."""
    detail: str
    value: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    block: str
    n_rows: int
    n_rules: int
    """Rules that had what they need; never 0."""
    findings: tuple[QualityFinding, ...]
    """Hard ones first."""

    @property
    def faulty(self) -> bool:
        return any(finding.severity == "hard" for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddities:
    """Rows of one block that are odd in a way which its counts by feature do not show."""

    n_rows: int = 0
    repeated: int = 0
    """Rows that repeat an earlier one of the block: same entity, event time and features."""
    extra: int = 0
    """Rows that came with a column which the contract does not know."""
    late: int = 0
    """Rows that arrived since the block before, with an event time far behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What the counts of a block cannot say."""

    length: timedelta = timedelta(days=1)
    """Of a block."""
    served: Mapping[str, int] | None = None
    """Rows by earlier live block, empty ones included, whatever was found in them; None takes those of `previous`."""
    holes: Collection[str] = ()
    """Live blocks without rows in which rows were missing."""
    odd: Oddities = Oddities()
    before: Sequence[Oddities] = ()
    """Of earlier good blocks."""
    top_shares: Mapping[str, float] = field(default_factory=dict)
    """Numeric feature -> share of its values that are its most frequent one. Without it a spike is a warning at most,
    because values of one cell need not be equal."""


def check_block(
    reference: Profile, previous: Sequence[Profile], day: Profile, *, batch: BatchFacts | None = None
) -> QualityReport:
    """Check the rows of one block against the reference, the earlier good blocks and the declared bounds.

    `previous` are profiles of earlier blocks that were found good, in any order and chunking; the newest 28 count, and
    where there are fewer the reference's own blocks before `day` fill up. Rules that need a history are passed over
    without one. Row counts are compared with those of live blocks alone, because a reference may be thinned; its blocks
    say on which days rows come.

    Raises TerminalError where `day` is not exactly one block, is counted against other bins, or no rule could be
    evaluated: silence about an unchecked block is no success.
    """
    if len(day) != 1:
        raise TerminalError(f"a quality check takes one block, not {len(day)}")
    block, n_rows = day.blocks[0], int(day.n_rows[0])
    served = merge(previous, reference.bins)
    served = served.select(name for name in served.blocks if name < block)
    history = _history(reference, served, block)
    checks = _Checks()
    facts = batch or BatchFacts()
    known = facts.served
    if known is None:
        known = {name: int(n) for name, n in zip(served.blocks, served.n_rows, strict=True)}
    _check_volume(checks, block, n_rows, known, facts, reference)
    _check_oddities(checks, facts)
    if n_rows:
        for name in reference.bins.names:
            _check_feature(checks, history.feature(name), day.feature(name), facts.top_shares.get(name))
    if not checks.n_rules:
        raise TerminalError(f"no quality rule could be evaluated for block {block} with {n_rows} rows")
    findings = sorted(checks.findings, key=lambda finding: finding.severity)
    return QualityReport(block=block, n_rows=n_rows, n_rules=checks.n_rules, findings=tuple(findings))


class _Checks:
    """Findings, and how many rules were evaluated."""

    def __init__(self) -> None:
        self.findings: list[QualityFinding] = []
        self.n_rules = 0

    def rule(
        self, kind: str, feature: str | None, *, value: float, limits: tuple[float, float], detail: str
    ) -> Severity | None:
        """One rule: warn at the first limit, hard at the second."""
        self.n_rules += 1
        warn, hard = limits
        if not value >= min(warn, hard):
            return None
        severity: Severity = "hard" if value >= hard else "warn"
        self.findings.append(
            QualityFinding(
                kind=kind, feature=feature, severity=severity, detail=detail, value=value,
                limit=hard if severity == "hard" else warn,
            )
        )  # fmt: skip
        return severity


_NEVER = float("inf")


def _history(reference: Profile, served: Profile, block: str) -> Profile:
    if len(served) < HISTORY_BLOCKS:
        known = set(served.blocks)
        older = [name for name in reference.blocks if name < block and name not in known]
        served = served + reference.select(older[-(HISTORY_BLOCKS - len(served)) :])
    return served.select(served.blocks[-HISTORY_BLOCKS:])


def _check_volume(
    checks: _Checks, block: str, n_rows: int, served: Mapping[str, int], facts: BatchFacts, reference: Profile
) -> None:
    days = [name for name, n in zip(reference.blocks, reference.n_rows, strict=True) if n and name < block]
    found = judge_volume(
        block, n_rows, served=served, holes=facts.holes, reference=days, length=facts.length
    )  # fmt: skip
    if found is None:
        return
    kind = "no_rows" if found.kind == "no_rows" else "volume"
    detail = f"{n_rows or 'no'} rows in the block of {block}, usual are {found.usual:.0f}"
    checks.rule(kind, None, value=found.off, limits=(_NEVER, np.nextafter(1.0, 2.0)), detail=detail)


def _check_oddities(checks: _Checks, facts: BatchFacts) -> None:
    """Shares of odd rows beyond what earlier blocks had; passed over where those are too few to say what is usual."""
    if len(facts.before) < MIN_HISTORY:
        return
    table = np.array([[o.n_rows, o.repeated, o.extra, o.late] for o in (*facts.before, facts.odd)], dtype=np.int64)
    rows, repeated, extra, late = table.T
    for kind, hits, total, limits, words in (
        ("repeated_rows", repeated, rows, REPEATED, "repeat another row of the block"),
        ("extra_column", extra, rows, (EXTRA, _NEVER), "came with a column that the contract does not know"),
        ("late_rows", late, rows + late, LATE, "arrived with an event time far behind"),
    ):
        if total[-1]:
            step = step_beyond(hits[-1:], total[-1:], hits[:-1], total[:-1])
            detail = f"{hits[-1] / total[-1]:.1%} of rows {words}, {step:.1%} more than in any earlier block"
            checks.rule(kind, None, value=step, limits=limits, detail=detail)


def _check_feature(checks: _Checks, history: FeatureCounts, day: FeatureCounts, top_share: float | None) -> None:
    name = day.bins.name
    n_rows = int(day.n_rows[0])
    absent = int(day.status("absent")[0])
    detail = f"absent from {absent} of {n_rows} rows"
    if checks.rule("missing_column", name, value=absent / n_rows, limits=(1 / n_rows, 0.05), detail=detail) == "hard":
        return
    _check_values(checks, history, day)
    if not int(day.n_valid[0]):
        return
    if isinstance(day.bins, NumericBins):
        _check_numeric(checks, history, day, day.bins)
        _check_spike(checks, history, day, day.bins, top_share)
    _check_new_levels(checks, history, day)
    _check_mixture(checks, history, day)


def _check_values(checks: _Checks, history: FeatureCounts, day: FeatureCounts) -> None:
    """Shares of values that are none, or of the wrong type, beyond what earlier blocks had."""
    name, rows = day.bins.name, day.n_rows
    missing = day.status("missing")
    before = history.status("missing")
    empty = int(rows[0]) >= NEW_LEVEL_ROWS and not int(day.n_valid[0])
    worst = worst_share(before, history.n_rows, default=0.0)
    # A column that was nearly empty in some earlier block (gusts on a calm day) may be empty for a whole one: blocks,
    # not rows, are the independent unit.
    limits = (_NEVER, 1.0)
    checks.rule(
        "all_missing", name, value=float(empty and worst < MOSTLY_EMPTY), limits=limits, detail="no usable value"
    )
    for kind, hits, earlier, (warn, hard) in (
        ("missing_step", missing, before, MISSING_STEP),
        ("not_finite", day.status("not_finite"), history.status("not_finite"), (NOT_FINITE, NOT_FINITE)),
        ("unparsable", day.status("unparsable"), history.status("unparsable"), (UNPARSABLE, UNPARSABLE)),
        ("retyped", day.status("retyped"), history.status("retyped"), (RETYPED, RETYPED)),
    ):
        step = step_beyond(hits, rows, earlier, history.n_rows)
        if kind == "missing_step" and not grave_step(step, earlier, history.n_rows):
            hard = _NEVER
        share = int(hits[0]) / int(rows[0])
        detail = f"{share:.1%} of rows {WORDS[kind]}, {step:.1%} more than in any earlier block"
        checks.rule(kind, name, value=step, limits=(warn, hard), detail=detail)
    if day.status("out_of_bounds").any() or _is_bounded(day):
        share = int(day.status("out_of_bounds")[0]) / max(int(day.n_valid[0]), 1)
        significant = share if int(day.status("out_of_bounds")[0]) >= 2 else 0.0
        detail = f"{share:.1%} of values outside the declared bounds"
        checks.rule("out_of_bounds", name, value=significant, limits=OUT_OF_BOUNDS, detail=detail)


def _check_numeric(checks: _Checks, history: FeatureCounts, day: FeatureCounts, bins: NumericBins) -> None:
    if int(day.n_valid[0]) < MIN_ROWS or len(history.n_rows) < MIN_HISTORY:
        return
    n_unseen = int(day.status("novel")[0]) + int(day.below[0]) + int(day.above[0])
    novel_share = n_unseen / max(int(day.n_valid[0]), 1)
    step = unit_step(history, day)
    if bins.transform == "exact" and novel_share < NOVEL_STEP:
        # A column of few distinct values (a month, a size) changes its unit only by showing values that it never had.
        step = None
    detail = ""
    if step is not None:
        also = f" (or {', '.join(step.others)})" if step.others else ""
        detail = f"a step of {step.distance:.1f} sd that {step.unit.name}{also} explains but for {step.remaining:.1f}"
    value = step.distance if step else 0.0
    checks.rule("unit_step", day.bins.name, value=value, limits=(_NEVER, 1e-9), detail=detail)
    novel = step_beyond(day.status("novel"), day.n_valid, history.status("novel"), history.n_valid)
    detail = f"{novel:.0%} of values are none that the reference has"
    checks.rule("novel_values", day.bins.name, value=novel, limits=(NOVEL_STEP, _NEVER), detail=detail)
    _check_resolution(checks, history, day, bins)


def _check_spike(
    checks: _Checks, history: FeatureCounts, day: FeatureCounts, bins: NumericBins, top_share: float | None
) -> None:
    """One value in the place of many: a default for what was not measured. A column of few distinct values may do so."""
    usable = history.cells[history.n_valid >= MIN_ROWS]
    if bins.transform == "exact" or len(usable) < MIN_HISTORY or int(day.n_valid[0]) < MIN_ROWS:
        return
    spike = find_spike(day.cells[0], usable, slice(bins.n_low, bins.n_low + bins.n_interior))
    detail = f"{spike.share:.1%} of values are (nearly) one, {spike.step:.1%} beyond what any value gained in a block"
    is_one = top_share is not None and top_share >= SAME_VALUE * spike.share
    limits = (SPIKE[0], SPIKE[1] if is_one else _NEVER)
    checks.rule("spike", day.bins.name, value=spike.step, limits=limits, detail=detail)


def _check_resolution(checks: _Checks, history: FeatureCounts, day: FeatureCounts, bins: NumericBins) -> None:
    """One value where there were many, or fewer distinct cells between the deciles than ever: rounded values."""
    usable = history.cells[history.n_valid >= MIN_ROWS]
    if len(usable) < MIN_HISTORY:
        return
    # Outside the reference's range cells are wide, and one may well hold a whole healthy day.
    inner = slice(bins.n_low, bins.n_low + bins.n_interior)
    fullest = float(day.cells[0, inner].max() / day.cells.sum())
    usual = float((usable.max(axis=1) / usable.sum(axis=1)).max())
    # A block with few values (an hour of gusts on a calm day) may well hold a single one.
    small = int(day.n_valid[0]) < 0.5 * float(np.median(usable.sum(axis=1)))
    stuck = fullest if usual < 0.9 and not small else 0.0
    checks.rule(
        "constant", day.bins.name, value=stuck, limits=(_NEVER, CONSTANT),
        detail=f"{fullest:.1%} of values in one cell, earlier at most {usual:.1%}",
    )  # fmt: skip
    now, before = _density(day.cells)[0], _density(usable)
    if bins.transform == "exact" or small or before.min() < 0.2:
        return
    lost = 1 - now / (RESOLUTION * float(before.min()))
    checks.rule(
        "rounded", day.bins.name, value=lost, limits=(1e-9, _NEVER),
        detail=f"{now:.0%} of the cells between the deciles hold values, earlier at least {before.min():.0%}",
    )  # fmt: skip


def _density(cells: Ints) -> Floats:
    """Share of the cells from the first to the ninth decile that hold anything, by block."""
    cumulative = np.cumsum(cells, axis=1)
    total = cumulative[:, -1:]
    inside = (cumulative > 0.1 * total) & (cumulative - cells < 0.9 * total)
    return np.asarray(((cells > 0) & inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1))


def _check_new_levels(checks: _Checks, history: FeatureCounts, day: FeatureCounts) -> None:
    if not isinstance(day.bins, LevelBins) or day.bins.new_cell is None:
        return
    n_new, n_valid = int(day.new_level[0]), int(day.n_valid[0])
    # After training new levels keep coming at the rate that recent blocks show, which may be above Good and Turing's.
    pooled = float(history.new_level.sum()) / max(float(history.n_valid.sum()), 1.0)
    share = n_new / n_valid
    expected = max(day.bins.unseen_ratio, pooled)
    worst = worst_share(history.new_level, history.n_valid, default=0.0)
    # Beyond the worst block by more than chance: a share that has become usual is not found again for a few rows more.
    beyond = share - worst > SIGMAS * float(np.sqrt(worst * (1 - worst) / n_valid))
    unusual = n_new >= NEW_LEVEL_ROWS and share > UNSEEN_FACTOR * expected and beyond
    detail = f"{share:.1%} of values are levels that the reference has not shown, {expected:.2%} were to be expected"
    limits = (NEW_LEVELS[0], _NEVER) if _one_at_a_time(np.vstack([history.cells, day.cells])) else NEW_LEVELS
    checks.rule("new_levels", day.bins.name, value=share if unusual else 0.0, limits=limits, detail=detail)


def _one_at_a_time(cells: Ints) -> bool:
    """Whether each block holds one level: a column that says when a row came (a season, a campaign), not what it is.

    Its next level is new as a whole and no fault. A block on the border of two levels may hold both, the last one not:
    a share of it may as well be faulty.
    """
    used = cells[cells.sum(axis=1) > 0]
    if len(used) <= MIN_HISTORY:
        return False
    level, mixed = used.argmax(axis=1), (used > 0).sum(axis=1) > 1
    return all(0 < at < len(used) - 1 and level[at - 1] != level[at + 1] for at in np.flatnonzero(mixed))


def _check_mixture(checks: _Checks, history: FeatureCounts, day: FeatureCounts) -> None:
    """A distribution that is farther from the pooled history than any of the history's blocks was."""
    usable = history.cells[history.cells.sum(axis=1) >= MIN_ROWS]
    n_valid = int(day.cells.sum())
    if n_valid < MIN_ROWS or len(usable) < MIN_HISTORY:
        return
    ordered = isinstance(day.bins, NumericBins)
    pooled = usable.sum(axis=0)
    own = _distances(usable, pooled - usable, ordered)
    now = float(_distances(day.cells[:1], pooled[None], ordered)[0])
    n_usual = float(np.median(usable.sum(axis=1)))
    n_used = int((pooled > 0).sum())
    noise = _noise(n_valid, n_used, ordered) - _noise(n_usual, n_used, ordered)
    # The history's own blocks hang together: a margin above their worst, not a quantile of 28 numbers.
    usual = max(1.25 * float(own.max()), float(own.mean() + SIGMAS * own.std())) + max(noise, 0.0)
    value = now if now > usual else 0.0
    measure = "KS distance" if ordered else "total variation"
    detail = f"{measure} {now:.2f} from the recent blocks, which lie within {own.max():.2f}"
    checks.rule("step", day.bins.name, value=value, limits=(MIXTURE_STEP, _NEVER), detail=detail)


def _distances(blocks: Ints, rest: Ints, ordered: bool) -> Floats:
    """KS or total variation of each block from its `rest`, both `(n_blocks, n_cells)`; 0 where that is empty."""
    total = rest.sum(axis=1, keepdims=True)
    gap = np.where(total > 0, blocks / blocks.sum(axis=1, keepdims=True) - rest / np.maximum(total, 1), 0.0)
    found: Floats = np.abs(np.cumsum(gap, axis=1)).max(axis=1) if ordered else np.abs(gap).sum(axis=1) / 2
    return found


def _noise(n_rows: float, n_cells: int, ordered: bool) -> float:
    """About what chance alone shows in so many rows: the 99 % point of KS, the mean of total variation."""
    return 1.63 / np.sqrt(n_rows) if ordered else 0.4 * float(np.sqrt(n_cells / n_rows))


def _is_bounded(day: FeatureCounts) -> bool:
    bins = day.bins
    return isinstance(bins, NumericBins) and (bins.declared_low is not None or bins.declared_high is not None)
