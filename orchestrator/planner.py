"""Finds the cheapest order of actions that makes a goal true, and says why each of them is in it.

Best-first search (A*) over the catalogue's declarations. The same facts and goal give the same plan on every
machine: costs are numbers from the catalogue, and ties are broken by the actions' names.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence, Set
from typing import TypeAlias, cast

from orchestrator.actions import CATALOGUE, FACT_NAMES, ActionDeclaration, Catalogue, FactName
from state.errors import InputError, TerminalError
from state.plans import ActionKind, Plan, PlanStep

Facts: TypeAlias = frozenset[FactName]
MAX_EXPANSIONS = 20_000
"""States looked into before the search gives up; an ordinary plan takes under a hundred."""


class NoPlan(TerminalError):
    """No order of the allowed actions makes the goal true; observe something new or ask a person.

    `missing` holds the facts at the root: nothing allowed makes them true.
    """

    def __init__(self, message: str, *, missing: frozenset[str]) -> None:
        super().__init__(message)
        self.missing = missing


def plan(facts: Set[str], goal: Set[str], *, allowed: Catalogue = CATALOGUE) -> Plan:
    """The cheapest plan from `facts` to `goal` by `allowed` actions; without steps where the goal already holds.

    Raises:
        NoPlan: there is none; the message says what each missing fact waits for.
        InputError: a fact or goal is not one that the catalogue knows.
    """
    start, wanted = known_facts(facts), known_facts(goal)
    actions = _relevant(start, wanted, allowed)
    kinds = _search(start, wanted, actions)
    if kinds is None:
        raise _no_plan(start, wanted, allowed)
    return _explained(start, wanted, kinds, allowed)


def execute(kinds: Sequence[ActionKind], facts: Set[str], goal: Set[str], *, allowed: Catalogue = CATALOGUE) -> Plan:
    """The plan of exactly these actions, in this order: for a plan that somebody else, or an LLM, proposes.

    Raises:
        NoPlan: the declarations cannot execute it, or it does not reach the goal.
        InputError: a fact or goal is not one that the catalogue knows.
    """
    start, wanted = known_facts(facts), known_facts(goal)
    present = start
    for number, kind in enumerate(kinds, 1):
        if kind not in allowed:
            raise NoPlan(f"step {number}: {kind} is not allowed here", missing=frozenset())
        lacking = allowed[kind].needs - present
        if lacking:
            raise NoPlan(f"step {number}: {kind} waits for {_listed(lacking)}", missing=frozenset(lacking))
        present = _after(present, allowed[kind])
    if wanted - present:
        raise NoPlan(f"the steps do not reach {_listed(wanted - present)}", missing=frozenset(wanted - present))
    return _explained(start, wanted, kinds, allowed)


def known_facts(names: Iterable[str]) -> Facts:
    """`names` as facts.

    Raises:
        InputError: the catalogue knows no such fact.
    """
    given = frozenset(names)
    unknown = sorted(given - FACT_NAMES)
    if unknown:
        raise InputError(
            f"planner: {', '.join(unknown)} is not a fact of the catalogue",
            remedy="Use the names in orchestrator/actions.py",
        )
    return cast(Facts, given)


def _after(facts: Facts, action: ActionDeclaration) -> Facts:
    return (facts - action.ends) | action.makes


def _relevant(start: Facts, goal: Facts, allowed: Catalogue) -> list[ActionDeclaration]:
    """Actions that can help: they make something that the goal, or another such action, needs.

    A fact that holds at the start counts too, because an action on the way may end it.
    """
    wanted: set[FactName] = set(goal)
    chosen: dict[ActionKind, ActionDeclaration] = {}
    reachable = _reachable(start, allowed.values())
    growing = True
    while growing:
        growing = False
        for kind in sorted(allowed):
            action = allowed[kind]
            if kind not in chosen and action.makes & wanted and action.needs <= reachable:
                chosen[kind] = action
                wanted |= action.needs
                growing = True
    return [chosen[kind] for kind in sorted(chosen)]


def _reachable(start: Facts, actions: Iterable[ActionDeclaration]) -> frozenset[FactName]:
    """Every fact that some order of the actions could make true, were none of them to end another."""
    facts = set(start)
    waiting = list(actions)
    growing = True
    while growing:
        ready = [action for action in waiting if action.needs <= facts]
        growing = bool(ready)
        waiting = [action for action in waiting if not action.needs <= facts]
        for action in ready:
            facts |= action.makes
    return frozenset(facts)


def _search(start: Facts, goal: Facts, actions: Sequence[ActionDeclaration]) -> tuple[ActionKind, ...] | None:
    estimate = _bound(start, goal, actions)
    if estimate is None:
        return None
    # Total, then what is spent, then names: among equals the deepest first, and always the same one.
    queue: list[tuple[float, float, tuple[ActionKind, ...], Facts]] = [(estimate, 0.0, (), start)]
    best: dict[Facts, float] = {start: 0.0}
    bounds: dict[Facts, float | None] = {start: estimate}
    for _ in range(MAX_EXPANSIONS):
        if not queue:
            return None
        _, negative, path, facts = heapq.heappop(queue)
        spent = -negative
        if goal <= facts:
            return path
        if spent > best[facts]:
            continue
        for action in actions:
            if not action.needs <= facts or action.makes <= facts:
                continue
            reached = _after(facts, action)
            cost = spent + action.cost
            if cost >= best.get(reached, float("inf")):
                continue
            if reached not in bounds:
                bounds[reached] = _bound(reached, goal, actions)
            bound = bounds[reached]
            if bound is not None:
                best[reached] = cost
                heapq.heappush(queue, (cost + bound, -cost, (*path, action.kind), reached))
    raise TerminalError(f"planner: no plan for {_listed(goal)} within {MAX_EXPANSIONS} states")


def _bound(facts: Facts, goal: Facts, actions: Sequence[ActionDeclaration]) -> float | None:
    """A cost that no plan from `facts` can undercut; None where no plan exists.

    The dearest goal fact, each fact priced by its cheapest maker and that maker's dearest need, with nothing
    ever ended (h_max): it never overestimates, so the first plan found is the cheapest.
    """
    price: dict[FactName, float] = dict.fromkeys(facts, 0.0)
    changed = True
    while changed:
        changed = False
        for action in actions:
            needs = [price.get(need) for need in action.needs]
            if any(value is None for value in needs):
                continue
            total = action.cost + max((value for value in needs if value is not None), default=0.0)
            for made in action.makes:
                if total < price.get(made, float("inf")):
                    price[made] = total
                    changed = True
    if not goal <= price.keys():
        return None
    return max((price[fact] for fact in goal), default=0.0)


def _explained(start: Facts, goal: Facts, kinds: Sequence[ActionKind], allowed: Catalogue) -> Plan:
    chain = [allowed[kind] for kind in kinds]
    reasons = _reasons(goal, chain)
    steps = []
    made: frozenset[FactName] = frozenset()
    for action, useful in zip(chain, reasons, strict=True):
        purpose = "; ".join(f"{fact}, {use}" for fact, use in sorted(useful.items()))
        steps.append(
            PlanStep(
                kind=action.kind,
                agent=action.agent,
                why=f"{action.does}: makes {purpose}" if purpose else f"{action.does}: nothing later needs it",
                waits_for=sorted(action.needs & made),
                cost_minutes=action.minutes,
                alternatives=_alternatives(action, frozenset(useful), start, kinds, allowed),
            )
        )
        made |= action.makes
    minutes = sum(action.minutes for action in chain)
    return Plan(
        goal_facts=sorted(goal),
        steps=steps,
        cost_minutes=minutes,
        explanation=_summary(start, goal, chain, minutes),
    )


def _reasons(goal: Facts, chain: Sequence[ActionDeclaration]) -> list[dict[FactName, str]]:
    """For every step, the facts that it makes and who needs each: the next step that does, or the goal."""
    found: list[dict[FactName, str]] = []
    for index, action in enumerate(chain):
        useful: dict[FactName, str] = {}
        for fact in sorted(action.makes):
            for later in chain[index + 1 :]:
                if fact in later.needs:
                    useful[fact] = f"which {later.kind} needs"
                    break
                if fact in later.ends or fact in later.makes:
                    break
            else:
                if fact in goal:
                    useful[fact] = "which is the goal"
        found.append(useful)
    return found


def _alternatives(
    action: ActionDeclaration, useful: Facts, start: Facts, kinds: Sequence[ActionKind], allowed: Catalogue
) -> list[str]:
    others = []
    for kind in sorted(CATALOGUE):
        other = CATALOGUE[kind]
        shared = other.makes & useful
        if kind in kinds or not shared:
            continue
        price = f"{kind} ({other.minutes:g} min, weight {other.cost:g} against {action.cost:g})"
        price = f"{price} also makes {_listed(shared)}"
        lacking = other.needs - _reachable(start, allowed.values())
        if kind not in allowed:
            others.append(f"{price}; not allowed here")
        elif lacking:
            others.append(f"{price}; nothing makes {_listed(lacking)}")
        else:
            others.append(price)
    return others


def _summary(start: Facts, goal: Facts, chain: Sequence[ActionDeclaration], minutes: float) -> str:
    if not chain:
        return f"{_listed(goal)} already holds: nothing to do"
    order = " -> ".join(action.kind for action in chain)
    weight = sum(action.cost for action in chain)
    return (
        f"to reach {_listed(goal - start or goal)}: {order}; about {minutes:g} minutes, "
        f"weight {weight:g} with compute and risk, and no order of the allowed actions weighs less"
    )


def _no_plan(start: Facts, goal: Facts, allowed: Catalogue) -> NoPlan:
    reachable = _reachable(start, allowed.values())
    lacking = goal - reachable
    if not lacking:
        return NoPlan(
            f"every fact of {_listed(goal)} can be reached, but not all at once: one ends another",
            missing=frozenset(),
        )
    roots: dict[FactName, set[ActionKind]] = {fact: set() for fact in lacking if not _makers(fact, allowed)}
    waiting, seen = sorted(lacking), set(lacking)
    while waiting:
        for maker in _makers(waiting.pop(0), allowed):
            for need in sorted(maker.needs - reachable):
                if not _makers(need, allowed):
                    roots.setdefault(need, set()).add(maker.kind)
                elif need not in seen:
                    seen.add(need)
                    waiting.append(need)
    reasons = "; ".join(_because(fact, roots[fact]) for fact in sorted(roots))
    return NoPlan(f"no plan for {_listed(lacking)}: {reasons}", missing=frozenset(roots or lacking))


def _makers(fact: FactName, allowed: Catalogue) -> list[ActionDeclaration]:
    return [allowed[kind] for kind in sorted(allowed) if fact in allowed[kind].makes]


def _because(fact: FactName, wanted_by: Set[ActionKind]) -> str:
    barred = [kind for kind in sorted(CATALOGUE) if fact in CATALOGUE[kind].makes]
    notes = [f"{_listed(wanted_by)} needs it"] if wanted_by else []
    notes += [f"{_listed(barred)} would make it so but is not allowed here"] if barred else []
    return f"{fact} does not hold and nothing allowed makes it so" + (f" ({'; '.join(notes)})" if notes else "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
