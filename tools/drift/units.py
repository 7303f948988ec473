"""Changes of unit: a one-block step whose location and scale fit a known factor, from cells alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from state.cells import NumericBins
from state.profile import FeatureCounts
from tools.drift.statistics import quantiles

Floats: TypeAlias = npt.NDArray[np.float64]

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90)
MIN_HISTORY = 7
"""Earlier blocks with values that a step is judged against."""
MIN_ROWS = 20
FAR = 5.0
FAR_STRANGE = 1.5
"""Combined distance of location and scale, in day-to-day standard deviations, that counts as a step: the first where the
values look as ever, the second where all of them are none that the reference has shown."""
STRANGE = 0.3
"""Below this excess of such values the median itself has to lie outside the history's range."""
STRANGE_ALONE = 0.5
"""From this excess on nothing but a change of unit explains the step: what moves by itself takes most values along."""
TYPICAL_STEP = 0.5
"""Mean step of a median that moves by itself, in standard deviations of the rows: what weather does from day to day."""
NEAR = 2.5
"""After undoing the factor every quantile lies within so many day-to-day standard deviations of the last block's; or
within 0.3 of the distance, where that is more."""
BACK_INSIDE = 1.0
"""And so many from the history's range, or 0.15 of the distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The faulty value is factor * true value + offset."""

    name: str
    factor: float
    offset: float = 0.0


def _both_ways(name: str, inverse: str, factor: float) -> list[Unit]:
    return [Unit(name=name, factor=factor), Unit(name=inverse, factor=1 / factor)]


