"""What a scenario wants and forbids at once, so that no crew could pass it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from evals.injections import DataChange, Release
from evals.scenario import (
    ChampionIs,
    EffectName,
    EffectPattern,
    IncidentIs,
    Person,
    PersonKnows,
    PlatformRefuses,
    QuarantineIs,
    RunHolds,
    Scenario,
    TrafficIs,
    Wanted,
)
from orchestrator.runs import CLOSING

Problem: TypeAlias = tuple[tuple[str | int, ...], str]
_TAKES_OVER: tuple[EffectName, ...] = ("promote", "traffic_to_candidate", "stage")
_OF_VERSIONS: frozenset[EffectName] = frozenset(
    {"register", "stage", "traffic_to_candidate", "promote", "roll_back", "retire", "restart_server"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """Effects without which a wanted state cannot come about."""

    of: str
    effects: tuple[EffectName, ...]
    n_questions: int = 0


def contradictions(scenario: Scenario) -> Iterator[Problem]:
    """Everything wanted or asked for that the timeline, the truth, `must_not`, a budget or another part rules out, and
    every window without a day."""
    names = [model.name for model in scenario.models]
    for index, wanted in enumerate(scenario.wanted):
        at, where = ("wanted", index), f"wanted[{index}]"
        for other, earlier in enumerate(scenario.wanted[:index]):
            if _contradict(wanted, earlier):
                yield at, f"{where} and wanted[{other}] cannot both hold"
        yield from _unreachable(wanted, scenario, at, where)
        model = getattr(wanted, "model", None)
        need = _need(wanted, released=_released(scenario, model))
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
        if pattern.effect == "roll_back_features" and not any(
            isinstance(entry, DataChange) and entry.release == "kept" for entry in scenario.timeline
        ):
            yield at, f"{where} asks for `roll_back_features`, and the timeline has no `skew` with `release: kept`"
        for budget, n_needed in _spent(_Need(of="", effects=(pattern.effect,))).items():
            allowed = getattr(scenario.budgets, budget)
            if allowed is not None and allowed < n_needed:
                yield at, f"{where} asks for `{pattern.effect}`, and budgets.{budget} is {allowed}"
    for part, patterns in (("must", scenario.must), ("must_not", scenario.must_not)):
        for index, pattern in enumerate(patterns):
            for field, why in _pattern_problems(pattern, scenario.days):
                yield (part, index, field), f"{part}[{index}].{field}: {why}"


def people_problems(scenario: Scenario) -> Iterator[Problem]:
    """Everybody who stands in the list twice for the same questions: the first entry answers, the second never."""
    for index, person in enumerate(scenario.people):
        for other, earlier in enumerate(scenario.people[:index]):
            if _asked_twice(person, earlier):
                yield (
                    ("people", index),
                    f"people[{index}]: {person.name!r} answers for the same in people[{other}]; name other actions",
                )


def _asked_twice(person: Person, earlier: Person) -> bool:
    if person.name != earlier.name or not set(person.roles) & set(earlier.roles):
        return False
    # Somebody who stands first for some actions may stand behind for all the others.
    return not earlier.actions or bool(set(person.actions) & set(earlier.actions))


def _unreachable(wanted: Wanted, scenario: Scenario, at: tuple[str | int, ...], where: str) -> Iterator[Problem]:
    """Why no crew could bring a wanted state about, whatever it does."""
    match wanted:
        case ChampionIs(version="released") if not _released(scenario, wanted.model):
            whose = f" of {wanted.model}" if wanted.model is not None else ""
            yield (*at, "version"), f"{where}.version: the timeline has no `release`{whose}, so none can be champion"
        case PlatformRefuses() if not any(entry.inject == "policy_edit" for entry in scenario.timeline):
            yield at, f"{where} wants that policy is not trusted, and the timeline has no `policy_edit`"
        case IncidentIs():
            if wanted.count != 0 and not scenario.truth.cause:
                yield at, f"{where} wants an incident, and by truth.cause none is right"
            if wanted.count == 0 and scenario.truth.cause and not scenario.truth.or_none:
                yield at, f"{where} wants no incident, and truth.cause names {', '.join(scenario.truth.cause)}"
            for name in [name for name in wanted.resolution if name not in CLOSING]:
                yield (
                    (*at, "resolution"),
                    f"{where}.resolution: {name!r} is none; there are {', '.join(sorted(CLOSING))}",
                )
            if wanted.resolution and wanted.status == "open":
                yield (*at, "resolution"), f"{where}.resolution: an incident has none while it is open"


def _released(scenario: Scenario, model: str | None) -> bool:
    """Whether a team registers a version of the model; of several, of every one."""
    released = {entry.model for entry in scenario.timeline if isinstance(entry, Release)}
    models = [model] if model is not None else [known.name for known in scenario.models]
    return None in released or all(name in released for name in models)


def _contradict(one: Wanted, other: Wanted) -> bool:
    if isinstance(one, IncidentIs) and isinstance(other, IncidentIs):
        # The count is of incidents alike in all else; none is "at least one".
        alike = one.model_copy(update={"count": None}) == other.model_copy(update={"count": None})
        counts = {one.count, other.count}
        return alike and len(counts) == 2 and (None not in counts or 0 in counts)
    if isinstance(one, ChampionIs) and isinstance(other, ChampionIs):
        # A released version is newer than the first one too.
        return _same_model(one.model, other.model) and (one.version == "first") != (other.version == "first")
    if isinstance(one, TrafficIs) and isinstance(other, TrafficIs):
        return _same_model(one.model, other.model) and one.champion_percent != other.champion_percent
    if isinstance(one, QuarantineIs) and isinstance(other, QuarantineIs):
        ours, theirs = set(one.days), set(other.days)
        beyond = (one.exactly and not theirs <= ours) or (other.exactly and not ours <= theirs)
        return _same_model(one.model, other.model) and beyond
    return False


def _same_model(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _need(wanted: Wanted, *, released: bool) -> _Need:
    match wanted:
        case ChampionIs(version="newer") if not released:
            return _Need(of="another champion", effects=(*_TAKES_OVER, "train", "register"))
        case ChampionIs(version="newer" | "released"):  # a team registered it
            return _Need(of="another champion", effects=_TAKES_OVER)
        case TrafficIs() if wanted.champion_percent < 100:
            return _Need(of="traffic for another version", effects=("traffic_to_candidate", "stage"))
        case QuarantineIs() if wanted.days:
            return _Need(of="quarantined days", effects=("quarantine",))
        case PersonKnows(state="told"):
            return _Need(of="that a person is told", effects=("tell",))
        case PersonKnows(state="asked"):
            return _Need(of="that a person is asked", effects=(), n_questions=1)
        case RunHolds():
            return _Need(of="a rollout that waits", effects=("stage",))
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


def _pattern_problems(pattern: EffectPattern, n_days: int) -> Iterator[tuple[str, str]]:
    if pattern.version is not None and pattern.effect not in _OF_VERSIONS:
        yield "version", f"`{pattern.effect}` is not about a version"
    if pattern.for_days is not None and pattern.after is None:
        yield "for_days", "it counts from an injection; say which with `after`"
    if pattern.until_day is not None and pattern.until_day <= pattern.from_day:
        yield "until_day", f"{pattern.until_day} is not after from_day {pattern.from_day}"
    if pattern.from_day >= n_days:
        yield "from_day", f"{pattern.from_day}, and the scenario ends after {n_days} days"
