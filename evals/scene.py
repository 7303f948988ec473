"""One run of a scenario as everything around the crew sees it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

from evals.injections import VersionRole
from evals.scenario import Scenario
from evals.world.world import World, midnight
from orchestrator.crew import Crew
from policies.engine import SHIPPED
from state.clock import ReplayClock
from tools.language import LanguageModel

POLICY_COPY = "policies"


class SteppedClock:
    """Domain time of the control plane; a fault may set it back, while the world's own time goes on."""

    def __init__(self, world: ReplayClock) -> None:
        self._world = world
        self.back = timedelta(0)

    def now(self) -> datetime:
        return self._world.now() - self.back


@dataclass(slots=True, kw_only=True)
class Scene:
    folder: Path
    scenario: Scenario
    seed: int
    world: World
    clock: SteppedClock
    crew: Crew
    draws: random.Random
    """What the crew's new ids are made of."""
    said: list[str] = field(default_factory=list)
    language: LanguageModel | None = None
    """What reads goals in free words; None: the rules alone."""
    second_worker: bool = False
    """Another control plane ticks on the same state today."""
    began: dict[str, int] = field(default_factory=dict)
    """Kind of injection -> the day on which the first of them began."""
    amiss: list[str] = field(default_factory=list)
    """What the timeline says and could not be: a version in a role that nobody holds, a goal that the door refused."""

    @property
    def models(self) -> list[str]:
        return list(self.world.specs)

    @property
    def opened_at(self) -> datetime:
        """Domain time of the set-up, before the first live day."""
        return midnight(date.fromisoformat(self.world.state.start))

    def day_of(self, at: date) -> int:
        """Number of a live day: 0 is the first."""
        return (at - date.fromisoformat(self.world.state.start)).days

    def date_of(self, day: int) -> date:
        return date.fromisoformat(self.world.state.start) + timedelta(days=day)


def policy_folder(folder: Path) -> Path:
    """Where the policy files of a run are: the shipped ones, until the run has a copy that somebody edits."""
    copy = folder / POLICY_COPY
    return copy if copy.exists() else SHIPPED


def version_of(world: World, model: str, role: VersionRole) -> str | None:
    """The version in a role as the world knows it; None where there is none, and for `next`."""
    state = world.model(model)
    champion = state.aliases.get("champion")
    match role:
        case "champion":
            return champion
        case "first":
            return "1" if state.versions else None
        case "candidate":
            others = [v.version for v in state.versions if champion is None or int(v.version) > int(champion)]
            return others[-1] if others else None
        case "previous":
            held = [
                str(e.args["version"])
                for e in world.effects
                if e.method == "registry.alias.champion" and e.model == model
            ]
            before = [version for version in held if version != champion]
            return before[-1] if before else None
        case "next":
            return None
