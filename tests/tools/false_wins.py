"""How often two equal models make a win: `python -m tests.tools.false_wins` prints the table of `needed_z`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.experiment import Paired, paired_comparison

WIN_Z = 2.8
LENGTHS = (7, 10, 14, 28)


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseWins:
    """Shares of the draws."""

    fixed: float
    """z of at least `WIN_Z`, whatever the number of blocks."""
    by_length: float
    """The verdict `win`."""


def false_wins(n_blocks: int, correlation: float, *, n_draws: int, seed: int) -> FalseWins:
    """Block differences around zero, AR(1) with `correlation`, judged as a paired comparison judges them."""
    found = [_judged(row) for row in _differences(n_blocks, correlation, n_draws=n_draws, seed=seed)]
    return FalseWins(
        fixed=sum(paired.z >= WIN_Z for paired in found) / n_draws,
        by_length=sum(paired.verdict == "win" for paired in found) / n_draws,
    )


def false_wins_while_it_grows(correlation: float, *, n_draws: int, seed: int) -> float:
    """Share of draws in which any look of an incident wins whose stretch grows from ten blocks to the whole, on a cadence
    of 14 days."""
    differences = _differences(28, correlation, n_draws=n_draws, seed=seed)
    return sum(any(_judged(row[:n]).verdict == "win" for n in (10, 24, 28)) for row in differences) / n_draws


def _differences(n_blocks: int, correlation: float, *, n_draws: int, seed: int) -> npt.NDArray[np.float64]:
    noise = np.random.default_rng([seed, n_blocks]).normal(size=(n_draws, n_blocks))
    differences = noise.copy()
    for at in range(1, n_blocks):
        differences[:, at] = correlation * differences[:, at - 1] + math.sqrt(1 - correlation**2) * noise[:, at]
    return differences


def _judged(differences: npt.NDArray[np.float64]) -> Paired:
    return paired_comparison(differences.tolist(), [0.0] * len(differences), win_z=WIN_Z)


def main() -> None:
    """Print the table."""
    print("blocks  rho   fixed 2.8   by length")
    for n_blocks in LENGTHS:
        for correlation in (0.0, 0.3):
            wins = false_wins(n_blocks, correlation, n_draws=40_000, seed=1)
            print(f"{n_blocks:6}  {correlation:3}  {wins.fixed:9.2%}  {wins.by_length:9.2%}")
    for correlation in (0.0, 0.3):
        any_look = false_wins_while_it_grows(correlation, n_draws=40_000, seed=1)
        print(f"10, 24 and 28 blocks of one stretch, rho {correlation}: {any_look:.2%}")


if __name__ == "__main__":
    main()
