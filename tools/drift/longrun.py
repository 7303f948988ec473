"""The standard error of a mean of blocks that hang together in time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def long_run_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean of `values`, in order of time; never below that of independent blocks.

    Source: Newey and West (1987), Bartlett weights, floor(4 (n / 100)^(2/9)) lags (Newey and West, 1994).
    """
    n = len(values)
    if n < 2:
        return math.inf
    centred = values - values.mean()
    independent = float(centred @ centred) / (n - 1)
    total = float(centred @ centred) / n
    n_lags = min(math.floor(4 * (n / 100) ** (2 / 9)), n - 1)
    for lag in range(1, n_lags + 1):
        total += 2 * (1 - lag / (n_lags + 1)) * float(centred[lag:] @ centred[:-lag]) / n
    return math.sqrt(max(total * n / (n - 1), independent) / n)
