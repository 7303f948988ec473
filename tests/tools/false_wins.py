"""How often two equal models make a win: `python -m tests.tools.false_wins` prints the table of `needed_z`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tools.experiment import paired_comparison

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
    noise = np.random.default_rng([seed, n_blocks]).normal(size=(n_draws, n_blocks))
    differences = noise.copy()
    for at in range(1, n_blocks):
        differences[:, at] = correlation * differences[:, at - 1] + math.sqrt(1 - correlation**2) * noise[:, at]
    zeros = [0.0] * n_blocks
    found = [paired_comparison(row.tolist(), zeros, win_z=WIN_Z) for row in differences]
    return FalseWins(
        fixed=sum(paired.z >= WIN_Z for paired in found) / n_draws,
        by_length=sum(paired.verdict == "win" for paired in found) / n_draws,
    )


def main() -> None:
    """Print the table."""
    print("blocks  rho   fixed 2.8   by length")
    for n_blocks in LENGTHS:
        for correlation in (0.0, 0.3):
            wins = false_wins(n_blocks, correlation, n_draws=40_000, seed=1)
            print(f"{n_blocks:6}  {correlation:3}  {wins.fixed:9.2%}  {wins.by_length:9.2%}")


if __name__ == "__main__":
    main()
