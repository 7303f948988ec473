"""Whether a change of the outcomes is the labels' fault, the world's, or not to be told: the evidence, for and against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tools.drift.dependence import Dependence
from tools.drift.labels import Change, Hypothesis

REJECTED, KEPT = 0.003, 0.05
"""p-values below which an explanation is rejected, and above which it is kept."""
MIN_BLOCKS = 2
"""Blocks that a step needs: one strange day is the weather."""
BROKEN: tuple[Hypothesis, ...] = ("flip", "lost", "gained")
REAL: tuple[Hypothesis, ...] = ("prior", "fade")
WORDS: dict[Hypothesis, str] = {
    "flip": "flipped labels, about {:.0%} of them",
    "lost": "labels of class 1 reported as class 0, about {:.0%} of them",
    "gained": "labels of class 0 reported as class 1, about {:.0%} of them",
    "prior": "odds changed alike for all rows, by a factor of {:.2g}",
    "fade": "scores that say {:.0%} less at the same label rate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelVerdict:
    kind: Literal["fault", "in_doubt", "world"]
    """`fault`: broken labels explain it and no change of the world does. `in_doubt`: both do, and only whoever owns the
    labels can tell. `world`: broken labels do not explain it."""
    evidence_for: tuple[str, ...]
    """For a fault of the labels."""
    evidence_against: tuple[str, ...]


def judge_change(
    change: Change, dependence: Dependence | None, *, inputs_moved: bool, confined: str | None = None
) -> LabelVerdict:
    """What a change of labels against scores is.

    For broken labels speak: a step that single blocks show; a reliability curve that stays a straight line through the
    point that its kind of fault leaves where it was (flips leave 0.5, lost labels 0, gained ones 1); labels that
    depend on no feature beyond the score. A world that changes comes gradually, keeps the label rate or shifts all
    odds alike, changes with the features, or in one segment only (`confined`, in words): what breaks labels hits all
    rows alike. A flip cannot be told from a drift with certainty: where explanations of
    both kinds are left, the verdict is `in_doubt`.
    """
    broken, real = change.p_value(*BROKEN), change.p_value(*REAL)
    step = change.is_step and change.n_blocks >= MIN_BLOCKS
    depends = dependence is not None and dependence.is_real
    evidence = [
        (step, f"a step of {change.size:.1f} block standard deviations in the block of {change.since}"
         if step else _no_step(change)),
        (broken >= REJECTED, f"labels against scores {'fit' if broken >= REJECTED else 'do not fit'} "
         + _words(change, BROKEN)),
        (real < REJECTED, f"they {'do not fit' if real < REJECTED else 'fit as well'} {_words(change, REAL)}"),
        (dependence is not None and not depends, _on_features(dependence)),
        (not inputs_moved, f"the inputs {'moved as well' if inputs_moved else 'did not move'}"),
    ]  # fmt: skip
    if confined is not None:
        evidence.append((False, f"the loss has risen {confined}"))
    kind: Literal["fault", "in_doubt", "world"] = "in_doubt"
    if not step or broken < REJECTED or depends or confined is not None:
        kind = "world"
    elif broken > KEPT and all(speaks for speaks, _ in evidence):
        kind = "fault"
    return LabelVerdict(
        kind=kind,
        evidence_for=tuple(text for speaks, text in evidence if speaks),
        evidence_against=tuple(text for speaks, text in evidence if not speaks),
    )


def _on_features(dependence: Dependence | None) -> str:
    if dependence is None:
        return "whether labels depend on features beyond the score could not be tested"
    if not dependence.is_real:
        return "at equal scores labels depend on no feature more than before"
    return (
        f"at equal scores labels depend on {dependence.feature} as they did not before "
        f"({dependence.effect:+.2f} a standard deviation, p {dependence.p_value:.2g})"
    )


def _no_step(change: Change) -> str:
    if change.n_blocks < MIN_BLOCKS:
        return f"only the block of {change.since} shows it"
    if change.ramp is not None and change.is_visible:
        return f"it came gradually from the block of {change.since} on"
    return f"single blocks do not show it ({change.size:.1f} block standard deviations): a step looks like a drift"


def _words(change: Change, hypotheses: tuple[Hypothesis, ...]) -> str:
    best = change.best(*hypotheses)
    strength = math.exp(best.strength) if best.hypothesis == "prior" else best.strength
    return f"{WORDS[best.hypothesis].format(strength)} (p {best.p_value:.2g})"
