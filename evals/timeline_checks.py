"""What a timeline asks for that could not happen, or would change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from evals.contradictions import Problem
from evals.injections import (
    EVERYWHERE,
    MAGNITUDES,
    NO_CHANGE,
    NO_RAMP,
    OF_FEATURES,
    TYPES,
    AnyInjection,
    DataChange,
    ExportFault,
    Misroute,
    PlatformFault,
    PolicyEdit,
    Release,
    RouteEdit,
    ServerChange,
    Wish,
)
from evals.scenario import Scenario, WorldModel
from evals.world.faults import CALLS, EFFECTS, HITS
from evals.world.truth import LEVELS
from evals.world_checks import least_history
from orchestrator.goals.reading import NotUnderstood, read_goal, refuse_unmeasured, refuse_unserved
from policies.engine import SHIPPED
from policies.lint import SCHEMA_FILE
from state.errors import InputError
from state.goals import Goal
from state.spec import ModelSpec
from tools.parity import PARITY_TOLERANCE

_PORTS = ("pipelines", "registry", "servers", "mesh", "metrics", "data", "outcomes", "features", "notifier")
_ONE_MODEL = ("release", "server", "edit_route", "misroute")


def timeline_problems(scenario: Scenario, specs: Mapping[str, ModelSpec]) -> Iterator[Problem]:
    """Every entry that cannot happen as it says, or that would change nothing."""
    wishes = [(index, entry) for index, entry in enumerate(scenario.timeline) if isinstance(entry, Wish)]
    if scenario.needs is not None and scenario.twin and any(wish.harmless for _, wish in wishes):
        yield ("twin",), "twin: a twin asks no language model, so it cannot keep a harmless goal; write `twin: false`"
    if scenario.needs is not None and not any(_in_free_words(wish.text) for _, wish in wishes):
        yield ("needs",), "needs: no goal of the timeline is in free words, so no language model is asked"
    for index, entry in enumerate(scenario.timeline):
        at, where = ("timeline", index), f"timeline[{index}]"
        yield from unknown_model(entry.model, specs, (*at, "model"), f"{where}.model")
        if entry.model is not None and entry.model not in specs:
            continue
        for field, text in (*_span_problems(entry, scenario), *_entry_problems(entry, scenario, specs)):
            yield (*at, field), f"{where}.{field}: {text}"


def unknown_model(
    name: str | None, specs: Mapping[str, ModelSpec], at: tuple[str | int, ...], field: str
) -> Iterator[Problem]:
    if name is not None and name not in specs:
        yield at, f"{field}: {name!r} is no model of this scenario; it has {', '.join(specs)}"


def why_not_taken(goal: Goal, specs: Mapping[str, ModelSpec], *, named: bool = True) -> str:
    """Why the crew's door would refuse the goal, as far as a file can tell; empty where it would not."""
    if goal.model is not None and goal.model not in specs:
        return f"{goal.model!r} is no model of this scenario; it has {', '.join(specs)}"
    if goal.model is None and named and len(specs) > 1:
        return f"no model is named, and there are {', '.join(specs)}"
    try:
        refuse_unserved(goal)
        for name in [goal.model] if goal.model is not None else specs:
            refuse_unmeasured(goal, model=name, judged_by=specs[name].objective.metric)
    except InputError as exc:
        return str(exc).removeprefix("goal: ")
    return ""


def _in_free_words(text: str) -> bool:
    try:
        read_goal(text)
    except NotUnderstood:
        return True
    except InputError:
        return False
    return False


def _span_problems(entry: AnyInjection, scenario: Scenario) -> Iterator[tuple[str, str]]:
    """What is wrong with when an entry begins and ends, and with which model it is about."""
    if entry.day >= scenario.days:
        yield "day", f"{entry.day} is after the end; the scenario has {scenario.days} days"
    until = getattr(entry, "until_day", None)
    if entry.for_days is not None and (until is not None or not hasattr(entry, "until_day")):
        yield "for_days", "until_day says it already" if until is not None else f"`{entry.inject}` has no end"
    if entry.when is not None and until is not None:
        yield "until_day", "it cannot be known with `when`; use `for_days`"
    if until is not None and until <= entry.day:
        yield "until_day", f"{until} is not after day {entry.day}"
    several = len(scenario.models) > 1
    if several and entry.model is None and (entry.when is not None or entry.inject in _ONE_MODEL):
        yield "model", f"of {len(scenario.models)} models, say which"
    if several and entry.model is not None and entry.when is None and entry.inject in EVERYWHERE:
        yield "model", f"`{entry.inject}` is about all models; leave it out"