UNITS: tuple[Unit, ...] = (
    Unit(name="Celsius as Fahrenheit", factor=1.8, offset=32.0),
    Unit(name="Fahrenheit as Celsius", factor=1 / 1.8, offset=-32 / 1.8),
    Unit(name="Celsius as Kelvin", factor=1.0, offset=273.15),
    Unit(name="Kelvin as Celsius", factor=1.0, offset=-273.15),
    *_both_ways("x 1,000", "/ 1,000", 1_000.0),
    *_both_ways("x 1,000,000", "/ 1,000,000", 1e6),
    *_both_ways("x 100", "/ 100", 100.0),
    *_both_ways("x 10", "/ 10", 10.0),
    *_both_ways("hours as minutes", "minutes as hours", 60.0),
    *_both_ways("hours as seconds", "seconds as hours", 3_600.0),
    *_both_ways("days as hours", "hours as days", 24.0),
    *_both_ways("inches as centimetres", "centimetres as inches", 2.54),
    *_both_ways("inches as millimetres", "millimetres as inches", 25.4),
    *_both_ways("metres as feet", "feet as metres", 1 / 0.3048),
    *_both_ways("miles as kilometres", "kilometres as miles", 1.609344),
    *_both_ways("nautical miles as kilometres", "kilometres as nautical miles", 1.852),
    *_both_ways("nautical as statute miles", "statute as nautical miles", 1.852 / 1.609344),
    *_both_ways("metres a second as km an hour", "km an hour as metres a second", 3.6),
    *_both_ways("kilograms as pounds", "pounds as kilograms", 1 / 0.45359237),
    *_both_ways("ounces as grams", "grams as ounces", 28.349523125),
    *_both_ways("gallons as litres", "litres as gallons", 3.785411784),
    *_both_ways("kilocalories as kilojoules", "kilojoules as kilocalories", 4.184),
    *_both_ways("inches of mercury as hPa", "hPa as inches of mercury", 33.8638866667),
    *_both_ways("psi as kilopascals", "kilopascals as psi", 6.894757293),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStep:
    unit: Unit
    """The factor that leaves least."""
    others: tuple[str, ...]
    """Further factors that fit as well, for the reader: with one day the factor itself is known roughly."""
    distance: float
    """How far the block lies from the last one, in day-to-day standard deviations of location and scale."""
    remaining: float
    """The same after undoing the factor."""


@dataclass(frozen=True, slots=True)
class _Days:
    """How the quantiles of a feature move from block to block."""

    last: Floats
    low: Floats
    high: Floats
    sd: Floats
    """Of each quantile: root mean square step, floored."""
    log_scale: float
    log_scale_sd: float
    typical_scale: float
    pooled_sd: float
    """Of all rows of the history, from their quartiles."""


def unit_step(history: FeatureCounts, day: FeatureCounts) -> UnitStep | None:
    """The known change of unit that explains the day, or None.

    A step is: location and scale far from where they were, or nearly all values unlike any of the reference's and
    location and scale off as well. It is a change of unit where undoing a known factor puts every quantile back to
    where the last block had it, well inside the range of the history. Weather moves location or scale, hardly ever
    both, and hardly ever back onto yesterday after a division. `history` is in order of time; `day` has one block.
    """
    bins = day.bins
    if not isinstance(bins, NumericBins) or int(day.n_valid.sum()) < MIN_ROWS:
        return None
    values, _ = quantiles(bins, history.cells[history.n_valid >= MIN_ROWS], QUANTILES)
    if len(values) < MIN_HISTORY or not np.median(np.abs(values), axis=0).any():
        return None
    today, blur = (part[0] for part in quantiles(bins, day.cells.sum(axis=0)[None], QUANTILES))
    pooled, _ = quantiles(bins, history.cells.sum(axis=0)[None], QUANTILES)
    days = _movement(values, int(day.n_valid.sum()), pooled[0])
    strange = _strange(day)[0] - float(_strange(history).max())
    # An exact cell stands for its single value only while the values are known ones.
    if bins.transform == "exact" and strange < 0.05:
        blur = np.where((today >= bins.low) & (today <= bins.high), 0.0, blur)
    distance = _distance(days, today, blur)
    outside = float((np.maximum(days.low - today, today - days.high) - blur)[2] / days.sd[2])
    if strange < STRANGE and outside < 1.0:
        return None
    if distance < FAR - (FAR - FAR_STRANGE) * max(strange, 0.0):
        return None
    fits = [(fit, unit) for unit in UNITS if (fit := _remaining(days, unit, today, blur, distance)) is not None]
    if not fits:
        return None
    fits.sort(key=lambda pair: pair[0])
    remaining, unit = fits[0]
    if remaining >= distance / 2:
        return None
    if strange < STRANGE_ALONE and not _likelier_than_a_shift(days, unit, today, blur):
        return None
    others = tuple(other.name for fit, other in fits[1:4] if fit < remaining + 1.0)
    return UnitStep(unit=unit, others=others, distance=distance, remaining=remaining)


def _likelier_than_a_shift(days: _Days, unit: Unit, today: Floats, blur: Floats) -> bool:
    """Whether the day says "scaled by this unit" rather than "moved": the higher posterior of the two.

    The unit predicts where the median is now, to within the day-to-day variation, and how wide the values spread. What
    moves by itself may end anywhere: its step has a Laplace density of one standard deviation of the rows, and the
    values keep their spread, or (a price that rises) widen in proportion. A factor near 1 moves a column about as far
    as columns move by themselves, so it has to hit the median better than chance; a large one need not.
    """
    undone, slack = (today - unit.offset) / unit.factor, blur / unit.factor
    away = max(abs(undone[2] - days.last[2]) - slack[2], 0.0) / days.sd[2]
    width = days.sd[2] * unit.factor
    scaled = -0.5 * (away**2 + _scale_excess(days, undone, slack) ** 2) - math.log(width * math.sqrt(2 * math.pi))
    typical_step = TYPICAL_STEP * days.pooled_sd
    step = max(abs(today[2] - days.last[2]) - blur[2], 0.0) / typical_step
    excess = _scale_excess(days, today, blur)
    if (
        days.last[0] * days.last[4] > 0 and today[2] * days.last[2] > 0
    ):  # values on both sides of zero have no such ratio
        ratio = today[2] / days.last[2]
        excess = min(excess, _scale_excess(days, today / ratio, blur / ratio))
    moved = -0.5 * excess**2 - step - math.log(2 * typical_step)
    return bool(scaled - math.log(len(UNITS)) > moved)


def _movement(values: Floats, n_rows: int, pooled: Floats) -> _Days:
    scales = values[:, 3] - values[:, 1]
    typical = float(np.median(scales)) or float(np.median(values[:, 4] - values[:, 0]))
    steps = np.sqrt(np.mean(np.diff(values, axis=0) ** 2, axis=0))
    # Sampling noise of a small block, and a floor for a feature that never moves.
    noise = 1.25 * typical / math.sqrt(n_rows)
    sd = np.sqrt(steps**2 + noise**2) + 0.02 * typical + 1e-3 * np.abs(np.median(values[:, 2])) + 1e-12
    logs = np.log(np.maximum(scales, 0.02 * typical + 1e-12))
    return _Days(
        last=values[-1],
        low=values.min(axis=0),
        high=values.max(axis=0),
        sd=sd,
        log_scale=float(logs.mean()),
        log_scale_sd=float(logs.std()) + 0.1,
        typical_scale=typical,
        pooled_sd=max(float(pooled[3] - pooled[1]) / 1.349, 0.1 * typical) + 1e-12,
    )


def _distance(days: _Days, x: Floats, blur: Floats) -> float:
    location = max(abs(x[2] - days.last[2]) - blur[2], 0.0) / days.sd[2]
    return math.hypot(location, _scale_excess(days, x, blur))


def _scale_excess(days: _Days, x: Floats, blur: Floats) -> float:
    """How unusual the block's spread is at the least, given how blurred its quartiles are."""
    floor = 0.02 * days.typical_scale + 1e-12
    wide = math.log(max(x[3] - x[1] + blur[3] + blur[1], floor))
    narrow = math.log(max(x[3] - x[1] - blur[3] - blur[1], floor))
    return max(narrow - days.log_scale, days.log_scale - wide, 0.0) / days.log_scale_sd


def _remaining(days: _Days, unit: Unit, today: Floats, blur: Floats, distance: float) -> float | None:
    """Distance left after undoing `unit`; None where it does not explain the day."""
    x = (today - unit.offset) / unit.factor
    slack = blur / unit.factor
    # A tail cell is a quarter octave wide: enough to tell known factors apart, whatever the spread of the feature.
    if not (slack <= np.maximum(2 * days.sd + 0.25 * days.typical_scale, 0.2 * np.abs(today / unit.factor))).all():
        return None
    away = np.maximum(np.abs(x - days.last) - slack, 0.0) / days.sd
    outside = np.maximum(np.maximum(days.low - x, x - days.high) - slack, 0.0) / days.sd
    if away.max() > max(NEAR, 0.3 * distance) or outside.max() > max(BACK_INSIDE, 0.15 * distance):
        return None
    excess = _scale_excess(days, x, slack)
    return math.hypot(float(away[2]), excess) if excess <= NEAR else None


def _strange(feature: FeatureCounts) -> Floats:
    """Share of each block's values that are none of the reference's: out of its range, or off its values or decimals."""
    strange = feature.status("novel") + feature.below + feature.above
    return np.asarray(strange / np.maximum(feature.n_valid, 1))
