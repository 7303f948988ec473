"""What a scenario wants and forbids at once, so that no crew could pass it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from evals.scenario import (
    ChampionIs,
    EffectName,
    EffectPattern,
    IncidentIs,
    PersonKnows,
    QuarantineIs,
    Scenario,
    TrafficIs,
    Wanted,
)

Problem: TypeAlias = tuple[tuple[str | int, ...], str]
_TAKES_OVER: tuple[EffectName, ...] = ("promote", "traffic_to_candidate", "stage")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """Effects without which a wanted state cannot come about."""

    of: str
    effects: tuple[EffectName, ...]
    n_questions: int = 0


def contradictions(scenario: Scenario) -> Iterator[Problem]:
    """Every wanted state and every `must` that `must_not` or a budget rules out, and every window without a day."""
    names = [model.name for model in scenario.models]
    for index, wanted in enumerate(scenario.wanted):
        at, where = ("wanted", index), f"wanted[{index}]"
        for other, earlier in enumerate(scenario.wanted[:index]):
            if _contradict(wanted, earlier):
                yield at, f"{where} and wanted[{other}] cannot both hold"
        need = _need(wanted)
        model = getattr(wanted, "model", None)
        for name in [model] if model is not None else names:
            for effect in need.effects:
                if any(_covers(pattern, EffectPattern(effect=effect, model=name)) for pattern in scenario.must_not):
                    yield at, f"{where} wants {need.of}, and must_not forbids `{effect}`"
        for budget, n_needed in _spent(need).items():
            allowed = getattr(scenario.budgets, budget)
            if allowed is not None and allowed < n_needed:
                yield at, f"{where} wants {need.of}, and budgets.{budget} is {allowed}"
    for index, pattern in enumerate(scenario.must):
        at, where = ("must", index), f"must[{index}]"
        if any(_covers(other, pattern) for other in scenario.must_not):
            yield at, f"{where} asks for `{pattern.effect}`, and must_not forbids it"
        for budget, n_needed in _spent(_Need(of="", effects=(pattern.effect,))).items():
            allowed = getattr(scenario.budgets, budget)
            if allowed is not None and allowed < n_needed:
                yield at, f"{where} asks for `{pattern.effect}`, and budgets.{budget} is {allowed}"
    for part, patterns in (("must", scenario.must), ("must_not", scenario.must_not)):
        for index, pattern in enumerate(patterns):
            for field, why in _window_problems(pattern, scenario.days):
                yield (part, index, field), f"{part}[{index}].{field}: {why}"


def _contradict(one: Wanted, other: Wanted) -> bool:
    if isinstance(one, IncidentIs) and isinstance(other, IncidentIs):
        # The count is of incidents alike in all else; none is "at least one".
        alike = one.model_copy(update={"count": None}) == other.model_copy(update={"count": None})
        counts = {one.count, other.count}
        return alike and len(counts) == 2 and (None not in counts or 0 in counts)
    if isinstance(one, ChampionIs) and isinstance(other, ChampionIs):
        # A released version may be the newer one too.
        return _same_model(one.model, other.model) and (one.version == "first") != (other.version == "first")
    if isinstance(one, TrafficIs) and isinstance(other, TrafficIs):
        return _same_model(one.model, other.model) and one.champion_percent != other.champion_percent
    return False


def _same_model(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _need(wanted: Wanted) -> _Need:
    match wanted:
        case ChampionIs(version="newer"):
            return _Need(of="another champion", effects=(*_TAKES_OVER, "train", "register"))
        case ChampionIs(version="released"):  # a team registered it
            return _Need(of="another champion", effects=_TAKES_OVER)
        case TrafficIs() if wanted.champion_percent < 100:
            return _Need(of="traffic for another version", effects=("traffic_to_candidate", "stage"))
        case QuarantineIs() if wanted.days:
            return _Need(of="quarantined days", effects=("quarantine",))
        case PersonKnows(state="told"):
            return _Need(of="that a person is told", effects=("tell",))
        case PersonKnows(state="asked"):
            return _Need(of="that a person is asked", effects=(), n_questions=1)
    return _Need(of="", effects=())


def _spent(need: _Need) -> Mapping[str, int]:
    """The least that the effects take of each budget; a message is no action."""
    return {
        "actions": sum(effect != "tell" for effect in need.effects),
        "trainings": need.effects.count("train"),
        "questions": need.n_questions,
    }


def _covers(wide: EffectPattern, narrow: EffectPattern) -> bool:
    """Whether every effect that fits `narrow` fits `wide` too."""
    return (
        wide.effect == narrow.effect
        and wide.model in (None, narrow.model)
        and wide.version in (None, narrow.version)
        and wide.before in (None, narrow.before)
        and wide.from_day <= narrow.from_day
        and (wide.until_day is None or (narrow.until_day is not None and narrow.until_day <= wide.until_day))
        and (wide.after is None or wide.after == narrow.after)
        and (wide.for_days is None or (narrow.for_days is not None and narrow.for_days <= wide.for_days))
    )


def _window_problems(pattern: EffectPattern, n_days: int) -> Iterator[tuple[str, str]]:
    if pattern.for_days is not None and pattern.after is None:
        yield "for_days", "it counts from an injection; say which with `after`"
    if pattern.until_day is not None and pattern.until_day <= pattern.from_day:
        yield "until_day", f"{pattern.until_day} is not after from_day {pattern.from_day}"
    if pattern.from_day >= n_days:
        yield "from_day", f"{pattern.from_day}, and the scenario ends after {n_days} days"