def _entry_problems(
    entry: AnyInjection, scenario: Scenario, specs: Mapping[str, ModelSpec]
) -> Iterator[tuple[str, str]]:
    match entry:
        case DataChange():
            yield from _change_problems(entry, scenario, specs)
        case Release():
            yield from _release_problems(entry, scenario, specs)
        case ServerChange():
            idle = ServerChange(day=0, inject="server", version=entry.version)
            same = entry.model_dump(include={"error_ratio", "latency_ratio", "capacity", "score_shift", "dead"})
            earlier = [e for e in scenario.timeline if e.inject in ("server", "release") and e is not entry]
            if same == idle.model_dump(include=set(same)) and all(e.day > entry.day for e in earlier):
                yield "version", "nothing is said to be wrong with it, and nothing was that it could recover from"
        case PlatformFault():
            yield from _platform_problems(entry)
        case ExportFault() if entry.difference <= PARITY_TOLERANCE:
            yield (
                "difference",
                f"{entry.difference:g} is within the {PARITY_TOLERANCE:g} that every export may differ by",
            )
        case RouteEdit() | Misroute():
            if sum(entry.weights.values()) != 100:
                yield "weights", f"they sum to {sum(entry.weights.values())}, not to 100"
        case Wish():
            yield from _wish_problems(entry, scenario, specs)
        case PolicyEdit():
            yield from _edit_problems(entry)
        case _ if entry.inject == "unhalt":
            if not any(e.inject == "halt" and e.day <= entry.day for e in scenario.timeline):
                yield "inject", "the kill switch was not thrown before; add a `halt`"
        case _ if entry.inject == "resume" and not entry.harmless:
            held = [e for e in scenario.timeline if e.inject in ("hold", "edit_route") and e.day <= entry.day]
            wished = any(isinstance(e, Wish) and "hold" in e.text for e in scenario.timeline)
            if not held and not wished:
                yield "inject", "nobody holds the model before; add a `hold`"


def _change_problems(
    entry: DataChange, scenario: Scenario, specs: Mapping[str, ModelSpec]
) -> Iterator[tuple[str, str]]:
    least, most = MAGNITUDES[entry.inject]
    if not least <= entry.magnitude <= most:
        yield "magnitude", f"{entry.magnitude:g} is not from {least:g} to {most:g}, as `{entry.inject}` takes it"
    elif entry.magnitude == NO_CHANGE.get(entry.inject, 0.0):
        yield "magnitude", f"`{entry.inject}` by {entry.magnitude:g} changes nothing"
    if entry.ramp_days and entry.inject in NO_RAMP:
        yield "ramp_days", f"`{entry.inject}` comes whole from its first day on"
    if entry.release is not None and entry.inject != "skew":
        yield "release", "only `skew` can have a release of the feature view behind it"
    if entry.level is not None and entry.inject not in ("segment", "new_level"):
        yield "level", f"`{entry.inject}` is not about a level; only `segment` and `new_level` are"
    if entry.inject == "label_flip" and all(specs[m.name].task == "regression" for m in _touched(entry, scenario)):
        yield "inject", "a number cannot be flipped; use `label_lost`, or a binary model"
    yield from _feature_problems(entry, scenario, specs)


def _feature_problems(
    entry: DataChange, scenario: Scenario, specs: Mapping[str, ModelSpec]
) -> Iterator[tuple[str, str]]:
    touched = _touched(entry, scenario)
    if entry.table is not None and entry.features:
        yield "features", "name the table or the features, not both"
    if entry.table is not None and not touched:
        whose = f"{entry.model} does not read" if entry.model is not None else "no model reads"
        yield "table", f"{whose} from {entry.table!r}; declare it under models[].tables"
    if entry.inject not in OF_FEATURES:
        # A table names models here, those that read it: all their rows or labels are hit.
        if entry.features:
            yield (
                "features",
                f"`{entry.inject}` is about whole rows or labels; only {', '.join(OF_FEATURES)} take features",
            )
        return
    types = {f.name: f.type for model in touched for f in specs[model.name].features}
    unknown = [name for name in entry.features if name not in types]
    for name in unknown:
        yield "features", f"no model has a feature {name!r}; known are {', '.join(sorted(types))}"
    kind = TYPES.get(entry.inject)
    for name in [name for name in entry.features if kind is not None and types.get(name, kind) != kind]:
        yield "features", f"`{entry.inject}` changes {kind} features, and {name!r} is {types[name]}"
    hit = [
        name for model in touched
        for name in (model.tables[entry.table] if entry.table is not None else entry.features or list(types))
        if kind is None or types.get(name) == kind
    ]  # fmt: skip
    if touched and not hit and not entry.features:
        yield "inject", f"`{entry.inject}` changes {kind} features, and it would find none"
    made = all(model.replay is None for model in touched)  # of recorded rows the levels are a team's own
    if made and not unknown and (why := _level_problem(entry, types)):
        yield "level", why


