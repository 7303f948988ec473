"""Block permutation: how large a statistic grows when days are dealt to the two windows by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

LENGTHS = (1, 2, 3, 7)
"""Candidate lengths of a unit, in blocks."""
MIN_UNITS = 10
"""Both windows keep at least this many units, or nothing is calibrated."""
_CHANCE = 0.023
"""Share of uncorrelated features whose lag-1 autocorrelation exceeds 2 / sqrt(n) anyway."""


def weekdays(blocks: Sequence[str]) -> Ints | None:
    """Weekday of each block; None where the blocks are not single days."""
    try:
        days = [date.fromisoformat(block) for block in blocks]
    except ValueError:
        return None
    steps = np.diff([day.toordinal() for day in days])
    if not len(steps) or np.median(steps) != 1:
        return None
    return np.array([day.weekday() for day in days], dtype=np.int64)


def choose_length(windows: Sequence[Floats], weekday: Sequence[Ints | None]) -> int:
    """Blocks per unit: the first of 1, 2, 3, 7 under which no more features hang together than chance allows.

    `windows` hold block means, shape `(n_blocks, n_features)` each, in order of time; the means of the window and, with
    single days, of its weekdays are removed first, so that neither drift nor the week counts as autocorrelation.
    Capped so that both windows keep 10 units; 1 where even that is not possible.
    """
    best = 1
    for length in LENGTHS:
        n_units = [len(window) // length for window in windows]
        if min(n_units) < MIN_UNITS:
            break
        best = length
        correlation = _lag1(windows, weekday if length == 1 else [None] * len(windows), length)
        if not len(correlation):
            break
        n = len(correlation)
        allowed = int(np.argmax(bdtr(np.arange(n + 1), n, _CHANCE) >= 0.95))  # the binomial's 95 % point
        if (correlation >= 2 / math.sqrt(sum(n_units))).sum() <= allowed:
            break
    return best


def units(n_blocks: int, length: int) -> Ints:
    """The unit of each block: consecutive ones together, a short rest joining the last."""
    n_units = max(n_blocks // length, 1)
    return np.minimum(np.arange(n_blocks) // length, n_units - 1).astype(np.int64)


def deal(strata: Ints, is_current: npt.NDArray[np.bool_], n_permutations: int, rng: np.random.Generator) -> Floats:
    """Random membership of the current window, shape `(n_permutations, n_units)` of 0 and 1.

    Within each stratum as many units as really belong to the current window are drawn without replacement.
    """
    member = np.zeros((n_permutations, len(strata)))
    for stratum in np.unique(strata):
        at = np.flatnonzero(strata == stratum)
        n_current = int(is_current[at].sum())
        order = rng.random((n_permutations, len(at))).argsort(axis=1)[:, :n_current]
        np.put_along_axis(member, at[order], 1.0, axis=1)
    return member


def step_down_max_t(observed: Floats, permuted: Floats) -> Floats:
    """Family-wise adjusted p-values, shape `(n_tests,)`; `permuted` has shape `(n_permutations, n_tests)`.

    Each test is first put on the scale of its own permutations, so that a share and a distance compare.
    Source: Westfall and Young (1993), free step-down maxT, the observed labelling counted as one permutation.
    """
    everything = np.vstack([observed, permuted])
    centre, spread = everything.mean(axis=0), everything.std(axis=0)
    # A statistic that never moves says nothing: it stands last, with p = 1.
    scaled = np.where(spread > 1e-12, (everything - centre) / np.where(spread > 1e-12, spread, 1.0), -np.inf)
    order = np.argsort(-scaled[0], kind="stable")
    p_values = np.ones(len(observed))
    running = np.full(len(everything), -np.inf)
    for at in order[::-1]:
        running = np.maximum(running, scaled[:, at])
        p_values[at] = (running >= scaled[0, at] - 1e-9).mean() if np.isfinite(scaled[0, at]) else 1.0
    p_values[order] = np.maximum.accumulate(p_values[order])
    return p_values


def _lag1(windows: Sequence[Floats], weekday: Sequence[Ints | None], length: int) -> Floats:
    """Lag-1 autocorrelation of unit means by feature, pooled over windows; constant features are left out."""
    products = squares = np.zeros(windows[0].shape[1])
    for window, days in zip(windows, weekday, strict=True):
        centred = window.copy()
        if days is not None and len(days) >= 28:
            for day in range(7):
                centred[days == day] -= centred[days == day].mean(axis=0)
        of_unit = units(len(centred), length)
        sums = np.zeros((int(of_unit[-1]) + 1, centred.shape[1]))
        np.add.at(sums, of_unit, centred)
        means = sums / np.bincount(of_unit)[:, None]
        means = means - means.mean(axis=0)
        products = products + (means[1:] * means[:-1]).sum(axis=0)
        squares = squares + (means**2).sum(axis=0)
    moving = squares > 1e-12
    return products[moving] / squares[moving]
