"""Days of labelled scores of a well-fitted model, healthy or not, with day effects that hang together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit

from tools.drift.dependence import depends_on
from tools.drift.label_verdict import BROKEN, LabelVerdict, judge_change
from tools.drift.labels import LabelCounts, find_change, reference_of

Floats: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["healthy", "flip", "lost", "gained", "concept", "fade", "prior", "segment"]
FEATURES = {"x0": "numeric", "x1": "numeric", "x2": "numeric", "plan": "categorical"}
PLANS = np.array(["a", "b", "c", "d"])


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelWorld:
    """`rows` a day; logits are shifted by a day effect of autocorrelation `rho`. A change holds from day `onset` on."""

    seed: int
    rows: int = 300
    kind: Kind = "healthy"
    size: float = 0.0
    """flip, lost, gained: share of the labels; concept: of a quarter turn; fade: share of the signal; prior: logits;
    segment: how far the signal turns round within one plan."""
    onset: int = 37
    ramp: int = 0
    """Days until the change is whole."""
    day_sd: float = 0.15
    rho: float = 0.3
    intercept: float = -1.0
    missed: float = 0.0
    """Of a signal as strong as the score's own, how much the score does not know, before the change and after it."""

    def days(self, n_days: int) -> list[pl.DataFrame]:
        rng = np.random.default_rng(self.seed)
        start, other = rng.normal(size=(2, 4))
        start = 1.4 * start / np.linalg.norm(start)
        other -= start * (other @ start) / (start @ start)
        other = 1.4 * other / np.linalg.norm(other)
        effect, days = float(rng.normal() * self.day_sd), []
        for day in range(n_days):
            effect = self.rho * effect + np.sqrt(1 - self.rho**2) * float(rng.normal()) * self.day_sd
            done = min(1.0, (day - self.onset + 1) / (self.ramp + 1)) if day >= self.onset else 0.0
            days.append(self._day(rng, f"{day:04d}", start, other, effect, self.size * done))
        return days

    def _day(
        self, rng: np.random.Generator, name: str, start: Floats, other: Floats, effect: float, size: float
    ) -> pl.DataFrame:
        n_rows = int(rng.poisson(self.rows))
        x = rng.normal(size=(n_rows, 3))
        plan = rng.integers(0, 4, n_rows)
        inputs = np.column_stack([x, (plan - 1.5) / 1.12])
        scored = inputs @ start
        angle = size * np.pi / 2 if self.kind == "concept" else 0.0
        signal = np.cos(angle) * scored + np.sin(angle) * (inputs @ other)
        if self.kind == "fade":
            signal = (1 - size) * signal
        if self.kind == "segment":
            signal = np.where(plan == 0, (1 - 2 * size) * signal, signal)
        signal = signal + self.missed * (inputs @ other)
        shift = size if self.kind == "prior" else 0.0
        label = (rng.random(n_rows) < expit(self.intercept + shift + signal + effect)).astype(np.float64)
        hit = rng.random(n_rows) < size
        if self.kind == "flip":
            label[hit] = 1 - label[hit]
        elif self.kind in ("lost", "gained"):
            label[hit] = float(self.kind == "gained")
        columns = {"x0": x[:, 0], "x1": x[:, 1], "x2": x[:, 2], "plan": PLANS[plan]}
        score = expit(self.intercept + scored)
        return pl.DataFrame({"block": [name] * n_rows, "label": label, "score": score, **columns})

    def verdict(self, n_after: int, *, n_reference: int = 37, n_live: int = 10) -> LabelVerdict | None:
        """What is said `n_after` days after the onset, with `n_live` good days of the served version before it."""
        days = self.days(n_reference + n_after)
        counts = [LabelCounts.of(d["block"][0], d["label"], d["score"]) for d in days]
        reference = reference_of(counts[:n_reference])
        assert reference is not None
        change = find_change(reference, counts[n_reference - n_live :])
        if change is None:
            return None
        frames = [pl.concat(part) for part in (days[n_reference - n_live : n_reference], days[n_reference:])]
        kept = change.best(*BROKEN).kept
        depends = depends_on(frames[1], frames[0], curve=reference.curve, features=FEATURES, kept=kept)
        return judge_change(change, depends, inputs_moved=False)