def _touched(entry: DataChange, scenario: Scenario) -> Sequence[WorldModel]:
    return [
        model for model in scenario.models
        if entry.model in (None, model.name) and (entry.table is None or entry.table in model.tables)
    ]  # fmt: skip


def _level_problem(entry: DataChange, types: Mapping[str, str]) -> str:
    """Why no row could be hit, which would leave a fault that never happened."""
    if entry.inject == "new_level" and entry.level in LEVELS:
        return f"{entry.level!r} is no new level; known are {', '.join(LEVELS)}"
    if entry.inject != "segment":
        return ""
    if len(entry.features) != 1 or entry.level is None:
        return "a segment is one feature and one of its levels"
    name = entry.features[0]
    levels = {"categorical": LEVELS, "boolean": ("true", "false")}.get(types[name], ())
    if not levels:
        return f"{name!r} is {types[name]} and has no levels"
    return "" if entry.level in levels else f"{name!r} has no level {entry.level!r}; it has {', '.join(levels)}"


def _release_problems(entry: Release, scenario: Scenario, specs: Mapping[str, ModelSpec]) -> Iterator[tuple[str, str]]:
    until, since = entry.trained_until_day, entry.trained_from_day
    if since is not None:
        n_days = (until if until is not None else entry.day) - since
        least = max(least_history(specs[model.name]) for model in scenario.models if entry.model in (None, model.name))
        if n_days < least:
            yield "trained_from_day", f"{since} leaves {max(n_days, 0)} days of rows to train on; {least} are needed"
    if until is None:
        return
    if until > entry.day:
        yield "trained_until_day", f"{until} is after day {entry.day}, on which no later rows are known"
    for model in [model for model in scenario.models if entry.model in (None, model.name) and model.replay is None]:
        least = least_history(specs[model.name])
        if model.history_days + until < least:
            yield (
                "trained_until_day",
                f"{until} leaves {max(model.history_days + until, 0)} days of history to train on; {least} are needed",
            )


def _platform_problems(entry: PlatformFault) -> Iterator[tuple[str, str]]:
    port = entry.method.split(".")[0]
    if port != "*" and port not in _PORTS and not any(c in port for c in "*?["):
        yield "method", f"there is no port {port!r}; there are {', '.join(_PORTS)}"
        return
    named = {call for call in CALLS if fnmatchcase(call, entry.method)}
    if not named:
        calls = ", ".join(sorted(call for call in CALLS if call.startswith(f"{port}.")))
        yield "method", f"no call is named {entry.method!r}" + (f"; there are {calls}" if calls else "")
        return
    able = HITS.get(entry.kind, CALLS)
    if not named & able:
        yield "kind", f"`{entry.kind}` does nothing to {', '.join(sorted(named))}; it hits {', '.join(sorted(able))}"
    elif entry.effects_only and not named & able & EFFECTS:
        yield "effects_only", f"{', '.join(sorted(named & able))} changes nothing, so no call would be counted"
    if "polls" in entry.model_fields_set and entry.kind != "slow":
        yield "polls", f"only `slow` waits for looks, not `{entry.kind}`"


def _wish_problems(entry: Wish, scenario: Scenario, specs: Mapping[str, ModelSpec]) -> Iterator[tuple[str, str]]:
    try:
        goal = read_goal(entry.text)
    except InputError as exc:
        if entry.expect == "taken" and not (scenario.needs and isinstance(exc, NotUnderstood)):
            yield "text", str(exc).removeprefix("goal: ")
        return
    why = why_not_taken(goal, specs)
    # Whether a version exists by then is known on the day only.
    if entry.expect == "refused" and not why and goal.version is None:
        yield "expect", "the text is a goal that would be taken"
    if entry.expect == "taken" and why:
        yield "text", why


def _edit_problems(entry: PolicyEdit) -> Iterator[tuple[str, str]]:
    shipped = SHIPPED / entry.file
    if entry.file.endswith(".cedarschema") and entry.file != SCHEMA_FILE:
        yield "file", f"nothing reads {entry.file!r}; the schema is {SCHEMA_FILE!r}"
    elif shipped.is_file() and shipped.read_text(encoding="utf-8") == entry.text:
        yield "text", f"this is what {entry.file} holds already"
